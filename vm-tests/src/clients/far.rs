//! The far side of the matrix: one TLS server for all vendors that speak plain HTTP, with answers that come in pieces where asked.
//! Place: behind Sluice, where the vendors are.
//! Invariant: a request is written down before it is answered, and one without the real credential is answered 401.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::judge::LATE;
use super::vendors;
use crate::pki::Authority;
use crate::upstream::{Answer, Seen, git};

/// What every vendor here knows the tenant by.
pub(super) const SECRET: &str = "real-2vUeTzGmDgYwRb4eC39HqLyjWDarjtT1";

/// The names of this server.
const NAMES: [&str; 8] = [
    "api.anthropic.com",
    "api.clients.example",
    "api.github.com",
    "api.openai.com",
    "api.stripe.com",
    "dynamodb.us-east-1.amazonaws.com",
    "github.com",
    "slack.com",
];
const GOOGLE: &str = "www.googleapis.com";
/// How long a piece waits for its predecessor to be seen.
const PATIENCE: Duration = Duration::from_secs(8);

/// What a vendor answers.
pub(super) enum Reply {
    /// At once.
    Whole(Answer),
    /// Piece by piece, each after the client has shown the one before; with this content type.
    Pieces(&'static str, Vec<String>),
}

/// The running server; it ends with the value.
pub(super) struct Far {
    address: SocketAddr,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

struct State {
    seen: Mutex<Vec<Seen>>,
    repositories: PathBuf,
    pace: PathBuf,
}

impl Far {
    pub(super) fn start(authority: &Authority, repositories: &Path, place: &Path) -> Result<Self> {
        let names: Vec<&str> = NAMES.into_iter().chain([GOOGLE]).collect();
        let tls = authority.leaf(&names)?.server(&["h2", "http/1.1"])?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("far-side")
            .enable_all()
            .build()?;
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .context("no port for the far side")?;
        let state = Arc::new(State {
            seen: Mutex::default(),
            repositories: repositories.to_owned(),
            pace: place.join("pace"),
        });
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, TlsAcceptor::from(tls), Arc::clone(&state)));
        Ok(Self {
            address,
            state,
            runtime: Some(runtime),
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets what was seen.
    pub(super) fn begin(&self) {
        let mut seen = self.state.seen.lock();
        seen.as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut())
            .clear();
    }

    /// How many writes have arrived: what carries the note, or is a push.
    pub(super) fn arrived(&self, note: &str) -> usize {
        let seen = self
            .state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_write = |seen: &&Seen| {
            let has = |body: &[u8]| body.windows(note.len()).any(|at| at == note.as_bytes());
            let pushes = seen.path.ends_with("/git-receive-pack")
                // git asks with four bytes whether it may send the rest.
                && seen.body.len() > 4;
            pushes || (has(&seen.body) && !seen.path.ends_with("/git-receive-pack"))
        };
        seen.iter().filter(is_write).count()
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(connection(socket, tls.clone(), Arc::clone(&state)));
    }
}

/// One connection; who hangs up is its own business.
async fn connection(socket: TcpStream, tls: TlsAcceptor, state: Arc<State>) {
    drop(socket.set_nodelay(true));
    let Ok(stream) = tls.accept(socket).await else {
        return;
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| serve(request, Arc::clone(&state)));
    let io = TokioIo::new(stream);
    if h2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(io, service).await);
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        drop(server.serve_connection(io, service).await);
    }
}

async fn serve(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let seen = read(request).await?;
    state
        .seen
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(seen.clone());
    let reply = if seen.host == "github.com" {
        Reply::Whole(git::answer(&seen, &state.repositories).await)
    } else {
        vendors::answer(&seen)
    };
    Ok(match reply {
        Reply::Whole(answer) => {
            let mut response = Response::new(Full::new(answer.body).boxed());
            *response.status_mut() =
                StatusCode::from_u16(answer.status).unwrap_or(StatusCode::IM_A_TEAPOT);
            for (name, value) in answer.headers {
                if let (Ok(name), Ok(value)) = (
                    http::HeaderName::try_from(name),
                    http::HeaderValue::try_from(value),
                ) {
                    response.headers_mut().append(name, value);
                }
            }
            response
        }
        Reply::Pieces(kind, pieces) => {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(send(pieces, state.pace.clone(), sender));
            let mut response = Response::new(Pieces(receiver).boxed());
            response
                .headers_mut()
                .insert("content-type", http::HeaderValue::from_static(kind));
            response
        }
    })
}

/// Each piece after the first waits until as many were acknowledged as were sent.
async fn send(pieces: Vec<String>, pace: PathBuf, sender: tokio::sync::mpsc::Sender<Bytes>) {
    let mut events = 0;
    for piece in pieces {
        let deadline = Instant::now() + PATIENCE;
        let acknowledged = || {
            std::fs::metadata(&pace).map_or(0, |facts| usize::try_from(facts.len()).unwrap_or(0))
        };
        let mut late = false;
        while acknowledged() < events && !late {
            tokio::time::sleep(Duration::from_millis(10)).await;
            late = Instant::now() > deadline;
        }
        let is_event = piece.contains("event-");
        let text = if late {
            piece.replace("event-", &format!("{LATE}-event-"))
        } else {
            piece
        };
        if sender.send(Bytes::from(text)).await.is_err() {
            return;
        }
        if is_event {
            events += 1;
        }
    }
}

async fn read(request: Request<Incoming>) -> Result<Seen, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: std::collections::BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    let named = headers.get("host").and_then(|host| host.split(':').next());
    let host = head.uri.host().or(named).unwrap_or_default().to_owned();
    Ok(Seen {
        host,
        version: head.version,
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
    })
}

/// A body that ends when its sender does.
struct Pieces(tokio::sync::mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
