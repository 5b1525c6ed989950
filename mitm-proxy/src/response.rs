//! The answer on its way back: hop-by-hop headers removed, the lent secret scrubbed, the outcome written at its end.
//! Place on the path: the last stage; holds the debt of an outcome until the body ends, fails or is dropped.
//! INVARIANT: no byte of an answer reaches the agent before the scrubber of the secret that was lent for it has seen it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use audit::{Ledger, Outcome, Owed};
use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use policies::{CredentialId, Reason};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use vault::Scrubber;

use crate::body::Tally;
use crate::clock;
use crate::coding::{Coding, Decoder, Flaw};
use crate::meter::{Meter, Stage};
use crate::pool::Borrowed;
use crate::request::HOP_BY_HOP;
use crate::share::Place;
use crate::tunnel::FrameCount;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The body that the agent reads: a refusal's, or upstream's through the scrubber.
pub(crate) enum ResponseBody {
    /// Ours.
    Whole(Full<Bytes>),
    /// Upstream's.
    Relayed(Box<Relayed>),
}

/// Upstream's body, and what happens when it is over.
pub(crate) struct Relayed {
    incoming: Incoming,
    scrubber: Scrubber,
    lent: bool,
    /// Undoes upstream's coding, so that what was lent can be searched for.
    decoder: Option<Box<Decoder>>,
    /// Bytes that are still to come, where upstream said how many.
    left: Option<u64>,
    flushed: bool,
    /// Kept until what the scrubber held back has gone before them.
    trailers: Option<HeaderMap>,
    silence: Pin<Box<Sleep>>,
    patience: Duration,
    received: Tally,
    debt: Debt,
    /// The connection goes back to the pool when the body has ended in order.
    connection: Option<Borrowed>,
}

/// The outcome that is owed to the ledger; settled once, at the latest when dropped.
pub(crate) struct Debt {
    pub(crate) owed: Option<Owed>,
    pub(crate) ledger: Ledger,
    pub(crate) meter: Arc<dyn Meter>,
    pub(crate) sent: Tally,
    pub(crate) received: Option<Tally>,
    /// Where the call became a WebSocket.
    pub(crate) frames: Option<Arc<FrameCount>>,
    pub(crate) status: Option<u16>,
    pub(crate) credential: Option<(CredentialId, u32)>,
    /// The client certificate that upstream could see; named by the outcome where no other credential was lent.
    pub(crate) shown: Option<(CredentialId, u32)>,
    pub(crate) departed: Instant,
    pub(crate) started: Instant,
    /// Fires when what did not end in time after a stop is cut.
    pub(crate) cut: CancellationToken,
    /// The call counts as under way until this is dropped.
    pub(crate) _place: Option<Place>,
}

impl Debt {
    /// The answer was relayed whole.
    pub(crate) fn relayed(&mut self) {
        if self.owed.is_none() {
            return;
        }
        self.settle(None, None, false);
        self.meter.stage(Stage::Whole, self.started.elapsed());
    }

    /// The call failed on our side or upstream's.
    pub(crate) fn fail(&mut self, reason: Reason, detail: &str) {
        self.settle(Some(reason), Some(detail.to_owned()), false);
    }

    /// Sluice stopped before the call was over.
    pub(crate) fn stopped(&mut self, detail: &str) {
        self.settle(Some(Reason::Shutdown), Some(detail.to_owned()), true);
    }

    /// Writes the outcome (queued, not awaited); the first time only.
    fn settle(&mut self, reason: Option<Reason>, detail: Option<String>, aborted: bool) {
        let Some(owed) = self.owed.take() else { return };
        let (request_bytes, request_digest) = self.sent.sums();
        let received = self.received.as_ref().map(Tally::sums);
        let outcome = Outcome {
            status: self.status,
            reason,
            detail,
            aborted,
            request_bytes,
            response_bytes: received.map_or(0, |(bytes, _)| bytes),
            frames: self.frames.as_deref().map(FrameCount::both),
            request_digest: Some(request_digest),
            response_digest: received.map(|(_, digest)| digest),
            credential: self.credential.take().or_else(|| self.shown.take()),
            upstream: self.departed.elapsed(),
            ..Outcome::new(clock::now())
        };
        self.ledger.outcome(owed, outcome);
    }
}

impl Drop for Debt {
    /// Finds a debt only when the agent went away inside a call (event streams end like this all the time), or when it was cut.
    fn drop(&mut self) {
        if self.cut.is_cancelled() {
            self.stopped("Sluice stopped, and the call did not end in the time that it had.");
        } else {
            self.settle(None, None, true);
        }
    }
}

/// Turns upstream's answer into the agent's. Where a secret was lent, an encoded body is decoded, or refused: it could not be scrubbed.
pub(crate) fn relay(
    answer: Response<Incoming>,
    scrubber: Scrubber,
    mut debt: Debt,
    connection: Borrowed,
    patience: Duration,
) -> Result<Response<ResponseBody>, EncodedAnswer> {
    let lent = debt.credential.is_some();
    let (mut parts, incoming) = answer.into_parts();
    debt.status = Some(parts.status.as_u16());
    let coding = match lent.then(|| coding_of(&parts.headers)).transpose() {
        Ok(coding) => coding.flatten(),
        Err(encoding) => {
            let debt = Box::new(debt);
            return Err(EncodedAnswer { encoding, debt });
        }
    };
    if coding.is_some() {
        // The agent gets it plain, and what was said of the encoded bytes is not true of these.
        for name in OF_ENCODED {
            parts.headers.remove(name);
        }
    }
    clean(&mut parts.headers, lent.then_some(&scrubber));
    parts.extensions.clear();
    let received = Tally::default();
    debt.received = Some(received.clone());
    let mut body = Relayed {
        left: incoming.size_hint().exact().filter(|_| coding.is_none()),
        decoder: coding.map(|coding| Box::new(Decoder::new(coding))),
        incoming,
        scrubber,
        lent,
        flushed: false,
        trailers: None,
        silence: Box::pin(tokio::time::sleep(patience)),
        patience,
        received,
        debt,
        connection: Some(connection),
    };
    // No body will come (HEAD, 204, 304, an empty one), and so nobody will ask for it.
    if body.incoming.is_end_stream() {
        body.end();
    }
    Ok(Response::from_parts(
        parts,
        ResponseBody::Relayed(Box::new(body)),
    ))
}

/// An answer that cannot be scrubbed.
pub(crate) struct EncodedAnswer {
    pub(crate) encoding: String,
    pub(crate) debt: Box<Debt>,
}

/// The coding of a body in which a secret is to be searched for. An unknown one hides it, as does one of each message (gRPC).
fn coding_of(headers: &HeaderMap) -> Result<Option<Coding>, String> {
    let plain = |value: &&HeaderValue| value.is_empty() || *value == "identity";
    if let Some(value) = headers
        .get_all(GRPC_ENCODING)
        .iter()
        .find(|value| !plain(value))
    {
        return Err(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    Coding::of(headers)
}

/// Headers that speak of a body as it was encoded.
const OF_ENCODED: [HeaderName; 8] = [
    ACCEPT_RANGES,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    ETAG,
    HeaderName::from_static("repr-digest"),
];

/// Removes hop-by-hop headers (and `Alt-Svc`, which would send the agent where it cannot go) and scrubs the rest.
pub(crate) fn clean(headers: &mut HeaderMap, scrubber: Option<&Scrubber>) {
    let nominated: Vec<HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','))
        .filter_map(|token| HeaderName::try_from(token.trim()).ok())
        .collect();
    for name in nominated.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove(http::header::ALT_SVC);
    if let Some(scrubber) = scrubber {
        for value in headers.values_mut() {
            *value = scrubber.scrub_value(value);
        }
    }
}

impl Relayed {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        loop {
            match self.decoded() {
                Ok(None) => {}
                Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(flaw) => return Poll::Ready(Some(Err(self.undecodable(flaw)))),
            }
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Pending => {
                    if self.silence.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.debt.fail(
                        Reason::UpstreamTimeout,
                        "Upstream fell silent inside its answer.",
                    );
                    return Poll::Ready(Some(Err(RelayError::Silent)));
                }
                Poll::Ready(Some(Err(error))) => {
                    let detail = format!("Upstream broke off its answer: {error}.");
                    self.debt.fail(Reason::UpstreamUnreachable, &detail);
                    return Poll::Ready(Some(Err(RelayError::Upstream(error))));
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let next = tokio::time::Instant::now() + self.patience;
                    self.silence.as_mut().reset(next);
                    match frame.into_data() {
                        Ok(data) if self.decoder.is_some() => {
                            self.received.add(&data);
                            if let Some(decoder) = &mut self.decoder {
                                decoder.push(data);
                            }
                        }
                        Ok(data) => {
                            let data = self.pass(data);
                            if !data.is_empty() {
                                return Poll::Ready(Some(Ok(Frame::data(data))));
                            }
                        }
                        Err(frame) => {
                            let mut trailers = frame.into_trailers().unwrap_or_default();
                            clean(&mut trailers, self.lent.then_some(&self.scrubber));
                            self.trailers = Some(trailers);
                        }
                    }
                }
                Poll::Ready(None) => {
                    if let Some(decoder) = &mut self.decoder
                        && !decoder.finish()
                    {
                        continue;
                    }
                    if self
                        .decoder
                        .as_ref()
                        .is_some_and(|decoder| !decoder.is_over())
                    {
                        return Poll::Ready(Some(Err(self.undecodable(Flaw::Broken))));
                    }
                    let rest = self.flush();
                    if !rest.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                    let trailers = self
                        .trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers)));
                    if trailers.is_none() {
                        self.end();
                    }
                    return Poll::Ready(trailers);
                }
            }
        }
    }

    /// The next piece of an encoded body, plain and scrubbed; never an empty one.
    fn decoded(&mut self) -> Result<Option<Bytes>, Flaw> {
        let Some(decoder) = &mut self.decoder else {
            return Ok(None);
        };
        while let Some(piece) = decoder.pull()? {
            let piece = self.scrubber.push(piece);
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// The answer breaks off: what comes next cannot be searched for what was lent.
    fn undecodable(&mut self, flaw: Flaw) -> RelayError {
        let reason = match flaw {
            Flaw::Bomb | Flaw::Large => Reason::CompressionBomb,
            Flaw::Broken | Flaw::Trailing => Reason::ResponseEncoding,
        };
        let detail = format!("Upstream's answer {}.", flaw.words());
        self.debt.fail(reason, &detail);
        RelayError::Coding(reason)
    }

    /// Counts and scrubs one piece. With the last piece of a body whose length is known, everything is over: an HTTP/1
    /// server stops asking once it has written that many bytes.
    fn pass(&mut self, data: Bytes) -> Bytes {
        self.received.add(&data);
        self.left = self
            .left
            .map(|left| left.saturating_sub(u64::try_from(data.len()).unwrap_or(u64::MAX)));
        let data = if self.lent {
            self.scrubber.push(data)
        } else {
            data
        };
        if self.left != Some(0) {
            return data;
        }
        let rest = self.flush();
        self.end();
        if rest.is_empty() {
            data
        } else {
            [data, rest].concat().into()
        }
    }

    /// What the scrubber held back; nothing the second time.
    fn flush(&mut self) -> Bytes {
        if self.lent && !self.flushed {
            self.flushed = true;
            return self.scrubber.finish();
        }
        Bytes::new()
    }

    /// The answer is over in order: says so once, and the connection can serve the next call.
    fn end(&mut self) {
        self.debt.relayed();
        if let Some(connection) = self.connection.take() {
            connection.give_back();
        }
    }
}

/// Why a relayed body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("upstream's answer cannot be read: {0}")]
    Coding(Reason),
    #[error("upstream fell silent inside its answer")]
    Silent,
    #[error("upstream broke off its answer: {0}")]
    Upstream(hyper::Error),
}

impl ResponseBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never| match never {}),
            Self::Relayed(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Relayed(body) => {
                body.incoming.is_end_stream() && body.trailers.is_none() && body.debt.owed.is_none()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Relayed(body) if body.decoder.is_some() => SizeHint::default(),
            // Scrubbing keeps the length.
            Self::Relayed(body) => body.incoming.size_hint(),
        }
    }
}
