//! The proxy under load, with clients and an upstream that misbehave at random: for seconds here, for as long as one likes by
//! `cargo xtask soak`. What is counted at its end: intents, outcomes, what upstream saw of each call, and memory.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audit::{Kind, Query};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use support::faults::{Dice, Faults, FaultyUpstream};
use support::{HOST, OTHER_WORKLOAD, WORKLOAD, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The daemon's own: what it keeps and gives back is part of what is watched here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients at the same time.
const CLIENTS: u64 = 24;
/// Below this, memory has no thirds worth comparing.
const FLAT_FROM: u64 = 120;

#[derive(Default)]
struct Tally {
    calls: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    given_up: AtomicU64,
}

struct Soak {
    world: World,
    upstream: FaultyUpstream,
    /// Of the name, asked for once: questions are bounded.
    address: std::net::SocketAddr,
    tally: Tally,
    next: AtomicU64,
    over: AtomicBool,
    started: Instant,
    /// Calls a second, of all clients together; 0 is as many as there is room for.
    rate: u64,
}

impl Soak {
    /// The next call's number, once its time has come.
    async fn turn(&self) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(nanoseconds) = (id * 1_000_000_000).checked_div(self.rate) {
            let at = self.started + Duration::from_nanos(nanoseconds);
            tokio::time::sleep_until(at.into()).await;
        }
        id
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_has_an_outcome_none_is_sent_twice_and_memory_is_flat() {
    let (seconds, seed) = (number("SOAK_SECONDS", 4), number("SOAK_SEED", 1));
    let world = World::start().await;
    world.counts.forgets.store(true, Ordering::Relaxed);
    let upstream = FaultyUpstream::start(&[HOST], seed).await;
    let mut settings = mitm_proxy::Settings::default();
    settings.connect_to.insert(
        format!("{HOST}:443").parse().unwrap(),
        upstream.address.to_string(),
    );
    let root = rustls_pki_types::CertificateDer::from(upstream.root.clone());
    settings.extra_roots.push(root);
    settings.limits.upstream_handshake = Duration::from_secs(2);
    settings.limits.answer = Duration::from_secs(2);
    settings.limits.silence = Duration::from_secs(2);
    settings.limits.stall = Duration::from_secs(2);
    settings.limits.head = Duration::from_secs(2);
    world.proxy.replace_settings(settings).unwrap();
    let address = (world.address_of(HOST).await, 443).into();
    let soak = Arc::new(Soak {
        address,
        world,
        upstream,
        tally: Tally::default(),
        next: AtomicU64::new(0),
        over: AtomicBool::new(false),
        started: Instant::now(),
        rate: number("SOAK_RATE", 0),
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| tokio::spawn(client(Arc::clone(&soak), Dice::new(seed + number))))
        .collect();
    let memory = watch(&soak, seconds).await;
    soak.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    // What is still under way ends within the bounds above.
    let records = settled(&soak).await;
    let report = report(&soak, &records, &memory, seconds, seed);
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    if let Ok(path) = std::env::var("SOAK_REPORT") {
        std::fs::write(path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
    }
    assert!(records.intents > 0 && soak.tally.answered.load(Ordering::Relaxed) > 0);
    assert_eq!(
        report["wrong"].as_array().unwrap(),
        &[] as &[serde_json::Value]
    );
}

/// Resident memory in KiB, each second; and a line now and then, for whoever waits.
async fn watch(soak: &Soak, seconds: u64) -> Vec<u64> {
    let end = soak.started + Duration::from_secs(seconds);
    let every = (seconds / 20).clamp(5, 60);
    let mut all = Vec::new();
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let resident = resident_kib();
        all.push(resident);
        if u64::try_from(all.len()).unwrap().is_multiple_of(every) {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            println!(
                "soak: {} of {seconds} s: {} calls, {} answered, {} refused, {} broken, {resident} KiB",
                soak.started.elapsed().as_secs(),
                load(&soak.tally.calls),
                load(&soak.tally.answered),
                load(&soak.tally.refused),
                load(&soak.tally.broken),
            );
        }
    }
    all
}

/// What is this process's alone: pages of its program and libraries come and go with the machine's own needs.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

async fn client(soak: Arc<Soak>, mut dice: Dice) {
    while !soak.over.load(Ordering::Relaxed) {
        let workload = if dice.happens(500) {
            WORKLOAD
        } else {
            OTHER_WORKLOAD
        };
        let session = session(&soak, &mut dice, workload);
        // No client waits for ever.
        let _ = tokio::time::timeout(Duration::from_secs(10), session).await;
    }
}

/// One connection, with some calls on it, and perhaps something rude.
async fn session(soak: &Soak, dice: &mut Dice, workload: policies::WorkloadId) -> Option<()> {
    let stream = soak.world.dial_as(workload, soak.address).await;
    if dice.happens(10) {
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .ok()?;
        return None;
    }
    let h2 = dice.happens(300);
    let alpn: &[u8] = if h2 { b"h2" } else { b"http/1.1" };
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    let stream = soak.world.tls(alpn).connect(name, stream).await.ok()?;
    if !h2 && dice.happens(100) {
        return rude(soak, dice, stream).await;
    }
    let calls = 1 + dice.below(40);
    if h2 {
        let io = TokioIo::new(stream);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
        let connection = tokio::spawn(connection);
        for _ in 0..calls.div_ceil(4) {
            let many = (0..4).map(|_| {
                let mut sender = sender.clone();
                let write = dice.happens(400);
                let size = 16 << dice.below(12);
                async move {
                    let request = request(soak, write.then_some(size), true).await;
                    sender.send_request(request).await
                }
            });
            for answer in futures_util::future::join_all(many).await {
                take(soak, answer).await;
            }
        }
        connection.abort();
        return Some(());
    }
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    for _ in 0..calls {
        sender.ready().await.ok()?;
        let (write, size) = (dice.happens(400), 16 << dice.below(12));
        let sending = sender.send_request(request(soak, write.then_some(size), false).await);
        if dice.happens(5) {
            // Gone in the middle of the call.
            let _ = tokio::time::timeout(Duration::from_micros(dice.below(2000)), sending).await;
            soak.tally.given_up.fetch_add(1, Ordering::Relaxed);
            break;
        }
        let answer = sending.await;
        take(soak, answer).await;
    }
    connection.abort();
    Some(())
}

/// A write of so many bytes, or a read.
async fn request(soak: &Soak, write: Option<usize>, absolute: bool) -> http::Request<Full<Bytes>> {
    let id = soak.turn().await;
    soak.tally.calls.fetch_add(1, Ordering::Relaxed);
    let path = match write {
        Some(_) => "/v1/notes",
        None => "/v1/charges",
    };
    let uri = if absolute {
        format!("https://{HOST}{path}")
    } else {
        path.to_owned()
    };
    let mut request = http::Request::builder()
        .method(if write.is_some() { "POST" } else { "GET" })
        .uri(uri)
        .header("x-soak-id", id.to_string());
    if !absolute {
        request = request.header("host", HOST);
    }
    let body = vec![b'b'; write.unwrap_or(0)];
    request.body(Full::new(Bytes::from(body))).unwrap()
}

async fn take(soak: &Soak, answer: hyper::Result<http::Response<hyper::body::Incoming>>) {
    let counter = match answer {
        Err(_) => &soak.tally.broken,
        Ok(answer) => {
            let good = answer.status().is_success();
            match (answer.into_body().collect().await, good) {
                (Err(_), _) => &soak.tally.broken,
                (Ok(_), true) => &soak.tally.answered,
                (Ok(_), false) => &soak.tally.refused,
            }
        }
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Half a head, half a body, an answer that nobody reads, a half-closed connection, a broken chunk.
async fn rude<IO>(soak: &Soak, dice: &mut Dice, mut stream: IO) -> Option<()>
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let id = soak.turn().await;
    soak.tally.given_up.fetch_add(1, Ordering::Relaxed);
    let head = format!("POST /v1/notes HTTP/1.1\r\nHost: {HOST}\r\nx-soak-id: {id}\r\n");
    let sent = match dice.below(5) {
        0 => "POST /v1/notes HT".to_owned(),
        1 => format!("{head}Content-Length: 1000\r\n\r\nabc"),
        2 => format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhello!"),
        3 => format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        _ => format!("{head}Content-Length: 5\r\n\r\nhello"),
    };
    stream.write_all(sent.as_bytes()).await.ok()?;
    if dice.happens(500) {
        stream.shutdown().await.ok()?;
    }
    tokio::time::sleep(Duration::from_millis(dice.below(100))).await;
    if dice.happens(500) {
        let _ = stream.read(&mut [0; 16]).await;
    }
    Some(())
}

#[derive(Debug, Default)]
struct Records {
    intents: u64,
    outcomes: u64,
    refusals: u64,
    /// Intents with no outcome, with several, and outcomes of nothing.
    unmatched: Vec<u64>,
    by_outcome: HashMap<String, u64>,
}

/// Reads the whole log, until every intent has its outcome or patience ends.
async fn settled(soak: &Soak) -> Records {
    for _ in 0..30 {
        let records = read_log(soak).await;
        if records.unmatched.is_empty() {
            return records;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    read_log(soak).await
}

async fn read_log(soak: &Soak) -> Records {
    let ledger = soak.world.ledger.clone();
    let read = move || {
        let mut records = Records::default();
        let mut open: HashMap<u64, u32> = HashMap::new();
        let mut from = 0;
        loop {
            let query = Query {
                tenant: Some("acme".parse().unwrap()),
                from: Some(from),
                limit: 10_000,
                ..Query::default()
            };
            let entries = ledger.list(&query).unwrap();
            let Some(last) = entries.last() else { break };
            from = last.record().index + 1;
            for record in entries.iter().map(audit::Entry::record) {
                match record.kind {
                    Kind::Intent => {
                        records.intents += 1;
                        open.insert(record.index, 0);
                    }
                    Kind::Outcome => {
                        records.outcomes += 1;
                        let name = record.reason.map_or_else(
                            || format!("{:?}", record.outcome.unwrap()).to_lowercase(),
                            |reason| reason.to_string(),
                        );
                        *records.by_outcome.entry(name).or_default() += 1;
                        let intent = record.intent.unwrap();
                        match open.get_mut(&intent) {
                            Some(0) => drop(open.remove(&intent)),
                            Some(_) | None => records.unmatched.push(record.index),
                        }
                    }
                    Kind::Refusal => records.refusals += 1,
                    Kind::Approval | Kind::Event => {}
                }
            }
        }
        records.unmatched.extend(open.keys());
        records
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

fn report(
    soak: &Soak,
    records: &Records,
    memory: &[u64],
    seconds: u64,
    seed: u64,
) -> serde_json::Value {
    let (arrived, twice) = soak.upstream.counts();
    let mean = |part: &[u64]| part.iter().sum::<u64>() / u64::try_from(part.len().max(1)).unwrap();
    let third = memory.len() / 3;
    let (first, middle, last) = (
        mean(&memory[..third]),
        mean(&memory[third..memory.len() - third]),
        mean(&memory[memory.len() - third..]),
    );
    let mut wrong = Vec::new();
    if !records.unmatched.is_empty() {
        let few: Vec<_> = records.unmatched.iter().take(20).collect();
        wrong.push(format!("intents and outcomes do not match: {few:?}"));
    }
    if twice > 0 {
        wrong.push(format!("{twice} calls arrived twice"));
    }
    if arrived > records.intents {
        wrong.push(format!(
            "{arrived} calls arrived, {} were decided",
            records.intents
        ));
    }
    // A sixth more, and 16 MiB: caches fill while it runs.
    if seconds >= FLAT_FROM && last > first + first / 6 + 16 * 1024 {
        wrong.push(format!("memory grew from {first} KiB to {last} KiB"));
    }
    let tally = &soak.tally;
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let Faults {
        bad_certificate,
        half_closed,
        reset,
        stalled,
        truncated,
    } = &*soak.upstream.faults;
    serde_json::json!({
        "seconds": seconds,
        "seed": seed,
        "calls": load(&tally.calls),
        "answered": load(&tally.answered),
        "refused": load(&tally.refused),
        "broken": load(&tally.broken),
        "given_up": load(&tally.given_up),
        "arrived": arrived,
        "arrived_twice": twice,
        "intents": records.intents,
        "outcomes": records.outcomes,
        "refusals": records.refusals,
        "outcomes_by_name": records.by_outcome,
        "upstream_faults": {
            "bad_certificate": load(bad_certificate),
            "half_closed": load(half_closed),
            "reset": load(reset),
            "stalled": load(stalled),
            "truncated": load(truncated),
        },
        "memory_kib": { "first_third": first, "middle_third": middle, "last_third": last, "most": memory.iter().max() },
        "wrong": wrong,
    })
}
