//! The proof that a call is on record, and the debt of telling how it ended.
//! `Ledger::intent` makes them, `vault` turns a `Recorded` into a credential, `Ledger::outcome` settles the `Owed`.
//! INVARIANT: private fields, no Clone: one permit, one record, one outcome. Only a read is ever `Queued`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use policies::{ApprovalId, Call, Permit, Risk};

use crate::draft;
use crate::facts::Outcome;
use crate::log::Shared;
use crate::record::Record;

/// How far the intent of a call has come when the call leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Guarantee {
    /// It is on disk.
    Durable,
    /// It is in the queue of the log's writer and shares a commit with others. If the host or the daemon dies within the
    /// next milliseconds, the log does not know of the call.
    Queued,
}

/// The intent of a permitted call is recorded, as far as [`Recorded::guarantee`] says. Only with this does the vault lend a
/// credential.
#[must_use = "a recorded call that is dropped is recorded as aborted"]
pub struct Recorded {
    permit: Permit,
    owed: Owed,
}

/// A permit for a call that may leave while its intent is queued: it only reads, and no approval is used up by it.
pub(crate) struct ReadPermit(Permit);

/// What a permit lets its call do before the intent is on disk.
pub(crate) enum Sorted {
    /// Leave, once the intent is queued.
    Read(ReadPermit),
    /// Wait.
    Other(Permit),
}

impl ReadPermit {
    /// A call that does anything but read waits.
    pub(crate) fn sort(permit: Permit) -> Sorted {
        let risks = permit.call().risks();
        let reads = !risks.is_empty() && risks.iter().all(|risk| *risk == Risk::Read);
        if reads && permit.approval().is_none() {
            Sorted::Read(ReadPermit(permit))
        } else {
            Sorted::Other(permit)
        }
    }

    pub(crate) fn into_permit(self) -> Permit {
        self.0
    }
}

impl Recorded {
    /// The intent is on disk.
    pub(crate) fn durable(permit: Permit, owed: DurablyOwed) -> Recorded {
        Recorded {
            permit,
            owed: owed.0,
        }
    }

    /// The intent is in the queue.
    pub(crate) fn queued(permit: ReadPermit, owed: Owed) -> Recorded {
        Recorded {
            permit: permit.0,
            owed,
        }
    }

    /// What a crash in this moment would leave of the intent.
    pub fn guarantee(&self) -> Guarantee {
        match self.owed.place {
            Place::At(_) => Guarantee::Durable,
            Place::Queued(_) => Guarantee::Queued,
        }
    }

    /// The call that may leave.
    pub fn call(&self) -> &Call {
        self.permit.call()
    }

    /// Where the intent is in the tenant's log; `None` while it is queued.
    pub fn index(&self) -> Option<u64> {
        self.owed.index()
    }

    /// The approval that was used up for it.
    pub fn approval(&self) -> Option<&ApprovalId> {
        self.permit.approval()
    }

    /// Takes the proof apart. For the vault: whoever else calls this gives up the way to a credential.
    pub fn into_owed(self) -> (Call, Owed) {
        (self.permit.into_call(), self.owed)
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded({:?})", self.owed.place)
    }
}

/// Where an intent is in its log.
#[derive(Debug)]
enum Place {
    At(u64),
    Queued(Ticket),
}

/// An index that is not known yet: the writer fills it in when it writes the intent, and reads it when it writes the outcome.
#[derive(Clone)]
pub(crate) struct Ticket(Arc<AtomicU64>);

impl Ticket {
    /// No log has as many records.
    const UNKNOWN: u64 = u64::MAX;

    pub(crate) fn new() -> Ticket {
        Ticket(Arc::new(AtomicU64::new(Self::UNKNOWN)))
    }

    /// A failed commit is tried again, and the intent may then have another index: the last one counts.
    pub(crate) fn place(&self, index: u64) {
        self.0.store(index, Ordering::Relaxed);
    }

    pub(crate) fn index(&self) -> Option<u64> {
        let index = self.0.load(Ordering::Relaxed);
        (index != Self::UNKNOWN).then_some(index)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.index())
    }
}

/// The outcome of a recorded call is still owed to the log. Dropping it records `aborted`.
#[must_use = "an owed outcome that is dropped is recorded as aborted"]
pub struct Owed {
    place: Place,
    debt: Option<Debt>,
}

/// An [`Owed`] whose intent is on disk: what the writer answers after its commit.
#[must_use = "an owed outcome that is dropped is recorded as aborted"]
#[derive(Debug)]
pub(crate) struct DurablyOwed(Owed);

struct Debt {
    log: Arc<Shared>,
    /// The outcome as far as the intent determines it.
    template: Box<Record>,
}

impl DurablyOwed {
    /// For the writer, once the intent's transaction is durable.
    pub(crate) fn new(log: Arc<Shared>, index: u64, template: Box<Record>) -> DurablyOwed {
        DurablyOwed(Owed {
            place: Place::At(index),
            debt: Some(Debt { log, template }),
        })
    }

    #[cfg(test)]
    pub(crate) fn into_owed(self) -> Owed {
        self.0
    }
}

impl Owed {
    /// For an intent that was put into the queue.
    pub(crate) fn queued(log: Arc<Shared>, ticket: Ticket, template: Box<Record>) -> Owed {
        Owed {
            place: Place::Queued(ticket),
            debt: Some(Debt { log, template }),
        }
    }

    /// Where the intent is in the tenant's log; `None` while it is queued.
    pub fn index(&self) -> Option<u64> {
        match &self.place {
            Place::At(index) => Some(*index),
            Place::Queued(ticket) => ticket.index(),
        }
    }

    pub(crate) fn settle(mut self, outcome: Outcome) {
        self.pay(|record| draft::outcome(record, outcome));
    }

    fn pay(&mut self, write: impl FnOnce(&mut Record)) {
        let Some(Debt { log, mut template }) = self.debt.take() else {
            return;
        };
        let ticket = match &self.place {
            Place::At(_) => None,
            Place::Queued(ticket) => Some(ticket.clone()),
        };
        write(&mut template);
        log.queue.push_outcome(template, ticket);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.pay(|record| draft::aborted(record, crate::log::now()));
    }
}

impl fmt::Debug for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owed({:?})", self.place)
    }
}
