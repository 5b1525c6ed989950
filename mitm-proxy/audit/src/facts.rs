//! What the path of a request tells the ledger: plain facts, gathered where they are known.
//! They become a [`crate::record::Record`] in `draft`; nothing here is trusted to be short or clean.
//! INVARIANT: no field holds a secret; credentials appear by id and version.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use policies::{
    AgentId, ApprovalId, CapabilityId, ConnectionName, CredentialId, Digest, Host, PolicyId,
    PolicyVersion, Reason, Tenant, Timestamp, Value, WorkloadId,
};
use serde::{Deserialize, Serialize};

/// The process tree a call came from, as far as it is known.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct WorkloadFacts {
    /// Cgroup v2 id.
    pub id: WorkloadId,
    /// The first process of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Path of the cgroup below the cgroup mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// What is known when a permitted call is about to leave.
#[derive(Clone, Debug)]
pub struct IntentFacts {
    /// Who asked.
    pub workload: WorkloadFacts,
    /// HTTP method as sent.
    pub method: String,
    /// Raw path as sent. A query, should one be attached, is cut off: query strings are never recorded.
    pub path: String,
    /// The name that was decided on.
    pub host: Host,
    /// SHA-256 of the request body, when it was read whole before the decision. The ledger salts it.
    pub request_digest: Option<Digest>,
    /// When the decision was made.
    pub at: Timestamp,
    /// Joins records, metrics and traces.
    pub trace_id: String,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Status of the upstream's answer; `None` when there was none.
    pub status: Option<u16>,
    /// The agent went away, or we stopped, before the answer was relayed whole. What happened until then is in the rest.
    pub aborted: bool,
    /// Why the call failed on our side; `None` when the upstream answered.
    pub reason: Option<Reason>,
    /// More about `reason`, for people.
    pub detail: Option<String>,
    /// Body bytes sent upstream.
    pub request_bytes: u64,
    /// Body bytes received from upstream.
    pub response_bytes: u64,
    /// Frames sent and received, where the call became a WebSocket.
    pub frames: Option<(u64, u64)>,
    /// SHA-256 of the request body. The ledger salts it.
    pub request_digest: Option<Digest>,
    /// SHA-256 of the response body. The ledger salts it.
    pub response_digest: Option<Digest>,
    /// The credential that was lent, and its version.
    pub credential: Option<(CredentialId, u32)>,
    /// From the first byte sent upstream to the last byte received.
    pub upstream: Duration,
    /// When the call was over.
    pub at: Timestamp,
}

impl Outcome {
    /// An outcome with nothing in it but its time; the caller fills in what happened.
    pub fn new(at: Timestamp) -> Outcome {
        Outcome {
            status: None,
            aborted: false,
            reason: None,
            detail: None,
            request_bytes: 0,
            response_bytes: 0,
            frames: None,
            request_digest: None,
            response_digest: None,
            credential: None,
            upstream: Duration::ZERO,
            at,
        }
    }
}

/// A refusal: any way of saying no, before anything left.
#[derive(Clone, Debug)]
pub struct RefusalFacts {
    /// Whose log. [`crate::Ledger::host_tenant`] when no tenant is known (an unknown origin).
    pub tenant: Tenant,
    /// Who asked, where known.
    pub agent: Option<AgentId>,
    /// The process tree, where known.
    pub workload: Option<WorkloadFacts>,
    /// The name of the refusal.
    pub reason: Reason,
    /// Connection, where one was found.
    pub connection: Option<ConnectionName>,
    /// Capability, where the request was mapped.
    pub capability: Option<CapabilityId>,
    /// Its params, where the request was mapped.
    pub params: BTreeMap<String, Value>,
    /// The policies that determined it.
    pub policies: Vec<PolicyId>,
    /// The bundle that was asked.
    pub policy_version: Option<PolicyVersion>,
    /// The approval that is waited for, or that was denied or expired.
    pub approval: Option<ApprovalId>,
    /// The name asked for, as the agent wrote it.
    pub host: Option<String>,
    /// HTTP method, where a request was read.
    pub method: Option<String>,
    /// Raw path, where a request was read; a query is cut off.
    pub path: Option<String>,
    /// What to ask for, in words; empty when there is nothing to say.
    pub detail: String,
    /// When.
    pub at: Timestamp,
    /// Joins records, metrics and traces; empty when there is none.
    pub trace_id: String,
}

impl RefusalFacts {
    /// A refusal of which only the log, the name and the time are known.
    pub fn new(tenant: Tenant, reason: Reason, at: Timestamp) -> RefusalFacts {
        RefusalFacts {
            tenant,
            agent: None,
            workload: None,
            reason,
            connection: None,
            capability: None,
            params: BTreeMap::new(),
            policies: Vec::new(),
            policy_version: None,
            approval: None,
            host: None,
            method: None,
            path: None,
            detail: String::new(),
            at,
            trace_id: String::new(),
        }
    }
}

/// What happened to an approval. That it was *used* is not among these: the intent that uses it records that.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ApprovalEvent {
    /// Somebody answered; the approval may be decided now, or wait for its quorum.
    Answered,
    /// Nobody answered in time.
    Expired,
    /// A call was held.
    Requested,
}

/// Something that happened to the host or a tenant outside any call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostEvent {
    /// The kill switch was pulled.
    AgentDisabled {
        /// Which agent.
        agent: AgentId,
        /// By whom.
        by: String,
    },
    /// The kill switch was released.
    AgentEnabled {
        /// Which agent.
        agent: AgentId,
        /// By whom.
        by: String,
    },
    /// A bundle of agents, connectors and policies is in force.
    BundleLoaded {
        /// Its version.
        version: PolicyVersion,
    },
    /// A bundle was refused; the one before stays in force.
    BundleRejected {
        /// The first errors.
        detail: String,
    },
    /// A tenant's former root is trusted no longer.
    CaRotationFinished {
        /// The root that is left.
        generation: u32,
        /// By whom.
        by: String,
        /// How many live workloads trusted nothing else, and cannot verify anything now.
        abandoned: usize,
    },
    /// A tenant has a new root, beside the one before.
    CaRotated {
        /// Which, from 1.
        generation: u32,
        /// By whom.
        by: String,
    },
    /// Somebody was refused on the control socket: an agent's process, or a user without the right.
    ControlRefused {
        /// The workload it came from, where it was one.
        workload: Option<WorkloadFacts>,
        /// The local user.
        by: String,
        /// What was refused, in words.
        detail: String,
    },
    /// The daemon serves.
    DaemonStarted {
        /// Version of the program.
        version: String,
    },
    /// The daemon stopped in good order.
    DaemonStopped,
    /// The watchdog found something of the kernel side that was not as the daemon put it.
    EnforcementFault {
        /// What it found, by name and subject.
        faults: String,
        /// What was done: repaired, or why not.
        outcome: String,
    },
    /// The kernel side refused something.
    KernelRefusal {
        /// Whose workload it came from, where that is known.
        agent: Option<AgentId>,
        /// The workload it came from, where the kernel knew it.
        workload: Option<WorkloadFacts>,
        /// Kind, as the metric labels it.
        kind: String,
        /// Where it wanted to go.
        destination: Option<IpAddr>,
        /// Destination with its port, and how many like it have no record, in words; may be empty.
        detail: String,
    },
    /// Every agent of the host was stopped.
    PanicEngaged {
        /// By whom.
        by: String,
        /// When, and how far it got, in words.
        detail: String,
    },
    /// The agents of the host may work again.
    PanicLifted {
        /// By whom.
        by: String,
        /// When, in words.
        detail: String,
    },
    /// A credential was added.
    SecretPut {
        /// Which.
        credential: CredentialId,
        /// Its version.
        version: u32,
        /// By whom.
        by: String,
    },
    /// A credential was revoked.
    SecretRevoked {
        /// Which.
        credential: CredentialId,
        /// By whom.
        by: String,
    },
    /// A credential got a new version.
    SecretRotated {
        /// Which.
        credential: CredentialId,
        /// The new version.
        version: u32,
        /// By whom.
        by: String,
    },
    /// A workload ended.
    WorkloadEnded {
        /// The agent it ran as.
        agent: AgentId,
        /// The process tree.
        workload: WorkloadFacts,
    },
    /// A workload began.
    WorkloadStarted {
        /// The agent it runs as.
        agent: AgentId,
        /// The process tree.
        workload: WorkloadFacts,
    },
}
