//! One log: its files, its queue and its writer thread.
//! `Ledger` keeps one per tenant; `Owed` holds on to the shared half so that an outcome finds its way.
//! INVARIANT: only the writer thread writes; readers see whole transactions.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use policies::{Tenant, Timestamp};
use redb::{Database, ReadTransaction, ReadableDatabase, StorageBackend};
use tokio::sync::oneshot;

use crate::error::{AuditError, OpenError};
use crate::evidence::{DurablyOwed, Owed, Ticket};
use crate::journal::Journal;
use crate::key::LogKey;
use crate::ledger::OnCommit;
use crate::queue::{ApprovalWrite, Item, NotQueued, Queue, Reply};
use crate::record::Record;
use crate::store::{self, FORMAT, Head, Unusable};
use crate::writer::Writer;

/// Opens the log's files: once at the start, and again after a failed commit.
pub(crate) type Opener = Arc<dyn Fn() -> Result<Opened, OpenError> + Send + Sync>;

/// The files of a log.
pub(crate) struct Opened {
    pub(crate) db: Database,
    pub(crate) journal: Box<dyn StorageBackend>,
}

/// What the callers, the writer and the outcomes to come have in common.
pub(crate) struct Shared {
    pub(crate) tenant: Tenant,
    pub(crate) path: PathBuf,
    pub(crate) queue: Queue,
    /// `None` while the writer tries to open the file again.
    pub(crate) db: RwLock<Option<Database>>,
}

impl Shared {
    /// Runs `read` on a snapshot: the log as of the last commit, or of a moment since. Never called on the writer's thread.
    ///
    /// A log that cannot be written is read as far as the database has it.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, AuditError>,
    ) -> Result<T, AuditError> {
        self.queue.fold();
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or(AuditError::Closed)?;
        read(&db.begin_read().map_err(AuditError::read)?)
    }
}

pub(crate) struct Log {
    pub(crate) shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl Log {
    pub(crate) fn open(
        tenant: Tenant,
        path: PathBuf,
        opener: Opener,
        key: Arc<LogKey>,
        queue: usize,
        on_commit: OnCommit,
    ) -> Result<Log, OpenError> {
        let name = format!("audit-{tenant}");
        let shared = Arc::new(Shared {
            tenant,
            path,
            queue: Queue::new(queue),
            db: RwLock::new(None),
        });
        let (db, journal, head) = take_up(&opener, &shared, &key, &BTreeSet::new())?;
        *shared.db.write().unwrap_or_else(PoisonError::into_inner) = Some(db);
        let writer = Writer::new(shared.clone(), opener, key, on_commit, journal, head);
        let writer = std::thread::Builder::new()
            .name(name)
            .spawn(move || writer.run())
            .map_err(OpenError::Thread)?;
        Ok(Log {
            shared,
            writer: Some(writer),
        })
    }

    /// Waits until the record is durable.
    pub(crate) async fn append(
        &self,
        record: Box<Record>,
        approval: ApprovalWrite,
    ) -> Result<u64, AuditError> {
        let (caller, answer) = oneshot::channel();
        self.shared.queue.push(Item {
            record,
            approval,
            reply: Reply::Index(caller),
        })?;
        answer.await.map_err(|_| AuditError::Closed)?
    }

    /// Waits until the intent is durable, and takes on the debt of its outcome.
    pub(crate) async fn intent(
        &self,
        record: Box<Record>,
        approval: ApprovalWrite,
    ) -> Result<DurablyOwed, AuditError> {
        let (caller, answer) = oneshot::channel();
        self.shared.queue.push(Item {
            record,
            approval,
            reply: Reply::Intent(caller),
        })?;
        answer.await.map_err(|_| AuditError::Closed)?
    }

    /// Queues the intent and takes on the debt of its outcome at once. For reads only.
    pub(crate) fn queued_intent(&self, record: Box<Record>) -> Result<Owed, NotQueued> {
        let ticket = Ticket::new();
        let template = Box::new(record.outcome(None, record.at));
        self.shared.queue.push_queued(record, ticket.clone())?;
        Ok(Owed::queued(self.shared.clone(), ticket, template))
    }
}

impl Drop for Log {
    /// Lets the writer finish what waits, and gives the file free.
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(writer) = self.writer.take() {
            drop(writer.join());
        }
        *self
            .shared
            .db
            .write()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Opens the database and recovers what an earlier process, or an earlier failure, left.
pub(crate) fn take_up(
    opener: &Opener,
    shared: &Shared,
    key: &LogKey,
    live: &BTreeSet<u64>,
) -> Result<(Database, Journal, Head), OpenError> {
    let path = || shared.path.clone();
    let Opened { db, journal } = opener()?;
    let mut journal = Journal::new(journal);
    let head = store::recover(&db, &mut journal, key, &shared.tenant, live, now()).map_err(
        |unusable| match unusable {
            Unusable::Commit(source) => OpenError::Commit {
                path: path(),
                source,
            },
            Unusable::Corrupt(detail) => OpenError::Corrupt {
                path: path(),
                detail,
            },
            Unusable::Format(found) => OpenError::Format {
                path: path(),
                found,
                expected: FORMAT,
            },
        },
    )?;
    Ok((db, journal, head))
}

/// The host's clock. Only records that have no time of their own use it.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
