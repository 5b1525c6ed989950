//! The messages between the enforcer, the proxy process, the listener helper and `sluice run`.
//! One message is one SOCK_SEQPACKET packet of JSON; descriptors travel beside it as SCM_RIGHTS.
//! INVARIANT: an unknown message, field or excess byte is an error; whoever sends one is hung up on.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use mitm_proxy::Way;
use policies::{AgentId, CgroupPattern, PolicyVersion, Reason, WorkloadId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Snapshot, UidRange};
use crate::layers::LayerReport;

/// Longest message on any of the channels, in bytes. Longer documents travel in a memfd.
pub const MAX_MESSAGE: usize = 192 * 1024;

/// What one packet says, and how many descriptors belong to it: a packet with others is no message.
pub trait Message: DeserializeOwned {
    /// How many descriptors may come along.
    fn descriptors(&self) -> RangeInclusive<usize>;
}

impl Message for ToWorker {
    fn descriptors(&self) -> RangeInclusive<usize> {
        let exactly = |count| count..=count;
        match self {
            // The document, the control socket, two maps.
            ToWorker::Start { listeners } => exactly(listeners.sockets().saturating_add(4)),
            ToWorker::Listen { listening, .. } => exactly(listening.sockets()),
            ToWorker::Reload { .. } => exactly(1),
            ToWorker::Admit { .. }
            | ToWorker::Happened { .. }
            | ToWorker::KernelRefused { .. }
            | ToWorker::KernelRefusals { .. }
            | ToWorker::Layers { .. }
            | ToWorker::Retire { .. }
            | ToWorker::Started { .. }
            | ToWorker::Stop {}
            | ToWorker::Switched { .. } => exactly(0),
        }
    }
}

impl Message for FromWorker {
    fn descriptors(&self) -> RangeInclusive<usize> {
        0..=0
    }
}

impl Message for FromRun {
    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            // The network namespace of processes that are yet to live in the cgroup.
            FromRun::Attach { .. } => 0..=1,
            FromRun::Adopt { .. }
            | FromRun::Detach { .. }
            | FromRun::Panic {}
            | FromRun::Run { .. }
            | FromRun::Started { .. } => 0..=0,
        }
    }
}

impl Message for ToRun {
    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            // The second is the network namespace of one who asked for it.
            ToRun::Admitted { .. } => 1..=2,
            ToRun::Done {} | ToRun::Refused { .. } => 0..=0,
        }
    }
}

impl Message for ToListener {
    fn descriptors(&self) -> RangeInclusive<usize> {
        let given = usize::from(self.netns == Netns::Given);
        given..=given
    }
}

impl Message for FromListener {
    fn descriptors(&self) -> RangeInclusive<usize> {
        match self {
            FromListener::Listening { listening, .. } => {
                // A new network namespace comes behind the sockets.
                let sockets = listening.sockets();
                sockets..=sockets.saturating_add(1)
            }
            FromListener::Failed { .. } => 0..=0,
        }
    }
}

/// Pairs an answer with its question on one channel.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Ticket(pub u64);

/// One workload, as the enforcer tells the proxy process about it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadFacts {
    /// The cgroup v2 id.
    pub id: WorkloadId,
    /// The agent it runs as.
    pub agent: AgentId,
    /// Its first process, once known.
    pub pid: Option<u32>,
    /// What that process executes, once known.
    pub exe: Option<String>,
    /// The cgroup's path as `/proc/PID/cgroup` shows it.
    pub cgroup: String,
    /// How it came to be governed.
    pub way: Way,
}

/// The document, in a memfd, that the proxy process starts from.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The configuration's texts.
    pub snapshot: Snapshot,
    /// Workloads that already run.
    pub workloads: Vec<WorkloadFacts>,
    /// The enforcement layers.
    pub layers: Vec<LayerReport>,
    /// The cgroup path below which all workloads live.
    pub governed: String,
    /// The account to run as.
    pub account: WorkerAccount,
}

/// Whom the proxy process becomes. Resolved by the enforcer, so that the worker need not ask the account database.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerAccount {
    /// Its uid; never 0.
    pub uid: u32,
    /// Its gid.
    pub gid: u32,
}

/// Enforcer to proxy process.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "to_worker", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// The first message. Descriptors: the [`Handover`] document, the control socket, the two maps, then the listeners.
    Start {
        /// How many of which listeners.
        listeners: Listening,
    },
    /// May this workload start?
    Admit {
        /// Answered by [`FromWorker::Admitted`].
        ticket: Ticket,
        /// Which.
        workload: WorkloadFacts,
        /// Refusals of this cgroup that are on record: a rule has it tried again and again.
        recorded: Vec<Reason>,
    },
    /// The enforcement layers changed.
    Layers {
        /// All of them.
        layers: Vec<LayerReport>,
    },
    /// Something happened to the host that belongs into its log.
    Happened {
        /// What.
        event: Happening,
    },
    /// The kernel refused something.
    KernelRefused {
        /// Whose it was, if known.
        workload: Option<WorkloadId>,
        /// The kind's name.
        kind: String,
        /// Where it wanted to go.
        destination: Option<SocketAddr>,
    },
    /// How often the kernel refused so far.
    KernelRefusals {
        /// Kind and count.
        counts: Vec<(String, u64)>,
    },
    /// Serve the sockets that come along until [`ToWorker::Retire`]: they were opened in the workload's own network namespace.
    Listen {
        /// Which workload's.
        id: WorkloadId,
        /// How many of which.
        listening: Listening,
    },
    /// Load the configuration in the memfd that comes along.
    Reload {
        /// Answered by [`FromWorker::Reloaded`].
        ticket: Ticket,
    },
    /// The first process of a workload runs.
    Started {
        /// Which workload.
        id: WorkloadId,
        /// Its first process.
        pid: u32,
        /// What it executes.
        exe: Option<String>,
    },
    /// A workload's last process ended.
    Retire {
        /// Which.
        id: WorkloadId,
    },
    /// Answers [`FromWorker::SetDisabled`]: the kernel side is as it was asked for, or `failed` says what is not.
    Switched {
        /// Which question.
        ticket: Ticket,
        /// What was done.
        switched: Switched,
    },
    /// Finish what is under way and exit with 0.
    Stop {},
}

/// Proxy process to enforcer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "from_worker", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// Everything is up.
    Ready {
        /// What the enforcer needs to know of the bundle in force.
        bundle: BundleFacts,
    },
    /// It cannot start; a restart would fail the same way. The process ends after this.
    CannotStart {
        /// Why, for a person.
        detail: String,
    },
    /// Answers [`ToWorker::Admit`].
    Admitted {
        /// Which question.
        ticket: Ticket,
        /// Why not, if not.
        refused: Option<Refusal>,
    },
    /// Answers [`ToWorker::Reload`].
    Reloaded {
        /// Which question.
        ticket: Ticket,
        /// The bundle now in force, unless the old one stays.
        bundle: Option<BundleFacts>,
        /// Why the old one stays, as diagnostics for a person.
        detail: String,
    },
    /// The kill switch.
    SetDisabled {
        /// Answered by [`ToWorker::Switched`].
        ticket: Ticket,
        /// Which agent.
        agent: AgentId,
        /// True to switch it off.
        disabled: bool,
    },
}

/// What the enforcer needs to know of a bundle.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BundleFacts {
    /// Its version.
    pub version: PolicyVersion,
    /// IP literals that some connection names.
    pub literals: Vec<IpAddr>,
    /// Agents that are switched off.
    pub disabled: Vec<AgentId>,
    /// Cgroups whose processes run as an agent.
    pub processes: Vec<(AgentId, CgroupPattern)>,
}

/// Why a workload may not start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The refusal's name: in the answer, the record and the metric alike.
    pub reason: Reason,
    /// For a person.
    pub detail: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

/// What the kill switch did in the kernel.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Switched {
    /// The workloads that were switched.
    pub workloads: usize,
    /// Open sockets of theirs that were cut.
    pub sockets: usize,
    /// Network namespaces or protocols in which this kernel cuts no sockets: they stand still instead.
    pub uncut: usize,
    /// What could not be done, for a person; then the proxy process alone refuses.
    pub failed: Vec<String>,
}

/// What the enforcer, which has no log of its own, has the proxy process write into the host's.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "happening", rename_all = "snake_case", deny_unknown_fields)]
pub enum Happening {
    /// The watchdog found something.
    Fault {
        /// Each fault: its name, and what it is about.
        faults: Vec<(String, String)>,
        /// Whether everything was put back.
        repaired: bool,
        /// What was done, for a person.
        outcome: String,
    },
    /// Every agent is stopped, or may work again. What is in force stands in `engaged`; the rest is for the record.
    Panic {
        /// True from now on.
        engaged: bool,
        /// By whom.
        by: String,
        /// When and how, for a person.
        detail: String,
        /// Whether it has yet to be written down.
        record: bool,
    },
    /// A workload may not start, or a bundle does not fit, for a reason that the enforcer found.
    Refused {
        /// Of which agent; none where it is about the host, or about somebody who was not let speak.
        agent: Option<AgentId>,
        /// Why.
        refusal: Refusal,
        /// How often, where many alike share one record.
        times: u64,
    },
}

/// A cgroup that somebody else made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CgroupRef {
    /// A directory.
    Directory(PathBuf),
    /// As `/proc/PID/cgroup` shows it.
    Shown(String),
}

/// What runs already.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Running {
    /// Everything in a cgroup, where it is.
    Cgroup(CgroupRef),
    /// A process and what descends from it.
    Tree {
        /// The process.
        pid: u32,
        /// When it was started, in ticks: another of that number was not.
        started: u64,
    },
}

/// `sluice run`, `sluice agents attach` and `sluice panic` to enforcer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "to_enforcer", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromRun {
    /// Make what runs already a workload of this agent: it is stopped, its sockets are ended, and it goes on governed.
    Adopt {
        /// Which agent.
        agent: AgentId,
        /// What.
        what: Running,
    },
    /// Make a cgroup that is there already a workload of this agent. The network namespace of its processes comes along
    /// where they are yet to live in it. The workload ends with the cgroup, or by [`FromRun::Detach`].
    Attach {
        /// Which agent.
        agent: AgentId,
        /// Which cgroup.
        cgroup: CgroupRef,
        /// Its first process, for the record.
        pid: Option<u32>,
    },
    /// Give a cgroup back that was attached.
    Detach {
        /// Which cgroup.
        cgroup: CgroupRef,
        /// Whether its processes are to be ended; while any lives, it stays governed.
        kill: bool,
    },
    /// Make a workload of this agent. The connection's life is the workload's: hanging up ends it once it is empty.
    Run {
        /// Which agent.
        agent: AgentId,
        /// The command's name, for the record.
        argv0: String,
        /// Where it runs, for the record.
        cwd: PathBuf,
        /// Whether it gets a network namespace of its own, with nothing but loopback.
        isolate: bool,
    },
    /// The markers and the kernel's word were changed: see what they say, and act on it.
    Panic {},
    /// Its first process runs.
    Started {
        /// The process.
        pid: u32,
    },
}

/// Enforcer to `sluice run`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "to_run", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToRun {
    /// The workload's cgroup exists and is governed; its directory's descriptor comes along, and that of its network
    /// namespace if it asked for one.
    Admitted {
        /// Its cgroup id.
        workload: WorkloadId,
        /// The cgroup's path as `/proc/PID/cgroup` shows it.
        cgroup: String,
        /// The tenant's root certificate.
        ca_pem: PathBuf,
        /// The name server to write into its resolv.conf.
        nameserver: IpAddr,
        /// The uids that agents may have where no user is named.
        uids: UidRange,
    },
    /// What [`FromRun::Detach`] or [`FromRun::Panic`] asked for is done.
    Done {},
    /// Nothing was made.
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

/// Listener helper to enforcer, and enforcer to proxy process: the sockets come along, in the order of these counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Listening {
    /// How many TCP listeners of the proxy: one for each address family of the host.
    pub tcp: usize,
    /// How many TCP listeners of the resolver.
    pub dns_tcp: usize,
    /// How many UDP sockets of the resolver.
    pub dns_udp: usize,
    /// Port of the proxy's listeners, on all families.
    pub proxy_port: u16,
    /// Port of the resolver's sockets, on all families and both protocols.
    pub resolver_port: u16,
}

impl Listening {
    /// How many sockets come along.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.tcp
            .saturating_add(self.dns_tcp)
            .saturating_add(self.dns_udp)
    }
}

/// Enforcer to listener helper: what to open. The network namespace's descriptor comes along where one is given.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ToListener {
    /// Where.
    pub netns: Netns,
    /// The proxy's port; 0 takes any.
    pub proxy_port: u16,
    /// The resolver's port; 0 takes any.
    pub resolver_port: u16,
}

/// A network namespace, from the helper's point of view.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Netns {
    /// The one whose descriptor comes along.
    Given,
    /// The one it was started in: the host's.
    Host,
    /// A new one; its descriptor comes back behind the sockets.
    New,
}

/// Listener helper to enforcer: the sockets, or why there are none.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "from_listener", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromListener {
    /// They are open.
    Listening {
        /// How many, and where.
        listening: Listening,
        /// The cgroup that they belong to, as `/proc/PID/cgroup` shows it.
        cgroup: String,
    },
    /// They are not.
    Failed {
        /// Why, for a person.
        detail: String,
    },
}
