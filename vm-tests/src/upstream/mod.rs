//! A TLS server that stands in for the vendors and remembers what reached it.
//! The far end of every call in the demo and the end-to-end tests; it decides nothing about Sluice.
//! Invariant: a request is remembered before it is answered, so "nothing arrived" is a fact and not a race.

pub(crate) mod git;
mod vendors;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The names that a stand-in answers to.
pub const NAMES: &[&str] = &[
    "api.github.com",
    "api.stripe.com",
    "files.stripe.com",
    "github.com",
    "slack.com",
];

/// One request as it reached the vendor.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The `Host` or `:authority` it named.
    pub host: String,
    /// The version of HTTP it came in.
    pub version: http::Version,
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, empty where there is none.
    pub query: String,
    /// Header names in lower case; of a repeated header the last value.
    pub headers: BTreeMap<String, String>,
    /// The whole body.
    pub body: Bytes,
}

impl Seen {
    /// A header's value, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What a stand-in answers.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), "application/json".into())],
            body: Bytes::from(body.to_string()),
        }
    }
}

/// How a stand-in behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Bare repositories for github.com, as `<dir>/acme/site.git`.
    pub repositories: Option<PathBuf>,
}

/// A running stand-in; it ends with the value.
pub struct Upstream {
    address: SocketAddr,
    state: Arc<State>,
    // Dropping the runtime ends the server; an Option so that this can be done without waiting.
    runtime: Option<tokio::runtime::Runtime>,
}

struct State {
    options: Options,
    seen: Mutex<Vec<Seen>>,
    refunds: std::sync::atomic::AtomicU32,
}

impl Upstream {
    /// Starts a stand-in on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// If the port or the threads cannot be had.
    pub fn start(tls: Arc<ServerConfig>, options: Options) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("stand-in")
            .enable_all()
            .build()?;
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .context("no port for the stand-in")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            options,
            seen: Mutex::default(),
            refunds: std::sync::atomic::AtomicU32::new(0),
        });
        runtime.spawn(accept(listener, TlsAcceptor::from(tls), Arc::clone(&state)));
        Ok(Self {
            address,
            state,
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that reached it, oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What reached it with this method and path.
    #[must_use]
    pub fn received(&self, method: &str, path: &str) -> Vec<Seen> {
        self.seen()
            .into_iter()
            .filter(|seen| seen.method == method && seen.path == path)
            .collect()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, state: Arc<State>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors: others will be closed.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(connection(socket, tls.clone(), Arc::clone(&state)));
    }
}

/// One connection. Clients that do not trust us or hang up are their own business.
async fn connection(socket: TcpStream, tls: TlsAcceptor, state: Arc<State>) {
    drop(socket.set_nodelay(true));
    let Ok(stream) = tls.accept(socket).await else {
        return;
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| serve(request, Arc::clone(&state)));
    let io = TokioIo::new(stream);
    if h2 {
        drop(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await,
        );
    } else {
        drop(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .await,
        );
    }
}

async fn serve(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let headers: BTreeMap<String, String> = head
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let host = head
        .uri
        .host()
        .map(str::to_owned)
        .or_else(|| Some(headers.get("host")?.split(':').next()?.to_owned()))
        .unwrap_or_default();
    let seen = Seen {
        host,
        version: head.version,
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers,
        body,
    };
    state
        .seen
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(seen.clone());
    let answer = answer(&seen, &state).await;
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::IM_A_TEAPOT);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (
            http::HeaderName::try_from(name),
            http::HeaderValue::try_from(value),
        ) {
            response.headers_mut().append(name, value);
        }
    }
    Ok(response)
}

async fn answer(seen: &Seen, state: &State) -> Answer {
    match (seen.host.as_str(), &state.options.repositories) {
        ("github.com", Some(repositories)) => git::answer(seen, repositories).await,
        ("api.stripe.com", _) => vendors::stripe(seen, &state.refunds),
        ("slack.com", _) => vendors::slack(seen),
        ("api.github.com", _) => vendors::github(seen),
        _ => Answer::json(421, &serde_json::json!({ "error": "no such vendor here" })),
    }
}
