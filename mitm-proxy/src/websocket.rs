//! WebSocket: what an upgrade request must be, and what becomes of both connections once upstream has switched.
//! Place on the path: `request` asks here at its beginning, `upstream` hands over here at its end; between them it is a call like any other.
//! INVARIANT: only WebSocket is ever switched to; where a secret was lent no extension hides what comes back.

use std::fmt;
use std::io::Cursor;
use std::sync::{Mutex, PoisonError};

use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use policies::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio_util::sync::CancellationToken;
use vault::Scrubber;

use crate::frames::Frames;
use crate::refusal::Refusal;
use crate::response::{Debt, ResponseBody, clean};
use crate::settings::Limits;
use crate::tunnel::{Side, Tunnel};
use crate::upstream::Failed;
use crate::wire::Watched;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// An upgrade that an agent asked for.
#[derive(Debug)]
pub(crate) struct Asked(OnUpgrade);

/// Where the agent's connection finds what it has become, after its last answer.
#[derive(Default)]
pub(crate) struct Switched(Mutex<Option<Box<Sockets>>>);

/// Two connections that have switched, and what is owed for them.
pub(crate) struct Sockets {
    agent: OnUpgrade,
    upstream: OnUpgrade,
    tunnel: Tunnel<Frames>,
}

/// Whether the request asks for WebSocket. Another protocol is refused, except HTTP/2 in the clear: a server that does not know it
/// answers in HTTP/1.1 (RFC 9110 section 7.8), and clients that ask for it on every connection expect that.
pub(crate) fn asked(parts: &mut Parts, ends: bool) -> Result<Option<Asked>, Refusal> {
    if !parts.headers.contains_key(UPGRADE) || parts.version != Version::HTTP_11 {
        return Ok(None);
    }
    let mut count = 0_usize;
    let (mut http2, mut websocket) = (true, true);
    for value in parts.headers.get_all(UPGRADE) {
        count += 1;
        for protocol in value.as_bytes().split(|byte| *byte == b',') {
            let is = |name: &[u8]| protocol.trim_ascii().eq_ignore_ascii_case(name);
            http2 &= is(b"h2c");
            websocket &= is(b"websocket");
        }
    }
    if http2 {
        return Ok(None);
    }
    if !websocket || count > 1 {
        let detail =
            "Of all protocols that a connection can be upgraded to only WebSocket is relayed.";
        return Err(Refusal::new(Reason::ProtocolUnsupported, detail));
    }
    let one = |name: &HeaderName| {
        let mut values = parts.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let connection = parts
        .headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    let version = one(&SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let key = one(&SEC_WEBSOCKET_KEY).is_some_and(|key| key.len() == 24);
    if parts.method != Method::GET || !connection || !version || !key || !ends {
        let detail = "The request asks for WebSocket and is no handshake of RFC 6455.";
        return Err(Refusal::new(Reason::MalformedRequest, detail).and_close());
    }
    match parts.extensions.remove::<OnUpgrade>() {
        Some(upgrade) => Ok(Some(Asked(upgrade))),
        None => Err(Refusal::new(
            Reason::ProtocolUnsupported,
            "This connection cannot be upgraded.",
        )),
    }
}

/// Puts the two headers of this hop back in that every upgrade needs.
pub(crate) fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// Upstream has switched: its answer for the agent; the tunnel waits in `switched` until that has been written.
pub(crate) fn switch(
    asked: Option<Asked>,
    mut answer: Response<Incoming>,
    scrubber: Scrubber,
    mut debt: Debt,
    limits: &Limits,
    switched: &Switched,
) -> Result<Response<ResponseBody>, (Failed, Box<Debt>)> {
    let fail = |reason, detail: &str, debt| Err((Failed::new(reason, detail), Box::new(debt)));
    let Some(Asked(agent)) = asked else {
        let detail = "Upstream switched protocols without being asked to.";
        return fail(Reason::UpstreamUnreachable, detail, debt);
    };
    let websocket = answer
        .headers()
        .get(UPGRADE)
        .is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !websocket {
        let detail = "Upstream switched to another protocol than WebSocket.";
        return fail(Reason::UpstreamUnreachable, detail, debt);
    }
    let lent = !scrubber.is_idle();
    let extended = answer.headers().contains_key(SEC_WEBSOCKET_EXTENSIONS);
    if lent && extended {
        let detail = "Upstream uses an extension that it was not offered; the lent credential could not be searched for in it.";
        return fail(Reason::ResponseEncoding, detail, debt);
    }
    debt.status = Some(StatusCode::SWITCHING_PROTOCOLS.as_u16());
    let upstream = hyper::upgrade::on(&mut answer);
    let (mut parts, _) = answer.into_parts();
    clean(&mut parts.headers, lent.then_some(&scrubber));
    ask(&mut parts.headers);
    parts.extensions.clear();
    let to_upstream = Frames::new(Side::Agent, extended, limits.tunnel_frames, None);
    let to_agent = Frames::new(
        Side::Upstream,
        extended,
        limits.tunnel_frames,
        lent.then_some(scrubber),
    );
    let tunnel = Tunnel::new(to_upstream, to_agent, limits, debt);
    switched.put(Sockets {
        agent,
        upstream,
        tunnel,
    });
    let body = ResponseBody::whole(bytes::Bytes::new());
    Ok(Response::from_parts(parts, body))
}

impl Switched {
    fn put(&self, sockets: Sockets) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(sockets));
    }

    /// What the connection has become, if it is no longer HTTP.
    pub(crate) fn take(&self) -> Option<Box<Sockets>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Sockets {
    /// Carries frames; `IO` is what HTTP was spoken on. Says why it ended, where that is a refusal.
    pub(crate) async fn carry<IO>(
        self: Box<Self>,
        stop: &CancellationToken,
    ) -> Option<(Reason, String)>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Sockets {
            agent,
            upstream,
            tunnel,
        } = *self;
        // Dropping the tunnel writes the outcome as aborted.
        let (agent, upstream) = tokio::try_join!(agent, upstream).ok()?;
        let agent = agent.downcast::<TokioIo<Watched<IO>>>().ok()?;
        // What the agent sent before it had its answer is the beginning of its frames.
        let early = Cursor::new(agent.read_buf);
        let (reader, writer) = tokio::io::split(agent.io.into_inner().into_inner());
        let upstream = tokio::io::split(TokioIo::new(upstream));
        tunnel
            .carry((early.chain(reader), writer), upstream, stop)
            .await
    }
}

impl fmt::Debug for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switched").finish_non_exhaustive()
    }
}
