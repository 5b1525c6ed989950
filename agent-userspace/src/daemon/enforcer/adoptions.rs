//! Running trees: `sluice agents adopt`.
//! Beside `attachments`: the same workloads in the end, with everything at a stand in between, and no socket of before.
//! INVARIANT: who asked hears yes only when the tree is governed and goes on; on a no it is as it was, or the answer says where it stands.

use std::os::fd::OwnedFd;
use std::path::Path;

use mitm_proxy::Way;
use policies::{AgentId, Reason, WorkloadId};

use super::Enforcer;
use super::admissions::{Made, executed, first_process, named, unenforced};
use super::attachments::refused;
use crate::daemon::admission::Waits;
use crate::daemon::error::in_full;
use crate::daemon::protocol::{Refusal, Running as Wanted, WorkloadFacts};
use crate::daemon::ways;
use crate::enforce::{Running, Unadopted};

impl Enforcer {
    /// Finds what is meant, and makes the cgroup that a tree without one of its own is gathered in.
    pub(super) fn adopt_running(
        &mut self,
        agent: AgentId,
        wanted: &Wanted,
        held: bool,
    ) -> Result<Made, Refusal> {
        self.refuse_by_host()?;
        let (running, id) = match wanted {
            Wanted::Cgroup(cgroup) => {
                let (shown, path) = self.directory(cgroup)?;
                self.sweep_later();
                self.enforcement
                    .fit(&agent, &path)
                    .map_err(|error| unenforced(&error))?;
                if self.book.governs(&shown) {
                    let detail = format!("{shown} is a workload's");
                    return refused(Reason::AlreadyGoverned, detail);
                }
                let id = self
                    .enforcement
                    .id_of(&path)
                    .map_err(|error| unenforced(&error))?;
                (Running::Cgroup { place: path, held }, id)
            }
            Wanted::Tree { pid, started } => {
                let (id, place) = self
                    .enforcement
                    .place_for_tree()
                    .map_err(|error| unenforced(&error))?;
                let running = Running::Tree {
                    place,
                    pid: *pid,
                    started: *started,
                };
                (running, id)
            }
        };
        let (pid, exe) = match wanted {
            Wanted::Cgroup(_) => first_process(running.place()),
            Wanted::Tree { pid, .. } => (Some(*pid), executed(*pid)),
        };
        let facts = WorkloadFacts {
            id,
            agent,
            pid,
            exe,
            cgroup: self.enforcement.shown(running.place()).unwrap_or_default(),
            way: Way::Adopted,
        };
        if self.book.facts(id).is_some() {
            let detail = "somebody is taking this cgroup at this moment".to_owned();
            return refused(Reason::AlreadyGoverned, detail);
        }
        self.book.enter(facts.clone(), false);
        Ok(Made {
            facts,
            place: Waits::Running(running),
            netns: None,
        })
    }

    /// Stops the tree, ends its sockets, governs it, and lets it go on.
    pub(super) fn take_running(
        &mut self,
        id: WorkloadId,
        running: &Running,
    ) -> Result<OwnedFd, Refusal> {
        let stopped = {
            let governs = |cgroup: &str| self.book.governs_others(cgroup, id);
            running.stop(&self.enforcement, &governs)
        };
        let standing = stopped.map_err(|error| unadopted(&error))?;
        match self.govern(id, running.place(), None) {
            Ok(cgroup) => {
                ways::remember(running.place(), Way::Adopted);
                // A failure leaves it standing, and governed: nothing gets out, and the words say how to let it go on.
                standing.go_on().map_err(|error| Refusal {
                    reason: Reason::AdoptStands,
                    detail: format!(
                        "it is governed and stands still ({error}); write 0 to cgroup.freeze in {}",
                        running.place().display()
                    ),
                })?;
                Ok(cgroup)
            }
            // It has its programs, and whoever is moved out of it would be nobody's: it stays.
            Err(refusal) if self.enforcement.lies_elsewhere(id) => Err(Refusal {
                reason: Reason::AdoptStands,
                detail: format!(
                    "it is governed and stands still ({}); `sluice agents detach --kill --cgroup {}` ends it",
                    refusal.detail,
                    running.place().display()
                ),
            }),
            Err(refusal) => {
                let why = Unadopted::Ungoverned(refusal.detail);
                Err(unadopted(&self.enforcement.unstop(standing, why)))
            }
        }
    }

    /// A tree that did not become a workload leaves no cgroup of Sluice's behind.
    pub(super) fn discard(&mut self, id: WorkloadId, place: &Path) {
        if !self.enforcement.lies_elsewhere(id) {
            self.enforcement.discard_place(place);
        }
    }
}

pub(super) fn unadopted(error: &Unadopted) -> Refusal {
    let reason = match error {
        Unadopted::Governed(_) => Reason::AlreadyGoverned,
        Unadopted::Gone(_) => Reason::ProcessGone,
        Unadopted::Held { .. } => Reason::HeldOpen,
        Unadopted::Ours(_) => Reason::AdoptUnfit,
        Unadopted::Ungoverned(_) | Unadopted::System { .. } => Reason::EnforcementFailed,
        Unadopted::Unsettled => Reason::TreeUnsettled,
        Unadopted::Stands { .. } => Reason::AdoptStands,
    };
    named(reason, in_full(error))
}
