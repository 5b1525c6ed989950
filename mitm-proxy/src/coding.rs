//! Content codings undone: gzip, deflate, brotli, zstd, a piece at a time and within bounds.
//! Place on the path: before mapping, where a matcher reads a compressed body; behind upstream, where a lent secret is searched for.
//! INVARIANT: memory is bounded whatever the input says, and there is one reading of it: nothing comes after its end.

use std::io::{self, BufRead, Read};

use brotli_decompressor::Decompressor as Brotli;
use bytes::{Buf as _, Bytes};
use flate2::bufread::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use self::zstd::Zstd;

mod zstd;

/// What is decoded at a time.
const PIECE: usize = 16 * 1024;
/// How many times larger than what came a body may become, beyond the first [`GRACE`] bytes.
const RATIO: u64 = 256;
/// What every body may become.
const GRACE: u64 = 1024 * 1024;

/// A coding that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Brotli,
    Deflate,
    Gzip,
    Zstd,
}

impl Coding {
    /// The one coding of a body; `Ok(None)` where it has none.
    ///
    /// # Errors
    /// Codings that are not known, or several at once, as they are written.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, String> {
        let mut found = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            let unknown = || String::from_utf8_lossy(value.as_bytes()).into_owned();
            let text = value.to_str().map_err(|_| unknown())?;
            let coding = match text.trim().to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "br" => Self::Brotli,
                "deflate" => Self::Deflate,
                "gzip" | "x-gzip" => Self::Gzip,
                "zstd" => Self::Zstd,
                _ => return Err(unknown()),
            };
            if found.replace(coding).is_some() {
                return Err(unknown());
            }
        }
        Ok(found)
    }
}

/// What is wrong with an encoded body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It grows beyond what may be read.
    Bomb,
    /// It is not what its coding says, or ends too early.
    Broken,
    /// It is larger than its reader wants it.
    Large,
    /// Something comes after its end, which some readers see and others do not.
    Trailing,
}

impl Flaw {
    /// For people, after "the body".
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Bomb => "grows beyond all measure when it is decompressed",
            Self::Broken => "cannot be decompressed",
            Self::Large => "is too large once it is decompressed",
            Self::Trailing => "goes on after the end of what was compressed",
        }
    }
}

/// Undoes one coding.
pub(crate) struct Decoder {
    inner: Inner,
    fed: u64,
    made: u64,
    over: bool,
}

enum Inner {
    Brotli(Box<Brotli<Feed>>),
    Deflate(Box<Decompress>, Feed),
    Gzip(Box<GzDecoder<Feed>>),
    Zstd(Box<Zstd>),
}

impl Decoder {
    pub(crate) fn new(coding: Coding) -> Self {
        let feed = Feed::default();
        let inner = match coding {
            Coding::Brotli => Inner::Brotli(Box::new(Brotli::new(feed, 4096))),
            // RFC 9110 means zlib's format; what has no zlib header is not guessed at.
            Coding::Deflate => Inner::Deflate(Box::new(Decompress::new(true)), feed),
            Coding::Gzip => Inner::Gzip(Box::new(GzDecoder::new(feed))),
            Coding::Zstd => Inner::Zstd(Box::new(Zstd::new(feed))),
        };
        Self {
            inner,
            fed: 0,
            made: 0,
            over: false,
        }
    }

    /// The next bytes of the encoded body. What was pushed before must have been pulled.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.fed = self
            .fed
            .saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.feed().put(bytes);
    }

    /// No more will come. Whether that was known before.
    pub(crate) fn finish(&mut self) -> bool {
        std::mem::replace(&mut self.feed().ended, true)
    }

    /// Whether the end was reached.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// The next piece; `None` while more input is needed, and at the end.
    pub(crate) fn pull(&mut self) -> Result<Option<Bytes>, Flaw> {
        if self.over {
            return self.end();
        }
        let mut piece = vec![0; PIECE];
        let length = match self.inner.read(&mut piece) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(_) => return Err(Flaw::Broken),
        };
        if length == 0 {
            self.over = true;
            return self.end();
        }
        piece.truncate(length);
        self.made = self
            .made
            .saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if self.made > GRACE.saturating_add(self.fed.saturating_mul(RATIO)) {
            return Err(Flaw::Bomb);
        }
        Ok(Some(piece.into()))
    }

    fn end(&mut self) -> Result<Option<Bytes>, Flaw> {
        // Brotli's reader takes input ahead, and says once more whether it used it.
        if let Inner::Brotli(brotli) = &mut self.inner
            && !matches!(brotli.read(&mut [0]), Ok(0))
        {
            return Err(Flaw::Trailing);
        }
        if self.feed().bytes.is_empty() {
            Ok(None)
        } else {
            Err(Flaw::Trailing)
        }
    }

    fn feed(&mut self) -> &mut Feed {
        match &mut self.inner {
            Inner::Brotli(brotli) => brotli.get_mut(),
            Inner::Deflate(_, feed) => feed,
            Inner::Gzip(gzip) => gzip.get_mut(),
            Inner::Zstd(zstd) => zstd.feed(),
        }
    }
}

/// A whole body decoded, at most `limit` bytes of it.
pub(crate) fn decode(coding: Coding, body: &Bytes, limit: usize) -> Result<Bytes, Flaw> {
    let mut decoder = Decoder::new(coding);
    decoder.push(body.clone());
    decoder.finish();
    let mut plain = Vec::new();
    while let Some(piece) = decoder.pull()? {
        plain.extend_from_slice(&piece);
        if plain.len() > limit {
            let measure = u64::try_from(body.len()).unwrap_or(u64::MAX);
            let bomb = decoder.made > measure.saturating_mul(RATIO);
            return Err(if bomb { Flaw::Bomb } else { Flaw::Large });
        }
    }
    if decoder.over {
        Ok(plain.into())
    } else {
        Err(Flaw::Broken)
    }
}

impl Inner {
    /// Zero is the end of the stream; `WouldBlock` asks for more input.
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Brotli(brotli) => brotli.read(piece),
            Self::Deflate(decompress, feed) => inflate(decompress, feed, piece),
            Self::Gzip(gzip) => gzip.read(piece),
            Self::Zstd(zstd) => zstd.read(piece),
        }
    }
}

fn inflate(decompress: &mut Decompress, feed: &mut Feed, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        let input = feed.fill_buf()?;
        let starved = input.is_empty();
        let (before_in, before_out) = (decompress.total_in(), decompress.total_out());
        let status = decompress
            .decompress(input, piece, FlushDecompress::None)
            .map_err(io::Error::other)?;
        let taken = usize::try_from(decompress.total_in() - before_in).unwrap_or(usize::MAX);
        let made = usize::try_from(decompress.total_out() - before_out).unwrap_or(usize::MAX);
        feed.consume(taken);
        if made > 0 || status == Status::StreamEnd {
            return Ok(made);
        }
        if starved || taken == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What was pushed and not taken yet.
#[derive(Debug, Default)]
struct Feed {
    bytes: Bytes,
    ended: bool,
}

impl Feed {
    fn put(&mut self, bytes: Bytes) {
        self.bytes = if self.bytes.is_empty() {
            bytes
        } else {
            [&self.bytes[..], &bytes[..]].concat().into()
        };
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.bytes.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.bytes)
    }

    fn consume(&mut self, amount: usize) {
        self.bytes.advance(amount.min(self.bytes.len()));
    }
}

impl Read for Feed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..length), from.get(..length)) {
            to.copy_from_slice(from);
        }
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
