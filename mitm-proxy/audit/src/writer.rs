//! The one thread that writes a log: takes what waits, commits it in one piece, tells the callers.
//! It commits again as soon as the previous commit has finished; under load batches grow by themselves.
//! INVARIANT: a caller hears `Ok` only after the commit that holds its record is durable.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{AuditError, CommitFailure, OpenError};
use crate::evidence::DurablyOwed;
use crate::journal::Journal;
use crate::key::LogKey;
use crate::ledger::{CommitStats, OnCommit};
use crate::log::{self, Opener, Shared};
use crate::queue::{Item, Reply};
use crate::record::Kind;
use crate::store::{self, Head, Placed};

/// How long outcomes wait for another try after a failed commit, when nothing else comes.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) opener: Opener,
    pub(crate) key: Arc<LogKey>,
    pub(crate) on_commit: OnCommit,
    pub(crate) head: Head,
    /// `None` while the writer tries to open the files again.
    journal: Option<Journal>,
    /// Intents of calls under way in this process.
    live: BTreeSet<u64>,
    /// Outcomes and queued intents that a failed commit could not write. The outcomes' intents are in `live`, or here before them.
    retained: Vec<Item>,
    /// After a failed commit redb refuses everything until the file is opened again.
    broken: bool,
    /// Until when it is not tried again, and why: taking a long log up costs more than refusing does.
    pause: Option<(Instant, Arc<CommitFailure>)>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        opener: Opener,
        key: Arc<LogKey>,
        on_commit: OnCommit,
        journal: Journal,
        head: Head,
    ) -> Writer {
        let (live, retained) = (BTreeSet::new(), Vec::new());
        Writer {
            shared,
            opener,
            key,
            on_commit,
            head,
            journal: Some(journal),
            live,
            retained,
            broken: false,
            pause: None,
        }
    }

    /// Runs until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        let _ended = Ended(self.shared.clone());
        loop {
            let quiet = self.retained.is_empty() && self.head.is_folded();
            let Some(taken) = self.shared.queue.take((!quiet).then_some(RETRY)) else {
                break;
            };
            let mut items = std::mem::take(&mut self.retained);
            items.extend(taken.items);
            // Nothing for a while: what the journal has goes into the database when nobody waits for it.
            let idle = items.is_empty();
            if !idle {
                self.write(items);
            }
            if idle || !taken.readers.is_empty() {
                self.fold();
            }
            if idle {
                self.head.pending.batch.shrink();
            }
        }
        self.pause = None;
        if !self.retained.is_empty() {
            let items = std::mem::take(&mut self.retained);
            self.write(items);
        }
        self.fold();
    }

    /// The database takes over what the journal has. What cannot be done now is done at the next try, or at the next start.
    fn fold(&mut self) {
        let folded = if self.broken {
            self.reopen()
                .map_err(|error| CommitFailure::Reopen(Box::new(error)))
        } else {
            self.fold_into_database()
        };
        if let Err(error) = &folded {
            tracing::error!(tenant = %self.shared.tenant, %error, "the audit log's journal cannot be taken over");
        }
        if folded.is_ok() {
            self.pause = None;
        }
        self.broken = folded.is_err();
        self.shared.queue.set_failing(folded.is_err());
    }

    fn fold_into_database(&mut self) -> Result<(), CommitFailure> {
        if self.head.is_folded() {
            return Ok(());
        }
        let shared = self.shared.clone();
        let db = shared.db.read().unwrap_or_else(PoisonError::into_inner);
        match (db.as_ref(), &mut self.journal) {
            (Some(db), Some(journal)) => store::fold(db, journal, &mut self.head),
            _ => Err(redb::Error::DatabaseClosed.into()),
        }
    }

    fn write(&mut self, mut items: Vec<Item>) {
        let started = Instant::now();
        if let Some((until, failure)) = &self.pause
            && started < *until
        {
            let failure = failure.clone();
            return self.fail(items, failure);
        }
        let was_broken = self.broken;
        match self.commit(&mut items) {
            Ok(placed) => {
                self.pause = None;
                self.shared.queue.set_failing(false);
                let records = placed
                    .iter()
                    .filter(|place| matches!(place, Ok(Some(_))))
                    .count();
                (self.on_commit)(CommitStats {
                    records,
                    duration: started.elapsed(),
                });
                items
                    .into_iter()
                    .zip(placed)
                    .for_each(|(item, place)| self.tell(item, place));
            }
            Err(failure) => {
                let failure = Arc::new(failure);
                if was_broken {
                    let pause = started.elapsed().min(RETRY);
                    self.pause = Some((Instant::now() + pause, failure.clone()));
                }
                self.broken = true;
                self.shared.queue.set_failing(true);
                self.fail(items, failure);
            }
        }
    }

    fn commit(&mut self, items: &mut [Item]) -> Result<Vec<Placed>, CommitFailure> {
        if self.broken {
            self.reopen()
                .map_err(|error| CommitFailure::Reopen(Box::new(error)))?;
        }
        let shared = self.shared.clone();
        let db = shared.db.read().unwrap_or_else(PoisonError::into_inner);
        let (Some(db), Some(journal)) = (db.as_ref(), &mut self.journal) else {
            return Err(redb::Error::DatabaseClosed.into());
        };
        store::commit(
            db,
            journal,
            &self.key,
            &shared.tenant,
            &mut self.head,
            items,
        )
    }

    /// Takes the log up again from what is on disk, as after a restart, but for the calls that are still under way.
    fn reopen(&mut self) -> Result<(), OpenError> {
        let mut db = self
            .shared
            .db
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        (*db, self.journal) = (None, None);
        let (opened, journal, head) =
            log::take_up(&self.opener, &self.shared, &self.key, &self.live)?;
        (*db, self.journal) = (Some(opened), Some(journal));
        (self.head, self.broken) = (head, false);
        tracing::info!(tenant = %self.shared.tenant, "the audit log is writable again");
        Ok(())
    }

    fn tell(&mut self, item: Item, place: Placed) {
        match (item.record.kind, item.record.intent) {
            (Kind::Outcome, Some(intent)) => drop(self.live.remove(&intent)),
            (Kind::Intent, _) => drop(place.as_ref().map(|index| self.live.extend(*index))),
            _ => {}
        }
        match (item.reply, place) {
            (Reply::Nobody(_), Ok(_)) => {}
            (Reply::Nobody(_), Err(error)) => {
                tracing::error!(tenant = %self.shared.tenant, %error, "an outcome, or the intent of a read, could not be recorded");
            }
            (reply, Err(error)) => reply.fail(error),
            (reply, Ok(None)) => reply.fail(AuditError::Closed),
            // A caller that went away drops its answer; an `Owed` in it records `aborted`.
            (Reply::Index(caller), Ok(Some(index))) => drop(caller.send(Ok(index))),
            (Reply::Intent(caller), Ok(Some(index))) => {
                let template = item.record.into_outcome(index);
                drop(caller.send(Ok(DurablyOwed::new(self.shared.clone(), index, template))));
            }
        }
    }

    /// Nothing of the batch counts. Callers are refused; outcomes and queued intents wait for the next try.
    ///
    /// If the commit turns out durable after all, a queued intent is in the log twice: once as `unknown`, from the recovery,
    /// and once with its outcome. It is the same call: the records have the same `trace`.
    fn fail(&mut self, items: Vec<Item>, failure: Arc<CommitFailure>) {
        tracing::error!(tenant = %self.shared.tenant, error = %failure, records = items.len(), "the audit log cannot be written");
        for item in items {
            match item.reply {
                Reply::Nobody(_) => self.retained.push(item),
                reply => reply.fail(AuditError::Commit(failure.clone())),
            }
        }
    }
}

/// However the thread ends, nobody waits for it any longer.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.queue.abandon();
    }
}
