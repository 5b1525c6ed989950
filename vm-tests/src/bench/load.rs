//! The load generator: closed loops over TLS, one request at a time per loop, for a fixed time.
//! Runs as its own process, outside of Sluice or inside as an agent; prints one JSON line.
//! Invariant: only answers with status 200 and a whole body count; everything else is an error and is reported.

mod client;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use client::{Kept, Target};

/// What is measured.
#[derive(
    Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// A new TCP and TLS connection for every request, without resumption.
    Connections,
    /// 100 MiB bodies from upstream.
    Download,
    /// The delay of server-sent events.
    Events,
    /// Connections that made one request and stay open.
    Idle,
    /// The same, ten times as many.
    IdleMany,
    /// One request every 5 ms on one connection: what a call waits where there is room.
    Latency,
    /// Requests over connections that stay open.
    Requests,
    /// The same over HTTP/2, eight streams a connection.
    RequestsH2,
    /// 100 MiB bodies to upstream.
    Upload,
}

impl Mode {
    /// The name of `Requests` on the command line.
    pub(super) const REQUESTS: &'static str = "requests";

    /// How many loops run beside each other, where nothing else is asked for.
    fn loops(self) -> usize {
        match self {
            Self::Connections | Self::Requests | Self::RequestsH2 => 32,
            Self::Download | Self::Events | Self::Latency | Self::Upload => 1,
            Self::Idle => 1_000,
            Self::IdleMany => 10_000,
        }
    }

    /// The path that is asked for.
    fn path(self) -> &'static str {
        match self {
            Self::Download => "/files/104857600",
            Self::Events => "/events",
            Self::Upload => "/files",
            _ => "/v1/balance",
        }
    }
}

/// For one request: a system that stalls has failed, and does not keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(20);

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
    /// Whoever is at the address is asked to CONNECT to this port of the name
    #[arg(long)]
    pub tunnel: Option<u16>,
    /// The path to ask for; each mode has its own
    #[arg(long)]
    pub path: Option<String>,
    /// Trusted roots, PEM; SSL_CERT_FILE if not given
    #[arg(long, env = "SSL_CERT_FILE")]
    pub roots: std::path::PathBuf,
    /// How many loops run beside each other
    #[arg(long)]
    pub loops: Option<usize>,
    /// How long, after a warm-up of a tenth of it
    #[arg(long, default_value_t = 2_000)]
    pub milliseconds: u64,
}

/// What one run found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Measured {
    /// Requests answered with 200 within the measured time; events that arrived.
    pub requests: u64,
    /// Body bytes that were part of them.
    pub bytes: u64,
    /// Everything else.
    pub errors: u64,
    /// The first error, if there was one.
    pub first_error: Option<String>,
    /// The measured time.
    pub seconds: f64,
    /// Median of the time from asking (or connecting) to the whole answer, or of an event's delay; microseconds.
    pub p50_us: u64,
    /// 99th percentile of the same.
    pub p99_us: u64,
}

/// What the loops found so far.
#[derive(Default)]
struct Counted {
    times: Vec<u64>,
    bytes: u64,
    errors: u64,
    first_error: Option<String>,
}

impl Counted {
    fn fail(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }
}

/// Runs the generator and prints what it found. In `Idle` it says `open` when all connections are, and keeps them for the time.
///
/// # Errors
/// If the roots cannot be read or nothing can be reached at all.
pub fn run(load: &Load) -> Result<()> {
    super::many_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let measured = runtime.block_on(async {
        match load.mode {
            Mode::Idle | Mode::IdleMany => idle(load).await,
            _ => measure(load).await,
        }
    })?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Opens the connections one after the other, each with one request, and keeps them.
async fn idle(load: &Load) -> Result<Measured> {
    let target = Target::new(load, false).await?;
    let mut kept = Vec::new();
    for _ in 0..load.loops.unwrap_or(load.mode.loops()) {
        let mut one = target.connect().await?;
        target.ask(&mut one, load.mode).await?;
        kept.push(one);
    }
    println!("open");
    tokio::time::sleep(Duration::from_millis(load.milliseconds)).await;
    Ok(Measured {
        requests: kept.len() as u64,
        ..Measured::default()
    })
}

/// Runs the loops and counts.
///
/// # Errors
/// If the roots cannot be read or the name cannot be resolved.
pub async fn measure(load: &Load) -> Result<Measured> {
    let h2 = load.mode == Mode::RequestsH2;
    let target = Arc::new(Target::new(load, h2).await?);
    let counted = Arc::new(Mutex::new(Counted::default()));
    let long = matches!(load.mode, Mode::Download | Mode::Upload);
    // Long bodies warm up by themselves, and one of them may be all that there is time for.
    let warm = Duration::from_millis(if long { 0 } else { load.milliseconds / 10 });
    let begin = Instant::now() + warm;
    let end = begin + Duration::from_millis(load.milliseconds);
    let mut shared: Option<Kept> = None;
    let mut loops = Vec::new();
    for number in 0..load.loops.unwrap_or(load.mode.loops()) {
        if h2 && number % 8 == 0 {
            shared = Some(target.connect().await?);
        }
        let first = shared.as_ref().and_then(Kept::share);
        let (target, counted, mode) = (Arc::clone(&target), Arc::clone(&counted), load.mode);
        loops.push(tokio::spawn(async move {
            repeat(&target, mode, first, begin, end, &counted).await;
        }));
    }
    for one in loops {
        one.await?;
    }
    let mut counted = std::mem::take(&mut *counted.lock().unwrap_or_else(PoisonError::into_inner));
    counted.times.sort_unstable();
    let percentile = |percent: usize| {
        let at = counted.times.len().saturating_sub(1) * percent / 100;
        counted.times.get(at).copied().unwrap_or_default()
    };
    // A long body that began in time counts whole, and so does the time that it took.
    let measured = if long { begin.elapsed() } else { end - begin };
    let seconds = measured.as_secs_f64();
    Ok(Measured {
        requests: counted.times.len() as u64,
        bytes: counted.bytes,
        errors: counted.errors,
        first_error: counted.first_error.clone(),
        seconds,
        p50_us: percentile(50),
        p99_us: percentile(99),
    })
}

/// One loop: asks, waits for the whole answer, asks again.
async fn repeat(
    target: &Target,
    mode: Mode,
    first: Option<Kept>,
    begin: Instant,
    end: Instant,
    counted: &Mutex<Counted>,
) {
    let long = matches!(mode, Mode::Download | Mode::Upload);
    let mut kept = first;
    loop {
        let started = Instant::now();
        if started >= end {
            return;
        }
        if mode == Mode::Events {
            return events(target, begin, end, counted).await;
        }
        let asked = async {
            let mut sender = match kept.take() {
                Some(sender) if mode != Mode::Connections => sender,
                _ => target.connect().await?,
            };
            let bytes = target.ask(&mut sender, mode).await?;
            Ok((sender, bytes))
        };
        let result = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("no answer in {} s", PATIENCE.as_secs())),
        };
        let done = Instant::now();
        {
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok((sender, bytes)) => {
                    if started >= begin && (done <= end || long) {
                        counted.times.push(micros(done - started));
                        counted.bytes += bytes;
                    }
                    kept = Some(sender);
                }
                Err(error) => counted.fail(&error),
            }
        }
        if mode == Mode::Latency {
            tokio::time::sleep_until((started + Duration::from_millis(5)).into()).await;
        }
    }
}

/// Reads events until the end; each says when it was sent.
async fn events(target: &Target, begin: Instant, end: Instant, counted: &Mutex<Counted>) {
    let arrived = |delay: u64| {
        if Instant::now() >= begin {
            let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
            counted.times.push(delay);
        }
    };
    let read = target.events(arrived);
    if let Ok(Err(error)) = tokio::time::timeout_at(end.into(), read).await {
        counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fail(&error);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
