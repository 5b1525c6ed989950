//! The agent's side: plain clients that know nothing of the proxy but the tenant's CA.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mitm_proxy::Origin;
use policies::WorkloadId;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{PLACEHOLDER, WORKLOAD, World};

impl World {
    /// Asks the resolver, as `workload`.
    pub async fn query_as(&self, workload: WorkloadId, name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.id = 77;
        message.metadata.recursion_desired = true;
        message.metadata.op_code = OpCode::Query;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let answer = self
            .datagram(Some(workload), &message.to_vec().unwrap())
            .await;
        Message::from_vec(&answer.expect("an answer")).unwrap()
    }

    /// Sends one datagram to the resolver; `None` where no answer came.
    pub async fn datagram(&self, workload: Option<WorkloadId>, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Some(workload) = workload {
            let origin = Origin {
                workload,
                destination: "192.0.2.53:53".parse().unwrap(),
            };
            self.table
                .0
                .lock()
                .unwrap()
                .insert(socket.local_addr().unwrap().port(), origin);
        }
        socket.send_to(bytes, self.dns_udp).await.unwrap();
        let mut answer = vec![0; 4096];
        let received = tokio::time::timeout(
            std::time::Duration::from_secs(2),
            socket.recv_from(&mut answer),
        )
        .await;
        let (length, from) = received.ok()?.unwrap();
        assert_eq!(from, self.dns_udp);
        answer.truncate(length);
        Some(answer)
    }

    /// A socket whose questions are this workload's.
    pub async fn datagram_socket(&self, workload: WorkloadId) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let destination = "192.0.2.53:53".parse().unwrap();
        let port = socket.local_addr().unwrap().port();
        let origin = Origin {
            workload,
            destination,
        };
        self.table.0.lock().unwrap().insert(port, origin);
        socket
    }

    /// A TCP connection of this workload to the resolver.
    pub async fn dial_dns(&self, workload: WorkloadId) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse().unwrap())?;
        let destination = "192.0.2.53:53".parse().unwrap();
        let port = socket.local_addr()?.port();
        let origin = Origin {
            workload,
            destination,
        };
        self.table.0.lock().unwrap().insert(port, origin);
        socket.connect(self.dns_tcp).await
    }

    /// The synthetic IPv4 address of a name.
    pub async fn address_of(&self, name: &str) -> IpAddr {
        let answer = self.query_as(WORKLOAD, name, RecordType::A).await;
        match &answer.answers.first().expect("an address").data {
            RData::A(address) => address.0.into(),
            other => panic!("not an address: {other:?}"),
        }
    }

    /// A TCP connection of `workload` that wanted to go to `destination`; the kernel brought it here.
    pub async fn dial_as(&self, workload: WorkloadId, destination: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        self.table.0.lock().unwrap().insert(
            port,
            Origin {
                workload,
                destination,
            },
        );
        socket.connect(self.tcp).await.unwrap()
    }

    /// A TCP connection of the agent to a name that it resolved.
    pub async fn dial(&self, name: &str, port: u16) -> TcpStream {
        let address = self.address_of(name).await;
        self.dial_as(WORKLOAD, SocketAddr::new(address, port)).await
    }

    pub fn tls(&self, alpn: &[u8]) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        let pem = self.proxy.ca_pem(&"acme".parse().unwrap()).unwrap();
        roots
            .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
            .unwrap();
        connector(roots, alpn)
    }

    /// TLS over a dialled connection, asking for `sni`.
    pub async fn shake(&self, stream: TcpStream, sni: &str, alpn: &[u8]) -> TlsStream<TcpStream> {
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        self.tls(alpn)
            .connect(name, stream)
            .await
            .expect("a handshake under the tenant's CA")
    }

    /// An HTTP/1.1 client over TLS to the name.
    pub async fn http1(&self, name: &str) -> Client {
        let stream = self.dial(name, 443).await;
        Client::http1(self.shake(stream, name, b"http/1.1").await).await
    }

    /// An HTTP/2 client over TLS to the name.
    pub async fn http2(&self, name: &str) -> Client {
        let stream = self.dial(name, 443).await;
        Client::http2(self.shake(stream, name, b"h2").await).await
    }
}

pub fn connector(roots: rustls::RootCertStore, alpn: &[u8]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// An HTTP client on one connection.
pub enum Client {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub async fn http1<IO>(io: IO) -> Self
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub async fn http2<IO>(io: IO) -> Self
    where
        IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        match self {
            Self::Http1(sender) => {
                sender
                    .ready()
                    .await
                    .expect("the connection is still usable");
                sender.send_request(request).await.expect("an answer")
            }
            Self::Http2(sender) => sender.send_request(request).await.expect("an answer"),
        }
    }

    /// Sends a request with the placeholder; returns status, headers and body.
    pub async fn call(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.call_to(super::HOST, method, path, body).await
    }

    pub async fn call_to(&mut self, host: &str, method: &str, path: &str, body: &str) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .header("authorization", format!("Bearer {PLACEHOLDER}"))
            .header("accept-encoding", "gzip");
        request = match self {
            Self::Http1(_) => request.uri(path).header("host", host),
            Self::Http2(_) => request.uri(format!("https://{host}{path}")),
        };
        if !body.is_empty() {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        Answer::read(self.send(request).await).await
    }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub trailers: Option<http::HeaderMap>,
    pub body: String,
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let collected = body.collect().await.expect("a whole body");
        let trailers = collected.trailers().cloned();
        let body = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            trailers,
            body,
        }
    }

    /// The refusal's name; empty where this is no refusal.
    pub fn reason(&self) -> String {
        self.problem()["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub fn problem(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

impl Answer {
    pub fn status_ok(&self) -> bool {
        self.status == 200
    }
}
