//! The offline check of an export: all that is needed is the file and the host's public key.
//! Reads the file once, in O(log n) memory; this file and `record` are what a second verifier is written from.
//! INVARIANT: any altered, added, removed or reordered byte is an error that names its line.

use std::io::{BufRead, Read};

use policies::{Digest, Tenant};
use serde::Deserialize;

use crate::checkpoint::{self, TreeHead};
use crate::key::VerifierKey;
use crate::record::MAX_RECORD;
use crate::tree::{self, Frontier, NO_LEAF};

/// The most bytes that the checkpoint may have.
const MAX_HEADER: usize = 64 * 1024;

/// What an export that holds up says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verified {
    /// Origin line of the checkpoint, `<key name>/<tenant>`.
    pub origin: String,
    /// Whose log.
    pub tenant: Tenant,
    /// How many records.
    pub size: u64,
    /// Root of the Merkle tree over them.
    pub root: Digest,
}

/// Why an export does not hold up. Lines count from 1, records from 0.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The next record's link, or at the end the root, does not fit this record.
    #[error("line {line}: record {index} was altered")]
    Altered {
        /// Where.
        line: u64,
        /// Which record.
        index: u64,
    },
    /// The checkpoint at the top is not one, or not signed with this key.
    #[error("line 1: the checkpoint does not hold: {0}")]
    Checkpoint(CheckpointProblem),
    /// The record has another place in its log.
    #[error("line {line}: expected record {index}, found record {found}")]
    Index {
        /// Where.
        line: u64,
        /// Which record belongs here.
        index: u64,
        /// Which one is here.
        found: u64,
    },
    /// The file cannot be read.
    #[error("line {line}: {source}")]
    Io {
        /// Where.
        line: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The line is no record.
    #[error("line {line}: record {index} is not a record of this log")]
    Record {
        /// Where.
        line: u64,
        /// Which record belongs here.
        index: u64,
    },
    /// The checkpoint covers another number of records than follow it.
    #[error("line {line}: the checkpoint covers {signed} records, the file has {found}")]
    Size {
        /// Where the file ends, or the first line too many.
        line: u64,
        /// As signed.
        signed: u64,
        /// As found; of a file that is too long, the first too many.
        found: u64,
    },
    /// The line does not end, or is longer than any record may be.
    #[error("line {line}: cut off or too long")]
    Truncated {
        /// Where.
        line: u64,
    },
}

/// Why a checkpoint does not hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CheckpointProblem {
    /// The signature is another key's, or does not fit the text.
    #[error("it is not signed with this key")]
    Signature,
    /// The text is not that of a checkpoint of a Sluice log.
    #[error("it is malformed")]
    Text,
}

/// The members that tie a record to its place.
#[derive(Deserialize)]
struct Link {
    index: u64,
    prev: Digest,
    tenant: Tenant,
}

/// Checks an export against the public key of the host that wrote it.
///
/// # Errors
/// The first thing that does not hold, with its line.
pub fn verify(export: &mut dyn BufRead, key: &VerifierKey) -> Result<Verified, VerifyError> {
    let mut lines = Lines { export, number: 0 };
    let head = read_checkpoint(&mut lines, key)?;
    let tenant = tenant_of(&head)?;

    let mut tree = Frontier::default();
    let mut last = NO_LEAF;
    while let Some(line) = lines.next(MAX_RECORD)? {
        let index = tree.size();
        if index >= head.size {
            let found = index + 1;
            return Err(VerifyError::Size {
                line: lines.number,
                signed: head.size,
                found,
            });
        }
        let wrong = || VerifyError::Record {
            line: lines.number,
            index,
        };
        let link: Link = serde_json::from_slice(&line).map_err(|_| wrong())?;
        if link.tenant != tenant {
            return Err(wrong());
        }
        if link.index != index {
            return Err(VerifyError::Index {
                line: lines.number,
                index,
                found: link.index,
            });
        }
        if link.prev != last {
            return Err(altered(
                lines.number.saturating_sub(1),
                index.saturating_sub(1),
            ));
        }
        last = tree::leaf(&line);
        tree.push(last);
    }

    if tree.size() != head.size {
        let (signed, found) = (head.size, tree.size());
        return Err(VerifyError::Size {
            line: lines.number,
            signed,
            found,
        });
    }
    if tree.root() != head.root {
        return Err(altered(lines.number, tree.size().saturating_sub(1)));
    }
    Ok(Verified {
        origin: head.origin,
        tenant,
        size: head.size,
        root: head.root,
    })
}

fn altered(line: u64, index: u64) -> VerifyError {
    VerifyError::Altered { line, index }
}

/// The signed note ends with the second empty line.
fn read_checkpoint(lines: &mut Lines<'_>, key: &VerifierKey) -> Result<TreeHead, VerifyError> {
    let mut note = Vec::new();
    let mut blocks = 0;
    while let Some(line) = lines.next(MAX_HEADER)? {
        blocks += u32::from(line.is_empty());
        if blocks == 2 {
            return checkpoint::open(&note, key).map_err(VerifyError::Checkpoint);
        }
        note.extend_from_slice(&line);
        note.push(b'\n');
        if note.len() > MAX_HEADER {
            break;
        }
    }
    Err(VerifyError::Truncated { line: lines.number })
}

fn tenant_of(head: &TreeHead) -> Result<Tenant, VerifyError> {
    let tenant = head
        .origin
        .rsplit('/')
        .next()
        .and_then(|tenant| tenant.parse().ok());
    tenant.ok_or(VerifyError::Checkpoint(CheckpointProblem::Text))
}

struct Lines<'a> {
    export: &'a mut dyn BufRead,
    /// Of the line read last.
    number: u64,
}

impl Lines<'_> {
    /// The next line without its LF; `None` at the end of the file.
    fn next(&mut self, limit: usize) -> Result<Option<Vec<u8>>, VerifyError> {
        let mut line = Vec::new();
        let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
        let read = (&mut *self.export).take(most).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(None),
            Ok(_) => self.number += 1,
            Err(source) => {
                return Err(VerifyError::Io {
                    line: self.number + 1,
                    source,
                });
            }
        }
        match line.pop() {
            Some(b'\n') => Ok(Some(line)),
            _ => Err(VerifyError::Truncated { line: self.number }),
        }
    }
}
