//! Allow, hold or deny (step 6 of the path), and the proofs each carries: `Permit`, `Held`, `Denied`.
//! `Bundle::decide` is the only maker of a `Permit`, and a `Permit` is the only way on to the audit log.
//! INVARIANT: unknown agent, disabled agent, changed connection, evaluation error: each is a deny with its reason.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::approval::{self, Grant};
use crate::bundle::Bundle;
use crate::cedar::Outcome;
use crate::{
    Agent, ApprovalId, Call, CredentialId, Digest, Group, PolicyId, PolicyVersion, Reason,
    Timestamp,
};

/// What holds at the moment of a decision and is not in the bundle or the call.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The time that policies see as `context.now`.
    pub now: Timestamp,
    /// Whether the agent's kill switch is on.
    pub disabled: bool,
}

/// The answer to one call.
#[must_use = "a decision that is dropped is a call that is not answered"]
#[derive(Debug)]
pub enum Decision {
    /// The call may go, once.
    Allow(Permit),
    /// A person must say yes first.
    Hold(Held),
    /// The call must not go.
    Deny(Denied),
}

/// Proof that a call was allowed. Consumed by the audit log, whose record is the next proof.
///
/// Only [`Bundle::decide`] makes one. It cannot be forged:
///
/// ```compile_fail,E0451
/// fn forge(call: policies::Call, version: policies::PolicyVersion) -> policies::Permit {
///     policies::Permit { call, policies: Vec::new(), version, approval: None }
/// }
/// ```
///
/// nor used twice (using it once is fine):
///
/// ```
/// fn record(_: policies::Permit) {}
/// fn once(permit: policies::Permit) { record(permit) }
/// ```
/// ```compile_fail,E0382
/// fn record(_: policies::Permit) {}
/// fn twice(permit: policies::Permit) { record(permit); record(permit) }
/// ```
///
/// nor copied:
///
/// ```compile_fail,E0599
/// fn copy(permit: policies::Permit) -> policies::Permit { Clone::clone(&permit) }
/// ```
#[must_use = "a permit that is not recorded lets nothing out"]
#[derive(Debug)]
pub struct Permit {
    call: Call,
    policies: Vec<PolicyId>,
    version: PolicyVersion,
    approval: Option<ApprovalId>,
}

impl Permit {
    /// The call that may go.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The permits that determined the decision, sorted.
    pub fn policies(&self) -> &[PolicyId] {
        &self.policies
    }

    /// The bundle that decided.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// The approval this permit uses up, if the call was held.
    pub fn approval(&self) -> Option<&ApprovalId> {
        self.approval.as_ref()
    }

    /// Ends the proof and gives the call back: for the audit log, which makes the next proof of it.
    pub fn into_call(self) -> Call {
        self.call
    }
}

/// A call that may go once the named groups have approved it.
#[must_use = "a held call that is dropped is never answered"]
#[derive(Debug)]
pub struct Held {
    call: Call,
    policies: Vec<PolicyId>,
    ask: Ask,
    version: PolicyVersion,
}

/// What a held call asks for. The union over the policies that held it: all their groups, the
/// shortest `@within`, the highest `@quorum`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) groups: Vec<Group>,
    pub(crate) within: Duration,
    pub(crate) quorum: u32,
}

impl Held {
    /// The call that is held.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The forbids that hold it, sorted.
    pub fn policies(&self) -> &[PolicyId] {
        &self.policies
    }

    /// The groups that must approve, each of them; sorted, never empty.
    pub fn groups(&self) -> &[Group] {
        &self.ask.groups
    }

    /// How long the approvers have.
    pub fn within(&self) -> Duration {
        self.ask.within
    }

    /// How many distinct approvers each group must bring; at least 1.
    pub fn quorum(&self) -> u32 {
        self.ask.quorum
    }

    /// The bundle that held it.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// What an approval of this call is bound to: SHA-256 over agent, connection, capability,
    /// endpoint, canonical params, `body` and the policy version.
    ///
    /// `body` must cover everything of the request that the params do not: method, raw path, query, headers, content.
    #[must_use]
    pub fn digest(&self, body: &Digest) -> Digest {
        approval::held_digest(&self.call, body, &self.version)
    }

    /// Gives the call back, to decide it again once it is approved.
    pub fn into_call(self) -> Call {
        self.call
    }
}

/// A call that must not go.
#[derive(Debug)]
pub struct Denied {
    /// `AgentDisabled`, `AgentUnknown`, `PolicyDenied` or `PolicyError`.
    pub reason: Reason,
    /// The policies that determined it, sorted; empty where no policy permits the call.
    pub policies: Vec<PolicyId>,
    /// For people: what stood in the way, from the policies' `@reason` and `@hint`.
    pub detail: String,
    /// The call that was denied.
    pub call: Call,
}

impl Bundle {
    /// Decides a call under this bundle.
    ///
    /// With a grant, the groups that approved are facts (`context.approvals`) and today's policies
    /// judge the call with them: if they want another group by now, the call is held again.
    pub fn decide(&self, call: Call, facts: &Facts, grant: Option<Grant>) -> Decision {
        if facts.disabled {
            let policies = self.engine().kill_switch();
            return deny(
                call,
                Reason::AgentDisabled,
                policies,
                "this agent is disabled".to_owned(),
            );
        }
        if let Err((reason, detail)) = self.still_stands(&call) {
            return deny(call, reason, Vec::new(), detail);
        }
        match grant {
            None => self.decide_unapproved(call, facts),
            Some(grant) => self.decide_approved(call, facts, grant),
        }
    }

    fn decide_unapproved(&self, call: Call, facts: &Facts) -> Decision {
        match self.engine().decide(&call, facts.now, &BTreeSet::new()) {
            Outcome::Allow { policies } => self.allow(call, policies, None),
            Outcome::Hold { policies, ask } => self.hold(call, policies, ask),
            Outcome::Deny {
                reason,
                policies,
                detail,
            } => deny(call, reason, policies, detail),
        }
    }

    fn decide_approved(&self, call: Call, facts: &Facts, grant: Grant) -> Decision {
        if !grant.covers(&call) {
            let detail = "the approval was given for another call".to_owned();
            return deny(call, Reason::PolicyDenied, Vec::new(), detail);
        }
        let (approval, groups) = grant.into_facts();
        match self.engine().decide(&call, facts.now, &groups) {
            Outcome::Allow { policies } => self.allow(call, policies, Some(approval)),
            Outcome::Hold { policies, ask } => self.hold(call, policies, ask),
            Outcome::Deny {
                reason,
                policies,
                detail,
            } => deny(call, reason, policies, detail),
        }
    }

    /// A call outlives the bundle it was made under (it is held, then decided again): whatever it
    /// carries must still be so, or a removed connection or an old credential would be lent.
    pub(crate) fn still_stands(&self, call: &Call) -> Result<&Agent, (Reason, String)> {
        let Some(agent) = self.agent(call.agent()) else {
            return Err((
                Reason::AgentUnknown,
                format!("agent `{}` is not configured", call.agent()),
            ));
        };
        if offers(self, agent, call) {
            Ok(agent)
        } else {
            let detail = format!(
                "connection `{}` of agent `{}` no longer offers `{}` as it did when the call was made",
                call.connection(),
                call.agent(),
                call.capability(),
            );
            Err((Reason::PolicyDenied, detail))
        }
    }

    fn allow(&self, call: Call, policies: Vec<PolicyId>, approval: Option<ApprovalId>) -> Decision {
        Decision::Allow(Permit {
            call,
            policies,
            version: self.version(),
            approval,
        })
    }

    fn hold(&self, call: Call, policies: Vec<PolicyId>, ask: Ask) -> Decision {
        Decision::Hold(Held {
            call,
            policies,
            ask,
            version: self.version(),
        })
    }
}

/// Whether the agent's connection still offers the call: same owner, connector, credential and its place, demands on upstream's TLS, host, capability and risks.
fn offers(bundle: &Bundle, agent: &Agent, call: &Call) -> bool {
    let connection = agent
        .connections()
        .iter()
        .find(|one| one.name() == call.connection());
    let connection = connection.filter(|one| one.connector() == call.connector());
    let (Some(connection), Some(connector)) = (connection, bundle.connector(call.connector()))
    else {
        return false;
    };

    let credential = connection.credential();
    let credential = credential.map(|name| CredentialId {
        tenant: agent.id().tenant.clone(),
        name: name.clone(),
    });
    let hosts = if connection.hosts().is_empty() {
        connector.hosts()
    } else {
        connection.hosts()
    };
    let auth = connection
        .auth()
        .unwrap_or_else(|| connector.auth_at(call.endpoint()));
    let name = &call.capability().name;
    let limited = connection.capabilities();
    agent.owner() == call.owner()
        && credential == call.credential()
        && connection.peer() == call.peer()
        && auth == call.auth()
        && hosts.iter().any(|host| host.matches(call.endpoint()))
        && limited.is_none_or(|patterns| {
            patterns
                .iter()
                .any(|pattern| pattern.matches(name.as_str()))
        })
        && connector
            .capability(name)
            .is_some_and(|capability| capability.risks() == call.risks())
}

fn deny(call: Call, reason: Reason, policies: Vec<PolicyId>, detail: String) -> Decision {
    Decision::Deny(Denied {
        reason,
        policies,
        detail,
        call,
    })
}
