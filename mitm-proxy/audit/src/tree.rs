//! Merkle hashing: leaves, the reader of stored nodes, and the frontier that a streaming verifier keeps.
//! The arithmetic is `tlog_tiles`' (RFC 6962); this file only joins it to redb and to our digests.
//! INVARIANT: no node is ever rewritten; a tree of n records is a prefix of every later tree.

use policies::Digest;
use redb::ReadableTable;
use tlog_tiles::tlog::{EMPTY_HASH, Error, Hash, HashReader, node_hash, record_hash};

/// What the first record has for a predecessor.
pub(crate) const NO_LEAF: Digest = Digest([0; 32]);

/// RFC 6962 leaf hash of a record's bytes.
pub(crate) fn leaf(line: &[u8]) -> Digest {
    Digest(record_hash(line).0)
}

/// Reads tree nodes from an open table, inside a read or a write transaction.
pub(crate) struct Nodes<'a, T>(pub(crate) &'a T);

impl<T: ReadableTable<u64, &'static [u8; 32]>> HashReader for Nodes<'_, T> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
        indexes
            .iter()
            .map(|index| match self.0.get(index) {
                Ok(Some(node)) => Ok(Hash(*node.value())),
                Ok(None) => Err(Error::IndexesNotInTree),
                Err(error) => Err(Error::InvalidInput(error.to_string())),
            })
            .collect()
    }
}

/// The complete subtrees of a growing tree, largest first: all that is needed to go on hashing.
/// Memory is O(log n), so an export of any length is verified in one pass.
#[derive(Debug, Default)]
pub(crate) struct Frontier {
    size: u64,
    /// Level and hash; levels strictly fall.
    peaks: Vec<(u8, Hash)>,
}

impl Frontier {
    pub(crate) fn push(&mut self, leaf: Digest) {
        let (mut level, mut hash) = (0, Hash(leaf.0));
        while let Some((_, left)) = self.peaks.pop_if(|(peak, _)| *peak == level) {
            hash = node_hash(left, hash);
            level += 1;
        }
        self.peaks.push((level, hash));
        self.size += 1;
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn root(&self) -> Digest {
        let peaks = self.peaks.iter().rev().map(|(_, hash)| *hash);
        Digest(
            peaks
                .reduce(|right, left| node_hash(left, right))
                .unwrap_or(EMPTY_HASH)
                .0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root of RFC 6962 section 2.1, written as the RFC writes it.
    fn root(leaves: &[Digest]) -> Hash {
        match leaves {
            [] => EMPTY_HASH,
            [leaf] => Hash(leaf.0),
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                node_hash(root(left), root(right))
            }
        }
    }

    #[test]
    fn the_frontier_computes_the_root_of_rfc_6962() {
        let leaves: Vec<Digest> = (0..70_u8).map(|n| leaf(&[n])).collect();
        let mut frontier = Frontier::default();
        for (n, leaf) in leaves.iter().enumerate() {
            assert_eq!(frontier.root().0, root(&leaves[..n]).0, "at size {n}");
            frontier.push(*leaf);
        }
    }
}
