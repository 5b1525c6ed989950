//! Connections of agents: whose, where to, TLS or not, and which name that means.
//! Place on the path: from the kernel's accept to the HTTP server.
//! INVARIANT: a connection without an origin, a live workload and a protocol we read is dropped before any of it is parsed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use policies::{Endpoint, Host, Reason};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Proxy;
use crate::dropped::{Dropped, advice, gave_up, unreadable};
use crate::names::pool::InUse;
use crate::probe::{self, is_probe};
use crate::refusal::Refusal;
use crate::response::ResponseBody;
use crate::settings::Limits;
use crate::share::{Of, Place, Share};
use crate::stall::Impatient;
use crate::tls::{H2, HTTP_1_1, verify};
use crate::websocket::Switched;
use crate::wire::{Flaw, Watched};
use crate::workload::Workload;

/// A connection of an agent, as far as its requests need to know it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Who opened it.
    pub(crate) workload: Workload,
    /// The address and port it asked for.
    pub(crate) destination: SocketAddr,
    /// The name that the address stands for.
    pub(crate) host: Host,
    /// Whether it is TLS.
    pub(crate) secure: bool,
    /// Whether it is HTTP/2 in the clear, which has no negotiation: upstream is spoken to in the same way.
    pub(crate) prior_knowledge: bool,
    /// Why every request on it is refused, where that is already known.
    pub(crate) barred: Option<(Reason, String)>,
    /// What is wrong with its bytes, once something is.
    pub(crate) flaw: Flaw,
    /// What it became, if not HTTP for ever.
    pub(crate) switched: Switched,
    /// What its agent has of what all share.
    pub(crate) share: Arc<Share>,
    endpoint: Endpoint,
    /// Keeps the address from standing for another name while this connection is open.
    _name: Option<InUse>,
}

impl Connection {
    fn new(
        workload: Workload,
        destination: SocketAddr,
        name: Name,
        secure: bool,
        share: Arc<Share>,
    ) -> Self {
        let endpoint = Endpoint {
            host: name.host.clone(),
            port: destination.port(),
        };
        Self {
            workload,
            destination,
            host: name.host,
            secure,
            prior_knowledge: false,
            barred: name.barred,
            flaw: Flaw::default(),
            switched: Switched::default(),
            share,
            endpoint,
            _name: name.held,
        }
    }

    /// A place for one more call of this agent.
    pub(crate) fn admit(&self, limits: &Limits) -> Result<Place, Refusal> {
        self.share
            .take(Of::Calls, limits.bound(Of::Calls))
            .ok_or_else(|| {
                let detail = format!(
                    "{} has as many calls under way as it may; wait for some of them to end.",
                    self.workload.agent
                );
                Refusal::new(Reason::Overloaded, detail)
            })
    }

    /// Where its requests go.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    pub(crate) fn default_port(&self) -> u16 {
        if self.secure { 443 } else { 80 }
    }
}

/// The name a connection stands for, and why it may not be used, if so.
struct Name {
    host: Host,
    barred: Option<(Reason, String)>,
    held: Option<InUse>,
}

/// What the first bytes look like.
enum Protocol {
    Http,
    /// HTTP/2 in the clear, with prior knowledge (RFC 9113 section 3.3).
    Http2,
    Tls,
}

/// Accepts until `stop`; connections are served on `tasks` until they end or `cut` fires.
pub(crate) async fn accept(
    proxy: Proxy,
    listener: TcpListener,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: the connection waits in the backlog; trying at once would only spin.
                if !matches!(
                    error.kind(),
                    std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset
                ) {
                    tracing::warn!(%error, "accept failed");
                    sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            proxy.meter().refused(None, None, Reason::Overloaded);
            continue;
        };
        let (proxy, stop, cut) = (proxy.clone(), stop.clone(), cut.clone());
        tasks.spawn(async move {
            proxy.meter().connections(1);
            tokio::select! {
                () = cut.cancelled() => {}
                ended = proxy.connection(stream, &stop) => {
                    if let Err(dropped) = ended {
                        Box::pin(proxy.turn_away(dropped)).await;
                    }
                }
            }
            proxy.meter().connections(-1);
            drop(permit);
        });
    }
}

impl Proxy {
    /// One connection, from its origin to its end.
    async fn connection(&self, stream: TcpStream, stop: &CancellationToken) -> Result<(), Dropped> {
        let deadline = tokio::time::Instant::now() + self.settings().limits.handshake;
        let origin = self
            .origins()
            .accepted(stream.as_fd())
            .ok_or_else(|| Dropped {
                reason: Reason::OriginUnknown,
                workload: None,
                host: String::new(),
                detail: "The kernel knows no workload that opened this connection.".to_owned(),
            })?;
        let destination = SocketAddr::new(
            origin.destination.ip().to_canonical(),
            origin.destination.port(),
        );
        let workload = self
            .workloads()
            .get(origin.workload)
            .ok_or_else(|| Dropped {
                reason: Reason::AgentUnknown,
                workload: None,
                host: destination.to_string(),
                detail: format!("Workload {:?} is not registered.", origin.workload),
            })?;
        if self.workloads().is_disabled(&workload.agent) {
            let detail = format!("{} is disabled.", workload.agent);
            let host = destination.to_string();
            return Err(Dropped {
                reason: Reason::AgentDisabled,
                workload: Some(Box::new(workload)),
                host,
                detail,
            });
        }
        let share = self.shares().of(&workload.agent);
        let bound = self.settings().limits.bound(Of::Connections);
        let Some(_place) = share.take(Of::Connections, bound) else {
            let detail = format!("{} has as many connections open as it may.", workload.agent);
            return Err(Dropped {
                reason: Reason::Overloaded,
                workload: Some(Box::new(workload)),
                host: destination.to_string(),
                detail,
            });
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY towards the agent");
        }
        let watched = workload.clone();
        tokio::select! {
            ended = self.speak(stream, workload, destination, deadline, share, stop) => ended,
            () = self.workloads().cut(&watched) => Ok(()),
        }
    }

    /// Finds the protocol out and serves it.
    async fn speak(
        &self,
        stream: TcpStream,
        workload: Workload,
        destination: SocketAddr,
        deadline: tokio::time::Instant,
        share: Arc<Share>,
        stop: &CancellationToken,
    ) -> Result<(), Dropped> {
        let dropped = |workload: Workload, (reason, detail): (Reason, String)| Dropped {
            reason,
            workload: Some(Box::new(workload)),
            host: destination.to_string(),
            detail,
        };
        if self.is_opaque(&workload, destination) {
            // Before anything is read: in some protocols the server speaks first.
            let name = self.name(&workload, destination);
            let connection = Connection::new(workload, destination, name, false, share);
            Box::pin(self.opaque(stream, &connection, stop)).await;
            return Ok(());
        }
        let protocol = match timeout_at(deadline, protocol(&stream)).await {
            Ok(Ok(Some(protocol))) => protocol,
            // Opened and closed without a word, as port checks and pools do.
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(refused)) => return Err(dropped(workload, refused)),
        };
        match protocol {
            Protocol::Http => {
                let name = self.name(&workload, destination);
                let connection =
                    Arc::new(Connection::new(workload, destination, name, false, share));
                self.http1(stream, connection, stop).await
            }
            Protocol::Http2 => {
                let name = self.name(&workload, destination);
                let mut connection = Connection::new(workload, destination, name, false, share);
                connection.prior_knowledge = true;
                Box::pin(self.http2(stream, Arc::new(connection), stop)).await
            }
            Protocol::Tls => {
                // In a box, as what follows: a connection need not keep the room of its handshake.
                let shaking = Box::pin(self.handshake(stream, &workload, destination));
                let shaken = timeout_at(deadline, shaking).await;
                let late = || {
                    (
                        Reason::TlsHandshake,
                        "The TLS handshake was not finished in time.".to_owned(),
                    )
                };
                let (stream, name) = match shaken.unwrap_or_else(|_| Err(late())) {
                    Ok(shaken) => shaken,
                    Err(failed) => {
                        // The name tells more than the address that stands for it.
                        let host = self.name(&workload, destination).host.to_string();
                        let dropped = dropped(workload, failed);
                        return Err(Dropped { host, ..dropped });
                    }
                };
                let h2 = stream.get_ref().1.alpn_protocol() == Some(H2);
                let connection =
                    Arc::new(Connection::new(workload, destination, name, true, share));
                if h2 {
                    Box::pin(self.http2(stream, connection, stop)).await
                } else {
                    self.http1(stream, connection, stop).await
                }
            }
        }
    }

    /// Whether a connection of the agent declares the name and port opaque that this one means.
    fn is_opaque(&self, workload: &Workload, destination: SocketAddr) -> bool {
        let tenant = &workload.agent.tenant;
        let held = self.names().name_of(tenant, destination.ip());
        let host = held.map_or_else(|| Host::from(destination.ip()), |name| name.host().clone());
        let port = destination.port();
        self.bundle()
            .is_opaque(&workload.agent, &Endpoint { host, port })
    }

    /// Which name the destination stands for: a synthetic address of the tenant, or a literal that a connection names.
    fn name(&self, workload: &Workload, destination: SocketAddr) -> Name {
        let held = self
            .names()
            .name_of(&workload.agent.tenant, destination.ip());
        let host = held
            .as_ref()
            .map_or_else(|| Host::from(destination.ip()), |name| name.host().clone());
        let known = is_probe(&host) || self.bundle().resolves(&workload.agent, &host);
        let barred = (!known).then(|| {
            let detail = format!(
                "No connection of {} allows {host}; ask for one that does.",
                workload.agent
            );
            (Reason::HostUnknown, detail)
        });
        Name { host, barred, held }
    }

    /// The handshake under a leaf for the name that the client wants to see. A client that wants another name than it
    /// dialled gets its handshake and then a refusal that it can read, not a broken pipe.
    async fn handshake(
        &self,
        stream: TcpStream,
        workload: &Workload,
        destination: SocketAddr,
    ) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, Name), (Reason, String)> {
        let broken = |error: std::io::Error| {
            let reason = verify::agent_reason(&error);
            let detail = format!("The TLS handshake failed: {error}.");
            (reason, detail + &advice(reason, workload))
        };
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream)
            .await
            .map_err(broken)?;
        if let Some(mut offered) = start.client_hello().alpn()
            && !offered.any(|protocol| protocol == H2 || protocol == HTTP_1_1)
        {
            let detail = "The TLS client offers no version of HTTP; a host that speaks something else is declared opaque.";
            return Err((Reason::NotHttp, detail.to_owned()));
        }
        let sni = start
            .client_hello()
            .server_name()
            .and_then(|name| Host::parse(name).ok());
        let mut name = self.name(workload, destination);
        let shown = sni.clone().unwrap_or_else(|| name.host.clone());
        if name.barred.is_none() {
            name.barred = match sni {
                Some(sni) if sni == name.host => None,
                Some(sni) => {
                    let detail = format!(
                        "The connection was opened to {}, its TLS names {sni}.",
                        name.host
                    );
                    Some((Reason::SniMismatch, detail))
                }
                None if name.host.is_ip() => None,
                None => Some((
                    Reason::SniMissing,
                    format!("TLS to {} must name it (SNI).", name.host),
                )),
            };
        }
        let config = self
            .leaves()
            .config(workload, &shown)
            .await
            .map_err(|error| {
                tracing::error!(%error, %shown, "no leaf certificate");
                (
                    Reason::TlsHandshake,
                    format!("No certificate for {shown} could be made: {error}."),
                )
            })?;
        let stream = start.into_stream(config).await.map_err(broken)?;
        Ok((stream, name))
    }

    /// Sets up at once and not in its future: what is set up is moved once, into a box, and the connection's task keeps no
    /// second and third room for it.
    fn http1<'a, IO>(
        &'a self,
        io: IO,
        connection: Arc<Connection>,
        stop: &'a CancellationToken,
    ) -> impl Future<Output = Result<(), Dropped>> + Send + use<'a, IO>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let settings = self.settings();
        let limits = &settings.limits;
        let stalled = Arc::<AtomicBool>::default();
        let io = Impatient::new(io, limits.stall, Arc::clone(&stalled));
        let io = Watched::new(io, Arc::clone(&connection.flaw), limits.head_bytes);
        let begun = io.begun();
        let own = Arc::clone(&connection);
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_headers(limits.headers)
            .max_header_size(limits.head_bytes)
            .serve_connection(
                TokioIo::new(io),
                service_fn(move |incoming| self.served(Arc::clone(&own), incoming)),
            )
            .with_upgrades();
        let mut serving = Box::pin(serving);
        async move {
            let ended = tokio::select! {
                ended = serving.as_mut() => ended,
                () = stop.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.as_mut().await
                }
            };
            // Its room is given back before a tunnel takes its own.
            drop(serving);
            ended.or_else(|error| {
                let late = error.is_timeout() && begun.load(Ordering::Acquire);
                gave_up(&connection, &stalled, late)?;
                unreadable(&error, &connection)
            })?;
            let Some(sockets) = connection.switched.take() else {
                return Ok(());
            };
            let ended = Box::pin(sockets.carry::<Impatient<IO>>(stop)).await;
            self.count_end(&connection, ended);
            Ok(())
        }
    }

    async fn http2<IO>(
        &self,
        io: IO,
        connection: Arc<Connection>,
        stop: &CancellationToken,
    ) -> Result<(), Dropped>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = self.settings().limits.clone();
        let stalled = Arc::<AtomicBool>::default();
        let io = Impatient::new(io, limits.stall, Arc::clone(&stalled));
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(limits.head)
            .serve_connection(
                TokioIo::new(io),
                service_fn(|incoming| self.served(Arc::clone(&connection), incoming)),
            );
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        ended.or_else(|error| {
            gave_up(&connection, &stalled, false)?;
            unreadable(&error, &connection)
        })
    }

    /// One request of a connection; refusals are answers, too, so that nothing is an error to hyper.
    fn served(
        &self,
        connection: Arc<Connection>,
        incoming: http::Request<Incoming>,
    ) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + Send + use<> {
        let proxy = self.clone();
        // In a box: hyper keeps room for this while the connection is open, and moves it twice for each request.
        Box::pin(async move {
            if let Some(answer) = probe::answer(&connection, &incoming) {
                return Ok(answer);
            }
            Ok(proxy.answer(&connection, incoming).await)
        })
    }

    /// Counts a tunnel that ended with a refusal; its record is the call's outcome.
    pub(crate) fn count_end(&self, connection: &Connection, ended: Option<(Reason, String)>) {
        if let Some((reason, _)) = ended {
            let agent = &connection.workload.agent;
            self.meter()
                .refused(Some(&agent.tenant), Some(agent), reason);
        }
    }

    /// Says no to a connection that never became a request: a metric, and a record unless there were too many of its kind.
    async fn turn_away(&self, dropped: Dropped) {
        let agent = dropped.workload.as_deref().map(|workload| &workload.agent);
        self.meter()
            .refused(agent.map(|agent| &agent.tenant), agent, dropped.reason);
        let key = (agent.cloned(), dropped.reason, dropped.host.clone());
        let Some(left_out) = self.damper().admit(key, Instant::now()) else {
            return;
        };
        self.record_refusal(
            dropped.workload.as_deref(),
            dropped.reason,
            dropped.host,
            dropped.detail,
            left_out,
        )
        .await;
    }
}

/// Looks at the first bytes without taking them. `None`: the peer closed before it said anything.
async fn protocol(stream: &TcpStream) -> Result<Option<Protocol>, (Reason, String)> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0";
    let mut seen = [0_u8; PREFACE.len()];
    loop {
        let Ok(length) = stream.peek(&mut seen).await else {
            return Ok(None);
        };
        return match seen.get(..length).unwrap_or_default() {
            [] => Ok(None),
            // TLS record type "handshake" (RFC 8446 section 5.1).
            [0x16, ..] => Ok(Some(Protocol::Tls)),
            all if all == PREFACE => Ok(Some(Protocol::Http2)),
            // Half a preface, which is half a request line as well: peeking again returns at once, so wait a little.
            part if PREFACE.starts_with(part) => {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            [first, ..] if first.is_ascii_uppercase() => Ok(Some(Protocol::Http)),
            [first, ..] => {
                let detail = format!(
                    "The connection begins with byte {first:#04x}, which is neither TLS nor HTTP."
                );
                Err((Reason::NotHttp, detail))
            }
        };
    }
}
