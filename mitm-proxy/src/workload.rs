//! The registry of live workloads and of disabled agents.
//! Place on the path: an origin's workload id becomes an agent here; the daemon writes, the path only reads.
//! INVARIANT: a workload that is not in the registry has no agent, and no agent means no service.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use policies::{AgentId, WorkloadId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// How a workload came to be governed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It ran already: stopped, freed of its sockets, and let go on.
    Adopted,
    /// A cgroup that somebody else made and keeps: a unit's, a container's.
    Attached,
    /// `sluice run --isolate`.
    Isolated,
    /// `sluice run`.
    Run,
}

impl Way {
    /// Its name in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Way::Adopted => "adopted",
            Way::Attached => "attached",
            Way::Isolated => "isolated",
            Way::Run => "run",
        }
    }

    /// The way of this name.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Way> {
        [Way::Adopted, Way::Attached, Way::Isolated, Way::Run]
            .into_iter()
            .find(|way| way.as_str().as_bytes() == name)
    }
}

/// One live process tree that runs as an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The cgroup v2 id, as the kernel reports it.
    pub id: WorkloadId,
    /// The service identity it runs as.
    pub agent: AgentId,
    /// The first process, where it is known; for the record only, never for a decision.
    pub pid: Option<u32>,
    /// The program of the first process; for the record only.
    pub exe: Option<String>,
    /// The cgroup's path below the mount point.
    pub cgroup: String,
    /// How it came to be governed; for people, never for a decision.
    pub way: Way,
}

/// All live workloads of this host, and the agents that are switched off.
#[derive(Debug)]
pub struct Workloads {
    live: RwLock<HashMap<WorkloadId, Workload>>,
    disabled: RwLock<HashSet<AgentId>>,
    /// Every agent counts as disabled.
    panic: AtomicBool,
    /// Bumped after each change that can end a connection; open connections wait on it.
    changed: watch::Sender<u64>,
}

impl Default for Workloads {
    fn default() -> Self {
        Self {
            live: RwLock::default(),
            disabled: RwLock::default(),
            panic: AtomicBool::new(false),
            changed: watch::Sender::new(0),
        }
    }
}

impl Workloads {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a workload; from here on its connections are served. Replaces an entry of the same id.
    pub fn insert(&self, workload: Workload) {
        self.live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(workload.id, workload);
    }

    /// Removes a workload that has ended; its open connections are cut.
    pub fn remove(&self, id: WorkloadId) -> Option<Workload> {
        let removed = self
            .live
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        self.announce();
        removed
    }

    /// The workload of this id, if it is live.
    #[must_use]
    pub fn get(&self, id: WorkloadId) -> Option<Workload> {
        self.live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// All live workloads, ordered by id.
    #[must_use]
    pub fn list(&self) -> Vec<Workload> {
        let mut all: Vec<Workload> = self
            .live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        all.sort_by_key(|workload| workload.id);
        all
    }

    /// The kill switch: a disabled agent's calls are refused and its open connections cut.
    pub fn set_disabled(&self, agent: &AgentId, disabled: bool) {
        {
            let mut set = self
                .disabled
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if disabled {
                set.insert(agent.clone());
            } else {
                set.remove(agent);
            }
        }
        self.announce();
    }

    /// The kill switch of all agents at once; each agent's own keeps its place.
    pub fn set_panic(&self, panic: bool) {
        self.panic.store(panic, Ordering::Release);
        self.announce();
    }

    /// Whether the kill switch is on for this agent, or for all.
    #[must_use]
    pub fn is_disabled(&self, agent: &AgentId) -> bool {
        if self.panic.load(Ordering::Acquire) {
            return true;
        }
        self.disabled
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(agent)
    }

    /// Returns when the workload may no longer hold a connection: it ended, or its agent was disabled.
    pub(crate) async fn cut(&self, workload: &Workload) {
        let mut changed = self.changed.subscribe();
        loop {
            if self.is_disabled(&workload.agent) || self.get(workload.id).is_none() {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn announce(&self) {
        self.changed
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}
