//! The client side of the load generator: TLS connections to one name, and what is asked over them.
//! Used by the generator's loops alone.
//! Invariant: TLS 1.3 without resumption, so that every new connection is a whole handshake.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::super::far::monotonic;
use super::{Load, Mode};

/// The size of an upload.
const UPLOAD: u64 = 100 * 1024 * 1024;
static PIECE: [u8; 64 * 1024] = [b'.'; 64 * 1024];

/// An open connection.
pub(super) enum Kept {
    Http1(http1::SendRequest<Sent>),
    Http2(http2::SendRequest<Sent>),
}

impl Kept {
    /// Another handle on the same connection; HTTP/1 has none.
    pub(super) fn share(&self) -> Option<Kept> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }
}

/// Whom to ask, and for what.
pub(super) struct Target {
    address: std::net::SocketAddr,
    tunnel: Option<u16>,
    name: ServerName<'static>,
    path: String,
    host: String,
    tls: TlsConnector,
    h2: bool,
}

impl Target {
    pub(super) async fn new(load: &Load, h2: bool) -> Result<Self> {
        let address = match load.address {
            Some(address) => address,
            None => tokio::net::lookup_host((load.name.as_str(), 443))
                .await
                .with_context(|| format!("cannot resolve {}", load.name))?
                .find(std::net::SocketAddr::is_ipv4)
                .context("no IPv4 address")?,
        };
        Ok(Self {
            address,
            tunnel: load.tunnel,
            name: ServerName::try_from(load.name.clone())?,
            path: load
                .path
                .clone()
                .unwrap_or_else(|| load.mode.path().to_owned()),
            host: load.name.clone(),
            tls: TlsConnector::from(Arc::new(client(&load.roots, h2)?)),
            h2,
        })
    }

    pub(super) async fn connect(&self) -> Result<Kept> {
        let mut socket = TcpStream::connect(self.address).await.context("connect")?;
        socket.set_nodelay(true)?;
        if let Some(port) = self.tunnel {
            tunnel(&mut socket, &self.host, port).await?;
        }
        let stream = self
            .tls
            .connect(self.name.clone(), socket)
            .await
            .context("TLS")?;
        let io = TokioIo::new(stream);
        // Each connection ends with its sender; what goes wrong is seen by the request.
        if self.h2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return Ok(Kept::Http2(sender));
        }
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Kept::Http1(sender))
    }

    /// One request and its whole answer; says how many bytes of body went either way.
    pub(super) async fn ask(&self, kept: &mut Kept, mode: Mode) -> Result<u64> {
        let sent = Sent(if mode == Mode::Upload { UPLOAD } else { 0 });
        let mut body = self.send(kept, sent).await?;
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            received += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok(received.max(sent.0))
    }

    /// Reads events for as long as they come, and tells each one's delay in microseconds.
    pub(super) async fn events(&self, arrived: impl Fn(u64)) -> Result<()> {
        let mut kept = self.connect().await?;
        let mut body = self.send(&mut kept, Sent(0)).await?;
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            let now = monotonic();
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                let sent = std::str::from_utf8(&event)?
                    .trim()
                    .strip_prefix("data: ")
                    .context("not an event")?;
                let delay = now.saturating_sub(sent.parse()?) / 1_000;
                arrived(u64::try_from(delay).unwrap_or(u64::MAX));
            }
        }
        bail!("the events ended")
    }

    async fn send(&self, kept: &mut Kept, sent: Sent) -> Result<Incoming> {
        let method = if sent.0 > 0 { "POST" } else { "GET" };
        let request = Request::builder().method(method);
        let response = match kept {
            Kept::Http1(sender) => {
                let request = request.uri(&self.path).header("host", &self.host);
                sender.ready().await?;
                sender.send_request(request.body(sent)?).await?
            }
            Kept::Http2(sender) => {
                let request = request.uri(format!("https://{}{}", self.host, self.path));
                sender.ready().await?;
                sender.send_request(request.body(sent)?).await?
            }
        };
        if response.status() != 200 {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(response.into_body())
    }
}

/// Asks a proxy for a way to that port of the name.
async fn tunnel(socket: &mut TcpStream, host: &str, port: u16) -> Result<()> {
    let asked = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    socket.write_all(asked.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        // The TLS that follows is ours to begin: nothing comes behind this head.
        answer.push(socket.read_u8().await.context("no answer to CONNECT")?);
    }
    let head = String::from_utf8_lossy(&answer);
    if !head
        .lines()
        .next()
        .is_some_and(|line| line.contains(" 200 "))
    {
        bail!("CONNECT is refused: {head}");
    }
    Ok(())
}

/// A request body of this many bytes.
#[derive(Clone, Copy)]
pub(super) struct Sent(u64);

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = &mut self.get_mut().0;
        if *left == 0 {
            return Poll::Ready(None);
        }
        let piece = Bytes::from_static(&PIECE);
        let size = usize::try_from(*left).map_or(piece.len(), |left| left.min(piece.len()));
        *left -= size as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.slice(..size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

fn client(roots: &Path, h2: bool) -> Result<ClientConfig> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(roots)
        .with_context(|| format!("no roots in {}", roots.display()))?
    {
        store.add(certificate?)?;
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![if h2 { "h2" } else { "http/1.1" }.into()];
    Ok(config)
}
