//! From the journal back to the head of a log: what was committed and is not in the database yet.
//! Called when a log is taken up, before its unfinished calls are looked for.
//! INVARIANT: a frame counts if its checkpoint is signed by this host's key and covers its records, and not otherwise.

use policies::{Approval, Tenant};
use serde::Deserialize;

use crate::batch;
use crate::checkpoint;
use crate::journal::{self, Frame};
use crate::key::LogKey;
use crate::record::Kind;
use crate::store::{Head, Unusable};
use crate::tree;

/// As much of a record as is needed to know which calls are open.
#[derive(Deserialize)]
pub(crate) struct Outline {
    pub(crate) kind: Kind,
    #[serde(default)]
    pub(crate) intent: Option<u64>,
}

/// Appends to the head what the journal has after it, and says whether that was anything.
///
/// The last frame may be torn: its commit was never reported as done, and it is left out. A whole frame behind a torn one is
/// not the trace of a crash, nor is one that begins after the database's last record: somebody changed a file.
pub(crate) fn replay(
    bytes: &[u8],
    head: &mut Head,
    key: &LogKey,
    tenant: &Tenant,
) -> Result<bool, Unusable> {
    let before = head.size();
    let mut at = 0;
    while let Some((frame, next)) = journal::frame_at(bytes, at) {
        if frame.first != head.size() || !apply(&frame, head, key, tenant)? {
            break;
        }
        at = next;
    }
    let end = head.size();
    if journal::frames(bytes).any(|frame| frame.first > end) {
        return Err(Unusable::Corrupt(
            "its journal continues a longer log, or has a gap",
        ));
    }
    Ok(end > before)
}

/// False for a frame whose records are not those of its checkpoint: torn.
fn apply(
    frame: &Frame<'_>,
    head: &mut Head,
    key: &LogKey,
    tenant: &Tenant,
) -> Result<bool, Unusable> {
    let signed = checkpoint::open(frame.note, key.public())
        .map_err(|_| Unusable::Corrupt("its journal is not signed by this host's key"))?;
    if signed.origin != checkpoint::origin(key.public(), tenant.as_str()) {
        return Err(Unusable::Corrupt("its journal is of another tenant's log"));
    }
    let mut tree = head.tree.clone();
    for (_, line) in batch::lines(frame.first, frame.lines) {
        tree.push(tree::leaf(line));
    }
    if (tree.size(), tree.root()) != (signed.size, signed.root) {
        return Ok(false);
    }

    for (index, line) in batch::lines(frame.first, frame.lines) {
        let outline: Outline = serde_json::from_slice(line)
            .map_err(|_| Unusable::Corrupt("a record in its journal cannot be read"))?;
        let pending = &mut head.pending.batch;
        pending.line().0.extend_from_slice(line);
        pending.close_line();
        head.push(tree::leaf(line), index, outline.kind, outline.intent);
    }
    if !frame.approvals.is_empty() {
        let approvals: Vec<Approval> = serde_json::from_slice(frame.approvals)
            .map_err(|_| Unusable::Corrupt("an approval in its journal cannot be read"))?;
        head.pending.approvals.extend(
            approvals
                .into_iter()
                .map(|approval| (approval.id, approval)),
        );
    }
    head.pending.note = frame.note.to_vec();
    Ok(true)
}
