//! The switches: one agent's, and the one of all agents at once.
//! Beside the path: the kernel refuses first, then the open sockets are cut; the proxy process closes its ends by itself.
//! INVARIANT: the markers of a panic are followed, whoever wrote or removed them; one that the kernel knows of goes on without them.

use std::time::{Duration, Instant};

use policies::AgentId;

use super::Enforcer;
use crate::config::{PanicNote, panic_mark, take_panic_notes};
use crate::daemon::error::in_full;
use crate::daemon::protocol::{Happening, Refusal, Switched, Ticket, ToWorker};
use crate::enforce::EnforceError;

/// Happenings that are kept while there is no proxy process to write them down.
const KEPT: usize = 256;
/// How often somebody who may not ask at all gets a record.
const KNOCKS: Duration = Duration::from_secs(1);

/// Those who were refused before they were heard: an agent must not fill the log by knocking.
#[derive(Debug, Default)]
pub(super) struct Knocks {
    recorded: Option<Instant>,
    left_out: u64,
}

impl Knocks {
    /// How many the record that is due now stands for; none while the last one is fresh.
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.left_out = self.left_out.saturating_add(1);
        let fresh = |at: Instant| now.saturating_duration_since(at) < KNOCKS;
        if self.recorded.is_some_and(fresh) {
            return None;
        }
        self.recorded = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Enforcer {
    /// The kill switch, in the kernel; whoever pulled it hears when it is done.
    pub(super) async fn switch(&mut self, ticket: Ticket, agent: &AgentId, disabled: bool) {
        let switched = self.set_disabled(agent, disabled);
        tracing::warn!(%agent, disabled, ?switched, "switched");
        let answer = ToWorker::Switched { ticket, switched };
        self.tell(&answer, None).await;
    }

    /// All workloads are refused before the first socket is cut: cutting takes longer.
    fn set_disabled(&mut self, agent: &AgentId, disabled: bool) -> Switched {
        let mut switched = Switched::default();
        let workloads = self.book.of(agent);
        for id in &workloads {
            match self.enforcement.set_disabled(*id, disabled) {
                Ok(()) => switched.workloads = switched.workloads.saturating_add(1),
                // It ended just now.
                Err(EnforceError::WorkloadUnknown(_)) => {}
                Err(error) => switched.failed.push(format!(
                    "workload {id}: the kernel side did not switch: {}",
                    in_full(&error)
                )),
            }
        }
        if !disabled {
            return switched;
        }
        match self.enforcement.cut(&workloads) {
            Ok(cut) => {
                switched.sockets = cut.sockets;
                switched.uncut = cut.refused;
            }
            Err(error) => switched.failed.push(format!(
                "sockets could not be cut; they stand still: {}",
                in_full(&error)
            )),
        }
        switched
    }

    /// Has a refusal written down and counted that the proxy process knows nothing of.
    pub(super) fn refused(&mut self, agent: Option<AgentId>, refusal: &Refusal) {
        self.note_refusal(agent, refusal.clone(), 1);
    }

    /// The same for somebody who may not ask at all.
    pub(super) async fn refused_unheard(&mut self, refusal: &Refusal) {
        if let Some(times) = self.knocks.due(Instant::now()) {
            self.note_refusal(None, refusal.clone(), times);
            self.tell_happenings().await;
        }
    }

    fn note_refusal(&mut self, agent: Option<AgentId>, refusal: Refusal, times: u64) {
        tracing::warn!(reason = %refusal.reason, detail = refusal.detail, ?agent, times, "refused");
        self.happened(Happening::Refused {
            agent,
            refusal,
            times,
        });
    }

    /// Sees what the markers and the kernel say, and does it.
    pub(super) async fn follow_panic(&mut self) {
        let mark = panic_mark(&self.given.paths);
        let in_kernel = self.enforcement.is_panicked().unwrap_or_else(|error| {
            tracing::error!(
                error = in_full(&error),
                "the kernel's word on a panic cannot be read"
            );
            self.panic
        });
        let engaged = mark.is_some() || in_kernel;
        for note in take_panic_notes(&self.given.paths) {
            self.note_panic(note, true);
        }
        if engaged == self.panic {
            return;
        }
        self.panic = engaged;
        if engaged {
            if let Err(error) = self.enforcement.panic() {
                tracing::error!(
                    error = in_full(&error),
                    "the kernel side did not stop every agent"
                );
            }
            match self.enforcement.cut_all() {
                Ok(cut) => tracing::warn!(sockets = cut.sockets, "panic: every agent is stopped"),
                Err(error) => tracing::error!(error = in_full(&error), "sockets could not be cut"),
            }
        } else {
            tracing::warn!("the panic is lifted");
            if self.published
                && let Err(error) = self.publish()
            {
                tracing::error!(
                    error = in_full(&error),
                    "the ports could not be published again"
                );
            }
        }
        self.repeat_panic();
    }

    /// What is in force, for a proxy process that may not know it.
    pub(super) fn repeat_panic(&mut self) {
        let note = panic_mark(&self.given.paths).unwrap_or_else(|| PanicNote {
            engaged: self.panic,
            by: "somebody with root's rights".to_owned(),
            detail: "without a marker".to_owned(),
        });
        let engaged = self.panic;
        self.note_panic(PanicNote { engaged, ..note }, false);
    }

    fn note_panic(&mut self, note: PanicNote, record: bool) {
        let PanicNote {
            engaged,
            by,
            detail,
        } = note;
        self.happened(Happening::Panic {
            engaged,
            by,
            detail,
            record,
        });
    }

    /// Remembers something for the host's log.
    pub(super) fn happened(&mut self, happening: Happening) {
        if self.happenings.len() == KEPT {
            tracing::error!(lost = ?self.happenings.pop_front(), "the host's log misses something");
        }
        self.happenings.push_back(happening);
    }

    /// Tells the proxy process, once it listens.
    pub(super) async fn tell_happenings(&mut self) {
        while self.worker.is_some() && self.restart.ready_since.is_some() {
            let Some(event) = self.happenings.pop_front() else {
                return;
            };
            self.tell(&ToWorker::Happened { event }, None).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_knocks_again_and_again_gets_one_record_a_second_that_counts_them() {
        let (mut knocks, start) = (Knocks::default(), Instant::now());
        assert_eq!(knocks.due(start), Some(1));
        for _ in 0..41 {
            assert_eq!(knocks.due(start + KNOCKS / 2), None);
        }
        assert_eq!(knocks.due(start + KNOCKS), Some(42));
        assert_eq!(knocks.due(start + KNOCKS * 3), Some(1));
    }
}
