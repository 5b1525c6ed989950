//! Checkpoints: the size and root of a log at one moment, signed (c2sp.org/tlog-checkpoint, c2sp.org/signed-note).
//! One is stored with every commit, in one piece with its records, so that the log can be checked when it is opened.
//! INVARIANT: what `open` returns was signed by the given key for exactly this origin.
//!
//! The origin line is `<key name>/<tenant>`: one key signs all logs of a host, each under its own origin.

use policies::Digest;
use signed_note::{Note, NoteError, Signer, VerifierList};
use tlog_tiles::checkpoint::Checkpoint;
use tlog_tiles::tlog::Hash;

use crate::key::{LogKey, VerifierKey};
use crate::verify::CheckpointProblem;

/// A checkpoint whose signature was checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TreeHead {
    /// `<key name>/<tenant>`.
    pub(crate) origin: String,
    /// How many records.
    pub(crate) size: u64,
    /// Root of the tree over them.
    pub(crate) root: Digest,
}

pub(crate) fn origin(key: &VerifierKey, tenant: &str) -> String {
    format!("{}/{tenant}", key.name())
}

pub(crate) fn seal(
    key: &LogKey,
    tenant: &str,
    size: u64,
    root: Hash,
) -> Result<Vec<u8>, NoteError> {
    let origin = origin(key.public(), tenant);
    let checkpoint =
        Checkpoint::new(&origin, size, root, "").map_err(|_| NoteError::MalformedNote)?;
    let signer: &dyn Signer = key.signer();
    let mut note = Note::new(&checkpoint.to_bytes(), &[])?;
    note.add_sigs(&[signer])?;
    Ok(note.to_bytes())
}

/// Checks a signed note: our signature (others may stand beside it) over a checkpoint of a log of ours.
pub(crate) fn open(note: &[u8], key: &VerifierKey) -> Result<TreeHead, CheckpointProblem> {
    let parsed = Note::from_bytes(note).map_err(|_| CheckpointProblem::Text)?;
    let known = VerifierList::new(vec![Box::new(key.verifier())]);
    parsed
        .verify(&known)
        .map_err(|_| CheckpointProblem::Signature)?;
    let checkpoint = Checkpoint::from_bytes(parsed.text()).map_err(|_| CheckpointProblem::Text)?;
    let ours = checkpoint
        .origin()
        .strip_prefix(key.name())
        .is_some_and(|rest| {
            rest.strip_prefix('/')
                .is_some_and(|tenant| !tenant.is_empty() && !tenant.contains('/'))
        });
    if !ours {
        return Err(CheckpointProblem::Text);
    }
    Ok(TreeHead {
        origin: checkpoint.origin().to_owned(),
        size: checkpoint.size(),
        root: Digest(checkpoint.hash().0),
    })
}
