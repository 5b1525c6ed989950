//! A second vendor: hosts without a credential, in the clear or over TLS, and peers that a test writes itself.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mitm_proxy::Settings;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::{HOST, Plan, World};

/// The name of the connector below.
pub const OPEN: &str = "open.pay.test";
/// Where it is spoken to in the clear.
pub const CLEAR: &str = "open.pay.test:8080";
/// Where it is spoken to over TLS.
pub const SEALED: &str = "open.pay.test:443";

/// An agent with both connections.
pub const AGENT: &str = r#"
tenant = "acme"
name = "support"
owner = "bob"
stage = "write"

[[connections]]
name = "pay"
connector = "pay"
hosts = ["api.pay.test"]
credential = "pay-live"

[[connections]]
name = "open"
connector = "open"
hosts = ["open.pay.test", "open.pay.test:8080"]
"#;

pub const CONNECTOR: &str = r#"
schema = 1
id = "open"
hosts = ["open.pay.test", "open.pay.test:8080"]
docs = "https://open.pay.test/docs"
auth = { kind = "none", strip = ["x-api-key"] }

[[capability]]
name = "get"
risk = "read"
match = { method = "GET", path = "/get/{id}" }
[capability.examples]
hit = [{ method = "GET", path = "/get/1" }]

[[capability]]
name = "post"
risk = "write"
match = { method = "POST", path = "/post" }
opaque_body = true
[capability.examples]
hit = [{ method = "POST", path = "/post" }]

[[capability]]
name = "order"
risk = "write"
match = { method = "POST", path = "/order" }
[capability.params]
amount = { in = ["json", "form"], type = "integer" }
[capability.examples]
hit = [{ method = "POST", path = "/order", json = "{\"amount\":1}", params = { amount = 1 } }]

[[capability]]
name = "remove"
risk = "destructive"
match = { method = "DELETE", path = "/post" }
[capability.examples]
hit = [{ method = "DELETE", path = "/post" }]

[[capability]]
name = "socket"
risk = "write"
match = { method = "GET", path = "/socket", websocket = true }
[capability.examples]
hit = [{ method = "GET", path = "/socket", headers = { upgrade = "websocket" } }]

[[capability]]
name = "rpc"
risk = "write"
match = [
  { method = "POST", path = "/pkg.Echo/Unary" },
  { method = "POST", path = "/pkg.Echo/Chat" },
]
opaque_body = true
[capability.examples]
hit = [{ method = "POST", path = "/pkg.Echo/Unary" }]
"#;

/// What a peer speaks.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub type Stream = Box<dyn Io>;

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Arrived {
    pub line: String,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

/// A server that a test writes, or the one that says what it was asked.
pub struct Peer {
    pub address: SocketAddr,
    /// Its certificate, which is its own root.
    pub root: Vec<u8>,
    pub arrived: Arc<Mutex<Vec<Arrived>>>,
}

impl Peer {
    /// Serves every connection with `serve`; over TLS where there is an ALPN.
    pub async fn start<F, W>(alpn: Option<&[u8]>, serve: F) -> Self
    where
        F: Fn(Stream) -> W + Clone + Send + Sync + 'static,
        W: Future<Output = ()> + Send,
    {
        let names = vec![OPEN.to_owned(), HOST.to_owned()];
        let own = rcgen::generate_simple_self_signed(names).unwrap();
        let root = own.cert.der().to_vec();
        let acceptor = alpn.map(|alpn| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
            let mut config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![own.cert.der().clone()], PrivateKeyDer::Pkcs8(key))
                .unwrap();
            config.alpn_protocols = vec![alpn.to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, serve) = (acceptor.clone(), serve.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => serve(Box::new(stream)).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                serve(Box::new(stream)).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            root,
            arrived: Arc::default(),
        }
    }

    /// An HTTP server that answers with the request line it was sent, and a trailer.
    pub async fn http(alpn: Option<&[u8]>, h2: bool) -> Self {
        let arrived: Arc<Mutex<Vec<Arrived>>> = Arc::default();
        let seen = Arc::clone(&arrived);
        let serve = move |stream: Stream| {
            let seen = Arc::clone(&seen);
            async move {
                let service = service_fn(move |request| echo(request, Arc::clone(&seen)));
                let io = TokioIo::new(stream);
                if h2 {
                    let _ = http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                } else {
                    let _ = http1::Builder::new().serve_connection(io, service).await;
                }
            }
        };
        Self {
            arrived,
            ..Self::start(alpn, serve).await
        }
    }

    pub fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }
}

type EchoBody = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn echo(
    request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Arrived>>>,
) -> Result<Response<EchoBody>, hyper::Error> {
    let line = format!("{} {}", request.method(), request.uri().path());
    let (parts, body) = request.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    seen.lock().unwrap().push(Arrived {
        line: line.clone(),
        version: parts.version,
        headers: parts.headers,
        trailers,
        body: collected.to_bytes(),
    });
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let frames = [
        Ok(Frame::data(Bytes::from(line))),
        Ok(Frame::trailers(trailers)),
    ];
    let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)));
    Ok(Response::builder()
        .header("trailer", "x-sum")
        .body(body)
        .unwrap())
}

impl World {
    /// A world whose agent has both connections, with `peer` at the open one's endpoint.
    pub async fn with_peer(peer: &Peer, at: &str, plan: Plan) -> Self {
        let world = Self::planned(Plan {
            agent: AGENT,
            ..plan
        })
        .await;
        world.lead(peer, at, |_| {});
        world
    }

    /// Leads an endpoint to a peer, and trusts it.
    pub fn lead(&self, peer: &Peer, at: &str, tune: impl FnOnce(&mut Settings)) {
        let mut settings = Settings {
            hold: Duration::from_millis(400),
            extra_roots: vec![
                CertificateDer::from(self.upstream.root.clone()),
                CertificateDer::from(peer.root.clone()),
            ],
            ..Settings::default()
        };
        let own = format!("{HOST}:443").parse().unwrap();
        settings
            .connect_to
            .insert(own, self.upstream.address.to_string());
        settings
            .connect_to
            .insert(at.parse().unwrap(), peer.address.to_string());
        tune(&mut settings);
        self.proxy.replace_settings(settings).unwrap();
    }
}

/// Sends bytes and reads until the answer holds `until`, ends, or stays away for a second.
pub async fn exchange<IO: Io>(io: &mut IO, bytes: &[u8], until: &str) -> String {
    io.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains(until) {
        match tokio::time::timeout(Duration::from_secs(1), io.read(&mut part)).await {
            Ok(Ok(length)) if length > 0 => answer.extend_from_slice(&part[..length]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}
