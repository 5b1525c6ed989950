//! Merkle hashing: leaves, and the frontier that the writer and a streaming verifier keep.
//! The arithmetic is `tlog_tiles`' (RFC 6962); this file only joins it to our digests.
//! INVARIANT: no node is ever rewritten; a tree of n records is a prefix of every later tree.

use policies::Digest;
use tlog_tiles::tlog::{
    EMPTY_HASH, Error, Hash, HashReader, node_hash, record_hash, stored_hash_index,
};

/// What the first record has for a predecessor.
pub(crate) const NO_LEAF: Digest = Digest([0; 32]);

/// RFC 6962 leaf hash of a record's bytes.
pub(crate) fn leaf(line: &[u8]) -> Digest {
    Digest(record_hash(line).0)
}

/// The complete subtrees of a growing tree, largest first: all that is needed to go on hashing.
/// Memory is O(log n), so an export of any length is verified in one pass, and a log grows without reading what it wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frontier {
    size: u64,
    /// Level and hash; levels strictly fall.
    peaks: Vec<(u8, Hash)>,
}

impl Frontier {
    /// The complete subtrees of a stored tree of `size` records.
    pub(crate) fn read(size: u64, nodes: &impl HashReader) -> Result<Frontier, Error> {
        let levels = (0..u64::BITS).rev().filter(|level| size >> level & 1 == 1);
        // The subtree of a set bit begins where those of the higher bits end.
        let places = levels.map(|level| {
            let number = (size >> level) - 1;
            let level = u8::try_from(level).unwrap_or(u8::MAX);
            (level, stored_hash_index(level, number))
        });
        let (levels, indexes): (Vec<u8>, Vec<u64>) = places.unzip();
        let peaks = levels.into_iter().zip(nodes.read_hashes(&indexes)?);
        Ok(Frontier {
            size,
            peaks: peaks.collect(),
        })
    }

    pub(crate) fn push(&mut self, leaf: Digest) {
        self.grow(leaf, |_| {});
    }

    /// Adds a leaf, and tells every node that is complete with it in the order in which nodes are stored.
    pub(crate) fn grow(&mut self, leaf: Digest, mut complete: impl FnMut(&Hash)) {
        let (mut level, mut hash) = (0, Hash(leaf.0));
        complete(&hash);
        while let Some((_, left)) = self.peaks.pop_if(|(peak, _)| *peak == level) {
            hash = node_hash(left, hash);
            level += 1;
            complete(&hash);
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

    /// A reader over nodes in memory, stored as the log stores them.
    struct Stored(Vec<Hash>);

    impl HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, Error> {
            Ok(indexes.iter().map(|at| self.0[*at as usize]).collect())
        }
    }

    #[test]
    fn the_frontier_stores_the_nodes_that_the_library_stores_and_is_read_back_from_them() {
        let (mut frontier, mut stored) = (Frontier::default(), Stored(Vec::new()));
        for n in 0..70_u8 {
            let leaf = leaf(&[n]);
            let expected = tlog_tiles::tlog::stored_hashes_for_record_hash(
                u64::from(n),
                Hash(leaf.0),
                &stored,
            )
            .unwrap();
            let mut told = Vec::new();
            frontier.grow(leaf, |node| told.push(*node));
            assert_eq!(told, expected);
            assert_eq!(stored_hash_index(0, u64::from(n)), stored.0.len() as u64);
            stored.0.extend(told);
            let read = Frontier::read(frontier.size(), &stored).unwrap();
            assert_eq!(read.peaks, frontier.peaks, "at size {}", n + 1);
        }
    }
}
