//! The far end of every measurement: a TLS server that does as little as it can, with small answers, long bodies and events.
//! Shares CPU 0 with the load generator, so that the system under test has CPU 1 for itself.
//! Invariant: remembers nothing; what it sends depends on the path alone.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Interval, interval};
use tokio_rustls::TlsAcceptor;

/// An answer of about the size of an API's.
const SMALL: &[u8] = br#"{"object":"balance","livemode":true,"available":[{"amount":420000,"currency":"usd"}],"pending":[],"note":"bench"}"#;
/// What long bodies are made of.
static PIECE: [u8; 64 * 1024] = [b'.'; 64 * 1024];
/// Between two events.
pub(super) const EVERY: Duration = Duration::from_millis(5);

/// A running far end; it ends with the value.
pub(super) struct Far {
    pub(super) address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Far {
    /// Starts on a free port of 127.0.0.1.
    pub(super) fn start(tls: Arc<ServerConfig>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("far-end")
            .enable_all()
            .build()?;
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .context("no port for the far end")?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, TlsAcceptor::from(tls)));
        Ok(Self {
            address,
            runtime: Some(runtime),
        })
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors: others will be closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        tokio::spawn(connection(socket, tls.clone()));
    }
}

/// One connection; how it ends is the other side's business.
async fn connection(socket: TcpStream, tls: TlsAcceptor) {
    drop(socket.set_nodelay(true));
    let Ok(stream) = tls.accept(socket).await else {
        return;
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    if h2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(io, service_fn(answer)).await);
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        drop(server.serve_connection(io, service_fn(answer)).await);
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    // Whatever is sent is read to its end; a sender that breaks off gets no answer anyway.
    while let Some(Ok(_)) = body.frame().await {}
    let (kind, answer) = match path.strip_prefix("/files/") {
        Some(size) => (
            "application/octet-stream",
            Answer::Long(size.parse().unwrap_or_default()),
        ),
        None if path == "/events" => ("text/event-stream", Answer::Events(interval(EVERY))),
        None => ("application/json", Answer::Small(false)),
    };
    let mut response = Response::new(answer);
    let kind = http::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

enum Answer {
    /// Sent yet?
    Small(bool),
    /// Bytes left.
    Long(u64),
    Events(Interval),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Small(true) | Self::Long(0) => return Poll::Ready(None),
            Self::Small(sent) => {
                *sent = true;
                Bytes::from_static(SMALL)
            }
            Self::Long(left) => {
                let piece = Bytes::from_static(&PIECE);
                let size = usize::try_from(*left).map_or(piece.len(), |left| left.min(piece.len()));
                *left -= size as u64;
                piece.slice(..size)
            }
            Self::Events(next) => {
                if next.poll_tick(cx).is_pending() {
                    return Poll::Pending;
                }
                Bytes::from(format!("data: {}\n\n", monotonic()))
            }
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Small(true) | Self::Long(0))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Small(false) => SizeHint::with_exact(SMALL.len() as u64),
            Self::Small(true) => SizeHint::with_exact(0),
            Self::Long(left) => SizeHint::with_exact(*left),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// Nanoseconds of the clock that all processes of this host share.
pub(super) fn monotonic() -> u128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    u128::from(seconds) * 1_000_000_000 + u128::from(nanos)
}
