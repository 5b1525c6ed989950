//! zstd one block at a time, so that a few bytes of input never become more than one block of memory.
//! Place on the path: one of the codings.
//! INVARIANT: one frame, no dictionary, a window of at most eight MiB, a checksum that fits where there is one (RFC 8878).
//!
//! What is decoded becomes visible when the window is full or the frame ends: event streams in zstd come late, not wrong.

use std::io;

use ruzstd::decoding::FrameDecoder;

use super::Feed;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What RFC 8878 asks decoders to support, and what HTTP clients may use (RFC 9659).
const WINDOW: u64 = 8 * 1024 * 1024;
/// The largest block.
const BLOCK: usize = 128 * 1024;

/// A decoder of one frame.
pub(super) struct Zstd {
    feed: Feed,
    decoder: FrameDecoder,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Head,
    Blocks { checksum: bool },
    Over,
}

impl Zstd {
    pub(super) fn new(feed: Feed) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW);
        Self {
            feed,
            decoder,
            state: State::Head,
        }
    }

    pub(super) fn feed(&mut self) -> &mut Feed {
        &mut self.feed
    }

    /// See [`super::Inner::read`].
    pub(super) fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            if !matches!(self.state, State::Head) {
                let (_, made) = self.step(0, piece)?;
                if made > 0 {
                    return Ok(made);
                }
            }
            match self.state {
                State::Head => self.head()?,
                State::Blocks { checksum } => {
                    let (length, last) = self.block(checksum)?;
                    let (taken, made) = self.step(length, piece)?;
                    if taken != length {
                        return Err(broken());
                    }
                    if last {
                        self.state = State::Over;
                    }
                    if made > 0 {
                        return Ok(made);
                    }
                }
                State::Over => return self.check().map(|()| 0),
            }
        }
    }

    /// Decodes the first `length` bytes of what is there, one block or none, and hands out what is ready.
    fn step(&mut self, length: usize, piece: &mut [u8]) -> io::Result<(usize, usize)> {
        let source = self.feed.bytes.split_to(length);
        self.decoder
            .decode_from_to(&source, piece)
            .map_err(io::Error::other)
    }

    /// The frame's head: five to eighteen bytes, whose length the fifth one says.
    fn head(&mut self) -> io::Result<()> {
        let bytes = self.at_least(5)?;
        let descriptor = match bytes {
            [a, b, c, d, descriptor, ..] if [*a, *b, *c, *d] == MAGIC => *descriptor,
            // Skippable frames too: there is nothing in them to decide on.
            _ => return Err(broken()),
        };
        let (single, dictionary) = (descriptor & 0x20 != 0, descriptor & 0x03 != 0);
        if dictionary {
            return Err(broken());
        }
        let window = usize::from(!single);
        let size = match (descriptor >> 6, single) {
            (0, false) => 0,
            (0, true) => 1,
            (1, _) => 2,
            (2, _) => 4,
            _ => 8,
        };
        let length = 5 + window + size;
        self.at_least(length)?;
        let head = self.feed.bytes.split_to(length);
        self.decoder.reset(&head[..]).map_err(io::Error::other)?;
        self.state = State::Blocks {
            checksum: descriptor & 0x04 != 0,
        };
        Ok(())
    }

    /// The length of the next block with its head, and with the checksum behind the last one; all of it is there then.
    fn block(&mut self, checksum: bool) -> io::Result<(usize, bool)> {
        let [a, b, c, ..] = *self.at_least(3)? else {
            return Err(broken());
        };
        let head = u32::from_le_bytes([a, b, c, 0]);
        let (last, kind) = (head & 1 != 0, head >> 1 & 3);
        let size = usize::try_from(head >> 3).map_err(|_| broken())?;
        let content = match kind {
            0 | 2 => size,
            1 => 1,
            _ => return Err(broken()),
        };
        if size > BLOCK {
            return Err(broken());
        }
        let tail = if last && checksum { 4 } else { 0 };
        let length = 3 + content + tail;
        self.at_least(length)?;
        Ok((length, last))
    }

    fn at_least(&self, length: usize) -> io::Result<&[u8]> {
        if self.feed.bytes.len() >= length {
            Ok(&self.feed.bytes)
        } else if self.feed.ended {
            Err(io::ErrorKind::UnexpectedEof.into())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Once everything was handed out, and so summed up.
    fn check(&self) -> io::Result<()> {
        let (said, is) = (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        );
        if said.is_none() || said == is {
            Ok(())
        } else {
            Err(broken())
        }
    }
}

fn broken() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
