//! An upstream that misbehaves at random: resets, stalls, half-closes, breaks off, shows a wrong certificate; and counts what it was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

/// Calls that can be told apart in one run.
const CALLS: usize = 1 << 24;

/// Random numbers that a seed repeats (xorshift); good enough for faults.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    /// True in so many of a thousand cases.
    pub fn happens(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

/// What upstream did, for the report.
#[derive(Debug, Default)]
pub struct Faults {
    pub bad_certificate: AtomicU64,
    pub half_closed: AtomicU64,
    pub reset: AtomicU64,
    pub stalled: AtomicU64,
    pub truncated: AtomicU64,
}

pub struct FaultyUpstream {
    pub address: SocketAddr,
    pub root: Vec<u8>,
    pub faults: Arc<Faults>,
    /// How often each call arrived.
    seen: Arc<[AtomicU8]>,
}

impl FaultyUpstream {
    pub async fn start(names: &[&str], seed: u64) -> Self {
        let alpn = vec![b"http/1.1".to_vec()];
        let (root, good) = super::upstream::identity(names, alpn.clone());
        let (_, bad) = super::upstream::identity(names, alpn);
        let acceptors = [good, bad].map(|config| TlsAcceptor::from(Arc::new(config)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            root,
            faults: Arc::default(),
            seen: (0..CALLS).map(|_| AtomicU8::new(0)).collect(),
        };
        let (faults, seen) = (Arc::clone(&this.faults), Arc::clone(&this.seen));
        tokio::spawn(async move {
            let mut number = seed;
            while let Ok((stream, _)) = listener.accept().await {
                number += 1;
                let mut dice = Dice::new(number);
                let wrong = dice.happens(10);
                let acceptor = acceptors[usize::from(wrong)].clone();
                let (faults, seen) = (Arc::clone(&faults), Arc::clone(&seen));
                if wrong {
                    faults.bad_certificate.fetch_add(1, Ordering::Relaxed);
                }
                tokio::spawn(async move {
                    serve(stream, acceptor, dice, &faults, &seen).await;
                });
            }
        });
        this
    }

    /// How many calls arrived, and how many of them more than once.
    pub fn counts(&self) -> (u64, u64) {
        let mut counts = (0, 0);
        for seen in self.seen.iter() {
            let seen = seen.load(Ordering::Relaxed);
            counts.0 += u64::from(seen > 0);
            counts.1 += u64::from(seen > 1);
        }
        counts
    }
}

fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    mut dice: Dice,
    faults: &Faults,
    seen: &[AtomicU8],
) {
    let count = |fault: &AtomicU64| fault.fetch_add(1, Ordering::Relaxed);
    if dice.happens(5) {
        count(&faults.reset);
        return reset(&stream);
    }
    if dice.happens(3) {
        count(&faults.stalled);
        return tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let Ok(mut stream) = acceptor.accept(stream).await else {
        return;
    };
    let mut read = Vec::new();
    loop {
        let Some(length) = head_and_body(&mut stream, &mut read, seen).await else {
            return;
        };
        let body = vec![b'x'; 16 << dice.below(12)];
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        read.drain(..length);
        match dice.below(1000) {
            0..10 => {
                count(&faults.reset);
                return reset(stream.get_ref().0);
            }
            10..15 => {
                count(&faults.stalled);
                return tokio::time::sleep(Duration::from_secs(4)).await;
            }
            15..25 => {
                count(&faults.half_closed);
                let _ = stream.shutdown().await;
                return tokio::time::sleep(Duration::from_millis(50)).await;
            }
            25..40 => {
                count(&faults.truncated);
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body[..body.len() / 2]).await;
                return;
            }
            40..45 => {
                count(&faults.reset);
                let _ = stream.write_all(&head.as_bytes()[..20]).await;
                return reset(stream.get_ref().0);
            }
            45..60 => {
                // A good answer, and then the connection is gone: the next call finds it dead.
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(&body).await;
                return;
            }
            _ => {}
        }
        if stream.write_all(head.as_bytes()).await.is_err()
            || stream.write_all(&body).await.is_err()
        {
            return;
        }
    }
}

/// Reads one request into `read`, counts it as soon as its head is there, and says how long it is.
async fn head_and_body(
    stream: &mut tokio_rustls::server::TlsStream<TcpStream>,
    read: &mut Vec<u8>,
    seen: &[AtomicU8],
) -> Option<usize> {
    let mut part = [0; 8192];
    let mut counted = false;
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            if !counted {
                counted = true;
                let id = text.split("x-soak-id: ").nth(1)?.lines().next()?;
                seen.get(id.parse::<usize>().ok()?)?
                    .fetch_add(1, Ordering::Relaxed);
            }
            let length = text
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.lines().next()?.parse::<usize>().ok());
            if read.len() >= end + 4 + length.unwrap_or(0) {
                return Some(end + 4 + length.unwrap_or(0));
            }
        }
        match stream.read(&mut part).await {
            Ok(length @ 1..) => read.extend_from_slice(&part[..length]),
            _ => return None,
        }
    }
}
