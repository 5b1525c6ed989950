//! The answer on its way back: hop-by-hop headers removed, the lent secret scrubbed, the outcome written at its end.
//! Place on the path: the last stage; holds the debt of an outcome until the body ends, fails or is dropped.
//! INVARIANT: no byte of an answer reaches the agent before the scrubber of the secret that was lent for it has seen it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use audit::{Ledger, Outcome, Owed};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, HeaderName};
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use policies::{CredentialId, Reason};
use tokio::time::Sleep;
use vault::Scrubber;

use crate::body::Tally;
use crate::clock;
use crate::meter::{Meter, Stage};
use crate::pool::Borrowed;
use crate::request::HOP_BY_HOP;

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
    pub(crate) status: Option<u16>,
    pub(crate) credential: Option<(CredentialId, u32)>,
    pub(crate) departed: Instant,
    pub(crate) started: Instant,
}

impl Debt {
    /// The answer was relayed whole.
    fn relayed(&mut self) {
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
            request_digest: Some(request_digest),
            response_digest: received.map(|(_, digest)| digest),
            credential: self.credential.take(),
            upstream: self.departed.elapsed(),
            ..Outcome::new(clock::now())
        };
        self.ledger.outcome(owed, outcome);
    }
}

impl Drop for Debt {
    /// Finds a debt only when the agent went away inside a call; event streams end like this all the time.
    fn drop(&mut self) {
        self.settle(None, None, true);
    }
}

/// Turns upstream's answer into the agent's. Refuses an encoded body where a secret was lent: it could not be scrubbed.
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
    if lent && let Some(encoding) = foreign_encoding(&parts.headers) {
        return Err(EncodedAnswer {
            encoding,
            debt: Box::new(debt),
        });
    }
    clean(&mut parts.headers, lent.then_some(&scrubber));
    parts.extensions.clear();
    let received = Tally::default();
    debt.received = Some(received.clone());
    let mut body = Relayed {
        left: incoming.size_hint().exact(),
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

/// A content coding that hides what the scrubber looks for.
fn foreign_encoding(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .find(|value| !value.is_empty() && !value.as_bytes().eq_ignore_ascii_case(b"identity"))
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Removes hop-by-hop headers (and `Alt-Svc`, which would send the agent where it cannot go) and scrubs the rest.
fn clean(headers: &mut HeaderMap, scrubber: Option<&Scrubber>) {
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
            // Scrubbing keeps the length.
            Self::Relayed(body) => body.incoming.size_hint(),
        }
    }
}
