//! The open approvals of this host: kept in memory for those who wait, in the ledger for everyone else.
//! Place on the path: `settle` holds a call here; the control socket lists and answers.
//! INVARIANT: write, then act: a request, an answer or an expiry is durable before anybody acts on it.

mod content;
mod settle;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use audit::{ApprovalEvent, AuditError, Ledger};
use policies::{
    AgentId, Answer, AnswerError, Approval, ApprovalId, ApprovalState, Digest, Grant, Held, Tenant,
    Timestamp,
};
use tokio::sync::{broadcast, watch};

use crate::clock;

pub(crate) use settle::Patience;

/// Approvals that are over are listed for this long.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// And at most this many of them.
const MOST_REMEMBERED: usize = 10_000;
/// How often deadlines are looked at.
const SWEEP: Duration = Duration::from_millis(500);
/// Changes that a slow watcher may fall behind.
const BACKLOG: usize = 1024;

/// Why an answer had no effect.
#[derive(Debug, thiserror::Error)]
pub enum AnswerFailure {
    /// The answer could not be stored; nothing changed.
    #[error("the answer could not be stored: {0}")]
    Audit(#[from] AuditError),
    /// The approval does not accept this answer.
    #[error(transparent)]
    Refused(#[from] AnswerError),
    /// There is no such approval.
    #[error("there is no approval {0}")]
    Unknown(ApprovalId),
}

/// The approvals of this host. Cheap to clone.
#[derive(Clone)]
pub struct Approvals(Arc<Shared>);

struct Shared {
    ledger: Ledger,
    book: Mutex<HashMap<ApprovalId, Entry>>,
    /// Held across each durable write, so that two answers cannot both start from the same state.
    writes: tokio::sync::Mutex<()>,
    changes: broadcast::Sender<Approval>,
}

struct Entry {
    approval: Approval,
    /// Those who hold a connection for it.
    state: watch::Sender<ApprovalState>,
}

/// What a held call finds in the book.
enum Found {
    /// An approval that let this call through; it is used now.
    Granted(Grant),
    /// An approval that somebody still has to answer.
    Pending(ApprovalId, watch::Receiver<ApprovalState>),
    /// None that is open.
    Nothing,
}

impl Approvals {
    /// Opens the book with what the ledger holds; calls held before a restart can still be answered.
    pub(crate) fn open(ledger: Ledger) -> Result<Self, AuditError> {
        let book = ledger
            .open_approvals()?
            .into_iter()
            .map(|approval| {
                (
                    approval.id,
                    Entry {
                        state: watch::Sender::new(approval.state),
                        approval,
                    },
                )
            })
            .collect();
        Ok(Self(Arc::new(Shared {
            ledger,
            book: Mutex::new(book),
            writes: tokio::sync::Mutex::new(()),
            changes: broadcast::Sender::new(BACKLOG),
        })))
    }

    /// All approvals in the book, the oldest request first; those that are over stay for a day.
    #[must_use]
    pub fn list(&self) -> Vec<Approval> {
        let mut all: Vec<Approval> = self
            .book()
            .values()
            .map(|entry| entry.approval.clone())
            .collect();
        all.sort_by_key(|approval| (approval.requested_at, approval.id));
        all
    }

    /// One approval.
    #[must_use]
    pub fn show(&self, id: &ApprovalId) -> Option<Approval> {
        self.book().get(id).map(|entry| entry.approval.clone())
    }

    /// The agents of this tenant that have an approval which can still let a call through.
    pub(crate) fn open_agents_of(&self, tenant: &Tenant) -> HashSet<AgentId> {
        let open = |state| matches!(state, ApprovalState::Pending | ApprovalState::Approved);
        self.book()
            .values()
            .map(|entry| &entry.approval)
            .filter(|approval| approval.agent.tenant == *tenant && open(approval.state))
            .map(|approval| approval.agent.clone())
            .collect()
    }

    /// How many wait for an answer.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.book()
            .values()
            .filter(|entry| entry.approval.state == ApprovalState::Pending)
            .count()
    }

    /// Every change from now on: requested, answered, expired, used.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Approval> {
        self.0.changes.subscribe()
    }

    /// Records a person's answer. Durable when it returns; whoever waits is released then.
    ///
    /// # Errors
    /// Unknown id; an answer that the approval refuses (not in a group, own agent, closed, expired); a failed write.
    /// In each case nothing has changed.
    pub async fn answer(&self, id: &ApprovalId, answer: Answer) -> Result<Approval, AnswerFailure> {
        let (this, id) = (self.clone(), *id);
        // Detached, so that an approver who hangs up cannot stop an answer between the ledger and the book.
        let write = tokio::spawn(async move {
            let _writing = this.0.writes.lock().await;
            let mut approval = this.show(&id).ok_or(AnswerFailure::Unknown(id))?;
            approval.answer(answer)?;
            this.0
                .ledger
                .approval(ApprovalEvent::Answered, &approval)
                .await?;
            this.put(approval.clone());
            Ok(approval)
        });
        write.await.unwrap_or(Err(AnswerFailure::Unknown(id)))
    }

    /// Expires what is due, for as long as the proxy runs.
    pub(crate) async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP).await;
            self.expire_due(clock::now()).await;
        }
    }

    async fn expire_due(&self, now: Timestamp) {
        let open = |state| matches!(state, ApprovalState::Pending | ApprovalState::Approved);
        let due: Vec<ApprovalId> = self
            .book()
            .values()
            .filter(|entry| open(entry.approval.state) && entry.approval.expires_at <= now)
            .map(|entry| entry.approval.id)
            .collect();
        for id in due {
            let _writing = self.0.writes.lock().await;
            let Some(mut approval) = self.show(&id) else {
                continue;
            };
            if !approval.expire(now) {
                continue;
            }
            // A failed write leaves it in the book as it was; it grants nothing after its deadline anyway.
            match self
                .0
                .ledger
                .approval(ApprovalEvent::Expired, &approval)
                .await
            {
                Ok(_) => self.put(approval),
                Err(error) => {
                    tracing::error!(%id, %error, "an expired approval could not be recorded")
                }
            }
        }
        self.forget(now);
    }

    /// Replaces an entry, wakes whoever waits for it and tells the watchers.
    fn put(&self, approval: Approval) {
        let state = approval.state;
        {
            let mut book = self.book();
            match book.get_mut(&approval.id) {
                Some(entry) => {
                    entry.approval = approval.clone();
                    entry.state.send_replace(state);
                }
                None => {
                    let entry = Entry {
                        approval: approval.clone(),
                        state: watch::Sender::new(state),
                    };
                    book.insert(approval.id, entry);
                }
            }
        }
        // Nobody watching is fine.
        let _ = self.0.changes.send(approval);
    }

    /// Looks for an approval of this very call; an approved one is taken, and so used, in the same step.
    fn find(&self, held: &Held, body: &Digest, now: Timestamp) -> Found {
        let digest = held.digest(body);
        let mut taken = None;
        let mut pending = None;
        {
            let mut book = self.book();
            for entry in book
                .values_mut()
                .filter(|entry| entry.approval.digest == digest)
            {
                match entry.approval.state {
                    ApprovalState::Approved => {
                        if let Ok(grant) = entry.approval.take(held, body, now) {
                            entry.state.send_replace(entry.approval.state);
                            taken = Some((grant, entry.approval.clone()));
                            break;
                        }
                    }
                    ApprovalState::Pending if entry.approval.expires_at > now => {
                        pending = Some((entry.approval.id, entry.state.subscribe()));
                    }
                    _ => {}
                }
            }
        }
        match (taken, pending) {
            (Some((grant, approval)), _) => {
                let _ = self.0.changes.send(approval);
                Found::Granted(grant)
            }
            (None, Some((id, state))) => Found::Pending(id, state),
            (None, None) => Found::Nothing,
        }
    }

    fn pending_of(&self, agent: &AgentId) -> usize {
        let pending = |entry: &&Entry| {
            entry.approval.state == ApprovalState::Pending && entry.approval.agent == *agent
        };
        self.book().values().filter(pending).count()
    }

    /// Drops approvals that have been over for a day, and the oldest beyond the bound; the ledger keeps them all.
    fn forget(&self, now: Timestamp) {
        let over = |approval: &Approval| {
            !matches!(
                approval.state,
                ApprovalState::Pending | ApprovalState::Approved
            )
        };
        let mut book = self.book();
        book.retain(|_, entry| {
            !over(&entry.approval) || now.since(entry.approval.expires_at) < REMEMBERED
        });
        let mut done: Vec<(Timestamp, ApprovalId)> = book
            .values()
            .filter(|entry| over(&entry.approval))
            .map(|entry| (entry.approval.requested_at, entry.approval.id))
            .collect();
        done.sort_unstable();
        for (_, id) in done.iter().take(done.len().saturating_sub(MOST_REMEMBERED)) {
            book.remove(id);
        }
    }

    fn book(&self) -> MutexGuard<'_, HashMap<ApprovalId, Entry>> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
