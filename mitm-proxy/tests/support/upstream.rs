//! The vendor's side: a TLS server with a certificate of its own CA, which keeps every request it was sent.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub authority: Option<String>,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// What to answer.
#[derive(Clone, Default)]
pub struct Reply {
    pub status: Option<StatusCode>,
    pub headers: Vec<(&'static str, String)>,
    /// Parts of the body, sent as chunks of their own.
    pub chunks: Vec<Bytes>,
    /// Answers with this stream instead; each item is sent as soon as it is there.
    pub stream: Option<Arc<Mutex<Option<mpsc::Receiver<Bytes>>>>>,
    /// Answers before the request's body has arrived, echoing the body chunk by chunk.
    pub echo_live: bool,
    pub trailers: Option<(&'static str, String)>,
}

impl Reply {
    pub fn text(text: &str) -> Self {
        Self {
            chunks: vec![Bytes::copy_from_slice(text.as_bytes())],
            ..Self::default()
        }
    }
}

pub struct Upstream {
    pub address: SocketAddr,
    /// The CA, DER.
    pub root: Vec<u8>,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub reply: Arc<Mutex<Reply>>,
    pub connections: Arc<Mutex<u32>>,
}

impl Upstream {
    pub async fn start(names: &[&str], alpn: Vec<Vec<u8>>) -> Self {
        let (root, config) = identity(names, alpn);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            root,
            seen: Arc::default(),
            reply: Arc::new(Mutex::new(Reply::text("{\"ok\":true}"))),
            connections: Arc::default(),
        };
        let (seen, reply, connections) = (
            this.seen.clone(),
            this.reply.clone(),
            this.connections.clone(),
        );
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let (acceptor, seen, reply) = (acceptor.clone(), seen.clone(), reply.clone());
                *connections.lock().unwrap() += 1;
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service =
                        service_fn(move |request| answer(request, seen.clone(), reply.clone()));
                    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let io = TokioIo::new(stream);
                    if h2 {
                        let _ = http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service)
                            .await;
                    } else {
                        let _ = http1::Builder::new().serve_connection(io, service).await;
                    }
                });
            }
        });
        this
    }

    pub fn answers(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A TLS server's configuration under a CA of its own, and that CA (DER).
pub fn identity(names: &[&str], alpn: Vec<Vec<u8>>) -> (Vec<u8>, rustls::ServerConfig) {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "upstream test root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn;
    (issuer.der().to_vec(), config)
}

type AnyBody = BoxBody<Bytes, hyper::Error>;

async fn answer(
    request: http::Request<Incoming>,
    seen: Arc<Mutex<Vec<Seen>>>,
    reply: Arc<Mutex<Reply>>,
) -> Result<Response<AnyBody>, Infallible> {
    let reply = reply.lock().unwrap().clone();
    let (parts, body) = request.into_parts();
    let mut arrived = Seen {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        headers: parts.headers,
        authority: parts.uri.authority().map(ToString::to_string),
        body: Bytes::new(),
        trailers: None,
    };
    let mut response = Response::builder().status(reply.status.unwrap_or(StatusCode::OK));
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    if reply.echo_live {
        seen.lock().unwrap().push(arrived);
        return Ok(response.body(body.boxed()).unwrap());
    }
    let Ok(collected) = body.collect().await else {
        return Ok(response
            .body(Full::default().map_err(|never| match never {}).boxed())
            .unwrap());
    };
    arrived.trailers = collected.trailers().cloned();
    arrived.body = collected.to_bytes();
    seen.lock().unwrap().push(arrived);
    let body: AnyBody = if let Some(stream) = &reply.stream {
        let receiver = stream
            .lock()
            .unwrap()
            .take()
            .expect("a stream is answered once");
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver
                .recv()
                .await
                .map(|chunk| (Ok(Frame::data(chunk)), receiver))
        });
        BodyExt::boxed(StreamBody::new(frames))
    } else if reply.chunks.len() == 1 && reply.trailers.is_none() {
        Full::new(reply.chunks[0].clone())
            .map_err(|never| match never {})
            .boxed()
    } else {
        let mut frames: Vec<_> = reply.chunks.iter().cloned().map(Frame::data).collect();
        if let Some((name, value)) = reply.trailers {
            let mut trailers = HeaderMap::new();
            trailers.insert(name, value.parse().unwrap());
            frames.push(Frame::trailers(trailers));
        }
        // Each chunk is sent on its own: the scrubber must see edges.
        let frames = futures_util::stream::iter(frames).then(|frame| async {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            Ok(frame)
        });
        BodyExt::boxed(StreamBody::new(frames))
    };
    Ok(response.body(body).unwrap())
}
