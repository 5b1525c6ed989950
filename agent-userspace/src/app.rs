//! The proxy process, wired together: ledger, vault, proxy, approvals, metrics and the control socket.
//! Started by `daemon::worker` with what the enforcer handed over; serves until told to stop.
//! INVARIANT: nothing is served before the vault opened and a bundle loaded; a reload that fails changes nothing.

mod happenings;
mod refusals;
mod serve;
mod start;
mod state;

use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use mitm_proxy::{Listeners, Origins, Workload};
use policies::{AgentId, Diagnostics, PolicyVersion, Reason, WorkloadId};
use tokio::sync::{mpsc, oneshot};

use crate::config::{Paths, Snapshot};
use crate::daemon::protocol::{Happening, Switched};
use crate::layers::LayerReport;

pub use serve::serve;
pub use start::{Prepared, StartError, prepare};
pub(crate) use start::{master_key, open_ledger, open_vault};
pub(crate) use state::{Shared, now};

/// What the proxy process is started with.
pub struct WorkerParts {
    /// What was read while the process could still read it.
    pub prepared: Prepared,
    /// Where this instance keeps its files.
    pub paths: Paths,
    /// The proxy's and the resolver's sockets, opened by the enforcer.
    pub listeners: Listeners,
    /// The control socket, bound by the enforcer.
    pub control: UnixListener,
    /// Who a connection belongs to, and where it wanted to go.
    pub origins: Arc<dyn Origins>,
    /// Workloads that a former daemon admitted and that still run.
    pub workloads: Vec<Workload>,
    /// The enforcement layers as the enforcer found them.
    pub layers: Vec<LayerReport>,
    /// The cgroup path (as in `/proc/PID/cgroup`) below which all workloads live, such as `/sluice/agents`.
    pub governed: String,
    /// What the enforcer says.
    pub events: mpsc::Receiver<Event>,
    /// What the enforcer is told.
    pub commands: mpsc::Sender<Command>,
}

/// Enforcer to proxy process.
#[derive(Debug)]
pub enum Event {
    /// A workload is about to start; it must not run before the answer.
    Admit {
        /// Its identity. Pid and executable may still be unknown.
        workload: Workload,
        /// Refusals of it that are on record already.
        recorded: Vec<Reason>,
        /// Admitted, or why not.
        reply: oneshot::Sender<Result<(), AdmitRefused>>,
    },
    /// Something that belongs into the host's log happened.
    Happened(Happening),
    /// The enforcement layers changed.
    Layers(Vec<LayerReport>),
    /// The kernel refused something; rate limited by the kernel side.
    KernelRefused(KernelRefusal),
    /// How often the kernel refused so far, by kind.
    KernelRefusals(Vec<(String, u64)>),
    /// Serve these sockets, too, as long as the workload lives: they lie in its own network namespace.
    Listen {
        /// Which workload.
        id: WorkloadId,
        /// Its listeners.
        listeners: Listeners,
    },
    /// Load this configuration instead.
    Reload {
        /// The new configuration's texts.
        snapshot: Snapshot,
        /// The version now in force, or why the old one stays.
        reply: oneshot::Sender<Result<Ready, Diagnostics>>,
    },
    /// The first process of an admitted workload runs.
    Started {
        /// Which workload.
        id: WorkloadId,
        /// Its first process.
        pid: u32,
        /// What that process executes.
        exe: Option<String>,
    },
    /// A workload's last process ended.
    Retire(WorkloadId),
    /// Finish what is under way, then return from [`serve`].
    Stop,
}

/// Proxy process to enforcer.
#[derive(Debug)]
pub enum Command {
    /// Everything is up: the enforcer may publish the ports and report readiness.
    Ready(Ready),
    /// The kill switch: refuse the agent's new connections in the kernel and cut its open ones, or undo that.
    SetDisabled {
        /// Which agent.
        agent: AgentId,
        /// True to switch it off.
        disabled: bool,
        /// What the kernel side says to it, once it is done.
        reply: oneshot::Sender<Switched>,
    },
}

/// What the enforcer needs to know of the bundle in force.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The bundle's version.
    pub version: PolicyVersion,
    /// IP literals that some connection names, so that the kernel redirects them too.
    pub literals: Vec<IpAddr>,
    /// Agents that are switched off.
    pub disabled: Vec<AgentId>,
    /// Cgroups whose processes run as an agent.
    pub processes: Vec<(AgentId, policies::CgroupPattern)>,
}

/// Why a workload may not start.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct AdmitRefused {
    /// [`Reason::AgentUnknown`] or [`Reason::AgentDisabled`].
    pub reason: Reason,
    /// For a person.
    pub detail: String,
}

/// One packet or call that the kernel refused.
#[derive(Clone, Debug)]
pub struct KernelRefusal {
    /// Whose it was, if known.
    pub workload: Option<WorkloadId>,
    /// The kind's name, also its metric label.
    pub kind: String,
    /// Where it wanted to go.
    pub destination: Option<std::net::SocketAddr>,
}
