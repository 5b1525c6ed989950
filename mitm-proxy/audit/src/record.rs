//! The bytes of a record, field by field, so that a stranger can write a verifier.
//! These bytes are what the Merkle tree is made of; the writer makes them once and nothing rewrites them.
//! INVARIANT: one record is one line of JSON; the line, byte for byte, is the input of the leaf hash.
//!
//! # The line
//! UTF-8 JSON object, no white space between tokens, no newline inside; members in exactly the order below.
//! Strings are escaped as RFC 8259 demands and no further (`"`, `\`, U+0000..U+001F). Integers are decimal.
//! Times are RFC 3339, UTC, milliseconds. Digests are 64 lower-case hex digits. A line is at most [`MAX_RECORD`] bytes.
//!
//! # The tree
//! RFC 6962: leaf = SHA-256(0x00 ‖ line), node = SHA-256(0x01 ‖ left ‖ right), over records 0..size.
//!
//! # Members that are always there (`null` or `[]` where they do not apply)
//! | member | JSON | meaning |
//! |---|---|---|
//! | `index` | integer | place in this tenant's log, from 0, without gaps |
//! | `prev` | digest | leaf hash of record `index - 1`; 64 zeros for record 0. Names the altered line when a root does not fit |
//! | `tenant` | string | whose log; `host` is the host's own |
//! | `kind` | string | `approval`, `event`, `intent`, `outcome`, `refusal` |
//! | `at` | time | when it happened, by the host's clock |
//! | `agent` | string | `tenant/name` |
//! | `capability` | string | `connector/name` |
//! | `decision` | string | `allow`, `hold`, `deny`; of the call this record is about |
//! | `reason` | string | name of the refusal or failure |
//! | `policies` | array of strings | ids of the policies that determined the decision |
//! | `approval` | string | id of the approval that was asked for or used |
//! | `credential` | string | `tenant/name` of the credential; never the credential |
//! | `status` | integer | HTTP status of the upstream's answer |
//!
//! # Members that are left out where they do not apply
//! | member | JSON | on | meaning |
//! |---|---|---|---|
//! | `event` | string | approval, event | `answered`, `expired`, `requested`; or one of [`Event`] |
//! | `outcome` | string | outcome | `answered`, `failed`, `aborted` (given up by us or the agent), `unknown` (we were killed before it ended) |
//! | `intent` | integer | outcome | `index` of the intent it belongs to |
//! | `owner` | string | intent, approval | who answers for the agent |
//! | `connection` | string | intent, refusal, approval | the tenant's connection |
//! | `risks` | array of strings | intent | risk classes of the capability |
//! | `params` | object | intent, refusal, approval | the decoded params, sorted by name |
//! | `policy_version` | digest | intent, refusal, approval, event | the bundle that decided |
//! | `held` | object | approval | `digest`, `groups`, `quorum`, `requested_at`, `expires_at`, `state`, in this order |
//! | `answers` | array of objects | intent, approval | `approver`, `groups`, `verdict`, `at`, `note`: the history of the approval |
//! | `method` | string | intent, refusal | HTTP method |
//! | `host` | string | intent, refusal, event | the name asked for; the address that the kernel refused |
//! | `path` | string | intent, refusal | raw path, never the query |
//! | `workload` | object | intent, refusal, event | `id` (cgroup v2 id), `pid`, `exe`, `cgroup` |
//! | `credential_version` | integer | outcome, event | version of the credential that was lent, put or rotated |
//! | `salt` | 32 hex digits | intent, outcome | 16 random bytes, fresh for this record; there if one of the next two is |
//! | `request_digest` | digest | intent, outcome | SHA-256(salt ‖ SHA-256(request body)) |
//! | `response_digest` | digest | outcome | SHA-256(salt ‖ SHA-256(response body)) |
//! | `request_bytes` | integer | outcome | body bytes sent upstream |
//! | `response_bytes` | integer | outcome | body bytes received from upstream |
//! | `request_frames` | integer | outcome | WebSocket frames sent upstream |
//! | `response_frames` | integer | outcome | WebSocket frames received from upstream |
//! | `upstream_us` | integer | outcome | microseconds from the first byte sent to the last received |
//! | `by` | string | event | the person who did it |
//! | `trace` | string | intent, outcome, refusal | joins records, metrics and traces |
//! | `detail` | string | any | in words |
//!
//! Texts that come from an agent are cut at [`MAX_TEXT`] bytes and end in `…` then.
//!
//! # Not there yet
//! The design also names the user or trigger and the task id of a call. Nothing in Sluice knows them so far;
//! they will be members after `trace`. "Data touched" is `capability`, `risks`, `params` and the sizes.

use std::collections::BTreeMap;

use policies::{
    AgentId, ApprovalId, ApprovalState, Approver, CapabilityId, ConnectionName, CredentialId,
    Digest, Group, Owner, PolicyId, PolicyVersion, Reason, Risk, Tenant, Timestamp, Value, Verdict,
};
use serde::{Deserialize, Serialize};

use crate::facts::WorkloadFacts;
use crate::tree;

/// The most bytes a record may have, without its newline.
pub const MAX_RECORD: usize = 256 * 1024;

/// The most bytes of one text that an agent chose.
pub const MAX_TEXT: usize = 4096;

/// What a record is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A held call was asked about, answered, or ran out of time.
    Approval,
    /// Something outside any call.
    Event,
    /// A permitted call is about to leave.
    Intent,
    /// A call that had an intent is over.
    Outcome,
    /// A call, connection, name or packet was refused.
    Refusal,
}

impl std::str::FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Kind, UnknownKind> {
        match text {
            "approval" => Ok(Kind::Approval),
            "event" => Ok(Kind::Event),
            "intent" => Ok(Kind::Intent),
            "outcome" => Ok(Kind::Outcome),
            "refusal" => Ok(Kind::Refusal),
            _ => Err(UnknownKind),
        }
    }
}

/// The text names no [`Kind`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a kind of record: choose approval, event, intent, outcome or refusal")]
pub struct UnknownKind;

/// The decision on the call that a record is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionName {
    /// It may leave.
    Allow,
    /// It may not.
    Deny,
    /// A person must answer first.
    Hold,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeName {
    /// Given up before an answer: the agent went away, or we did in good order.
    Aborted,
    /// The upstream's answer was relayed.
    Answered,
    /// It failed; `reason` says why.
    Failed,
    /// The daemon ended before the call did. It may or may not have reached the upstream.
    Unknown,
}

/// What happened, for records of kind `approval` and `event`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each name says it; the facts are in facts.rs")]
pub enum Event {
    AgentDisabled,
    AgentEnabled,
    Answered,
    BundleLoaded,
    BundleRejected,
    CaRotated,
    CaRotationFinished,
    ControlRefused,
    DaemonStarted,
    DaemonStopped,
    EnforcementFault,
    Expired,
    KernelRefusal,
    PanicEngaged,
    PanicLifted,
    Requested,
    SecretPut,
    SecretRevoked,
    SecretRotated,
    WorkloadEnded,
    WorkloadStarted,
}

/// What a held call waits for.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HeldRecord {
    /// What the approval is bound to.
    pub digest: Digest,
    /// Whose members may answer.
    pub groups: Vec<Group>,
    /// How many must say yes.
    pub quorum: u32,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// When silence becomes a no.
    pub expires_at: Timestamp,
    /// Where it stands after this record.
    pub state: ApprovalState,
}

/// One answer to a held call.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct AnswerRecord {
    /// Who.
    pub approver: Approver,
    /// In which capacity.
    pub groups: Vec<Group>,
    /// Yes or no.
    pub verdict: Verdict,
    /// When.
    pub at: Timestamp,
    /// With which words.
    pub note: Option<String>,
}

/// A record, with its members in the order in which they are written.
///
/// INVARIANT: the order of these fields is the order of the documented bytes; `record_bytes_are_as_documented` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "the module documentation describes each member"
)]
pub struct Record {
    pub index: u64,
    pub prev: Digest,
    pub tenant: Tenant,
    pub kind: Kind,
    pub at: Timestamp,
    pub agent: Option<AgentId>,
    pub capability: Option<CapabilityId>,
    pub decision: Option<DecisionName>,
    pub reason: Option<Reason>,
    pub policies: Vec<PolicyId>,
    pub approval: Option<ApprovalId>,
    pub credential: Option<CredentialId>,
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Event>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub risks: Vec<Risk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<BTreeMap<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<PolicyVersion>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadFacts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_version: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_frames: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_frames: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Record {
    /// A record of which only the log, the kind and the time are known. The writer gives it its index.
    pub(crate) fn new(tenant: Tenant, kind: Kind, at: Timestamp) -> Record {
        Record {
            index: 0,
            prev: tree::NO_LEAF,
            tenant,
            kind,
            at,
            agent: None,
            capability: None,
            decision: None,
            reason: None,
            policies: Vec::new(),
            approval: None,
            credential: None,
            status: None,
            event: None,
            outcome: None,
            intent: None,
            owner: None,
            connection: None,
            risks: Vec::new(),
            params: None,
            policy_version: None,
            held: None,
            answers: Vec::new(),
            method: None,
            host: None,
            path: None,
            workload: None,
            credential_version: None,
            salt: None,
            request_digest: None,
            response_digest: None,
            request_bytes: None,
            response_bytes: None,
            request_frames: None,
            response_frames: None,
            upstream_us: None,
            by: None,
            trace: None,
            detail: None,
        }
    }

    /// [`Record::outcome`] of an intent that nobody needs any more, in its place.
    pub(crate) fn into_outcome(mut self: Box<Record>, index: u64) -> Box<Record> {
        let blank = Record::new(self.tenant.clone(), Kind::Outcome, self.at);
        let intent = std::mem::replace(&mut *self, blank);
        self.outcome = Some(OutcomeName::Unknown);
        self.intent = Some(index);
        self.agent = intent.agent;
        self.capability = intent.capability;
        self.decision = intent.decision;
        self.policies = intent.policies;
        self.approval = intent.approval;
        self.credential = intent.credential;
        self.trace = intent.trace;
        self
    }

    /// The outcome of this intent as far as the intent determines it: nobody knows how it ended.
    /// `None` where the index of the intent is not known yet.
    pub(crate) fn outcome(&self, index: Option<u64>, at: Timestamp) -> Record {
        Record {
            outcome: Some(OutcomeName::Unknown),
            intent: index,
            agent: self.agent.clone(),
            capability: self.capability.clone(),
            decision: self.decision,
            policies: self.policies.clone(),
            approval: self.approval,
            credential: self.credential.clone(),
            trace: self.trace.clone(),
            ..Record::new(self.tenant.clone(), Kind::Outcome, at)
        }
    }
}

#[cfg(test)]
mod tests;
