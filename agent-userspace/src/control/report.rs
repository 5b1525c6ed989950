//! The answers to `status`, `doctor` and `agents list`, as both ends of the control socket know them.
//! Made in `answer`, printed by `cli`; their JSON is what scripts read.
//! INVARIANT: fields are added, never renamed.

use policies::{AgentId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::layers::LayerReport;

/// What runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusReport {
    /// The daemon's version.
    pub version: String,
    /// When the proxy process started.
    pub started_at: Timestamp,
    /// The version of the bundle in force.
    pub policy_version: String,
    /// How many agents the bundle has.
    pub agents: usize,
    /// How many connectors the bundle has.
    pub connectors: usize,
    /// Live process trees.
    pub workloads: Vec<WorkloadReport>,
    /// Calls that wait for a person.
    pub approvals_pending: usize,
    /// Where metrics are served.
    pub metrics: Option<String>,
    /// How the last reload went.
    pub reload: ReloadReport,
    /// Since when every agent is stopped, and by whom.
    #[serde(default)]
    pub panic: Option<String>,
    /// What the watchdog has found.
    #[serde(default)]
    pub faults: FaultsReport,
    /// The enforcement layers.
    pub layers: Vec<LayerReport>,
}

/// What the watchdog of the kernel side has found since the proxy process started.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct FaultsReport {
    /// How many faults.
    pub found: u64,
    /// The last one, when, and what was done.
    pub last: Option<String>,
    /// Whether the last one could not be put back: workloads were killed, and none may start.
    pub broken: bool,
}

/// One live process tree.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WorkloadReport {
    /// Its cgroup v2 id.
    pub id: u64,
    /// The agent it runs as.
    pub agent: AgentId,
    /// Its first process.
    pub pid: Option<u32>,
    /// What that executes.
    pub exe: Option<String>,
    /// Its cgroup.
    pub cgroup: String,
    /// How it came to be governed: `adopted`, `attached`, `isolated` or `run`.
    #[serde(default)]
    pub way: String,
}

/// How the last load of the configuration went.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ReloadReport {
    /// When.
    pub at: Timestamp,
    /// Whether it took effect.
    pub ok: bool,
    /// What was wrong with it: `file:line:column: message`.
    pub errors: Vec<String>,
}

/// One agent of the bundle.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AgentReport {
    /// `tenant/name`.
    pub agent: AgentId,
    /// Who answers for it.
    pub owner: String,
    /// How far it is trusted.
    pub stage: String,
    /// Its connections' names.
    pub connections: Vec<String>,
    /// Whether the kill switch is on.
    pub disabled: bool,
    /// How many live process trees run as it.
    pub workloads: usize,
    /// Which.
    #[serde(default)]
    pub running: Vec<WorkloadReport>,
}

/// What the kill switch of one agent did.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SwitchReport {
    /// `tenant/name`.
    pub agent: AgentId,
    /// Whether it is off now.
    pub disabled: bool,
    /// The workloads of it that were switched in the kernel.
    pub workloads: usize,
    /// Open sockets that were cut.
    pub cut: usize,
    /// Network namespaces or protocols in which this kernel cuts no sockets: they stand still instead.
    pub uncut: usize,
}

/// The enforcement layers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct DoctorReport {
    /// Whether a daemon answered.
    pub daemon: bool,
    /// Each layer.
    pub layers: Vec<LayerReport>,
    /// Other things that an operator should know or do.
    pub advice: Vec<String>,
}
