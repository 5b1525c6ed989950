//! Records and tree nodes as they lie in the database: many side by side, in one value.
//! The writer fills a `Batch`, commit after commit, until the database takes it over; queries, export, proofs and recovery read the values.
//! INVARIANT: a value holds whole lines of consecutive records, each ended by one LF; its key is the index of the first.
//!
//! A B-tree entry per record would cost more than the record.

use redb::{ReadableTable, StorageError, Table, TableDefinition};
use tlog_tiles::tlog::{Error, Hash, HashReader};

/// Index of the first record -> the bytes of records, each ended by LF.
pub(crate) const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
/// Place of the first node, in the order of `tlog_tiles::stored_hash_index` -> the hashes of nodes.
pub(crate) const NODES: TableDefinition<u64, &[u8]> = TableDefinition::new("nodes");

/// About the most bytes of one value: pages of the database have sizes that are powers of two, and this fits one with what it
/// says about itself. A record may be larger; then it is alone in its value.
const PIECE: usize = 16 * 1024 - 256;

const HASH: usize = 32;

/// Lines that are committed and not in the database yet, and the nodes that are complete with them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    lines: Vec<u8>,
    /// Index of the first record in `lines`.
    first: u64,
    nodes: Vec<u8>,
    /// Place of the first node in `nodes`.
    place: u64,
}

impl Batch {
    /// Starts anew after this many records and nodes.
    pub(crate) fn begin(&mut self, records: u64, nodes: u64) {
        self.lines.clear();
        self.nodes.clear();
        (self.first, self.place) = (records, nodes);
    }

    /// Gives room back: a quiet log keeps none for a busy one's lines.
    pub(crate) fn shrink(&mut self) {
        for bytes in [&mut self.lines, &mut self.nodes] {
            bytes.shrink_to(4 * PIECE);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// How many bytes of lines there are.
    pub(crate) fn length(&self) -> usize {
        self.lines.len()
    }

    /// Where the next line is written, and how many bytes stand there already.
    pub(crate) fn line(&mut self) -> (&mut Vec<u8>, usize) {
        let start = self.lines.len();
        (&mut self.lines, start)
    }

    /// Takes back what was written from `start` on.
    pub(crate) fn undo(&mut self, start: usize) {
        self.lines.truncate(start);
    }

    /// The line is whole.
    pub(crate) fn close_line(&mut self) {
        self.lines.push(b'\n');
    }

    /// The lines from there on.
    pub(crate) fn since(&self, start: usize) -> &[u8] {
        self.lines.get(start..).unwrap_or_default()
    }

    /// Adds the next node.
    pub(crate) fn node(&mut self, hash: &Hash) {
        self.nodes.extend_from_slice(&hash.0);
    }

    /// Stores all of it.
    pub(crate) fn store(
        &self,
        records: &mut Table<'_, u64, &'static [u8]>,
        nodes: &mut Table<'_, u64, &'static [u8]>,
    ) -> Result<(), StorageError> {
        let (mut index, mut rest) = (self.first, self.lines.as_slice());
        while let Some((piece, after)) = rest.split_at_checked(piece(rest)) {
            if piece.is_empty() {
                break;
            }
            records.insert(index, piece)?;
            index += count_lines(piece);
            rest = after;
        }
        let mut place = self.place;
        for piece in self.nodes.chunks(PIECE / HASH * HASH) {
            nodes.insert(place, piece)?;
            place += u64::try_from(piece.len() / HASH).unwrap_or_default();
        }
        Ok(())
    }
}

/// How many bytes of the lines go into the next value: as many whole lines as fit, and at least one.
fn piece(lines: &[u8]) -> usize {
    let Some(fitting) = lines.get(..PIECE) else {
        return lines.len();
    };
    let end = |at: usize| at + 1;
    let last = fitting.iter().rposition(|byte| *byte == b'\n').map(end);
    let first = || lines.iter().position(|byte| *byte == b'\n').map(end);
    last.or_else(first).unwrap_or(lines.len())
}

fn count_lines(value: &[u8]) -> u64 {
    let held = value.iter().filter(|byte| **byte == b'\n').count();
    u64::try_from(held).unwrap_or_default()
}

/// The records of one value with their indexes, in order.
pub(crate) fn lines(first: u64, value: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let whole = value.strip_suffix(b"\n").unwrap_or(value);
    (first..).zip(whole.split(|byte| *byte == b'\n'))
}

/// The key of the value that holds `index`, if any does.
pub(crate) fn key_of(
    table: &impl ReadableTable<u64, &'static [u8]>,
    index: u64,
) -> Result<Option<u64>, StorageError> {
    let found = table.range(..=index)?.next_back().transpose()?;
    Ok(found.map(|(first, _)| first.value()))
}

/// The bytes of one record.
pub(crate) fn record(
    records: &impl ReadableTable<u64, &'static [u8]>,
    index: u64,
) -> Result<Option<Vec<u8>>, StorageError> {
    let Some((first, value)) = records.range(..=index)?.next_back().transpose()? else {
        return Ok(None);
    };
    let found = lines(first.value(), value.value()).find(|(at, _)| *at == index);
    Ok(found.map(|(_, line)| line.to_vec()))
}

/// How many records there are.
pub(crate) fn count(records: &impl ReadableTable<u64, &'static [u8]>) -> Result<u64, StorageError> {
    let Some((first, value)) = records.last()? else {
        return Ok(0);
    };
    Ok(first.value() + count_lines(value.value()))
}

/// Reads tree nodes from an open table.
pub(crate) struct Nodes<'a, T>(pub(crate) &'a T);

impl<T: ReadableTable<u64, &'static [u8]>> Nodes<'_, T> {
    fn read(&self, index: u64) -> Result<Hash, Error> {
        let unread = |error: StorageError| Error::InvalidInput(error.to_string());
        let mut before = self.0.range(..=index).map_err(unread)?;
        let (first, value) = before
            .next_back()
            .ok_or(Error::IndexesNotInTree)?
            .map_err(unread)?;
        let at = usize::try_from(index - first.value()).unwrap_or(usize::MAX);
        let start = at.saturating_mul(HASH);
        let node = value.value().get(start..start.saturating_add(HASH));
        let node = node.and_then(|node| node.try_into().ok());
        node.map(Hash).ok_or(Error::IndexesNotInTree)
    }
}

impl<T: ReadableTable<u64, &'static [u8]>> HashReader for Nodes<'_, T> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        indexes.iter().map(|index| self.read(*index)).collect()
    }
}
