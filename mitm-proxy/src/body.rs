//! A request body: live from the agent, or read ahead because a decision needs it; counted and digested as it leaves.
//! Place on the path: made with the request, read ahead by capability and approvals, sent by upstream.
//! INVARIANT: what is decided on is what is sent; a body that was read ahead is sent from those same bytes.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use policies::{Digest, Reason, Strip};
use sha2::{Digest as _, Sha256};
use tokio::time::Sleep;

use crate::accept::Connection;
use crate::refusal::Refusal;
use crate::settings::Limits;
use crate::share::{Bound, Of, Place};
use crate::trailers;

/// A request body, on its way upstream.
#[derive(Debug)]
pub(crate) struct Body {
    inner: Inner,
    tally: Tally,
    /// The credential's places, which trailers do not reach either; set before the body leaves.
    places: Option<Arc<[Strip]>>,
    /// The budget that what was read ahead is taken from.
    buffered: Place,
    bound: Bound,
    /// Bytes that may still come.
    room: u64,
    patience: Duration,
    /// Runs only while a piece is awaited.
    waiting: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Inner {
    /// Still arriving from the agent.
    Live(Incoming),
    /// Read ahead; `sent` once the bytes have been handed on.
    Whole {
        bytes: Bytes,
        trailers: Option<HeaderMap>,
        sent: bool,
    },
}

/// Size and digest of what passed so far; shared between a body and the outcome that reports it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Arc<Mutex<Sums>>);

#[derive(Debug, Default)]
struct Sums {
    bytes: u64,
    hash: Sha256,
}

impl Tally {
    pub(crate) fn add(&self, bytes: &[u8]) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums.bytes = sums
            .bytes
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        sums.hash.update(bytes);
    }

    /// Bytes that passed, and their SHA-256.
    pub(crate) fn sums(&self) -> (u64, Digest) {
        let sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (sums.bytes, Digest(sums.hash.clone().finalize().into()))
    }
}

impl Body {
    /// A body that is still arriving.
    pub(crate) fn live(
        incoming: Incoming,
        connection: &Connection,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        if incoming.size_hint().lower() > limits.request_bytes {
            let detail = format!("A body may have at most {} bytes.", limits.request_bytes);
            return Err(Refusal::new(Reason::BodyTooLarge, detail).and_close());
        }
        Ok(Self {
            inner: Inner::Live(incoming),
            tally: Tally::default(),
            places: None,
            buffered: connection.share.nothing(Of::Buffered),
            bound: limits.bound(Of::Buffered),
            room: limits.request_bytes,
            patience: limits.stall,
            waiting: None,
        })
    }

    /// No body.
    pub(crate) fn none(connection: &Connection, limits: &Limits) -> Self {
        Self {
            inner: Inner::Whole {
                bytes: Bytes::new(),
                trailers: None,
                sent: false,
            },
            tally: Tally::default(),
            places: None,
            buffered: connection.share.nothing(Of::Buffered),
            bound: limits.bound(Of::Buffered),
            room: 0,
            patience: limits.stall,
            waiting: None,
        }
    }

    /// Takes what the agent may send in `places` out of the trailers, too.
    pub(crate) fn withhold(&mut self, places: &Arc<[Strip]>) {
        self.places = Some(Arc::clone(places));
    }

    /// What has been read ahead, if anything was.
    pub(crate) fn read(&self) -> Option<&Bytes> {
        match &self.inner {
            Inner::Live(_) => None,
            Inner::Whole { bytes, .. } => Some(bytes),
        }
    }

    /// The trailers, once the body has been read ahead.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match &self.inner {
            Inner::Live(_) => None,
            Inner::Whole { trailers, .. } => trailers.as_ref(),
        }
    }

    /// A handle on the sums of what is sent.
    pub(crate) fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Reads the body to its end, at most `limit` bytes and for at most `within`. Reading twice is reading once.
    pub(crate) async fn read_whole(
        &mut self,
        limit: usize,
        within: Duration,
    ) -> Result<Bytes, Refusal> {
        let incoming = match &mut self.inner {
            Inner::Whole { bytes, .. } => return Ok(bytes.clone()),
            Inner::Live(incoming) => incoming,
        };
        let budget = (&mut self.buffered, self.bound);
        let read = tokio::time::timeout(within, collect(incoming, limit, budget)).await;
        let (bytes, trailers) = read.map_err(|_| {
            Refusal::new(
                Reason::RequestTimeout,
                "The request's body did not arrive in time.",
            )
            .and_close()
        })??;
        self.inner = Inner::Whole {
            bytes: bytes.clone(),
            trailers,
            sent: false,
        };
        Ok(bytes)
    }
}

async fn collect(
    incoming: &mut Incoming,
    limit: usize,
    (buffered, bound): (&mut Place, Bound),
) -> Result<(Bytes, Option<HeaderMap>), Refusal> {
    let too_large = || {
        let detail =
            format!("A decision on this call reads its body, and reads at most {limit} bytes.");
        Refusal::new(Reason::BodyTooLarge, detail).and_close()
    };
    let announced = usize::try_from(incoming.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(too_large());
    }
    // What is announced is only believed once it comes.
    let mut bytes = BytesMut::with_capacity(announced.min(16 * 1024));
    let mut trailers = None;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::new(
                Reason::MalformedRequest,
                format!("The request's body cannot be read: {error}."),
            )
            .and_close()
        })?;
        match frame.into_data() {
            Ok(data) if bytes.len().saturating_add(data.len()) > limit => return Err(too_large()),
            Ok(data) if !buffered.grow(data.len(), bound) => {
                let detail = "The agent's calls hold as many bytes of bodies as they may; wait for some of them to end.";
                return Err(Refusal::new(Reason::Overloaded, detail).and_close());
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    trailers
        .as_ref()
        .map_or(Ok(()), check_trailers)
        .map_err(|error: BodyError| {
            Refusal::new(
                Reason::AmbiguousRequest,
                format!("The request is not canonical: {error}."),
            )
        })?;
    Ok((bytes.freeze(), trailers))
}

/// Why a body that is on its way cannot be sent to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the agent broke it off: {0}")]
    Agent(#[from] hyper::Error),
    #[error("nothing of it came for longer than `limits.stall`")]
    Stalled,
    #[error("it is larger than `limits.request_bytes`")]
    TooLarge,
    #[error("a trailer says what only a head may say")]
    Trailer,
}

impl BodyError {
    /// The refusal's name.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            BodyError::Agent(_) => Reason::MalformedRequest,
            BodyError::Stalled => Reason::RequestTimeout,
            BodyError::TooLarge => Reason::BodyTooLarge,
            BodyError::Trailer => Reason::AmbiguousRequest,
        }
    }
}

/// Nothing that decides or authorises comes behind the body, where it would come after the decision.
fn check_trailers(trailers: &HeaderMap) -> Result<(), BodyError> {
    let plain = |name: &http::HeaderName| trailers::may_trail(name.as_str().as_bytes());
    if trailers.keys().all(plain) {
        Ok(())
    } else {
        Err(BodyError::Trailer)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut frame = match &mut this.inner {
            Inner::Live(incoming) => match Pin::new(incoming).poll_frame(cx) {
                Poll::Pending => {
                    let patience = this.patience;
                    let waiting = this
                        .waiting
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                    ready!(waiting.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
                Poll::Ready(frame) => {
                    this.waiting = None;
                    frame.map(|frame| {
                        let frame = frame?;
                        frame.trailers_ref().map_or(Ok(()), check_trailers)?;
                        let length = frame.data_ref().map_or(0, Bytes::len);
                        let length = u64::try_from(length).unwrap_or(u64::MAX);
                        this.room = this.room.checked_sub(length).ok_or(BodyError::TooLarge)?;
                        Ok(frame)
                    })
                }
            },
            Inner::Whole {
                bytes,
                trailers,
                sent,
            } => {
                if !*sent && !bytes.is_empty() {
                    *sent = true;
                    Some(Ok(Frame::data(bytes.clone())))
                } else {
                    trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers)))
                }
            }
        };
        if let Some(Ok(part)) = &mut frame {
            if let Some(data) = part.data_ref() {
                this.tally.add(data);
            } else if let Some(fields) = part.trailers_mut() {
                // Without its places a body is not on its way upstream, and no trailer of it goes anywhere.
                match &this.places {
                    Some(places) => trailers::clean(fields, places),
                    None => fields.clear(),
                }
                if fields.is_empty() {
                    return Poll::Ready(None);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Live(incoming) => incoming.is_end_stream(),
            Inner::Whole {
                bytes,
                trailers,
                sent,
            } => (*sent || bytes.is_empty()) && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Live(incoming) => incoming.size_hint(),
            // With trailers to come the length is left open, or HTTP/1 would send a Content-Length and drop them.
            Inner::Whole {
                trailers: Some(_), ..
            } => SizeHint::default(),
            Inner::Whole { sent: true, .. } => SizeHint::with_exact(0),
            Inner::Whole { bytes, .. } => {
                SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
        }
    }
}
