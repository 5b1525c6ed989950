//! Records and tree nodes as they lie in the database: those of one commit side by side, in one value.
//! The writer's transaction fills a `Batch`; queries, export, proofs and recovery read the same values.
//! INVARIANT: a value holds whole lines of consecutive records, each ended by one LF; its key is the index of the first.
//!
//! A B-tree entry per record would cost more than the record: what a commit costs must not grow with its records.

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

/// Lines that are being written, and the nodes that are complete with them.
#[derive(Default)]
pub(crate) struct Batch {
    lines: Vec<u8>,
    /// Index of the first record in `lines`.
    first: u64,
    nodes: Vec<u8>,
    /// Place of the first node in `nodes`.
    place: u64,
}

impl Batch {
    /// Starts a batch after this many records and nodes.
    pub(crate) fn after(records: u64, nodes: u64) -> Batch {
        Batch {
            lines: Vec::with_capacity(PIECE),
            first: records,
            nodes: Vec::with_capacity(2048),
            place: nodes,
        }
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

    /// The line from `start` on is record `index`: what stood before it is stored if the two together are too long for one value.
    pub(crate) fn close_line(
        &mut self,
        start: usize,
        index: u64,
        records: &mut Table<'_, u64, &'static [u8]>,
    ) -> Result<(), StorageError> {
        self.lines.push(b'\n');
        if start > 0 && self.lines.len() > PIECE {
            let before = self.lines.get(..start).unwrap_or_default();
            records.insert(self.first, before)?;
            self.lines.drain(..start);
            self.first = index;
        }
        Ok(())
    }

    /// Adds the next node.
    pub(crate) fn node(&mut self, hash: &Hash) {
        self.nodes.extend_from_slice(&hash.0);
    }

    /// Stores what is left.
    pub(crate) fn finish(
        self,
        records: &mut Table<'_, u64, &'static [u8]>,
        nodes: &mut Table<'_, u64, &'static [u8]>,
    ) -> Result<(), StorageError> {
        if !self.lines.is_empty() {
            records.insert(self.first, self.lines.as_slice())?;
        }
        let mut place = self.place;
        for piece in self.nodes.chunks(PIECE / HASH * HASH) {
            nodes.insert(place, piece)?;
            place += u64::try_from(piece.len() / HASH).unwrap_or_default();
        }
        Ok(())
    }
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
    let held = value.value().iter().filter(|byte| **byte == b'\n').count();
    Ok(first.value() + u64::try_from(held).unwrap_or_default())
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
