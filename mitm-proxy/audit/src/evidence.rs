//! The proof that a call is on record, and the debt of telling how it ended.
//! `Ledger::intent` makes them, `vault` turns a `Recorded` into a credential, `Ledger::outcome` settles the `Owed`.
//! INVARIANT: private fields, no Clone: one permit, one record, one outcome.

use std::fmt;
use std::sync::Arc;

use policies::{ApprovalId, Call, Permit};

use crate::draft;
use crate::facts::Outcome;
use crate::log::Shared;
use crate::record::Record;

/// The intent of a permitted call is durable. Only with this does the vault lend a credential.
#[must_use = "a recorded call that is dropped is recorded as aborted"]
pub struct Recorded {
    permit: Permit,
    owed: Owed,
}

impl Recorded {
    pub(crate) fn new(permit: Permit, owed: Owed) -> Recorded {
        Recorded { permit, owed }
    }

    /// The call that may leave.
    pub fn call(&self) -> &Call {
        self.permit.call()
    }

    /// Where the intent is in the tenant's log.
    pub fn index(&self) -> u64 {
        self.owed.index
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
        write!(f, "Recorded({})", self.owed.index)
    }
}

/// The outcome of a recorded call is still owed to the log. Dropping it records `aborted`.
#[must_use = "an owed outcome that is dropped is recorded as aborted"]
pub struct Owed {
    index: u64,
    debt: Option<Box<Debt>>,
}

struct Debt {
    log: Arc<Shared>,
    /// The outcome as far as the intent determines it.
    template: Record,
}

impl Owed {
    pub(crate) fn new(log: Arc<Shared>, index: u64, template: Record) -> Owed {
        Owed {
            index,
            debt: Some(Box::new(Debt { log, template })),
        }
    }

    /// Where the intent is in the tenant's log.
    pub fn index(&self) -> u64 {
        self.index
    }

    pub(crate) fn settle(mut self, outcome: Outcome) {
        if let Some(debt) = self.debt.take() {
            let Debt { log, template } = *debt;
            log.queue.push_outcome(draft::outcome(template, outcome));
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(debt) = self.debt.take() {
            let Debt { log, template } = *debt;
            log.queue
                .push_outcome(draft::aborted(template, crate::log::now()));
        }
    }
}

impl fmt::Debug for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owed({})", self.index)
    }
}
