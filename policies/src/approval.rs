//! Approvals: a person's recorded answer to one held call, as a pure state machine (step 6 of the path).
//! The only place where a `Grant` is made, and only from an `Approval` that is approved, in time and for this very call.
//! INVARIANT: expiry and denial are final; one approval gives at most one grant; nobody approves their own agent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::canonical::Canonical;
use crate::decision::Held;
use crate::{
    AgentId, ApprovalId, Approver, Call, CapabilityId, ConnectionName, Digest, Group, Owner,
    PolicyId, PolicyVersion, Timestamp, Value,
};

/// A held call and the answers to it so far. Stored as it is by the audit log.
///
/// The fields are public because the log, the CLI and notifications show them. `state` is what the
/// answers add up to; [`Approval::take`] counts the answers again and does not trust it alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The name an approver answers to.
    pub id: ApprovalId,
    /// The agent whose call is held.
    pub agent: AgentId,
    /// The agent's owner, who may not approve.
    pub owner: Owner,
    /// The connection the call uses.
    pub connection: ConnectionName,
    /// What the call would do.
    pub capability: CapabilityId,
    /// The decoded parameters, as shown to the approver.
    pub params: BTreeMap<String, Value>,
    /// What the approval is bound to, see [`Held::digest`].
    pub digest: Digest,
    /// The digest of the request's content that went into `digest`.
    pub body: Digest,
    /// The policies that held the call.
    pub policies: Vec<PolicyId>,
    /// The groups that must approve: each of them.
    pub groups: Vec<Group>,
    /// How many distinct approvers each group must bring; at least 1.
    pub quorum: u32,
    /// When the call was held.
    pub requested_at: Timestamp,
    /// From this moment on the answer is no.
    pub expires_at: Timestamp,
    /// The policies under which the call was held; part of `digest`.
    pub policy_version: PolicyVersion,
    /// Where the approval stands.
    pub state: ApprovalState,
    /// Every accepted answer, oldest first.
    pub answers: Vec<Answer>,
}

/// Where an approval stands. Only `Pending` and `Approved` ever change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// Every group's quorum said yes; not yet used.
    Approved,
    /// Somebody said no.
    Denied,
    /// The deadline passed first.
    Expired,
    /// Waiting for answers.
    Pending,
    /// The grant was taken.
    Used,
}

/// One approver's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Who answered, as the control socket or the identity provider established it.
    pub approver: Approver,
    /// The groups the approver was a member of at that moment.
    pub groups: Vec<Group>,
    /// Yes or no.
    pub verdict: Verdict,
    /// When.
    pub at: Timestamp,
    /// What the approver wrote with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Let the call go, once.
    Approve,
    /// Do not; final for this approval.
    Deny,
}

/// Why an answer was not taken. The approval is unchanged, except that `Expired` closes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// The approver has answered this approval before.
    #[error("{0} has already answered this approval")]
    AlreadyAnswered(Approver),
    /// The approval is no longer pending.
    #[error("this approval is closed: it is {0}")]
    Closed(ApprovalState),
    /// The deadline has passed.
    #[error("this approval expired at {0}")]
    Expired(Timestamp),
    /// The approver is in none of the groups that are asked.
    #[error("{approver} is in none of the groups asked for: {}", list(.asked))]
    NotAMember {
        /// Who tried to answer.
        approver: Approver,
        /// The groups that may.
        asked: Vec<Group>,
    },
    /// The approver owns the agent, or is the agent.
    #[error("{0} may not answer for an agent of their own")]
    OwnAgent(Approver),
}

/// The fact that one held call was approved: what `Bundle::decide` turns into `context.approvals`.
///
/// Made only by [`Approval::take`]:
///
/// ```compile_fail,E0451
/// fn forge(approval: policies::ApprovalId) -> policies::Grant {
///     policies::Grant { approval, groups: Vec::new(), call: policies::Digest::of(b"") }
/// }
/// ```
#[must_use = "a grant that is not decided on is an approval used up for nothing"]
#[derive(Debug)]
pub struct Grant {
    approval: ApprovalId,
    groups: BTreeSet<Group>,
    call: Digest,
}

impl Grant {
    /// The approval this grant was taken from.
    pub fn approval(&self) -> &ApprovalId {
        &self.approval
    }

    /// The groups that approved.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    /// Whether the approval was for this call (as [`Held::digest`], without body and policy version).
    pub(crate) fn covers(&self, call: &Call) -> bool {
        self.call == call_digest(call)
    }

    pub(crate) fn into_facts(self) -> (ApprovalId, BTreeSet<Group>) {
        (self.approval, self.groups)
    }
}

impl Approval {
    /// Opens an approval for a held call. `body` is the digest of the whole request content
    /// (everything the approver agrees to that the params do not show).
    pub fn request(held: &Held, body: &Digest, id: ApprovalId, now: Timestamp) -> Self {
        let call = held.call();
        Self {
            id,
            agent: call.agent().clone(),
            owner: call.owner().clone(),
            connection: call.connection().clone(),
            capability: call.capability().clone(),
            params: call.params().clone(),
            digest: held.digest(body),
            body: *body,
            policies: held.policies().to_vec(),
            groups: held.groups().to_vec(),
            quorum: held.quorum(),
            requested_at: now,
            expires_at: now + held.within(),
            policy_version: held.version(),
            state: ApprovalState::Pending,
            answers: Vec::new(),
        }
    }

    /// Takes an answer at `answer.at`. A no is final; a yes counts in every asked group the approver is in.
    ///
    /// # Errors
    /// [`AnswerError`]; the answer is then not recorded.
    pub fn answer(&mut self, answer: Answer) -> Result<ApprovalState, AnswerError> {
        if self.expire(answer.at) {
            return Err(AnswerError::Expired(self.expires_at));
        }
        if self.state != ApprovalState::Pending {
            return Err(AnswerError::Closed(self.state));
        }
        if self.is_own_agent(&answer.approver) {
            return Err(AnswerError::OwnAgent(answer.approver));
        }
        if !answer
            .groups
            .iter()
            .any(|group| self.groups.contains(group))
        {
            return Err(AnswerError::NotAMember {
                approver: answer.approver,
                asked: self.groups.clone(),
            });
        }
        if self
            .answers
            .iter()
            .any(|earlier| same_name(earlier.approver.as_str(), answer.approver.as_str()))
        {
            return Err(AnswerError::AlreadyAnswered(answer.approver));
        }

        let denied = answer.verdict == Verdict::Deny;
        self.answers.push(answer);
        if denied {
            self.state = ApprovalState::Denied;
        } else if self.is_satisfied() {
            self.state = ApprovalState::Approved;
        }
        Ok(self.state)
    }

    /// Closes the approval if its deadline has come, also when it was approved but never used.
    /// True if it expired now.
    pub fn expire(&mut self, now: Timestamp) -> bool {
        let open = matches!(self.state, ApprovalState::Approved | ApprovalState::Pending);
        let expires = open && now >= self.expires_at;
        if expires {
            self.state = ApprovalState::Expired;
        }
        expires
    }

    /// Uses the approval for `held`: once, in time, and only for the call and policies it was asked for.
    ///
    /// # Errors
    /// The state that stands in the way. `Approved` means: approved, but for another call, other
    /// content or under other policies; the approval stays as it is.
    pub fn take(
        &mut self,
        held: &Held,
        body: &Digest,
        now: Timestamp,
    ) -> Result<Grant, ApprovalState> {
        self.expire(now);
        if self.state != ApprovalState::Approved {
            return Err(self.state);
        }
        if self.digest != held.digest(body) {
            return Err(ApprovalState::Approved);
        }
        // A record that says approved without the answers for it was not made by `answer`.
        if !self.is_satisfied() {
            return Err(ApprovalState::Pending);
        }

        self.state = ApprovalState::Used;
        Ok(Grant {
            approval: self.id,
            groups: self.groups.iter().cloned().collect(),
            call: call_digest(held.call()),
        })
    }

    /// What each asked group still lacks, for people: (group, approvals so far, approvals needed).
    pub fn progress(&self) -> Vec<(Group, u32, u32)> {
        let needed = self.quorum.max(1);
        self.groups
            .iter()
            .map(|group| (group.clone(), self.approvals_of(group), needed))
            .collect()
    }

    fn is_satisfied(&self) -> bool {
        let denied = self
            .answers
            .iter()
            .any(|answer| answer.verdict == Verdict::Deny);
        !denied
            && !self.groups.is_empty()
            && self
                .groups
                .iter()
                .all(|group| self.approvals_of(group) >= self.quorum.max(1))
    }

    /// Distinct members of `group` that said yes, the owner and the agent never counted.
    fn approvals_of(&self, group: &Group) -> u32 {
        let approvers: BTreeSet<String> = self
            .answers
            .iter()
            .filter(|answer| answer.verdict == Verdict::Approve && answer.groups.contains(group))
            .filter(|answer| !self.is_own_agent(&answer.approver))
            .map(|answer| answer.approver.as_str().to_lowercase())
            .collect();
        u32::try_from(approvers.len()).unwrap_or(u32::MAX)
    }

    /// The owner, or the agent under either of its names. An owner `alice@example.com` is also `alice`:
    /// on the control socket people are local user names, in agent files mostly addresses.
    fn is_own_agent(&self, approver: &Approver) -> bool {
        let approver = approver.as_str();
        let owner = self.owner.as_str();
        same_name(approver, owner)
            || same_name(approver, local_part(owner)) && !approver.contains('@')
            || same_name(local_part(approver), owner) && !owner.contains('@')
            || same_name(approver, &self.agent.to_string())
            || same_name(approver, self.agent.name.as_str())
    }
}

impl std::fmt::Display for ApprovalState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Pending => "pending",
            Self::Used => "used",
        })
    }
}

/// What an approval is bound to: SHA-256 over agent, connection, capability, endpoint, path
/// template, canonical params, `body` and the policy version, in the encoding of [`Canonical`].
pub(crate) fn held_digest(call: &Call, body: &Digest, version: &PolicyVersion) -> Digest {
    let mut canonical = Canonical::new("sluice held call v1");
    write_call(&mut canonical, call);
    canonical.bytes(body.as_bytes());
    canonical.bytes(version.digest().as_bytes());
    canonical.digest()
}

fn call_digest(call: &Call) -> Digest {
    let mut canonical = Canonical::new("sluice call v1");
    write_call(&mut canonical, call);
    canonical.digest()
}

fn write_call(canonical: &mut Canonical, call: &Call) {
    canonical.text(&call.agent().to_string());
    canonical.text(call.connection().as_str());
    canonical.text(&call.capability().to_string());
    canonical.text(&call.endpoint().to_string());
    canonical.text(call.template());
    canonical.count(call.params().len());
    for (name, value) in call.params() {
        canonical.text(name);
        canonical.value(value);
    }
}

fn same_name(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

fn local_part(name: &str) -> &str {
    name.split_once('@').map_or(name, |(local, _)| local)
}

fn list(groups: &[Group]) -> String {
    groups
        .iter()
        .map(Group::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}
