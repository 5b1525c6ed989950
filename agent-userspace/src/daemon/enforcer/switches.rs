//! The switches: one agent's, and the one of all agents at once.
//! Beside the path: the kernel refuses first, then the open sockets are cut; the proxy process closes its ends by itself.
//! INVARIANT: the markers of a panic are followed, whoever wrote or removed them; one that the kernel knows of goes on without them.

use policies::AgentId;

use super::Enforcer;
use crate::config::{PanicNote, panic_mark, take_panic_notes};
use crate::daemon::error::in_full;
use crate::daemon::protocol::{Happening, ToWorker};

/// Happenings that are kept while there is no proxy process to write them down.
const KEPT: usize = 256;

impl Enforcer {
    /// The kill switch, in the kernel.
    pub(super) fn set_disabled(&mut self, agent: &AgentId, disabled: bool) {
        for id in self.book.of(agent) {
            if let Err(error) = self.enforcement.set_disabled(id, disabled) {
                tracing::error!(%agent, workload = id.0, error = in_full(&error), "the kernel side did not switch");
            }
            if !disabled {
                tracing::warn!(%agent, workload = id.0, "switched on");
                continue;
            }
            match self.enforcement.cut(id) {
                Ok(cut) => {
                    tracing::warn!(%agent, workload = id.0, sockets = cut.sockets, refused = cut.refused, "switched off");
                }
                Err(error) => {
                    tracing::error!(%agent, workload = id.0, error = in_full(&error), "sockets could not be cut; they stand still");
                }
            }
        }
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
