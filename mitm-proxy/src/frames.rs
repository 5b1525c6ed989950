//! WebSocket frames of one direction: read far enough to count and bound them, and to keep a lent secret out of them.
//! Place on the path: inside a tunnel, after upstream has switched protocols (RFC 6455).
//! INVARIANT: what leaves is what came, byte for byte and frame for frame, but for the bytes of a lent secret and what follows a closing frame.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use vault::Scrubber;

use crate::tunnel::{Course, End, Side};

/// The longest head of a frame: two bytes, a length of eight, a mask of four.
const HEAD: usize = 14;
/// The longest payload of a control frame.
const CONTROL: u64 = 125;

/// The frames of one direction.
#[derive(Debug)]
pub(crate) struct Frames {
    from: Side,
    /// An extension was negotiated, whose business the reserved bits are.
    extended: bool,
    most: u64,
    head: Vec<u8>,
    /// Payload of the current frame that is still to come.
    left: u64,
    control: bool,
    last: bool,
    /// Between the first and the last frame of a message.
    inside: bool,
    closed: bool,
    seen: u64,
    scrub: Option<Scrub>,
}

impl Frames {
    /// At most `most` frames; a `scrubber` only where payloads are plain.
    pub(crate) fn new(from: Side, extended: bool, most: u64, scrubber: Option<Scrubber>) -> Self {
        Self {
            from,
            extended,
            most,
            head: Vec::with_capacity(HEAD),
            left: 0,
            control: false,
            last: true,
            inside: false,
            closed: false,
            seen: 0,
            scrub: scrubber.map(Scrub::new),
        }
    }

    /// Collects a frame's head; true once it is whole.
    fn head(&mut self, bytes: &mut &[u8]) -> Result<bool, End> {
        while let Some((byte, rest)) = bytes.split_first() {
            *bytes = rest;
            self.head.push(*byte);
            if let Some(length) = length_of(&self.head) {
                self.check(length?)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What two readers could take differently ends the connection (RFC 6455 sections 5.2, 5.4, 5.5).
    fn check(&mut self, length: u64) -> Result<(), End> {
        let [first, second, ..] = self.head.as_slice() else {
            return Err(End::Broken("a frame has no head"));
        };
        let (last, reserved, kind) = (first & 0x80 != 0, first & 0x70, first & 0x0f);
        let control = kind & 0x08 != 0;
        if reserved != 0 && !self.extended {
            return Err(End::Broken(
                "reserved bits are set, and no extension was negotiated",
            ));
        }
        if (second & 0x80 != 0) != (self.from == Side::Agent) {
            return Err(End::Broken(
                "a frame is masked from the server, or not from the client",
            ));
        }
        match kind {
            0 if !self.inside => return Err(End::Broken("a continuation continues nothing")),
            1 | 2 if self.inside => return Err(End::Broken("a message begins inside another")),
            0..=2 => self.inside = !last,
            8..=10 if last && length <= CONTROL => {}
            8..=10 => return Err(End::Broken("a control frame is too long, or in parts")),
            _ => return Err(End::Broken("a frame is of an unknown kind")),
        }
        self.closed = kind == 8;
        if self.seen >= self.most {
            return Err(End::Limit(format!(
                "More than {} frames in one direction.",
                self.most
            )));
        }
        self.seen += 1;
        self.left = length;
        (self.control, self.last) = (control, last);
        Ok(())
    }
}

impl Course for Frames {
    fn pass(&mut self, mut bytes: &[u8], out: &mut BytesMut) -> Result<(), End> {
        loop {
            if self.left == 0 {
                // Behind a closing frame nothing means anything (RFC 6455 section 1.4): its reader discards it, and so does this.
                if self.closed || !self.head(&mut bytes)? {
                    return Ok(());
                }
                let head = std::mem::take(&mut self.head);
                match &mut self.scrub {
                    Some(scrub) => scrub.head(&head, self.control, self.left, out),
                    None => out.extend_from_slice(&head),
                }
            } else if bytes.is_empty() {
                return Ok(());
            } else {
                let take = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let (payload, rest) = bytes.split_at(take);
                bytes = rest;
                self.left = self
                    .left
                    .saturating_sub(u64::try_from(take).unwrap_or(u64::MAX));
                match &mut self.scrub {
                    Some(scrub) => scrub.payload(payload, self.control, out),
                    None => out.extend_from_slice(payload),
                }
            }
            if self.left == 0
                && let Some(scrub) = &mut self.scrub
            {
                scrub.end(self.control, self.last, out);
            }
        }
    }

    fn between(&self) -> bool {
        self.left == 0 && self.head.is_empty() && !self.closed
    }

    fn frames(&self) -> Option<u64> {
        Some(self.seen)
    }
}

/// The payload length, once the head is whole; `None` while it is not.
fn length_of(head: &[u8]) -> Option<Result<u64, End>> {
    let second = *head.get(1)?;
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    let (extra, least) = match second & 0x7f {
        126 => (2, 126),
        127 => (8, 65_536),
        _ => (0, 0),
    };
    let extended = head.get(2..2 + extra)?;
    if head.len() < 2 + extra + mask {
        return None;
    }
    let length = match extra {
        0 => u64::from(second & 0x7f),
        _ => extended
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    if length < least || length >> 63 != 0 {
        return Some(Err(End::Broken(
            "a length is not written in its shortest form",
        )));
    }
    Some(Ok(length))
}

/// Takes a secret out of messages, whose parts may be cut anywhere, without changing a length.
///
/// What could be the beginning of the secret is held back until the message goes on or ends. A head that comes after held
/// bytes waits with them, so that every byte stays in its frame.
#[derive(Debug)]
struct Scrub {
    scrubber: Scrubber,
    waiting: VecDeque<Waiting>,
    /// The control frame that is arriving.
    control: Vec<u8>,
}

#[derive(Debug)]
enum Waiting {
    /// To be sent as it is.
    Whole(Vec<u8>),
    /// So many bytes of what comes out of the scrubber.
    Payload(u64),
}

impl Scrub {
    fn new(scrubber: Scrubber) -> Self {
        Self {
            scrubber,
            waiting: VecDeque::new(),
            control: Vec::new(),
        }
    }

    fn head(&mut self, head: &[u8], control: bool, length: u64, out: &mut BytesMut) {
        if control {
            self.control.clear();
            self.control.extend_from_slice(head);
            return;
        }
        self.waiting.push_back(Waiting::Whole(head.to_vec()));
        if length > 0 {
            self.waiting.push_back(Waiting::Payload(length));
        }
        self.release(&[], out);
    }

    fn payload(&mut self, payload: &[u8], control: bool, out: &mut BytesMut) {
        if control {
            self.control.extend_from_slice(payload);
            return;
        }
        let clean = self.scrubber.push(Bytes::copy_from_slice(payload));
        self.release(&clean, out);
    }

    fn end(&mut self, control: bool, last: bool, out: &mut BytesMut) {
        if control {
            let frame = std::mem::take(&mut self.control);
            let clean = self.scrubber.scrub_bytes(&frame).unwrap_or(frame);
            self.waiting.push_back(Waiting::Whole(clean));
            self.release(&[], out);
        } else if last {
            let rest = self.scrubber.finish();
            self.release(&rest, out);
        }
    }

    /// Hands out what is clean, and the heads that it was before.
    fn release(&mut self, mut clean: &[u8], out: &mut BytesMut) {
        while let Some(next) = self.waiting.front_mut() {
            match next {
                Waiting::Whole(bytes) => out.extend_from_slice(bytes),
                Waiting::Payload(left) => {
                    let take = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(clean.len());
                    let (now, rest) = clean.split_at(take);
                    out.extend_from_slice(now);
                    clean = rest;
                    *left = left.saturating_sub(u64::try_from(take).unwrap_or(u64::MAX));
                    if *left > 0 {
                        return;
                    }
                }
            }
            self.waiting.pop_front();
        }
    }
}

/// A closing frame with a code and a reason; towards upstream it is masked, as a client's must be.
pub(crate) fn closing(to: Side, code: u16, reason: &str) -> Vec<u8> {
    let reason = reason
        .as_bytes()
        .get(..reason.len().min(123))
        .unwrap_or_default();
    let payload = [&code.to_be_bytes()[..], reason].concat();
    let length = u8::try_from(payload.len()).unwrap_or(0);
    match to {
        Side::Agent => [&[0x88, length][..], &payload].concat(),
        // A mask hides a payload from broken caches on the way; this one has nothing to hide, and zeros are a mask.
        Side::Upstream => [&[0x88, 0x80 | length, 0, 0, 0, 0][..], &payload].concat(),
    }
}

#[cfg(test)]
mod tests;
