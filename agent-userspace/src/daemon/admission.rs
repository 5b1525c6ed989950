//! The enforcer's book of workloads: which live, which wait for the proxy process's answer, which have been left.
//! Kept by the main loop; it is what a restarted proxy process is told.
//! INVARIANT: a workload is in the book exactly as long as its cgroup is governed as a workload.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mitm_proxy::Way;
use policies::{AgentId, WorkloadId};
use tokio::sync::oneshot;

use super::protocol::{Refusal, Ticket, WorkloadFacts};
use super::runs::{Admission, is_governed};
use crate::enforce::Running;

/// How long the proxy process may take to answer; less than `sluice run` waits, so that it hears why.
pub(super) const TIME_TO_ADMIT: Duration = Duration::from_secs(8);

/// One workload.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) facts: WorkloadFacts,
    /// Nobody waits for it any more: it is retired as soon as its cgroup is empty.
    pub(super) left: bool,
}

/// An admission that the proxy process has not answered yet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) workload: WorkloadId,
    pub(super) place: Waits,
    pub(super) netns: Option<OwnedFd>,
    pub(super) reply: oneshot::Sender<Result<Admission, Refusal>>,
    pub(super) since: Instant,
}

/// Where a workload that waits will live.
#[derive(Debug)]
pub(super) enum Waits {
    /// In a cgroup that was made for it.
    Made(OwnedFd),
    /// In this directory, which is governed once the proxy process said yes.
    Elsewhere(PathBuf),
    /// It runs already: once the proxy process said yes it is stopped, governed, and let go on.
    Running(Running),
}

impl Waits {
    /// The directory of a workload that was not made for it alone.
    pub(super) fn theirs(&self) -> Option<PathBuf> {
        match self {
            Waits::Made(_) => None,
            Waits::Elsewhere(path) => Some(path.clone()),
            Waits::Running(running) => Some(running.place().to_owned()),
        }
    }

    /// The directory of a cgroup that nobody asked for but a rule, again and again until it is governed.
    pub(super) fn of_rule(&self) -> Option<&Path> {
        match self {
            Waits::Running(Running::Cgroup { place, held: true }) => Some(place),
            Waits::Elsewhere(_) | Waits::Made(_) | Waits::Running(_) => None,
        }
    }
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Book {
    live: BTreeMap<WorkloadId, Entry>,
    waiting: BTreeMap<Ticket, Waiting>,
    last_ticket: u64,
}

impl Book {
    /// A ticket that no question has had.
    pub(super) fn ticket(&mut self) -> Ticket {
        self.last_ticket = self.last_ticket.wrapping_add(1);
        Ticket(self.last_ticket)
    }

    /// Writes a workload down. One that a former daemon admitted has nobody waiting for it.
    pub(super) fn enter(&mut self, facts: WorkloadFacts, left: bool) {
        self.live.insert(facts.id, Entry { facts, left });
    }

    /// Strikes a workload out.
    pub(super) fn strike(&mut self, id: WorkloadId) {
        self.live.remove(&id);
    }

    /// The first process of a workload is known.
    pub(super) fn started(&mut self, id: WorkloadId, pid: u32, exe: Option<String>) {
        if let Some(entry) = self.live.get_mut(&id) {
            entry.facts.pid = Some(pid);
            entry.facts.exe = exe;
        }
    }

    /// Whoever waited for a workload has hung up.
    pub(super) fn leave(&mut self, id: WorkloadId) {
        if let Some(entry) = self.live.get_mut(&id) {
            entry.left = true;
        }
    }

    /// The workloads whose first process is somebody else's to start: it may execute something else meanwhile.
    pub(super) fn attached(&self) -> Vec<(WorkloadId, u32, Option<String>)> {
        self.live
            .values()
            .map(|entry| &entry.facts)
            .filter(|facts| matches!(facts.way, Way::Adopted | Way::Attached))
            .filter_map(|facts| Some((facts.id, facts.pid?, facts.exe.clone())))
            .collect()
    }

    /// Whether a cgroup is that of a workload, or lies below it.
    pub(super) fn governs(&self, cgroup: &str) -> bool {
        let mut all = self.live.values();
        all.any(|entry| is_governed(cgroup, &entry.facts.cgroup))
    }

    /// The same, for all workloads but one.
    pub(super) fn governs_others(&self, cgroup: &str, but: WorkloadId) -> bool {
        let mut others = self.live.values().filter(|entry| entry.facts.id != but);
        others.any(|entry| is_governed(cgroup, &entry.facts.cgroup))
    }

    /// The workload of this id.
    pub(super) fn facts(&self, id: WorkloadId) -> Option<&WorkloadFacts> {
        self.live.get(&id).map(|entry| &entry.facts)
    }

    /// Workloads that may be retired once they are empty.
    pub(super) fn left(&self) -> Vec<WorkloadId> {
        self.live
            .values()
            .filter(|entry| entry.left)
            .map(|entry| entry.facts.id)
            .collect()
    }

    /// The workloads of one agent.
    pub(super) fn of(&self, agent: &AgentId) -> Vec<WorkloadId> {
        self.live
            .values()
            .filter(|entry| &entry.facts.agent == agent)
            .map(|entry| entry.facts.id)
            .collect()
    }

    /// What a proxy process is started with: every workload that has been admitted.
    pub(super) fn admitted(&self) -> Vec<WorkloadFacts> {
        let waits = |id: WorkloadId| self.waiting.values().any(|waiting| waiting.workload == id);
        self.live
            .values()
            .map(|entry| &entry.facts)
            .filter(|facts| !waits(facts.id))
            .cloned()
            .collect()
    }

    /// Remembers whom an answer is for.
    pub(super) fn wait(&mut self, ticket: Ticket, waiting: Waiting) {
        self.waiting.insert(ticket, waiting);
    }

    /// Whom this answer is for.
    pub(super) fn answered(&mut self, ticket: Ticket) -> Option<Waiting> {
        self.waiting.remove(&ticket)
    }

    /// Everybody whose answer has taken too long. Should it still come, nobody waits for it.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<Waiting> {
        self.waiting
            .extract_if(.., |_, waiting| {
                now.saturating_duration_since(waiting.since) >= TIME_TO_ADMIT
            })
            .map(|(_, waiting)| waiting)
            .collect()
    }

    /// The questions that are open, and those who wait for the answer.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (Ticket, &Waiting)> {
        self.waiting
            .iter()
            .map(|(ticket, waiting)| (*ticket, waiting))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_answer_in_time_is_overdue_once() {
        let mut book = Book::default();
        let asked = Instant::now();
        let (first, second) = (book.ticket(), book.ticket());
        for (ticket, since) in [(first, asked), (second, asked + Duration::from_secs(5))] {
            let (reply, _) = oneshot::channel();
            let waiting = Waiting {
                workload: WorkloadId(ticket.0),
                place: Waits::Elsewhere("/".into()),
                netns: None,
                reply,
                since,
            };
            book.wait(ticket, waiting);
        }
        assert!(book.overdue(asked + Duration::from_secs(7)).is_empty());
        let overdue = book.overdue(asked + TIME_TO_ADMIT);
        assert_eq!(overdue.len(), 1);
        assert_eq!(overdue[0].workload, WorkloadId(first.0));
        assert!(book.answered(first).is_none(), "a late answer finds nobody");
        assert!(book.overdue(asked + TIME_TO_ADMIT).is_empty());
        assert!(book.answered(second).is_some());
    }
}
