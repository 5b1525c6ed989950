//! A strict second reading of the HTTP/1 byte stream, beside hyper's: where the two could disagree, the request is refused.
//! Place on the path: between TLS and hyper, on the agent's leg, read side only.
//! INVARIANT: a flaw is seen before hyper can hand the request on, and stays for the life of the connection.
//!
//! hyper follows RFC 9112 where it lets a recipient repair a message: it drops `Content-Length` beside
//! `Transfer-Encoding`, folds equal lengths into one, accepts bare LF. A repaired message is a guess about what the sender
//! and every other reader meant, and a guess is not what a decision may rest on (RFC 9112 sections 2.2, 5.2, 6.3 and 11.2).

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::trailers;

/// What is wrong with the bytes of a connection, once something is.
pub(crate) type Flaw = Arc<OnceLock<&'static str>>;

/// A stream whose read side is also read by [`Framing`]; writes pass untouched.
#[derive(Debug)]
pub(crate) struct Watched<IO> {
    io: IO,
    framing: Framing,
    begun: Arc<AtomicBool>,
}

impl<IO> Watched<IO> {
    /// Watches an HTTP/1 stream.
    pub(crate) fn new(io: IO, flaw: Flaw, head_limit: usize) -> Self {
        Self {
            io,
            framing: Framing::new(flaw, head_limit),
            begun: Arc::default(),
        }
    }

    /// The stream itself, once it speaks something else than HTTP.
    pub(crate) fn into_inner(self) -> IO {
        self.io
    }

    /// Whether a head was begun and is not finished: tells a slow sender from an idle connection.
    pub(crate) fn begun(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.begun)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &read {
            let fresh = buf.filled().get(before..).unwrap_or_default();
            let verdict = this.framing.read(fresh);
            let begun = matches!(this.framing.state, State::Head) && !this.framing.line.is_empty();
            this.begun.store(begun, Ordering::Release);
            if verdict == Verdict::Cut {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the body's framing is broken",
                )));
            }
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// What the reader of the bytes may do with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Hand them on; a flawed head is handed on too, so that the request can be answered with a refusal.
    Pass,
    /// The flaw lies inside a body that may already be on its way: the connection ends here.
    Cut,
}

/// The framing of one direction of an HTTP/1 connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    line: Vec<u8>,
    head_limit: usize,
    flaw: Flaw,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Collecting a head in `line`.
    Head,
    /// Inside a body of known length: bytes left.
    Length(u64),
    /// Collecting a chunk-size line.
    ChunkSize,
    /// Inside a chunk: bytes left.
    Chunk(u64),
    /// The CRLF after a chunk.
    ChunkEnd,
    /// Collecting trailer lines.
    Trailers,
    /// A flaw was found in a head; nothing after it has a meaning.
    Broken,
}

/// A chunk-size line: 16 hex digits and what extensions anybody was seen to send.
const CHUNK_LINE: usize = 256;

impl Framing {
    pub(crate) fn new(flaw: Flaw, head_limit: usize) -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            head_limit,
            flaw,
        }
    }

    /// Reads on; records the first flaw.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Verdict {
        while !bytes.is_empty() {
            let in_head = matches!(self.state, State::Head | State::Broken);
            match self.step(&mut bytes) {
                Ok(()) => {}
                Err(flaw) => {
                    let _ = self.flaw.set(flaw);
                    self.state = State::Broken;
                    self.line.clear();
                    if !in_head {
                        return Verdict::Cut;
                    }
                }
            }
        }
        Verdict::Pass
    }

    fn step(&mut self, bytes: &mut &[u8]) -> Result<(), &'static str> {
        match self.state {
            State::Broken => *bytes = &[],
            State::Length(left) => match skip(bytes, left) {
                0 => self.state = State::Head,
                left => self.state = State::Length(left),
            },
            State::Chunk(left) => match skip(bytes, left) {
                0 => self.state = State::ChunkEnd,
                left => self.state = State::Chunk(left),
            },
            State::ChunkEnd => {
                if self.take_line(bytes, 2)? {
                    if self.line != b"\r\n" {
                        return Err("a chunk is longer than it says");
                    }
                    self.line.clear();
                    self.state = State::ChunkSize;
                }
            }
            State::ChunkSize => {
                if self.take_line(bytes, CHUNK_LINE)? {
                    let size = chunk_size(&self.line)?;
                    self.line.clear();
                    self.state = if size == 0 {
                        State::Trailers
                    } else {
                        State::Chunk(size)
                    };
                }
            }
            State::Trailers => {
                if self.take_line(bytes, self.head_limit)? {
                    if self.line == b"\r\n" {
                        self.state = State::Head;
                    } else {
                        trailer(&self.line)?;
                    }
                    self.line.clear();
                }
            }
            State::Head => {
                // An empty line before the request line is skipped (RFC 9112 section 2.2).
                if self.take_line(bytes, self.head_limit)? {
                    if self.line == b"\r\n" {
                        self.line.clear();
                    } else if self.line.ends_with(b"\r\n\r\n") {
                        self.state = framing_of(&self.line)?;
                        self.line.clear();
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves bytes up to the next LF into `line`; true when a CRLF was reached.
    fn take_line(&mut self, bytes: &mut &[u8], limit: usize) -> Result<bool, &'static str> {
        let (taken, rest, complete) = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let (taken, rest) = bytes.split_at(at + 1);
                (taken, rest, true)
            }
            None => (*bytes, &[][..], false),
        };
        if self.line.len().saturating_add(taken.len()) > limit {
            return Err("a line or head is too long");
        }
        self.line.extend_from_slice(taken);
        *bytes = rest;
        if complete && !self.line.ends_with(b"\r\n") {
            return Err("a line ends in a bare LF");
        }
        Ok(complete)
    }
}

/// Skips up to `left` bytes; returns what is still left.
fn skip(bytes: &mut &[u8], left: u64) -> u64 {
    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = bytes.get(take..).unwrap_or_default();
    left - u64::try_from(take).unwrap_or(left)
}

fn chunk_size(line: &[u8]) -> Result<u64, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "a chunk size is not text")?;
    let text = text
        .strip_suffix("\r\n")
        .ok_or("a chunk size does not end in CRLF")?;
    let (digits, extensions) = text.split_once(';').unwrap_or((text, ""));
    // Nobody is known to need extensions; those that are not plain names and values are where readers differ.
    if !extensions
        .bytes()
        .all(|byte| is_token(byte) || matches!(byte, b'=' | b';'))
    {
        return Err("a chunk extension is not plain");
    }
    if digits.is_empty()
        || digits.len() > 15
        || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return Err("a chunk size is not a plain hexadecimal number");
    }
    u64::from_str_radix(digits, 16).map_err(|_| "a chunk size is not a plain hexadecimal number")
}

/// Checks a complete head and says what follows it.
fn framing_of(head: &[u8]) -> Result<State, &'static str> {
    let lines = head.strip_suffix(b"\r\n\r\n").unwrap_or(head);
    let mut length: Option<u64> = None;
    let mut chunked = false;
    let mut hosts = 0_u32;
    let mut lines = lines
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    request_line(lines.next().unwrap_or_default())?;
    for line in lines {
        let (name, value) = field(line)?;
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits =
                std::str::from_utf8(value).map_err(|_| "Content-Length is not a number")?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err("Content-Length is not a plain decimal number");
            }
            if length.is_some() {
                return Err("Content-Length stands twice");
            }
            length = Some(
                digits
                    .parse()
                    .map_err(|_| "Content-Length is not a plain decimal number")?,
            );
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if chunked {
                return Err("Transfer-Encoding stands twice");
            }
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding is something else than chunked");
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case(b"host") {
            hosts += 1;
        }
    }
    match (length, chunked) {
        _ if hosts > 1 => Err("Host stands twice"),
        (Some(_), true) => Err("Content-Length and Transfer-Encoding stand in one head"),
        (None, true) => Ok(State::ChunkSize),
        (Some(0) | None, false) => Ok(State::Head),
        (Some(length), false) => Ok(State::Length(length)),
    }
}

/// Method, target and version, each once, with one space between them; in the target no byte that a reader has to repair,
/// and no fragment, which some cut off and others send.
fn request_line(line: &[u8]) -> Result<(), &'static str> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(_), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("the request line is not three words");
    };
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err("the method holds a byte that methods cannot hold");
    }
    if target.contains(&b'#') {
        return Err("the request target holds a fragment");
    }
    if !target
        .iter()
        .all(|byte| byte.is_ascii_graphic() && *byte != b'\\')
    {
        return Err("the request target holds a byte that must be percent-encoded");
    }
    Ok(())
}

/// A field line as name and value; folded, nameless or broken ones are flaws.
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    if line.contains(&b'\r') {
        return Err("a bare CR stands inside a header");
    }
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err("a header is folded over two lines");
    }
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .ok_or("a header line has no colon")?;
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err("a header name holds a byte that names cannot hold");
    }
    Ok((name, value.get(1..).unwrap_or_default().trim_ascii()))
}

fn trailer(line: &[u8]) -> Result<(), &'static str> {
    let (name, value) = field(line.strip_suffix(b"\r\n").unwrap_or(line))?;
    if value.iter().any(u8::is_ascii_control) {
        return Err("a trailer holds a control byte");
    }
    if !trailers::may_trail(name) {
        return Err("a trailer says what only a head may say");
    }
    Ok(())
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> Option<&'static str> {
        let flaw = Flaw::default();
        let mut framing = Framing::new(Arc::clone(&flaw), 4096);
        for part in parts {
            if framing.read(part) == Verdict::Cut {
                break;
            }
        }
        flaw.get().copied()
    }

    /// The flaw after reading `bytes` whole, and again in every split into two parts: the verdict may not depend on it.
    fn flaw_of(bytes: &[u8]) -> Option<&'static str> {
        let whole = read(&[bytes]);
        for at in 0..=bytes.len() {
            let (one, two) = bytes.split_at(at);
            assert_eq!(read(&[one, two]), whole, "split at {at}");
        }
        whole
    }

    #[test]
    fn plain_requests_have_no_flaw() {
        let good: [&[u8]; 7] = [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\nA;ext=1\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
            // A body may say anything.
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 48\r\n\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\n\n\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nPUT / HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        for bytes in good {
            assert_eq!(flaw_of(bytes), None, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn request_smuggling_shapes_are_flaws() {
        let bad: [&[u8]; 22] = [
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\n\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent_Length: 1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: a\r\n b\r\n\r\n",
            b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        for bytes in bad {
            assert!(
                flaw_of(bytes).is_some(),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }

    const PARTS: [&[u8]; 26] = [
        b"GET / HTTP/1.1\r\n",
        b"POST /a HTTP/1.1\r\n",
        b"POST /a HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"content-length: 0\r\n",
        b"Content-Length:3\r\n",
        b"Content-Length : 3\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Content-Length: +3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"X: y\r\n",
        b"X: y\n",
        b" folded\r\n",
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b":",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"\r\n\r\n",
    ];

    proptest::proptest! {
        /// Two readers, one length: what follows the head is the same to both.
        #[test]
        fn fuzz_requests_that_pass_are_read_alike_by_hyper(
            parts in proptest::collection::vec(proptest::sample::select(PARTS.to_vec()), 0..14),
        ) {
            let bytes = parts.concat();
            if read(&[&bytes]).is_some() {
                return Ok(());
            }
            // What has no flaw for us must not be a request of another length for the reader that hyper uses.
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut request = httparse::Request::new(&mut fields);
            let Ok(httparse::Status::Complete(end)) = request.parse(&bytes) else { return Ok(()) };
            let flaw = Flaw::default();
            let mut framing = Framing::new(Arc::clone(&flaw), 4096);
            framing.read(&bytes[..end]);
            let values = |wanted: &str| request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case(wanted)).map(|it| it.value).collect::<Vec<_>>();
            let expected = match (&values("content-length")[..], &values("transfer-encoding")[..]) {
                ([], []) => None,
                ([one], []) => std::str::from_utf8(one).unwrap().parse::<u64>().ok().filter(|length| *length > 0),
                ([], [one]) if one.eq_ignore_ascii_case(b"chunked") => Some(u64::MAX),
                other => panic!("{other:?} has no flaw"),
            };
            let seen = match framing.state {
                State::Head => None,
                State::Length(length) => Some(length),
                State::ChunkSize => Some(u64::MAX),
                state => panic!("{state:?}"),
            };
            proptest::prop_assert_eq!(seen, expected, "{:?}", String::from_utf8_lossy(&bytes));
        }

        /// Whatever arrives, in whatever pieces: no panic, and the pieces do not change what is seen.
        #[test]
        fn fuzz_pieces_do_not_change_what_is_seen(
            bytes in proptest::collection::vec(
                proptest::sample::select(b"GET / HTTP/1.1\r\nHost: aTransfer-Encoding: chunked0\r\n\r\n;".to_vec()), 0..80),
            cuts in proptest::collection::vec(0_usize..80, 0..4),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            proptest::prop_assert_eq!(read(&pieces), read(&[&bytes]));
        }
    }
}
