//! What waits for a log's writer: records whose callers wait, bounded; and those nobody waits for, outcomes above all.
//! Between the async callers and the one writer thread of a log.
//! INVARIANT: a full queue refuses new work. An outcome is never refused: its intent was admitted,
//! and there is at most one outcome per admitted intent, so that their number is bounded too.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use policies::{Approval, ApprovalId};
use tokio::sync::oneshot;

use crate::error::AuditError;
use crate::evidence::{DurablyOwed, Ticket};
use crate::record::Record;

/// Above this many waiting records the writer waits a moment longer, since one flush for more of them is cheaper.
const MANY: usize = 64;

/// How long that moment is.
const GATHER: Duration = Duration::from_millis(1);

/// How long a record that nobody waits for may wait for company: the next intent's commit takes it along for nothing.
const UNHURRIED: Duration = Duration::from_millis(5);

/// One record on its way into the log.
pub(crate) struct Item {
    pub(crate) record: Box<Record>,
    pub(crate) approval: ApprovalWrite,
    pub(crate) reply: Reply,
}

/// What the record does to the stored approvals, in the same commit.
pub(crate) enum ApprovalWrite {
    None,
    Store(Box<Approval>),
    Use(ApprovalId),
}

/// Who waits for the record to be durable.
pub(crate) enum Reply {
    Index(oneshot::Sender<Result<u64, AuditError>>),
    /// The `Owed` itself travels: if the caller went away meanwhile, dropping it records `aborted`.
    Intent(oneshot::Sender<Result<DurablyOwed, AuditError>>),
    /// Nobody waits. For an intent, and for its outcome: the intent was queued, and its index is known when it is written.
    Nobody(Option<Ticket>),
}

impl Reply {
    pub(crate) fn fail(self, error: AuditError) {
        // A caller that went away needs no answer.
        match self {
            Reply::Index(caller) => drop(caller.send(Err(error))),
            Reply::Intent(caller) => drop(caller.send(Err(error))),
            Reply::Nobody(_) => {}
        }
    }
}

/// Why an intent was not queued.
pub(crate) enum NotQueued {
    /// The log is not well: the call must wait for its intent to be durable.
    MustWait(Box<Record>),
    /// The call must be refused.
    Refused(AuditError),
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
    /// How many of `items` are queued intents.
    queued: usize,
    /// Who waits for the database to have every commit; hears of it when this is dropped.
    readers: Vec<Sender<()>>,
    /// The last commit failed: nothing leaves any more while its intent is only queued.
    failing: bool,
    /// The writer sleeps; whoever adds what it should know of wakes it.
    idle: Idle,
    closed: bool,
}

/// What the writer finds when it looks.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) items: Vec<Item>,
    /// Who waits for the database to have every commit, these items among them.
    pub(crate) readers: Vec<Sender<()>>,
}

/// What a sleeping writer is woken for.
#[derive(Clone, Copy, Default, PartialEq)]
enum Idle {
    /// It does not sleep: it looks by itself before it sleeps again.
    #[default]
    Awake,
    /// Anything: there is nothing in the queue.
    Empty,
    /// A caller that waits: what is in the queue is not urgent, and it wakes for that by itself.
    Unhurried,
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
        if state.awaited + state.queued >= self.limit {
            return Err(AuditError::Overloaded);
        }
        state.awaited += 1;
        state.items.push(item);
        let asleep = std::mem::take(&mut state.idle) != Idle::Awake;
        drop(state);
        if asleep {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Queues an intent whose call does not wait for it. Gives it back where the last commit failed: this call must wait.
    pub(crate) fn push_queued(&self, record: Box<Record>, ticket: Ticket) -> Result<(), NotQueued> {
        let mut state = self.lock();
        if state.closed {
            return Err(NotQueued::Refused(AuditError::Closed));
        }
        if state.failing {
            return Err(NotQueued::MustWait(record));
        }
        if state.awaited + state.queued >= self.limit {
            return Err(NotQueued::Refused(AuditError::Overloaded));
        }
        state.queued += 1;
        self.push_unhurried(state, record, Some(ticket));
        Ok(())
    }

    /// Queues an outcome. In a closed log it is lost, and the next start records it as `unknown`.
    /// With a ticket, the index of its intent is filled in when it is written.
    pub(crate) fn push_outcome(&self, record: Box<Record>, ticket: Option<Ticket>) {
        let state = self.lock();
        if state.closed {
            tracing::warn!(tenant = %record.tenant, intent = record.intent, "outcome after the audit log was closed");
            return;
        }
        self.push_unhurried(state, record, ticket);
    }

    /// Waits until the database has what was committed before this, or cannot have it.
    pub(crate) fn fold(&self) {
        let (reader, done) = channel();
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.readers.push(reader);
        let asleep = std::mem::take(&mut state.idle) != Idle::Awake;
        drop(state);
        if asleep {
            self.ready.notify_one();
        }
        // Nothing is ever sent: the writer drops its end.
        let _ = done.recv();
    }

    /// The writer says how its last commit went.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.lock().failing = failing;
    }

    fn push_unhurried(
        &self,
        mut state: MutexGuard<'_, State>,
        record: Box<Record>,
        ticket: Option<Ticket>,
    ) {
        state.items.push(Item {
            record,
            approval: ApprovalWrite::None,
            reply: Reply::Nobody(ticket),
        });
        let asleep = state.idle == Idle::Empty;
        if asleep {
            state.idle = Idle::Awake;
        }
        drop(state);
        if asleep {
            self.ready.notify_one();
        }
    }

    /// Everything that waits, or after `patience` nothing; `None` when the queue is closed and empty.
    pub(crate) fn take(&self, patience: Option<Duration>) -> Option<Taken> {
        let mut state = self.lock();
        while state.items.is_empty() && state.readers.is_empty() && !state.closed {
            state.idle = Idle::Empty;
            let late;
            (state, late) = self.sleep(state, patience);
            if late && state.items.is_empty() && state.readers.is_empty() && !state.closed {
                return Some(Taken::default());
            }
        }
        if state.awaited == 0 && state.readers.is_empty() && !state.closed {
            state.idle = Idle::Unhurried;
            (state, _) = self.sleep(state, Some(UNHURRIED));
        }
        if !state.closed {
            let many = state.items.len() > MANY;
            drop(state);
            // Whoever can run now adds to this commit first; with processors to spare this returns at once.
            std::thread::yield_now();
            if many {
                std::thread::sleep(GATHER);
            }
            state = self.lock();
        }
        if state.items.is_empty() && state.readers.is_empty() {
            return None;
        }
        (state.awaited, state.queued) = (0, 0);
        Some(Taken {
            items: std::mem::take(&mut state.items),
            readers: std::mem::take(&mut state.readers),
        })
    }

    /// Sleeps until woken or, if there is a time, until it has passed; then says true.
    fn sleep<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        time: Option<Duration>,
    ) -> (MutexGuard<'a, State>, bool) {
        let (mut state, late) = match time {
            None => {
                let woken = self.ready.wait(state);
                (woken.unwrap_or_else(PoisonError::into_inner), false)
            }
            Some(time) => {
                let woken = self.ready.wait_timeout(state, time);
                let (state, timeout) = woken.unwrap_or_else(PoisonError::into_inner);
                (state, timeout.timed_out())
            }
        };
        state.idle = Idle::Awake;
        (state, late)
    }

    /// Refuses everything from now on; what waits is still taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// For a writer that ends: closes, and lets every waiting caller know.
    pub(crate) fn abandon(&self) {
        self.close();
        let (items, readers) = {
            let mut state = self.lock();
            let items = std::mem::take(&mut state.items);
            (items, std::mem::take(&mut state.readers))
        };
        drop(readers);
        items
            .into_iter()
            .for_each(|item| item.reply.fail(AuditError::Closed));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // NOTE(unwrap): no code panics between two changes of `State`, so a poisoned one is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
