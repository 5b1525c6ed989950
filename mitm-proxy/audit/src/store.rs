//! One log: its head, the commits that move it, and the tables of the database that takes them over.
//! The writer calls `commit`, and `fold` now and then; opening a log calls `recover`, which ends in the same `commit`.
//! INVARIANT: records, tree nodes, open intents, approvals and the signed checkpoint change together or not at all.

use std::collections::{BTreeMap, BTreeSet};

use policies::{Approval, ApprovalId, ApprovalState, Digest, Tenant, Timestamp};
use redb::{
    Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, TableError,
};
use tlog_tiles::tlog::{Hash, HashReader as _, stored_hash_index};

use crate::batch::{self, Batch, NODES, Nodes, RECORDS};
use crate::checkpoint;
use crate::draft;
use crate::error::{AuditError, CommitFailure};
use crate::journal::{Frame, Journal};
use crate::key::LogKey;
use crate::line;
use crate::queue::{ApprovalWrite, Item, Reply};
use crate::record::{Kind, MAX_RECORD, Record};
use crate::replay::{Outline, replay};
use crate::tree::{self, Frontier, NO_LEAF};

/// Indexes of intents that have no outcome although [`YOUNG`] records came after them.
const OPEN: TableDefinition<u64, ()> = TableDefinition::new("open");
/// Approval id -> the approval as JSON.
const APPROVALS: TableDefinition<&str, &[u8]> = TableDefinition::new("approvals");
/// `format`, `checkpoint`.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(crate) const FORMAT: &str = "sluice-audit-3";
/// What an earlier version wrote. It has no journal, and gets one when it is opened.
const WITHOUT_JOURNAL: &str = "sluice-audit-2";

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
    pub(crate) tree: Frontier,
    /// Leaf hash of the last record.
    last: Digest,
    /// Intents without outcome.
    open: BTreeSet<u64>,
    /// Those of `open` below this index are in the table `OPEN`.
    aged: u64,
    /// What the journal has and the database has not.
    pub(crate) pending: Pending,
}

/// Commits that the database is still to take over, all at once.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) batch: Batch,
    /// Intents of the table `OPEN` that have an outcome now.
    settled: Vec<u64>,
    /// Approvals as they are now, where they changed.
    pub(crate) approvals: BTreeMap<ApprovalId, Approval>,
    /// The checkpoint after all of this.
    pub(crate) note: Vec<u8>,
}

impl Head {
    fn new(tree: Frontier, last: Digest, open: BTreeSet<u64>, aged: u64) -> Head {
        let mut pending = Pending::default();
        let size = tree.size();
        pending.batch.begin(size, stored_hash_index(0, size));
        Head {
            tree,
            last,
            open,
            aged,
            pending,
        }
    }

    /// How many records the log has.
    pub(crate) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Whether the database has all of them.
    pub(crate) fn is_folded(&self) -> bool {
        self.pending.batch.is_empty()
    }

    /// The record whose line was just closed.
    pub(crate) fn push(&mut self, leaf: Digest, index: u64, kind: Kind, intent: Option<u64>) {
        let batch = &mut self.pending.batch;
        self.tree.grow(leaf, |node| batch.node(node));
        match (kind, intent) {
            (Kind::Intent, _) => drop(self.open.insert(index)),
            (Kind::Outcome, Some(intent)) => {
                self.open.remove(&intent);
                if intent < self.aged {
                    self.pending.settled.push(intent);
                }
            }
            _ => {}
        }
        self.last = leaf;
    }
}

/// What became of one item of a committed batch: its index; nothing, for an outcome that was there already; or a refusal.
pub(crate) type Placed = Result<Option<u64>, AuditError>;

/// Appends a batch and signs the new checkpoint, in one durable frame of the journal, or with all that is there in one
/// transaction of the database.
///
/// A crash before the end of it leaves the log as it was, and no caller was told otherwise.
/// A crash or an I/O error *during* it leaves either the log as it was or all of the batch. In the latter case
/// intents are there that nobody acted on: they are recovered as `unknown`, and an approval they used stays used.
pub(crate) fn commit(
    db: &Database,
    journal: &mut Journal,
    key: &LogKey,
    tenant: &Tenant,
    head: &mut Head,
    items: &mut [Item],
) -> Result<Vec<Placed>, CommitFailure> {
    let (first, start) = (head.size(), head.pending.batch.length());
    let mut placed = Vec::with_capacity(items.len());
    let mut changed = Vec::new();
    for item in items {
        placed.push(append(db, head, item, &mut changed)?);
    }
    if head.size() == first {
        return Ok(placed);
    }
    seal(key, tenant, head)?;
    let approvals = match changed.as_slice() {
        [] => Vec::new(),
        changed => serde_json::to_vec(changed).map_err(CommitFailure::Serialise)?,
    };
    let frame = Frame {
        first,
        lines: head.pending.batch.since(start),
        note: &head.pending.note,
        approvals: &approvals,
    };
    if !journal.append(&frame).map_err(CommitFailure::Journal)? {
        fold(db, journal, head)?;
    }
    Ok(placed)
}

/// The database takes over what the journal has, durably, and the journal begins anew.
///
/// A crash in here leaves both as they were, or the journal with what the database has already: it is known by its indexes.
pub(crate) fn fold(
    db: &Database,
    journal: &mut Journal,
    head: &mut Head,
) -> Result<(), CommitFailure> {
    let size = head.size();
    let young = size.saturating_sub(YOUNG).max(head.aged);
    let mut transaction = db.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let pending = &head.pending;
        let mut records = transaction.open_table(RECORDS)?;
        let mut nodes = transaction.open_table(NODES)?;
        pending.batch.store(&mut records, &mut nodes)?;
        let mut open = transaction.open_table(OPEN)?;
        for intent in &pending.settled {
            open.remove(intent)?;
        }
        // Intents that have become old without an outcome go where they are found without reading the log.
        for intent in head.open.range(head.aged..young) {
            open.insert(intent, ())?;
        }
        let mut approvals = transaction.open_table(APPROVALS)?;
        for (id, approval) in &pending.approvals {
            let json = serde_json::to_vec(approval).map_err(CommitFailure::Serialise)?;
            approvals.insert(id.to_string().as_str(), json.as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT.as_bytes())?;
        meta.insert("checkpoint", pending.note.as_slice())?;
    }
    transaction.commit()?;
    journal.rewind();
    head.aged = young;
    head.pending.settled.clear();
    head.pending.approvals.clear();
    head.pending.batch.begin(size, stored_hash_index(0, size));
    Ok(())
}

fn seal(key: &LogKey, tenant: &Tenant, head: &mut Head) -> Result<(), CommitFailure> {
    let root = Hash(head.tree.root().0);
    head.pending.note =
        checkpoint::seal(key, tenant.as_str(), head.size(), root).map_err(CommitFailure::Sign)?;
    Ok(())
}

/// Appends one record. An inner `Err` refuses this record only and leaves no trace of it.
fn append(
    db: &Database,
    head: &mut Head,
    item: &mut Item,
    changed: &mut Vec<Approval>,
) -> Result<Placed, CommitFailure> {
    let approval = match approval_after(db, head, &item.approval)? {
        Ok(approval) => approval,
        Err(refused) => return Ok(Err(refused)),
    };
    let record = &mut *item.record;
    if let (Kind::Intent, Some(approval)) = (record.kind, &approval) {
        record.answers = draft::answers(&approval.answers);
    }
    if let (Kind::Outcome, Reply::Nobody(Some(ticket))) = (record.kind, &item.reply) {
        // Its intent was written before it, in this batch or an earlier one.
        record.intent = ticket.index();
    }
    if let (Kind::Outcome, Some(intent)) = (record.kind, record.intent)
        && !head.open.contains(&intent)
    {
        // An earlier commit of it was reported as failed and had succeeded after all.
        return Ok(Ok(None));
    }

    let index = head.size();
    (record.index, record.prev) = (index, head.last);
    let (lines, start) = head.pending.batch.line();
    line::write(record, lines).map_err(CommitFailure::Serialise)?;
    let line = lines.get(start..).unwrap_or_default();
    let (leaf, length) = (tree::leaf(line), line.len());
    if length > MAX_RECORD {
        head.pending.batch.undo(start);
        return Ok(Err(AuditError::RecordTooLarge(length)));
    }
    head.pending.batch.close_line();
    head.push(leaf, index, record.kind, record.intent);
    if let (Kind::Intent, Reply::Nobody(Some(ticket))) = (record.kind, &item.reply) {
        ticket.place(index);
    }
    if let Some(approval) = approval {
        changed.push(approval.clone());
        head.pending.approvals.insert(approval.id, approval);
    }
    Ok(Ok(Some(index)))
}

/// The approval as it must be stored with the record; refused where the stored one is closed.
///
/// INVARIANT: this is the durable half of "used once": a closed approval never opens again, whatever memory says.
fn approval_after(
    db: &Database,
    head: &Head,
    write: &ApprovalWrite,
) -> Result<Result<Option<Approval>, AuditError>, CommitFailure> {
    let id = match write {
        ApprovalWrite::None => return Ok(Ok(None)),
        ApprovalWrite::Store(approval) => approval.id,
        ApprovalWrite::Use(id) => *id,
    };
    let stored = match head.pending.approvals.get(&id) {
        Some(approval) => Some(approval.clone()),
        None => stored_approval(db, id)?,
    };
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

fn stored_approval(db: &Database, id: ApprovalId) -> Result<Option<Approval>, CommitFailure> {
    let approvals = db.begin_read()?.open_table(APPROVALS)?;
    let stored = approvals.get(id.to_string().as_str())?;
    stored
        .map(|json| serde_json::from_slice(json.value()))
        .transpose()
        .map_err(CommitFailure::Serialise)
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
    journal: &mut Journal,
    key: &LogKey,
    tenant: &Tenant,
    live: &BTreeSet<u64>,
    now: Timestamp,
) -> Result<Head, Unusable> {
    let found = check(&db.begin_read().map_err(CommitFailure::from)?, key, tenant)?;
    let there = journal.is_there().map_err(CommitFailure::Journal)?;
    let journaled = found.as_ref().is_some_and(|(_, journaled)| *journaled);
    if journaled && !there {
        return Err(Unusable::Corrupt("its journal is missing"));
    }
    let mut head = match found {
        Some((head, _)) => head,
        None => {
            let mut empty = Head::new(Frontier::default(), NO_LEAF, BTreeSet::new(), 0);
            seal(key, tenant, &mut empty)?;
            empty
        }
    };
    // On disk before the database says that there is one.
    journal.prepare().map_err(CommitFailure::Journal)?;
    let bytes = journal.read().map_err(CommitFailure::Journal)?;
    if replay(&bytes, &mut head, key, tenant)? || !journaled {
        fold(db, journal, &mut head)?;
    }
    drop(bytes);

    let snapshot = db.begin_read().map_err(CommitFailure::from)?;
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
    commit(db, journal, key, tenant, &mut head, &mut unknown)?;
    Ok(head)
}

/// Where the database ends, and whether there is a journal beside it. `None` for a log that nothing was ever written to.
fn check(
    snapshot: &ReadTransaction,
    key: &LogKey,
    tenant: &Tenant,
) -> Result<Option<(Head, bool)>, Unusable> {
    let meta = match snapshot.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(CommitFailure::from(error).into()),
    };
    let format = meta.get("format").map_err(CommitFailure::from)?;
    let format = format.ok_or(Unusable::Corrupt("the format is missing"))?;
    let journaled = format.value() == FORMAT.as_bytes();
    if !journaled && format.value() != WITHOUT_JOURNAL.as_bytes() {
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
    let mut head = Head::new(tree, last, open, aged);
    head.pending.note = note.value().to_vec();
    Ok(Some((head, journaled)))
}

/// The intents without outcome: those that the table knows, and those among the records from `aged` on.
fn open_intents(
    snapshot: &ReadTransaction,
    records: &ReadOnlyTable<u64, &'static [u8]>,
    aged: u64,
) -> Result<BTreeSet<u64>, Unusable> {
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
