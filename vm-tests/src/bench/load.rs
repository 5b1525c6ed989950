//! The load generator: closed loops over TLS, one request at a time per connection, for a fixed time.
//! Runs as its own process, outside of Sluice or inside as an agent; prints one JSON line.
//! Invariant: only answers with status 200 and a whole body count; everything else is an error and is reported.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What is measured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A new TCP and TLS connection for every request, without resumption.
    Connections,
    /// Requests over connections that stay open.
    Requests,
}

/// One run of the generator.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// What is measured
    #[arg(long)]
    pub mode: Mode,
    /// The name to ask for; resolved unless an address is given
    #[arg(long)]
    pub name: String,
    /// Connect here, whatever the name resolves to
    #[arg(long)]
    pub address: Option<std::net::SocketAddr>,
    /// The path to get
    #[arg(long, default_value = "/v1/balance")]
    pub path: String,
    /// Trusted roots, PEM; SSL_CERT_FILE if not given
    #[arg(long, env = "SSL_CERT_FILE")]
    pub roots: std::path::PathBuf,
    /// How many loops run beside each other
    #[arg(long, default_value_t = 32)]
    pub loops: usize,
    /// How long, after a warm-up of a tenth of it
    #[arg(long, default_value_t = 2_000)]
    pub milliseconds: u64,
}

/// What one run found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Measured {
    /// Requests answered with 200 within the measured time.
    pub requests: u64,
    /// Everything else.
    pub errors: u64,
    /// The first error, if there was one.
    pub first_error: Option<String>,
    /// The measured time.
    pub seconds: f64,
    /// Median of the time from asking (or connecting) to the whole answer, microseconds.
    pub p50_us: u64,
    /// 99th percentile of the same.
    pub p99_us: u64,
}

#[derive(Default)]
struct Counted {
    times: Vec<u64>,
    errors: u64,
    first_error: Option<String>,
}

/// Runs the generator and prints what it found.
///
/// # Errors
/// If the roots cannot be read or nothing can be reached at all.
pub fn run(load: &Load) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let measured = runtime.block_on(measure(load))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Runs the loops and counts.
///
/// # Errors
/// If the roots cannot be read or the name cannot be resolved.
pub async fn measure(load: &Load) -> Result<Measured> {
    let target = Arc::new(Target::new(load).await?);
    let counted = Arc::new(Mutex::new(Counted::default()));
    let warm = Duration::from_millis(load.milliseconds / 10);
    let begin = Instant::now() + warm;
    let end = begin + Duration::from_millis(load.milliseconds);
    let loops: Vec<_> = (0..load.loops)
        .map(|_| {
            let (target, counted, mode) = (Arc::clone(&target), Arc::clone(&counted), load.mode);
            tokio::spawn(async move { target.repeat(mode, begin, end, &counted).await })
        })
        .collect();
    for one in loops {
        one.await?;
    }
    let mut counted = std::mem::take(&mut *counted.lock().unwrap_or_else(PoisonError::into_inner));
    counted.times.sort_unstable();
    let percentile = |percent: usize| {
        let at = counted.times.len().saturating_sub(1) * percent / 100;
        counted.times.get(at).copied().unwrap_or_default()
    };
    Ok(Measured {
        requests: counted.times.len() as u64,
        errors: counted.errors,
        first_error: counted.first_error.clone(),
        seconds: (end - begin).as_secs_f64(),
        p50_us: percentile(50),
        p99_us: percentile(99),
    })
}

struct Target {
    address: std::net::SocketAddr,
    name: ServerName<'static>,
    uri: String,
    host: String,
    tls: TlsConnector,
}

impl Target {
    async fn new(load: &Load) -> Result<Self> {
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
            name: ServerName::try_from(load.name.clone())?,
            uri: load.path.clone(),
            host: load.name.clone(),
            tls: TlsConnector::from(Arc::new(client(&load.roots)?)),
        })
    }

    async fn repeat(&self, mode: Mode, begin: Instant, end: Instant, counted: &Mutex<Counted>) {
        let mut kept: Option<SendRequest<Empty<Bytes>>> = None;
        loop {
            let started = Instant::now();
            if started >= end {
                return;
            }
            let result = match kept.take() {
                Some(sender) if mode == Mode::Requests => self.ask(sender).await,
                _ => match self.connect().await {
                    Ok(sender) => self.ask(sender).await,
                    Err(error) => Err(error),
                },
            };
            let done = Instant::now();
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(sender) => {
                    if started >= begin && done <= end {
                        counted
                            .times
                            .push(u64::try_from((done - started).as_micros()).unwrap_or(u64::MAX));
                    }
                    kept = Some(sender);
                }
                Err(error) => {
                    counted.errors += 1;
                    counted
                        .first_error
                        .get_or_insert_with(|| format!("{error:#}"));
                }
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        let socket = TcpStream::connect(self.address).await.context("connect")?;
        socket.set_nodelay(true)?;
        let stream = self
            .tls
            .connect(self.name.clone(), socket)
            .await
            .context("TLS")?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its sender; what goes wrong is seen by the request.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn ask(
        &self,
        mut sender: SendRequest<Empty<Bytes>>,
    ) -> Result<SendRequest<Empty<Bytes>>> {
        sender.ready().await?;
        let request = Request::get(&self.uri)
            .header("host", &self.host)
            .body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status != 200 {
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(sender)
    }
}

/// TLS 1.3, no resumption: every new connection is a whole handshake.
fn client(roots: &Path) -> Result<ClientConfig> {
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
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
