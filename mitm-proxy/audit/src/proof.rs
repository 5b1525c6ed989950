//! Compact proofs: that a record is under a checkpoint, and that an older log is a prefix of a newer one.
//! For auditors who keep checkpoints off the host and do not want to fetch the whole log.
//! INVARIANT: a proof names the signed checkpoint it holds against; without a valid signature it proves nothing.

use policies::{Digest, Tenant};
use redb::ReadTransaction;
use serde::{Deserialize, Serialize};
use tlog_tiles::tlog::{Hash, check_record, check_tree, prove_record, prove_tree};

use crate::batch::{NODES, Nodes};
use crate::checkpoint;
use crate::error::AuditError;
use crate::key::VerifierKey;
use crate::store;
use crate::tree;
use crate::verify::{CheckpointProblem, Verified};

/// Proof that a checkpoint covers a record (RFC 6962 section 2.1.1).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Inclusion {
    /// The signed note it holds against.
    pub checkpoint: String,
    /// Which record.
    pub index: u64,
    /// The audit path, from the leaf up.
    pub path: Vec<Digest>,
}

/// Proof that an older log is a prefix of a newer one (RFC 6962 section 2.1.2).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Consistency {
    /// The newer log's signed note.
    pub checkpoint: String,
    /// How many records the older log had.
    pub old_size: u64,
    /// The nodes that join the two roots. Empty for an older log of size 0.
    pub path: Vec<Digest>,
}

/// Why a proof does not hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProofError {
    /// A checkpoint in it does not hold.
    #[error("a checkpoint does not hold: {0}")]
    Checkpoint(CheckpointProblem),
    /// The hashes do not add up.
    #[error("the proof does not hold")]
    Hashes,
    /// The two checkpoints are of different logs, or of other sizes than the proof.
    #[error("the checkpoints are not those of the proof")]
    Mismatch,
}

pub(crate) fn inclusion(
    snapshot: &ReadTransaction,
    tenant: &Tenant,
    index: u64,
) -> Result<Inclusion, AuditError> {
    let (checkpoint, size) = signed(snapshot)?;
    if index >= size {
        return Err(AuditError::NoRecord {
            tenant: tenant.clone(),
            index,
            size,
        });
    }
    let nodes = snapshot.open_table(NODES).map_err(AuditError::read)?;
    let path = prove_record(size, index, &Nodes(&nodes)).map_err(AuditError::tree)?;
    Ok(Inclusion {
        checkpoint,
        index,
        path: digests(path),
    })
}

pub(crate) fn consistency(
    snapshot: &ReadTransaction,
    tenant: &Tenant,
    old_size: u64,
) -> Result<Consistency, AuditError> {
    let (checkpoint, size) = signed(snapshot)?;
    if old_size > size {
        return Err(AuditError::NoRecord {
            tenant: tenant.clone(),
            index: old_size,
            size,
        });
    }
    if old_size == 0 {
        return Ok(Consistency {
            checkpoint,
            old_size,
            path: Vec::new(),
        });
    }
    let nodes = snapshot.open_table(NODES).map_err(AuditError::read)?;
    let path = prove_tree(size, old_size, &Nodes(&nodes)).map_err(AuditError::tree)?;
    Ok(Consistency {
        checkpoint,
        old_size,
        path: digests(path),
    })
}

/// The checkpoint and the size it states; they are from one transaction.
fn signed(snapshot: &ReadTransaction) -> Result<(String, u64), AuditError> {
    let text = store::checkpoint_text(snapshot)?;
    let size = store::size(snapshot)?;
    Ok((text, size))
}

fn digests(hashes: Vec<Hash>) -> Vec<Digest> {
    hashes.into_iter().map(|hash| Digest(hash.0)).collect()
}

fn hashes(digests: &[Digest]) -> Vec<Hash> {
    digests.iter().map(|digest| Hash(digest.0)).collect()
}

/// Checks the signature of a checkpoint and reads it.
///
/// # Errors
/// It is malformed, or not signed with this key.
pub fn verify_checkpoint(note: &str, key: &VerifierKey) -> Result<Verified, ProofError> {
    let head = checkpoint::open(note.as_bytes(), key).map_err(ProofError::Checkpoint)?;
    let tenant = head
        .origin
        .rsplit('/')
        .next()
        .and_then(|tenant| tenant.parse().ok());
    let tenant = tenant.ok_or(ProofError::Checkpoint(CheckpointProblem::Text))?;
    Ok(Verified {
        origin: head.origin,
        tenant,
        size: head.size,
        root: head.root,
    })
}

/// Checks that `line`, the bytes of a record, is where the proof says.
///
/// # Errors
/// The checkpoint or the hashes do not hold.
pub fn verify_inclusion(
    line: &[u8],
    proof: &Inclusion,
    key: &VerifierKey,
) -> Result<Verified, ProofError> {
    let head = verify_checkpoint(&proof.checkpoint, key)?;
    let (root, leaf) = (Hash(head.root.0), Hash(tree::leaf(line).0));
    check_record(&hashes(&proof.path), head.size, root, proof.index, leaf)
        .map_err(|_| ProofError::Hashes)?;
    Ok(head)
}

/// Checks that the log of the checkpoint `old` is a prefix of the proof's.
///
/// # Errors
/// A checkpoint or the hashes do not hold: the log was rewritten since `old` was signed.
pub fn verify_consistency(
    old: &str,
    proof: &Consistency,
    key: &VerifierKey,
) -> Result<Verified, ProofError> {
    let old = verify_checkpoint(old, key)?;
    let new = verify_checkpoint(&proof.checkpoint, key)?;
    if old.origin != new.origin || old.size != proof.old_size || old.size > new.size {
        return Err(ProofError::Mismatch);
    }
    if old.size == 0 {
        return if proof.path.is_empty() {
            Ok(new)
        } else {
            Err(ProofError::Hashes)
        };
    }
    let (old_root, new_root) = (Hash(old.root.0), Hash(new.root.0));
    check_tree(&hashes(&proof.path), new.size, new_root, old.size, old_root)
        .map_err(|_| ProofError::Hashes)?;
    Ok(new)
}
