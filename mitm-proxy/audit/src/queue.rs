//! What waits for a log's writer: records whose callers wait, bounded; outcomes, which nobody waits for.
//! Between the async callers and the one writer thread of a log.
//! INVARIANT: a full queue refuses new work. An outcome is never refused: its intent was admitted,
//! and there is at most one outcome per admitted intent, so that their number is bounded too.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use policies::{Approval, ApprovalId};
use tokio::sync::oneshot;

use crate::error::AuditError;
use crate::evidence::Owed;
use crate::record::Record;

/// Above this many waiting records the writer waits a moment longer, since one flush for more of them is cheaper.
const MANY: usize = 64;

/// How long that moment is.
const GATHER: Duration = Duration::from_millis(1);

/// One record on its way into the log.
pub(crate) struct Item {
    pub(crate) record: Record,
    pub(crate) approval: ApprovalWrite,
    pub(crate) reply: Reply,
}

/// What the record does to the stored approvals, in the same transaction.
pub(crate) enum ApprovalWrite {
    None,
    Store(Box<Approval>),
    Use(ApprovalId),
}

/// Who waits for the record to be durable.
pub(crate) enum Reply {
    Index(oneshot::Sender<Result<u64, AuditError>>),
    /// The `Owed` itself travels: if the caller went away meanwhile, dropping it records `aborted`.
    Intent(oneshot::Sender<Result<Owed, AuditError>>),
    Nobody,
}

impl Reply {
    pub(crate) fn fail(self, error: AuditError) {
        // A caller that went away needs no answer.
        match self {
            Reply::Index(caller) => drop(caller.send(Err(error))),
            Reply::Intent(caller) => drop(caller.send(Err(error))),
            Reply::Nobody => {}
        }
    }
}

pub(crate) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    items: Vec<Item>,
    /// How many of `items` have a caller that waits.
    awaited: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Queue {
        Queue {
            state: Mutex::default(),
            ready: Condvar::new(),
            limit,
        }
    }

    pub(crate) fn push(&self, item: Item) -> Result<(), AuditError> {
        let mut state = self.lock();
        if state.closed {
            return Err(AuditError::Closed);
        }
        if state.awaited >= self.limit {
            return Err(AuditError::Overloaded);
        }
        state.awaited += 1;
        state.items.push(item);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Queues an outcome. In a closed log it is lost, and the next start records it as `unknown`.
    pub(crate) fn push_outcome(&self, record: Record) {
        let mut state = self.lock();
        if state.closed {
            tracing::warn!(tenant = %record.tenant, intent = record.intent, "outcome after the audit log was closed");
            return;
        }
        state.items.push(Item {
            record,
            approval: ApprovalWrite::None,
            reply: Reply::Nobody,
        });
        drop(state);
        self.ready.notify_one();
    }

    /// Everything that waits, or after `patience` nothing; `None` when the queue is closed and empty.
    pub(crate) fn take(&self, patience: Option<Duration>) -> Option<Vec<Item>> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.closed {
            state = match patience {
                None => self
                    .ready
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = self.ready.wait_timeout(state, time);
                    let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    if timeout.timed_out() && state.items.is_empty() && !state.closed {
                        return Some(Vec::new());
                    }
                    state
                }
            };
        }
        if state.items.len() > MANY && !state.closed {
            drop(state);
            std::thread::sleep(GATHER);
            state = self.lock();
        }
        if state.items.is_empty() {
            return None;
        }
        state.awaited = 0;
        Some(std::mem::take(&mut state.items))
    }

    /// Refuses everything from now on; what waits is still taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// For a writer that ends: closes, and lets every waiting caller know.
    pub(crate) fn abandon(&self) {
        self.close();
        let items = std::mem::take(&mut self.lock().items);
        items
            .into_iter()
            .for_each(|item| item.reply.fail(AuditError::Closed));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // NOTE(unwrap): no code panics between two changes of `State`, so a poisoned one is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
