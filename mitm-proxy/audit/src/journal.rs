//! The journal beside a log's database: what is committed goes here first, in one write and one flush.
//! The writer appends a frame per commit; the database takes many of them over at once, and then the journal begins anew.
//! INVARIANT: a frame is written only when the one before it is on disk, so that only the last one can be torn.
//!
//! A commit of the database writes a page of every table and flushes them all; a frame lies in one piece, over blocks that the
//! file has already. What is in here is replayed when the log is opened, and held to the checkpoint that each frame ends in.
//!
//! # Format
//! Frames begin on multiples of 4096 bytes and follow each other without gaps. Numbers are little-endian.
//! ```text
//!  0  "sluicej1"
//!  8  index of the first record     u64
//! 16  bytes of the records          u32
//! 20  bytes of the checkpoint       u32
//! 24  bytes of the approvals        u32
//! 28  0                             u32
//! 32  RFC 6962 leaf hash of bytes 0..32, the checkpoint and the approvals
//! 64  the checkpoint after these records, the approvals that changed with them (JSON), the records, each ended by LF
//! ```
//! The hash leaves the records out: the checkpoint covers them. A frame of an earlier round is known by its first record,
//! which the database has.

use std::fmt;
use std::io::Error;

use redb::StorageBackend;

use crate::tree;

/// What a journal holds before the database must take it over. Small in tests, so that they see both.
pub(crate) const SIZE: usize = if cfg!(test) { 64 * 1024 } else { 1024 * 1024 };

/// No two frames share one, so that writing a frame cannot damage another.
pub(crate) const BLOCK: usize = 4096;

const MAGIC: &[u8; 8] = b"sluicej1";
const HEADER: usize = 64;
const HASHED: usize = 32;

/// One commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// Index of its first record.
    pub(crate) first: u64,
    /// Its records, each ended by LF.
    pub(crate) lines: &'a [u8],
    /// The checkpoint after them.
    pub(crate) note: &'a [u8],
    /// The approvals as they are after them, as JSON; nothing where none changed.
    pub(crate) approvals: &'a [u8],
}

/// The file, and where the next frame goes.
pub(crate) struct Journal {
    file: Box<dyn StorageBackend>,
    end: usize,
    /// Kept for its room.
    buffer: Vec<u8>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Journal({} of {SIZE})", self.end)
    }
}

impl Journal {
    pub(crate) fn new(file: Box<dyn StorageBackend>) -> Journal {
        Journal {
            file,
            end: 0,
            buffer: Vec::new(),
        }
    }

    /// Whether the file was ever prepared.
    pub(crate) fn is_there(&self) -> Result<bool, Error> {
        Ok(self.file.len()? >= u64::try_from(SIZE).unwrap_or(u64::MAX))
    }

    /// Gives the file its blocks, written and not only promised: a flush has nothing else to write then than what is in them.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        if self.is_there()? {
            return Ok(());
        }
        let zeros = [0; 16 * BLOCK];
        self.file.set_len(u64::try_from(SIZE).unwrap_or(u64::MAX))?;
        for place in (0..SIZE).step_by(zeros.len()) {
            let length = zeros.len().min(SIZE - place);
            self.write(place, zeros.get(..length).unwrap_or_default())?;
        }
        self.file.sync_data()
    }

    /// Appends a frame and flushes it. False, and nothing is written, where there is no room for it.
    pub(crate) fn append(&mut self, frame: &Frame<'_>) -> Result<bool, Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let fits = write(frame, &mut buffer).is_some() && self.end + buffer.len() <= SIZE;
        let written = match fits {
            false => Ok(()),
            true => self
                .write(self.end, &buffer)
                .and_then(|()| self.file.sync_data()),
        };
        if fits && written.is_ok() {
            self.end += buffer.len();
        }
        self.buffer = buffer;
        written.map(|()| fits)
    }

    /// The next frame goes to the beginning: the database has what is in here.
    pub(crate) fn rewind(&mut self) {
        self.end = 0;
    }

    /// All of it.
    pub(crate) fn read(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; SIZE];
        self.file.read(0, &mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, place: usize, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write(u64::try_from(place).unwrap_or(u64::MAX), bytes)
    }
}

/// The frame's bytes, up to the end of its last block. `None` for one that is too long for its header.
fn write(frame: &Frame<'_>, out: &mut Vec<u8>) -> Option<()> {
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&frame.first.to_le_bytes());
    for part in [frame.lines, frame.note, frame.approvals, &[]] {
        out.extend_from_slice(&u32::try_from(part.len()).ok()?.to_le_bytes());
    }
    let hash = tree::leaf(&[out.as_slice(), frame.note, frame.approvals].concat());
    out.extend_from_slice(&hash.0);
    for part in [frame.note, frame.approvals, frame.lines] {
        out.extend_from_slice(part);
    }
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    Some(())
}

/// The frame that begins there, and where the next one would. Whether its records are whole is for the checkpoint to say.
pub(crate) fn frame_at(bytes: &[u8], at: usize) -> Option<(Frame<'_>, usize)> {
    let bytes = bytes.get(at..)?;
    let number = |place: usize| {
        let four = bytes.get(place..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*four)).ok()
    };
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let first = u64::from_le_bytes(*bytes.get(8..)?.first_chunk::<8>()?);
    let (lines, note, approvals) = (number(16)?, number(20)?, number(24)?);
    let hashed = HEADER.checked_add(note)?.checked_add(approvals)?;
    let end = hashed.checked_add(lines)?;
    let said = [bytes.get(..HASHED)?, bytes.get(HEADER..hashed)?].concat();
    if lines == 0 || tree::leaf(&said).0 != bytes.get(HASHED..HEADER)? {
        return None;
    }
    let frame = Frame {
        first,
        lines: bytes.get(hashed..end)?,
        note: bytes.get(HEADER..HEADER + note)?,
        approvals: bytes.get(HEADER + note..hashed)?,
    };
    Some((frame, at + end.next_multiple_of(BLOCK)))
}

/// Every frame that begins on any block, of this round or an earlier one.
pub(crate) fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let places = (0..bytes.len()).step_by(BLOCK);
    places.filter_map(|at| frame_at(bytes, at).map(|(frame, _)| frame))
}
