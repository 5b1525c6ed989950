//! The tables of one log and the one transaction that changes them.
//! The writer calls `commit`; opening a log calls `recover`, which ends in the same `commit`.
//! INVARIANT: records, tree nodes, open intents, approvals and the signed checkpoint change together or not at all.

use std::collections::BTreeSet;

use policies::{Approval, ApprovalState, Digest, Tenant, Timestamp};
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition, TableError, WriteTransaction,
};
use tlog_tiles::tlog::{Hash, HashReader as _, stored_hash_index};

use crate::batch::{self, Batch, NODES, Nodes, RECORDS};
use crate::checkpoint;
use crate::draft;
use crate::error::{AuditError, CommitFailure};
use crate::key::LogKey;
use crate::line;
use crate::queue::{ApprovalWrite, Item, Reply};
use crate::record::{Kind, MAX_RECORD, Record};
use crate::tree::{self, Frontier, NO_LEAF};

/// Indexes of intents that have no outcome although [`YOUNG`] records came after them.
const OPEN: TableDefinition<u64, ()> = TableDefinition::new("open");
/// Approval id -> the approval as JSON.
const APPROVALS: TableDefinition<&str, &[u8]> = TableDefinition::new("approvals");
/// `format`, `checkpoint`.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(crate) const FORMAT: &str = "sluice-audit-2";

/// An intent without outcome is looked for among this many records at the end of the log; of an older one, `OPEN` knows.
/// Most calls are over before that many records follow, and then their intents cost the table nothing.
const YOUNG: u64 = if cfg!(test) { 8 } else { 4096 };

/// How long a closed approval is kept beside the log, in which it stays for good.
const KEEP_APPROVALS: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Where the log ends: all that is needed to append to it without reading it.
///
/// Worth nothing after a failed commit: the log is taken up again from what is on disk then.
#[derive(Debug)]
pub(crate) struct Head {
    tree: Frontier,
    /// Leaf hash of the last record.
    last: Digest,
    /// Intents without outcome.
    open: BTreeSet<u64>,
    /// Those of `open` below this index are in the table `OPEN`.
    aged: u64,
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
    head: &mut Head,
    items: &mut [Item],
) -> Result<Vec<Placed>, CommitFailure> {
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut placed = Vec::with_capacity(items.len());
    {
        let new = head.tree.size() == 0;
        let mut tables = Tables::open(&transaction, head, new)?;
        for item in items {
            placed.push(tables.append(head, item)?);
        }
        tables.age(head)?;
        tables.seal(key, tenant, &head.tree, new)?;
    }
    transaction.commit()?;
    Ok(placed)
}

struct Tables<'txn> {
    transaction: &'txn WriteTransaction,
    records: Table<'txn, u64, &'static [u8]>,
    batch: Batch,
    /// Opened when it is needed, as the next one: most commits change neither.
    open: Option<Table<'txn, u64, ()>>,
    approvals: Option<Table<'txn, &'static str, &'static [u8]>>,
}

impl<'txn> Tables<'txn> {
    fn open(
        transaction: &'txn WriteTransaction,
        head: &Head,
        new: bool,
    ) -> Result<Tables<'txn>, CommitFailure> {
        let (mut open, mut approvals) = (None, None);
        if new {
            open = Some(transaction.open_table(OPEN)?);
            approvals = Some(transaction.open_table(APPROVALS)?);
        }
        let size = head.tree.size();
        Ok(Tables {
            transaction,
            records: transaction.open_table(RECORDS)?,
            batch: Batch::after(size, stored_hash_index(0, size)),
            open,
            approvals,
        })
    }

    fn aged(&mut self) -> Result<&mut Table<'txn, u64, ()>, CommitFailure> {
        let table = match self.open.take() {
            Some(table) => table,
            None => self.transaction.open_table(OPEN)?,
        };
        Ok(self.open.insert(table))
    }

    fn approvals(
        &mut self,
    ) -> Result<&mut Table<'txn, &'static str, &'static [u8]>, CommitFailure> {
        let table = match self.approvals.take() {
            Some(table) => table,
            None => self.transaction.open_table(APPROVALS)?,
        };
        Ok(self.approvals.insert(table))
    }

    /// Appends one record. An inner `Err` refuses this record only and leaves no trace of it.
    fn append(&mut self, head: &mut Head, item: &mut Item) -> Result<Placed, CommitFailure> {
        let approval = match self.approval_after(&item.approval)? {
            Ok(approval) => approval,
            Err(refused) => return Ok(Err(refused)),
        };
        let record = &mut *item.record;
        if let (Kind::Intent, Some(approval)) = (record.kind, &approval) {
            record.answers = draft::answers(&approval.answers);
        }
        if let (Kind::Outcome, Reply::Nobody(Some(ticket))) = (record.kind, &item.reply) {
            // Its intent was written before it, in this transaction or an earlier one.
            record.intent = ticket.index();
        }
        if let (Kind::Outcome, Some(intent)) = (record.kind, record.intent)
            && !head.open.contains(&intent)
        {
            // An earlier commit of it was reported as failed and had succeeded after all.
            return Ok(Ok(None));
        }

        let index = head.tree.size();
        (record.index, record.prev) = (index, head.last);
        let (lines, start) = self.batch.line();
        line::write(record, lines).map_err(CommitFailure::Serialise)?;
        let line = lines.get(start..).unwrap_or_default();
        let (leaf, length) = (tree::leaf(line), line.len());
        if length > MAX_RECORD {
            self.batch.undo(start);
            return Ok(Err(AuditError::RecordTooLarge(length)));
        }
        self.batch.close_line(start, index, &mut self.records)?;
        let batch = &mut self.batch;
        head.tree.grow(leaf, |node| batch.node(node));
        if let (Kind::Intent, Reply::Nobody(Some(ticket))) = (record.kind, &item.reply) {
            ticket.place(index);
        }
        match (record.kind, record.intent) {
            (Kind::Intent, _) => drop(head.open.insert(index)),
            (Kind::Outcome, Some(intent)) => {
                head.open.remove(&intent);
                if intent < head.aged {
                    self.aged()?.remove(intent)?;
                }
            }
            _ => {}
        }
        if let Some(approval) = approval {
            let json = serde_json::to_vec(&approval).map_err(CommitFailure::Serialise)?;
            self.approvals()?
                .insert(approval.id.to_string().as_str(), json.as_slice())?;
        }
        head.last = leaf;
        Ok(Ok(Some(index)))
    }

    /// The approval as it must be stored with the record; refused where the stored one is closed.
    ///
    /// INVARIANT: this is the durable half of "used once": a closed approval never opens again, whatever memory says.
    fn approval_after(
        &mut self,
        write: &ApprovalWrite,
    ) -> Result<Result<Option<Approval>, AuditError>, CommitFailure> {
        let id = match write {
            ApprovalWrite::None => return Ok(Ok(None)),
            ApprovalWrite::Store(approval) => approval.id,
            ApprovalWrite::Use(id) => *id,
        };
        let stored = self.approvals()?.get(id.to_string().as_str())?;
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

    /// Intents that have become old without an outcome go where they are found without reading the log.
    fn age(&mut self, head: &mut Head) -> Result<(), CommitFailure> {
        let young = head.tree.size().saturating_sub(YOUNG);
        if young > head.aged {
            for intent in head.open.range(head.aged..young) {
                self.aged()?.insert(intent, ())?;
            }
            head.aged = young;
        }
        Ok(())
    }

    fn seal(
        mut self,
        key: &LogKey,
        tenant: &Tenant,
        tree: &Frontier,
        new: bool,
    ) -> Result<(), CommitFailure> {
        let mut nodes = self.transaction.open_table(NODES)?;
        self.batch.finish(&mut self.records, &mut nodes)?;
        let root = Hash(tree.root().0);
        let note = checkpoint::seal(key, tenant.as_str(), tree.size(), root)
            .map_err(CommitFailure::Sign)?;
        let mut meta = self.transaction.open_table(META)?;
        if new {
            meta.insert("format", FORMAT.as_bytes())?;
        }
        meta.insert("checkpoint", note.as_slice())?;
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
    let Some(mut head) = check(&snapshot, key, tenant)? else {
        let mut empty = Head {
            tree: Frontier::default(),
            last: NO_LEAF,
            open: BTreeSet::new(),
            aged: 0,
        };
        commit(db, key, tenant, &mut empty, &mut [])?;
        return Ok(empty);
    };
    let mut unknown = unfinished(&snapshot, &head.open, live, now)?;
    let stale = stale_approvals(&snapshot, now)?;
    drop(snapshot);
    if !stale.is_empty() {
        forget_approvals(db, &stale)?;
    }
    if unknown.is_empty() {
        return Ok(head);
    }
    tracing::warn!(%tenant, calls = unknown.len(), "calls without an outcome: recorded as unknown");
    commit(db, key, tenant, &mut head, &mut unknown)?;
    Ok(head)
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
    if batch::count(&records).map_err(CommitFailure::from)? != signed.size {
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
    let aged = signed.size.saturating_sub(YOUNG);
    let open = open_intents(snapshot, &records, aged)?;
    Ok(Some(Head {
        tree,
        last,
        open,
        aged,
    }))
}

/// The intents without outcome: those that the table knows, and those among the records from `aged` on.
fn open_intents(
    snapshot: &ReadTransaction,
    records: &ReadOnlyTable<u64, &'static [u8]>,
    aged: u64,
) -> Result<BTreeSet<u64>, Unusable> {
    /// As much of a record as is needed here.
    #[derive(serde::Deserialize)]
    struct Outline {
        kind: Kind,
        #[serde(default)]
        intent: Option<u64>,
    }

    let table = snapshot.open_table(OPEN).map_err(CommitFailure::from)?;
    let mut open = BTreeSet::new();
    for entry in table.iter().map_err(CommitFailure::from)? {
        open.insert(entry.map_err(CommitFailure::from)?.0.value());
    }
    let from = batch::key_of(records, aged).map_err(CommitFailure::from)?;
    for value in records
        .range(from.unwrap_or_default()..)
        .map_err(CommitFailure::from)?
    {
        let (first, value) = value.map_err(CommitFailure::from)?;
        for (index, line) in batch::lines(first.value(), value.value()) {
            let outline: Outline = serde_json::from_slice(line)
                .map_err(|_| Unusable::Corrupt("one of the last records cannot be read"))?;
            match (outline.kind, outline.intent) {
                (Kind::Intent, _) if index >= aged => drop(open.insert(index)),
                (Kind::Outcome, Some(intent)) if index >= aged => drop(open.remove(&intent)),
                _ => {}
            }
        }
    }
    Ok(open)
}

fn last_leaf(
    records: &ReadOnlyTable<u64, &'static [u8]>,
    nodes: &ReadOnlyTable<u64, &'static [u8]>,
    size: u64,
) -> Result<Digest, Unusable> {
    let Some(index) = size.checked_sub(1) else {
        return Ok(NO_LEAF);
    };
    let line = batch::record(records, index).map_err(CommitFailure::from)?;
    let node = Nodes(nodes).read_hashes(&[stored_hash_index(0, index)]);
    match (line, node.as_deref()) {
        (Some(line), Ok([node])) if tree::leaf(&line).0 == node.0 => Ok(Digest(node.0)),
        _ => Err(Unusable::Corrupt(
            "the last record is not the one in the tree",
        )),
    }
}

fn unfinished(
    snapshot: &ReadTransaction,
    open: &BTreeSet<u64>,
    live: &BTreeSet<u64>,
    now: Timestamp,
) -> Result<Vec<Item>, Unusable> {
    let records = snapshot.open_table(RECORDS).map_err(CommitFailure::from)?;
    let mut items = Vec::new();
    for index in open.difference(live).copied() {
        let line = batch::record(&records, index).map_err(CommitFailure::from)?;
        let intent: Record = line
            .and_then(|line| serde_json::from_slice(&line).ok())
            .ok_or(Unusable::Corrupt(
                "an intent without outcome cannot be read",
            ))?;
        items.push(Item {
            record: Box::new(intent.outcome(Some(index), now)),
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
    let records = snapshot.open_table(RECORDS).map_err(AuditError::read)?;
    batch::count(&records).map_err(AuditError::read)
}
