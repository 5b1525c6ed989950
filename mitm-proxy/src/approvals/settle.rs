//! A decision becomes a permit or a refusal; a held call waits here for a person.
//! Place on the path: between policy and the ledger.
//! INVARIANT: one approval lets one call go, and that call is decided again, with the approval as a fact, when it goes.

use std::time::{Duration, Instant};

use audit::{ApprovalEvent, AuditError};
use policies::{
    Approval, ApprovalId, ApprovalState, Decision, Digest, Grant, Held, Permit, Reason,
};
use tokio::sync::watch;

use super::{Approvals, Found, content};
use crate::clock;
use crate::meter::{Meter, Stage};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::settings::Settings;

/// How long a held call may wait, and what it may read.
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) meter: &'a dyn Meter,
}

impl Approvals {
    /// Settles `decision`: allow passes, deny refuses, hold waits. `again` decides anew, under the bundle of that moment.
    ///
    /// Cancel safe: when the agent hangs up, the future is dropped and nothing is sent. An approval that was taken in that
    /// instant stays used up; an approval may be lost, never used twice.
    pub(crate) async fn settle(
        &self,
        decision: Decision,
        request: &mut Request,
        patience: Patience<'_>,
        again: impl Fn(Held, Grant) -> Decision,
    ) -> Result<Permit, Refusal> {
        let limits = &patience.settings.limits;
        let started = Instant::now();
        let mut decision = decision;
        loop {
            let held = match decision {
                Decision::Allow(permit) => return Ok(permit),
                Decision::Deny(denied) => return Err(denied.into()),
                Decision::Hold(held) => held,
            };
            let body = request
                .body
                .read_whole(limits.body_bytes, limits.body)
                .await?;
            let digest = content::digest(request, &body, held.call().strip());
            let left = patience.settings.hold.saturating_sub(started.elapsed());
            let waited = self
                .wait(&held, &digest, limits.pending_approvals, left)
                .await;
            patience.meter.stage(Stage::ApprovalWait, started.elapsed());
            let grant = waited?;
            decision = again(held, grant);
        }
    }

    /// Waits for a grant for this call, at most for `left`.
    async fn wait(
        &self,
        held: &Held,
        body: &Digest,
        most: usize,
        left: Duration,
    ) -> Result<Grant, Refusal> {
        let deadline = tokio::time::Instant::now() + left;
        loop {
            let (id, mut state) = match self.find(held, body, clock::now()) {
                Found::Granted(grant) => return Ok(grant),
                Found::Pending(id, state) => (id, state),
                Found::Nothing => self.request(held, body, most).await?,
            };
            let answered = state.wait_for(|state| *state != ApprovalState::Pending);
            match tokio::time::timeout_at(deadline, answered).await {
                Err(_) => return Err(required(held, id)),
                Ok(Err(_closed)) => return Err(required(held, id)),
                Ok(Ok(state)) => match *state {
                    // Of several that waited for one approval, `find` gives it to one; the others ask anew.
                    ApprovalState::Approved | ApprovalState::Used | ApprovalState::Pending => {}
                    ApprovalState::Denied => return Err(denied(held, id)),
                    ApprovalState::Expired => return Err(expired(held, id)),
                },
            }
        }
    }

    /// Asks for an approval. Durable when it returns. Of two equal calls at the same time, one asks and both wait.
    async fn request(
        &self,
        held: &Held,
        body: &Digest,
        most: usize,
    ) -> Result<(ApprovalId, watch::Receiver<ApprovalState>), Refusal> {
        let entropy = clock::entropy().map_err(|error| {
            let detail =
                format!("The call needs a person's approval, which could not be named: {error}.");
            Refusal::new(Reason::Overloaded, detail).of_call(held.call())
        })?;
        let approval =
            Approval::request(held, body, ApprovalId::from_entropy(entropy), clock::now());
        let this = self.clone();
        // Detached: a client that hangs up must not leave a stored approval that the book does not know.
        let write = tokio::spawn(async move {
            let _writing = this.0.writes.lock().await;
            let twin = this
                .book()
                .values()
                .find(|entry| {
                    entry.approval.digest == approval.digest
                        && entry.approval.state == ApprovalState::Pending
                })
                .map(|entry| (entry.approval.id, entry.state.subscribe()));
            if let Some(twin) = twin {
                return Ok(twin);
            }
            if this.pending_of(&approval.agent) >= most {
                return Err(NotAsked::TooMany);
            }
            this.0
                .ledger
                .approval(ApprovalEvent::Requested, &approval)
                .await
                .map_err(NotAsked::Audit)?;
            let id = approval.id;
            this.put(approval);
            let state = this.book().get(&id).map(|entry| entry.state.subscribe());
            state.map(|state| (id, state)).ok_or(NotAsked::Stopped)
        });
        write.await.unwrap_or(Err(NotAsked::Stopped)).map_err(|error| match error {
            NotAsked::Audit(error) => Refusal::new(error.reason(), format!("The approval could not be stored: {error}.")),
            NotAsked::Stopped => Refusal::new(Reason::Shutdown, "The proxy is stopping."),
            NotAsked::TooMany => {
                let detail = format!("{most} calls of this agent wait for approval already; have some of them answered.");
                Refusal::new(Reason::Overloaded, detail)
            }
        }.of_call(held.call()))
    }
}

/// Why an approval could not be asked for.
enum NotAsked {
    Audit(AuditError),
    Stopped,
    TooMany,
}

fn required(held: &Held, id: ApprovalId) -> Refusal {
    let detail = format!(
        "{} needs the approval of {}. It was asked for as {id}; once `sluice approvals approve {id}` was run, \
         send the same request again and it goes through once.",
        held.call().capability(),
        groups(held),
    );
    Refusal::held(Reason::ApprovalRequired, held, id, detail)
}

fn denied(held: &Held, id: ApprovalId) -> Refusal {
    let detail = format!(
        "{} was asked for as {id} and a member of {} denied it.",
        held.call().capability(),
        groups(held)
    );
    Refusal::held(Reason::ApprovalDenied, held, id, detail)
}

fn expired(held: &Held, id: ApprovalId) -> Refusal {
    let detail = format!(
        "{} was asked for as {id} and nobody answered in time.",
        held.call().capability()
    );
    Refusal::held(Reason::ApprovalExpired, held, id, detail)
}

fn groups(held: &Held) -> String {
    held.groups()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" and ")
}
