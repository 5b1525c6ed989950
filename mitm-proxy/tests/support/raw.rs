//! An upstream that only writes down bytes, and the readers of them: one strict, the others with the habits of real servers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

/// One request, as a reader understood it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Read {
    pub method: String,
    pub path: String,
    pub host: String,
    /// SHA-256 of the body; none where the body is not all there.
    pub body: Option<[u8; 32]>,
}

/// How a reader finds the end of a message.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    /// RFC 9112.
    Strict,
    /// Content-Length, whatever else there is.
    LengthFirst,
    /// `chunked` wherever it stands in a header that looks like Transfer-Encoding.
    LooseChunked,
    /// Lines end in LF; a folded line is a line.
    BareLf,
}

/// Bytes of each connection, in the order of their opening.
pub struct RawUpstream {
    pub address: SocketAddr,
    pub root: Vec<u8>,
    pub streams: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RawUpstream {
    pub async fn start(names: &[&str]) -> Self {
        let (root, config) = super::upstream::identity(names, vec![b"http/1.1".to_vec()]);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            root,
            streams: Arc::default(),
        };
        let streams = Arc::clone(&this.streams);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, streams) = (acceptor.clone(), Arc::clone(&streams));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let place = {
                        let mut all = streams.lock().unwrap();
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    let (mut part, mut answered) = ([0; 4096], 0);
                    while let Ok(length @ 1..) = stream.read(&mut part).await {
                        let whole = {
                            let mut all = streams.lock().unwrap();
                            all[place].extend_from_slice(&part[..length]);
                            let read = read(&all[place], Habit::Strict);
                            read.iter().filter(|request| request.body.is_some()).count()
                        };
                        for _ in answered..whole {
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                            if stream.write_all(answer).await.is_err() {
                                return;
                            }
                        }
                        answered = whole;
                    }
                });
            }
        });
        this
    }

    /// What a strict reader has seen so far, whole requests and begun ones.
    pub fn seen(&self) -> Vec<Read> {
        let streams = self.streams.lock().unwrap();
        let all = streams
            .iter()
            .flat_map(|stream| read(stream, Habit::Strict));
        all.collect()
    }

    /// Each stream as each reader sees it must be the same requests.
    pub fn is_unambiguous(&self) {
        for stream in self.streams.lock().unwrap().iter() {
            let strict = read(stream, Habit::Strict);
            for habit in [Habit::LengthFirst, Habit::LooseChunked, Habit::BareLf] {
                assert_eq!(
                    read(stream, habit),
                    strict,
                    "{habit:?} reads {:?} in another way",
                    String::from_utf8_lossy(stream)
                );
            }
        }
    }
}

/// The requests that a reader with this habit finds.
pub fn read(mut bytes: &[u8], habit: Habit) -> Vec<Read> {
    let mut found = Vec::new();
    while let Some((head, rest)) = head(bytes, habit) {
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| {
            String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned()
        });
        let first = lines.next().unwrap_or_default();
        let mut words = first.split(' ');
        let mut request = Read {
            method: words.next().unwrap_or_default().to_owned(),
            path: words.next().unwrap_or_default().to_owned(),
            host: String::new(),
            body: None,
        };
        let (mut length, mut chunked) = (None, false);
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            let (name, value) = (name.to_ascii_lowercase(), value.trim());
            let name = match habit {
                Habit::LooseChunked => name.trim().replace('_', "-"),
                _ => name,
            };
            match name.as_str() {
                "host" => request.host += value,
                "content-length" => length = value.parse::<usize>().ok(),
                "transfer-encoding" if matches!(habit, Habit::LooseChunked) => {
                    chunked |= value.to_ascii_lowercase().contains("chunked");
                }
                "transfer-encoding" => chunked |= value.eq_ignore_ascii_case("chunked"),
                _ => {}
            }
        }
        let body = match (habit, length, chunked) {
            (Habit::LengthFirst, Some(length), _) | (_, Some(length), false) => rest
                .split_at_checked(length)
                .map(|(body, rest)| (body.to_vec(), rest)),
            (_, _, true) => dechunked(rest),
            (_, None, false) => Some((Vec::new(), rest)),
        };
        let Some((body, rest)) = body else {
            found.push(request);
            return found;
        };
        request.body = Some(Sha256::digest(&body).into());
        found.push(request);
        bytes = rest;
    }
    found
}

/// The next head without its empty line, and what follows.
fn head(bytes: &[u8], habit: Habit) -> Option<(&[u8], &[u8])> {
    let ends: &[&[u8]] = match habit {
        Habit::BareLf => &[b"\r\n\r\n", b"\n\n", b"\n\r\n"],
        _ => &[b"\r\n\r\n"],
    };
    let (at, end) = ends
        .iter()
        .filter_map(|end| Some((find(bytes, end)?, end.len())))
        .min()?;
    Some((&bytes[..at], &bytes[at + end..]))
}

fn dechunked(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            loop {
                let end = find(bytes, b"\r\n")?;
                bytes = &bytes[end + 2..];
                if end == 0 {
                    return Some((body, bytes));
                }
            }
        }
        body.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
