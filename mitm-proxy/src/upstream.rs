//! The call leaves: resolve, connect, verify, send, and take the answer's head.
//! Place on the path: after the credential was put in; the only code that opens connections to the outside.
//! INVARIANT: the peer is verified for the name that was decided on, and a call is sent at most once.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use audit::{Ledger, Owed};
use http::header::{
    ACCEPT_ENCODING, CONNECTION, COOKIE, HOST, IF_RANGE, RANGE, SEC_WEBSOCKET_EXTENSIONS, TE,
};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use policies::{AgentId, CredentialId, Endpoint, Peer, Reason};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vault::{Armed, Lent};

use crate::accept::Connection;
use crate::body::{Body, BodyError, Tally};
use crate::dial::{first, tunnel};
use crate::handshake::{client_certificate, is_about_identity};
use crate::meter::{Meter, Stage};
use crate::names::real::{Dialable, Known};
use crate::pool::{Borrowed, Key, Pinned, Pool, Sender};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::response::{Debt, EncodedAnswer, ResponseBody, relay};
use crate::settings::Settings;
use crate::share::{Place, Share};
use crate::tls::verify::Verification;
use crate::tls::{H2, verify};
use crate::websocket::{self, Asked, Switched};
use crate::wire::Flaw;

/// The way out.
pub(crate) struct Upstream {
    pool: Pool,
    pub(crate) tls: RwLock<Verification>,
    known: Known,
    ledger: Ledger,
    meter: Arc<dyn Meter>,
    /// Fires when what did not end in time after a stop is cut.
    pub(crate) cut: CancellationToken,
}

/// What is needed besides the call itself.
pub(crate) struct Departure<'a> {
    pub(crate) agent: &'a AgentId,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) secure: bool,
    /// HTTP/2 without negotiation, as the agent spoke it.
    pub(crate) prior_knowledge: bool,
    pub(crate) settings: &'a Settings,
    pub(crate) flaw: &'a Flaw,
    pub(crate) sent: Tally,
    pub(crate) started: Instant,
    /// The agent asks for a WebSocket: a connection of its own, in HTTP/1.1, and where its tunnel goes.
    pub(crate) socket: Option<Asked>,
    pub(crate) switched: &'a Switched,
    pub(crate) share: &'a Share,
    /// The call's place, kept until its answer has been taken.
    pub(crate) place: Option<Place>,
    /// A person's yes was used up for it: it is tried once.
    pub(crate) approved: bool,
    /// What its connection asks of upstream's TLS, and what it was lent to show there.
    pub(crate) peer: Option<Arc<Peer>>,
    pub(crate) identity: Option<Lent>,
}

impl<'a> Departure<'a> {
    pub(crate) fn of(
        connection: &'a Connection,
        request: &mut Request,
        settings: &'a Settings,
        started: Instant,
        place: Place,
        approved: bool,
    ) -> Self {
        Self {
            agent: &connection.workload.agent,
            endpoint: connection.endpoint(),
            secure: connection.secure,
            prior_knowledge: connection.prior_knowledge,
            settings,
            flaw: &connection.flaw,
            sent: request.body.tally(),
            started,
            socket: request.socket.take(),
            switched: &connection.switched,
            share: &connection.share,
            place: Some(place),
            approved,
            peer: None,
            identity: None,
        }
    }

    /// What tells its connections to upstream from those of others, besides who and where.
    fn pinned(&self) -> Option<Pinned> {
        let shown = self.identity.as_ref().map(|lent| lent.credential().1);
        let peer = Arc::clone(self.peer.as_ref()?);
        Some(Pinned { peer, shown })
    }

    /// What was dialled, or a tunnel of the operator's proxy where that is what was dialled.
    pub(crate) async fn through(&self, stream: TcpStream) -> Result<TcpStream, Failed> {
        let settings = self.settings;
        if settings.outbound.is_none() || settings.connect_to.contains_key(self.endpoint) {
            return Ok(stream);
        }
        tunnel(stream, self.endpoint).await
    }
}

/// Why the call got no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
}

impl Failed {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

impl Upstream {
    pub(crate) fn new(tls: Verification, ledger: Ledger, meter: Arc<dyn Meter>) -> Self {
        Self {
            pool: Pool::default(),
            tls: RwLock::new(tls),
            known: Known::default(),
            ledger,
            meter,
            cut: CancellationToken::new(),
        }
    }

    /// Roots or fixed addresses changed: nothing that was opened or looked up before counts any more.
    pub(crate) fn replace(&self, tls: Verification) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        self.known.clear();
        self.pool.clear();
    }

    /// Closes idle connections, for as long as the proxy runs.
    pub(crate) async fn sweep(&self, idle: Duration) {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.pool.sweep(idle);
            self.known.sweep();
        }
    }

    /// The outcome that is owed from now on.
    pub(crate) fn debt(
        &self,
        owed: Owed,
        credential: Option<(CredentialId, u32)>,
        departure: &mut Departure<'_>,
    ) -> Debt {
        Debt {
            owed: Some(owed),
            ledger: self.ledger.clone(),
            meter: Arc::clone(&self.meter),
            sent: departure.sent.clone(),
            received: None,
            frames: None,
            status: None,
            credential,
            shown: departure.identity.as_ref().map(|lent| {
                let (id, version) = lent.credential();
                (id.clone(), version)
            }),
            departed: Instant::now(),
            started: departure.started,
            cut: self.cut.clone(),
            _place: departure.place.take(),
        }
    }

    /// Sends the call and turns the answer's head into the agent's. From here on the outcome is owed, and written.
    pub(crate) async fn send(
        &self,
        mut armed: Armed<Body>,
        mut departure: Departure<'_>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        departure.peer = armed.call().peer().cloned();
        departure.identity = armed.take_identity();
        let credential = armed
            .credential()
            .map(|(id, version)| (id.clone(), version));
        let (mut request, scrubber, owed) = armed.into_parts();
        let mut debt = self.debt(owed, credential, &mut departure);
        if debt.credential.is_some() {
            ask_for_scrubbable(&mut request);
        }
        let answer = self.exchange(request, &departure).await;
        self.meter.stage(Stage::Upstream, debt.departed.elapsed());
        let failed = match answer {
            Ok((answer, _)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let limits = &departure.settings.limits;
                let asked = departure.socket.take();
                match websocket::switch(asked, answer, scrubber, debt, limits, departure.switched) {
                    Ok(response) => return Ok(response),
                    Err((failed, unsettled)) => {
                        debt = *unsettled;
                        failed
                    }
                }
            }
            Ok((answer, connection)) => {
                match relay(
                    answer,
                    scrubber,
                    debt,
                    connection,
                    departure.settings.limits.silence,
                ) {
                    Ok(response) => return Ok(response),
                    Err(EncodedAnswer {
                        encoding,
                        debt: unsettled,
                    }) => {
                        debt = *unsettled;
                        let detail = format!(
                            "Upstream encoded its answer ({encoding}) although it was asked not to; the lent credential \
                             could not be searched for in it."
                        );
                        Failed::new(Reason::ResponseEncoding, detail)
                    }
                }
            }
            Err(failed) => failed,
        };
        debt.fail(failed.reason, &failed.detail);
        Err(Refusal::new(failed.reason, failed.detail).already_recorded())
    }

    /// One exchange; a second try only where hyper hands the whole message back, and so sent nothing of it.
    async fn exchange(
        &self,
        request: http::Request<Body>,
        departure: &Departure<'_>,
    ) -> Result<(Response<Incoming>, Borrowed), Failed> {
        let limits = &departure.settings.limits;
        let mut request = request;
        loop {
            let mut connection = self.connection(departure).await?;
            let outbound = for_sender(request, &connection.sender, departure)?;
            let sending = connection.sender.send(outbound);
            let failed = match timeout(limits.answer, sending).await {
                Err(_) => {
                    return Err(Failed::new(
                        Reason::UpstreamTimeout,
                        "Upstream did not answer in time.",
                    ));
                }
                Ok(Ok(answer)) => return Ok((answer, connection)),
                Ok(Err(failed)) => failed,
            };
            match failed.unsent {
                Some(unsent) if connection.reused && !departure.approved => {
                    self.meter.retried();
                    request = back_to_origin_form(*unsent);
                }
                _ if failed.error.is_user() => return Err(broken_body(&failed.error, departure)),
                _ if connection.asked
                    && (departure.identity.is_none()
                        || verify::wants_certificate(&failed.error)) =>
                {
                    return Err(client_certificate(departure));
                }
                _ => {
                    let detail = format!(
                        "The call to {} broke off: {}.",
                        departure.endpoint, failed.error
                    );
                    return Err(Failed::new(Reason::UpstreamUnreachable, detail));
                }
            }
        }
    }

    /// A kept connection, or a new one to the first address that answers.
    async fn connection(&self, departure: &Departure<'_>) -> Result<Borrowed, Failed> {
        let limits = &departure.settings.limits;
        let addresses = self.addresses(departure).await?;
        let key = |address| Key {
            agent: departure.agent.clone(),
            endpoint: departure.endpoint.clone(),
            address,
            secure: departure.secure,
            prior_knowledge: departure.prior_knowledge,
            peer: departure.pinned(),
        };
        // An approved call is tried once: not on a connection that may have closed a moment ago. A connection that becomes a
        // WebSocket serves no other call, and HTTP/2 offers none.
        let own = departure.approved || departure.socket.is_some();
        let kept = if own { &[] } else { &*addresses };
        for address in kept {
            if let Some(kept) = self
                .pool
                .take(&key(*address), limits.idle, limits.idle_connections)
            {
                return Ok(kept);
            }
        }
        // This agent's turn: one that dials a lot does not hold up the others.
        let _turn = departure.share.dial().await;
        let mut left = addresses.to_vec();
        loop {
            let dialled = first(&left, departure.endpoint, limits.connect);
            let (address, stream) = Box::pin(dialled).await?;
            match Box::pin(self.connect(stream, departure)).await {
                Ok((sender, asked)) => {
                    let most = limits.idle_connections;
                    let mut adopted = self.pool.adopt(sender, &key(address), most);
                    adopted.asked = asked;
                    return Ok(adopted);
                }
                // The name is wrong or the peer is, or we are to it: another address would only hide it.
                Err(failed) if is_about_identity(failed.reason) => return Err(failed),
                Err(failed) if left.len() < 2 => return Err(failed),
                Err(_) => left.retain(|other| *other != address),
            }
        }
    }

    pub(crate) async fn addresses(
        &self,
        departure: &Departure<'_>,
    ) -> Result<Arc<[Dialable]>, Failed> {
        let settings = departure.settings;
        self.known
            .addresses(departure.endpoint, settings, &*self.meter)
            .await
    }

    async fn connect(
        &self,
        stream: TcpStream,
        departure: &Departure<'_>,
    ) -> Result<(Sender, bool), Failed> {
        let limits = &departure.settings.limits;
        let endpoint = departure.endpoint;
        let shake = async {
            let stream = departure.through(stream).await?;
            if !departure.secure {
                let h2 = departure.prior_knowledge;
                let sender = handshake(stream, h2, limits.head_bytes, limits.headers);
                return Ok((sender.await?, false));
            }
            let (stream, asked) = self.verified(stream, departure).await?;
            let h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
            let sender = handshake(stream, h2, limits.head_bytes, limits.headers).await?;
            Ok((sender, asked))
        };
        timeout(limits.upstream_handshake, shake)
            .await
            .map_err(|_| {
                Failed::new(
                    Reason::UpstreamTimeout,
                    format!("No handshake with {endpoint} in time."),
                )
            })?
    }
}

/// The agent's own body broke the call off, half sent.
fn broken_body(error: &hyper::Error, departure: &Departure<'_>) -> Failed {
    if let Some(flaw) = departure.flaw.get() {
        let detail = format!("The request's body is not canonical: {flaw}.");
        return Failed::new(Reason::AmbiguousRequest, detail);
    }
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<BodyError>());
    let reason = cause.map_or(Reason::MalformedRequest, BodyError::reason);
    let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
    Failed::new(
        reason,
        format!("The request's body cannot be sent to its end: {cause}."),
    )
}

async fn handshake<IO>(
    io: IO,
    h2: bool,
    head_bytes: usize,
    headers: usize,
) -> Result<Sender, Failed>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| {
        Failed::new(
            Reason::UpstreamUnreachable,
            format!("The HTTP handshake with upstream failed: {error}."),
        )
    };
    let io = TokioIo::new(io);
    if h2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(Duration::from_secs(30))
            .handshake(io)
            .await
            .map_err(failed)?;
        tokio::spawn(connection);
        return Ok(Sender::Http2(sender));
    }
    let (sender, connection) = http1::Builder::new()
        .max_headers(headers)
        .max_header_size(head_bytes)
        .handshake(io)
        .await
        .map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    Ok(Sender::Http1(sender))
}

/// A send that failed, and the request if nothing of it was sent.
struct Unsent {
    error: hyper::Error,
    unsent: Option<Box<http::Request<Body>>>,
}

impl Sender {
    async fn send(&mut self, request: http::Request<Body>) -> Result<Response<Incoming>, Unsent> {
        let result = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        result.map_err(|mut error| {
            let unsent = error.take_message().map(Box::new);
            Unsent {
                error: error.into_error(),
                unsent,
            }
        })
    }
}

/// A scrubber sees only plain bytes and whole bodies: no content coding, and no ranges, which would let a secret that
/// upstream echoes be read a few bytes at a time.
fn ask_for_scrubbable(request: &mut http::Request<Body>) {
    let headers = request.headers_mut();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.remove("grpc-accept-encoding");
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    headers.remove(RANGE);
    headers.remove(IF_RANGE);
}

/// HTTP/1 wants origin form and Host, HTTP/2 an absolute URI and no Host.
fn for_sender(
    request: http::Request<Body>,
    sender: &Sender,
    departure: &Departure<'_>,
) -> Result<http::Request<Body>, Failed> {
    let (mut parts, body) = request.into_parts();
    match sender {
        Sender::Http1(_) => {
            parts.version = Version::HTTP_11;
            // A header of one hop in HTTP/1: said again for this one, since trailers are understood here and passed on.
            if parts.headers.contains_key(TE) && departure.socket.is_none() {
                parts
                    .headers
                    .insert(CONNECTION, HeaderValue::from_static("te"));
            }
            join_cookies(&mut parts.headers);
        }
        Sender::Http2(_) => {
            let not_written = || {
                Failed::new(
                    Reason::UpstreamUnreachable,
                    "The request cannot be written as HTTP/2.",
                )
            };
            parts.version = Version::HTTP_2;
            parts.headers.remove(CONNECTION);
            let authority = parts.headers.remove(HOST).ok_or_else(not_written)?;
            let mut uri = parts.uri.into_parts();
            uri.authority =
                Some(Authority::try_from(authority.as_bytes()).map_err(|_| not_written())?);
            uri.scheme = Some(if departure.secure {
                Scheme::HTTPS
            } else {
                Scheme::HTTP
            });
            parts.uri = Uri::from_parts(uri).map_err(|_| not_written())?;
        }
    }
    Ok(http::Request::from_parts(parts, body))
}

/// HTTP/2 may split a cookie header into lines, HTTP/1 wants one (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Undoes [`for_sender`] for the second try, whose connection may speak the other protocol.
fn back_to_origin_form(mut request: http::Request<Body>) -> http::Request<Body> {
    let uri = request.uri().clone().into_parts();
    if let Some(authority) = &uri.authority
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(target) = uri.path_and_query {
        *request.uri_mut() = Uri::from(target);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_that_http2_splits_are_one_header_again() {
        let mut headers = HeaderMap::new();
        join_cookies(&mut headers);
        assert!(headers.is_empty());
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(
            headers.get_all(COOKIE).iter().collect::<Vec<_>>(),
            ["a=1; b=2"]
        );
    }
}
