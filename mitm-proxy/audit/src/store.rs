//! The tables of one log and the one transaction that changes them.
//! The writer calls `commit`; opening a log calls `recover`, which ends in the same `commit`.
//! INVARIANT: records, tree nodes, open intents, approvals and the signed checkpoint change together or not at all.

use std::collections::BTreeSet;

use policies::{Approval, ApprovalState, Digest, Tenant, Timestamp};
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    ReadableTableMetadata, Table, TableDefinition, TableError, WriteTransaction,
};
use tlog_tiles::tlog::{Hash, stored_hash_index};

use crate::checkpoint;
use crate::draft;
use crate::error::{AuditError, CommitFailure};
use crate::key::LogKey;
use crate::queue::{ApprovalWrite, Item, Reply};
use crate::record::{Kind, MAX_RECORD, Record};
use crate::tree::{self, Frontier, NO_LEAF, Nodes};

/// index -> the record's bytes.
pub(crate) const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
/// Place of a node in the order of `tlog_tiles::stored_hash_index` -> its hash.
pub(crate) const NODES: TableDefinition<u64, &[u8; 32]> = TableDefinition::new("nodes");
/// Indexes of intents that have no outcome yet.
const OPEN: TableDefinition<u64, ()> = TableDefinition::new("open");
/// Approval id -> the approval as JSON.
const APPROVALS: TableDefinition<&str, &[u8]> = TableDefinition::new("approvals");
/// `format`, `checkpoint`.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(crate) const FORMAT: &str = "sluice-audit-1";

/// How long a closed approval is kept beside the log, in which it stays for good.
const KEEP_APPROVALS: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Where the log ends: all that is needed to append to it without reading it.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    tree: Frontier,
    /// Leaf hash of the last record.
    last: Digest,
}

/// What became of one item of a committed batch: its index; nothing, for an outcome that was there already; or a refusal.
pub(crate) type Placed = Result<Option<u64>, AuditError>;

/// Appends a batch and signs the new checkpoint, in one durable transaction.
///
/// A crash before the commit leaves the log as it was, and no caller was told otherwise.
/// A crash or an I/O error *during* the commit leaves either the log as it was or all of the batch. In the latter case
/// intents are there that nobody acted on: they are recovered as `unknown`, and an approval they used stays used.
pub(crate) fn commit(
    db: &Database,
    key: &LogKey,
    tenant: &Tenant,
    mut head: Head,
    items: &mut [Item],
) -> Result<(Head, Vec<Placed>), CommitFailure> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut placed = Vec::with_capacity(items.len());
    {
        let new = head.tree.size() == 0;
        let mut tables = Tables::open(&transaction)?;
        for item in items {
            placed.push(tables.append(&mut head, item)?);
        }
        tables.seal(key, tenant, &head.tree, new)?;
    }
    transaction.commit()?;
    Ok((head, placed))
}

struct Tables<'txn> {
    records: Table<'txn, u64, &'static [u8]>,
    nodes: Table<'txn, u64, &'static [u8; 32]>,
    open: Table<'txn, u64, ()>,
    approvals: Table<'txn, &'static str, &'static [u8]>,
    meta: Table<'txn, &'static str, &'static [u8]>,
    /// The line that is being written; kept for its room.
    line: Vec<u8>,
}

impl<'txn> Tables<'txn> {
    fn open(transaction: &'txn WriteTransaction) -> Result<Tables<'txn>, CommitFailure> {
        Ok(Tables {
            records: transaction.open_table(RECORDS)?,
            nodes: transaction.open_table(NODES)?,
            open: transaction.open_table(OPEN)?,
            approvals: transaction.open_table(APPROVALS)?,
            meta: transaction.open_table(META)?,
            line: Vec::with_capacity(1024),
        })
    }

    /// Appends one record. An inner `Err` refuses this record only and leaves no trace of it.
    fn append(&mut self, head: &mut Head, item: &mut Item) -> Result<Placed, CommitFailure> {
        let approval = match self.approval_after(&item.approval)? {
            Ok(approval) => approval,
            Err(refused) => return Ok(Err(refused)),
        };
        let record = &mut item.record;
        if let (Kind::Intent, Some(approval)) = (record.kind, &approval) {
            record.answers = draft::answers(&approval.answers);
        }
        if let (Kind::Outcome, Reply::Nobody(Some(ticket))) = (record.kind, &item.reply) {
            // Its intent was written before it, in this transaction or an earlier one.
            record.intent = ticket.index();
        }
        if let (Kind::Outcome, Some(intent)) = (record.kind, record.intent)
            && self.open.get(intent)?.is_none()
        {
            // An earlier commit of it was reported as failed and had succeeded after all.
            return Ok(Ok(None));
        }

        let index = head.tree.size();
        (record.index, record.prev) = (index, head.last);
        self.line.clear();
        serde_json::to_writer(&mut self.line, record).map_err(CommitFailure::Serialise)?;
        if self.line.len() > MAX_RECORD {
            return Ok(Err(AuditError::RecordTooLarge(self.line.len())));
        }
        let leaf = tree::leaf(&self.line);
        self.records.insert(index, self.line.as_slice())?;
        let mut place = stored_hash_index(0, index);
        head.tree.grow(leaf, |node| {
            self.nodes.insert(place, &node.0)?;
            place += 1;
            Ok::<(), CommitFailure>(())
        })?;
        if let (Kind::Intent, Reply::Nobody(Some(ticket))) = (record.kind, &item.reply) {
            ticket.place(index);
        }
        match (record.kind, record.intent) {
            (Kind::Intent, _) => drop(self.open.insert(index, ())?),
            (Kind::Outcome, Some(intent)) => drop(self.open.remove(intent)?),
            _ => {}
        }
        if let Some(approval) = approval {
            let json = serde_json::to_vec(&approval).map_err(CommitFailure::Serialise)?;
            self.approvals
                .insert(approval.id.to_string().as_str(), json.as_slice())?;
        }
        head.last = leaf;
        Ok(Ok(Some(index)))
    }

    /// The approval as it must be stored with the record; refused where the stored one is closed.
    ///
    /// INVARIANT: this is the durable half of "used once": a closed approval never opens again, whatever memory says.
    fn approval_after(
        &self,
        write: &ApprovalWrite,
    ) -> Result<Result<Option<Approval>, AuditError>, CommitFailure> {
        let id = match write {
            ApprovalWrite::None => return Ok(Ok(None)),
            ApprovalWrite::Store(approval) => approval.id,
            ApprovalWrite::Use(id) => *id,
        };
        let stored = self.approvals.get(id.to_string().as_str())?;
        let stored: Option<Approval> = stored
            .map(|json| serde_json::from_slice(json.value()))
            .transpose()
            .map_err(CommitFailure::Serialise)?;
        Ok(match (write, stored) {
            (ApprovalWrite::Store(new), None) => Ok(Some((**new).clone())),
            (ApprovalWrite::Store(new), Some(old)) if is_open(&old) => Ok(Some((**new).clone())),
            (ApprovalWrite::Use(_), Some(old)) if old.state == ApprovalState::Approved => {
                Ok(Some(Approval {
                    state: ApprovalState::Used,
                    ..old
                }))
            }
            _ => Err(AuditError::ApprovalSpent(id)),
        })
    }

    fn seal(
        &mut self,
        key: &LogKey,
        tenant: &Tenant,
        tree: &Frontier,
        new: bool,
    ) -> Result<(), CommitFailure> {
        let root = Hash(tree.root().0);
        let note = checkpoint::seal(key, tenant.as_str(), tree.size(), root)
            .map_err(CommitFailure::Sign)?;
        if new {
            self.meta.insert("format", FORMAT.as_bytes())?;
        }
        self.meta.insert("checkpoint", note.as_slice())?;
        Ok(())
    }
}

fn is_open(approval: &Approval) -> bool {
    matches!(
        approval.state,
        ApprovalState::Approved | ApprovalState::Pending
    )
}

/// Why a log cannot be taken up.
pub(crate) enum Unusable {
    Commit(CommitFailure),
    Corrupt(&'static str),
    Format(String),
}

impl<E: Into<CommitFailure>> From<E> for Unusable {
    fn from(failure: E) -> Unusable {
        Unusable::Commit(failure.into())
    }
}

/// Takes a log up: checks it against its checkpoint, then records `unknown` for every intent without outcome
/// except `live` ones, whose calls are still under way in this process. A new log gets its first checkpoint.
///
/// A crash in here leaves the intents open; the next start comes here again.
pub(crate) fn recover(
    db: &Database,
    key: &LogKey,
    tenant: &Tenant,
    live: &BTreeSet<u64>,
    now: Timestamp,
) -> Result<Head, Unusable> {
    let snapshot = db.begin_read().map_err(CommitFailure::from)?;
    let Some(head) = check(&snapshot, key, tenant)? else {
        let empty = Head {
            tree: Frontier::default(),
            last: NO_LEAF,
        };
        return Ok(commit(db, key, tenant, empty, &mut [])?.0);
    };
    let mut unknown = unfinished(&snapshot, live, now)?;
    let stale = stale_approvals(&snapshot, now)?;
    drop(snapshot);
    if !stale.is_empty() {
        forget_approvals(db, &stale)?;
    }
    if unknown.is_empty() {
        return Ok(head);
    }
    tracing::warn!(%tenant, calls = unknown.len(), "calls without an outcome: recorded as unknown");
    Ok(commit(db, key, tenant, head, &mut unknown)?.0)
}

/// `None` for a log that nothing was ever written to.
fn check(
    snapshot: &ReadTransaction,
    key: &LogKey,
    tenant: &Tenant,
) -> Result<Option<Head>, Unusable> {
    let meta = match snapshot.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(CommitFailure::from(error).into()),
    };
    let format = meta.get("format").map_err(CommitFailure::from)?;
    let format = format.ok_or(Unusable::Corrupt("the format is missing"))?;
    if format.value() != FORMAT.as_bytes() {
        return Err(Unusable::Format(
            String::from_utf8_lossy(format.value()).into_owned(),
        ));
    }
    let note = meta.get("checkpoint").map_err(CommitFailure::from)?;
    let note = note.ok_or(Unusable::Corrupt("the checkpoint is missing"))?;
    let signed = checkpoint::open(note.value(), key.public())
        .map_err(|_| Unusable::Corrupt("the checkpoint is not signed by this host's key"))?;
    if signed.origin != checkpoint::origin(key.public(), tenant.as_str()) {
        return Err(Unusable::Corrupt(
            "the checkpoint is of another tenant's log",
        ));
    }

    let records = snapshot.open_table(RECORDS).map_err(CommitFailure::from)?;
    if records.len().map_err(CommitFailure::from)? != signed.size {
        return Err(Unusable::Corrupt(
            "the number of records is not the checkpoint's",
        ));
    }
    let nodes = snapshot.open_table(NODES).map_err(CommitFailure::from)?;
    let tree = Frontier::read(signed.size, &Nodes(&nodes))
        .map_err(|_| Unusable::Corrupt("nodes of the tree are missing"))?;
    if tree.root() != signed.root {
        return Err(Unusable::Corrupt(
            "the root of the tree is not the checkpoint's",
        ));
    }
    let last = last_leaf(&records, &nodes, signed.size)?;
    Ok(Some(Head { tree, last }))
}

fn last_leaf(
    records: &ReadOnlyTable<u64, &'static [u8]>,
    nodes: &ReadOnlyTable<u64, &'static [u8; 32]>,
    size: u64,
) -> Result<Digest, Unusable> {
    let Some(index) = size.checked_sub(1) else {
        return Ok(NO_LEAF);
    };
    let line = records.get(index).map_err(CommitFailure::from)?;
    let node = nodes
        .get(stored_hash_index(0, index))
        .map_err(CommitFailure::from)?;
    match (line, node) {
        (Some(line), Some(node)) if tree::leaf(line.value()).0 == *node.value() => {
            Ok(Digest(*node.value()))
        }
        _ => Err(Unusable::Corrupt(
            "the last record is not the one in the tree",
        )),
    }
}

fn unfinished(
    snapshot: &ReadTransaction,
    live: &BTreeSet<u64>,
    now: Timestamp,
) -> Result<Vec<Item>, Unusable> {
    let open = snapshot.open_table(OPEN).map_err(CommitFailure::from)?;
    let records = snapshot.open_table(RECORDS).map_err(CommitFailure::from)?;
    let mut items = Vec::new();
    for entry in open.iter().map_err(CommitFailure::from)? {
        let index = entry.map_err(CommitFailure::from)?.0.value();
        if live.contains(&index) {
            continue;
        }
        let line = records.get(index).map_err(CommitFailure::from)?;
        let intent: Record = line
            .and_then(|line| serde_json::from_slice(line.value()).ok())
            .ok_or(Unusable::Corrupt(
                "an intent without outcome cannot be read",
            ))?;
        let record = intent.outcome(Some(index), now);
        items.push(Item {
            record,
            approval: ApprovalWrite::None,
            reply: Reply::Nobody(None),
        });
    }
    Ok(items)
}

/// Every stored approval.
pub(crate) fn approvals(
    snapshot: &ReadTransaction,
    tenant: &Tenant,
) -> Result<Vec<Approval>, AuditError> {
    let table = snapshot.open_table(APPROVALS).map_err(AuditError::read)?;
    let mut approvals = Vec::new();
    for entry in table.iter().map_err(AuditError::read)? {
        let json = entry.map_err(AuditError::read)?.1;
        let approval =
            serde_json::from_slice(json.value()).map_err(|_| AuditError::CorruptApproval {
                tenant: tenant.clone(),
            })?;
        approvals.push(approval);
    }
    Ok(approvals)
}

/// Whether a restarted daemon still has a use for it.
pub(crate) fn is_kept(approval: &Approval, now: Timestamp) -> bool {
    is_open(approval) || approval.expires_at + KEEP_APPROVALS >= now
}

fn stale_approvals(snapshot: &ReadTransaction, now: Timestamp) -> Result<Vec<String>, Unusable> {
    let table = snapshot
        .open_table(APPROVALS)
        .map_err(CommitFailure::from)?;
    let mut stale = Vec::new();
    for entry in table.iter().map_err(CommitFailure::from)? {
        let (id, json) = entry.map_err(CommitFailure::from)?;
        let approval: Approval = serde_json::from_slice(json.value())
            .map_err(|_| Unusable::Corrupt("a stored approval cannot be read"))?;
        if !is_kept(&approval, now) {
            stale.push(id.value().to_owned());
        }
    }
    Ok(stale)
}

/// A crash before the commit leaves them for the next start. Nothing is lost: the records stay.
fn forget_approvals(db: &Database, stale: &[String]) -> Result<(), CommitFailure> {
    let transaction = db.begin_write()?;
    {
        let mut table = transaction.open_table(APPROVALS)?;
        for id in stale {
            table.remove(id.as_str())?;
        }
    }
    Ok(transaction.commit()?)
}

/// The checkpoint of the snapshot, as it was signed.
pub(crate) fn checkpoint_text(snapshot: &ReadTransaction) -> Result<String, AuditError> {
    let meta = snapshot.open_table(META).map_err(AuditError::read)?;
    let note = meta.get("checkpoint").map_err(AuditError::read)?;
    Ok(note
        .map(|note| String::from_utf8_lossy(note.value()).into_owned())
        .unwrap_or_default())
}

/// How many records the snapshot has.
pub(crate) fn size(snapshot: &ReadTransaction) -> Result<u64, AuditError> {
    snapshot
        .open_table(RECORDS)
        .map_err(AuditError::read)?
        .len()
        .map_err(AuditError::read)
}
