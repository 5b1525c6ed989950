//! Why a call is decided as it is, what approval it would need, and what stage would be enough: `sluice policy explain`.
//! Not on the path of a request; it asks the engine what the engine would decide.
//! INVARIANT: an explanation never disagrees with the decision, for it is made by the same passes; and it is no permit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::entities::Subject;
use super::{Engine, Outcome};
use crate::bundle::Bundle;
use crate::decision::{Ask, Facts};
use crate::{
    Agent, AgentId, Call, CapabilityId, Group, PolicyId, Reason, Risk, Stage, Timestamp, Value,
};

/// A decision with everything that led to it. No proof: nothing leaves on the strength of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The agent that asks.
    pub agent: AgentId,
    /// Its stage.
    pub stage: Stage,
    /// What it asks for.
    pub capability: CapabilityId,
    /// The capability's risk classes.
    pub risks: Vec<Risk>,
    /// The decoded params.
    pub params: BTreeMap<String, Value>,
    /// Allow, deny or hold.
    pub decision: Ruling,
    /// The refusal's name, unless the call is allowed.
    pub reason: Option<Reason>,
    /// For people: what stood in the way; empty where nothing did.
    pub detail: String,
    /// The determining policies.
    pub policies: Vec<DeterminingPolicy>,
    /// What approval it needs, if one would do.
    pub approval: Option<NeededApproval>,
    /// The lowest stage at which the call would go without asking anybody; none if no stage is enough.
    pub stage_to_allow: Option<Stage>,
    /// The lowest stage at which the call would go or be held for a person; none if no stage is enough.
    pub stage_to_ask: Option<Stage>,
}

/// A decision's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// It may go.
    Allow,
    /// It must not.
    Deny,
    /// It waits for a person.
    Hold,
}

/// A policy that determined a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeterminingPolicy {
    /// Its `@id`.
    pub id: PolicyId,
    /// Where it stands, `file:line`.
    pub at: String,
    /// `permit` or `forbid`.
    pub effect: &'static str,
    /// Its `@reason`.
    pub reason: Option<String>,
    /// The group whose approval lifts it.
    pub approval: Option<Group>,
    /// Whether it came with Sluice.
    pub shipped: bool,
}

/// What a held call asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeededApproval {
    /// Each of these groups must approve.
    pub groups: Vec<Group>,
    /// Seconds until the answer is no.
    pub within_seconds: u64,
    /// Distinct approvers that each group must bring.
    pub quorum: u32,
}

impl Bundle {
    /// Explains how this call would be decided.
    pub fn explain(&self, call: &Call, facts: &Facts) -> Explanation {
        match self.still_stands(call) {
            Ok(agent) => self.explain_as(agent, call, facts, agent.stage(), &BTreeSet::new()),
            Err((reason, detail)) => {
                let outcome = Outcome::Deny {
                    reason,
                    policies: Vec::new(),
                    detail,
                };
                let stage = self
                    .agent(call.agent())
                    .map_or(Stage::Observe, Agent::stage);
                self.engine().explanation(call, stage, outcome)
            }
        }
    }

    /// The same, were the agent at `stage` and had `approvals` been given.
    pub(crate) fn explain_as(
        &self,
        agent: &Agent,
        call: &Call,
        facts: &Facts,
        stage: Stage,
        approvals: &BTreeSet<Group>,
    ) -> Explanation {
        let outcome_at = |stage| self.outcome_at(agent, call, facts, stage, approvals);
        let lowest = |fits: fn(&Outcome) -> bool| {
            Stage::ALL
                .into_iter()
                .find(|stage| fits(&outcome_at(*stage)))
        };
        Explanation {
            stage_to_allow: lowest(|outcome| matches!(outcome, Outcome::Allow { .. })),
            stage_to_ask: lowest(|outcome| !matches!(outcome, Outcome::Deny { .. })),
            ..self.engine().explanation(call, stage, outcome_at(stage))
        }
    }

    /// A policy of this bundle, as an approver is told about it.
    pub fn policy(&self, id: &PolicyId) -> Option<DeterminingPolicy> {
        self.engine().determining(id)
    }

    fn outcome_at(
        &self,
        agent: &Agent,
        call: &Call,
        facts: &Facts,
        stage: Stage,
        approvals: &BTreeSet<Group>,
    ) -> Outcome {
        match Subject::build(self.catalogue(), agent, stage, facts.disabled) {
            Ok(subject) => self
                .engine()
                .decide_as(&subject, call, facts.now, approvals),
            Err(error) => Outcome::Deny {
                reason: Reason::PolicyError,
                policies: Vec::new(),
                detail: error.to_string(),
            },
        }
    }
}

impl Engine {
    /// Decides for a subject that is not the bundle's own: another stage, or disabled.
    fn decide_as(
        &self,
        subject: &Subject,
        call: &Call,
        now: Timestamp,
        approvals: &BTreeSet<Group>,
    ) -> Outcome {
        match self.slices.action(call.capability()) {
            Some(action) => {
                self.two_passes(subject, action, &action.policies, call, now, approvals)
            }
            None => self.decide(call, now, approvals),
        }
    }

    fn explanation(&self, call: &Call, stage: Stage, outcome: Outcome) -> Explanation {
        let (decision, reason, policies, detail, ask) = match outcome {
            Outcome::Allow { policies } => (Ruling::Allow, None, policies, String::new(), None),
            Outcome::Deny {
                reason,
                policies,
                detail,
            } => (Ruling::Deny, Some(reason), policies, detail, None),
            Outcome::Hold { policies, ask } => {
                let detail = self.whys(&policies);
                (
                    Ruling::Hold,
                    Some(Reason::ApprovalRequired),
                    policies,
                    detail,
                    Some(ask),
                )
            }
        };
        Explanation {
            agent: call.agent().clone(),
            stage,
            capability: call.capability().clone(),
            risks: call.risks().to_vec(),
            params: call.params().clone(),
            decision,
            reason,
            detail,
            policies: policies
                .iter()
                .filter_map(|id| self.determining(id))
                .collect(),
            approval: ask.map(NeededApproval::from),
            stage_to_allow: None,
            stage_to_ask: None,
        }
    }

    fn determining(&self, id: &PolicyId) -> Option<DeterminingPolicy> {
        let rule = self.rules.get(id)?;
        Some(DeterminingPolicy {
            id: id.clone(),
            at: format!("{}:{}", rule.file().display(), rule.line()),
            effect: if rule.is_forbid() { "forbid" } else { "permit" },
            reason: rule.reason.clone(),
            approval: rule.approval.as_ref().map(|approve| approve.group.clone()),
            shipped: rule.shipped,
        })
    }
}

impl From<Ask> for NeededApproval {
    fn from(ask: Ask) -> Self {
        Self {
            groups: ask.groups,
            within_seconds: ask.within.as_secs(),
            quorum: ask.quorum,
        }
    }
}

impl fmt::Display for Ruling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Hold => "hold",
        })
    }
}

/// Several lines of text; no line end after the last.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let risks: Vec<&str> = self.risks.iter().map(|risk| risk.as_str()).collect();
        write!(
            f,
            "{}: {} by {} (stage {})",
            self.decision, self.capability, self.agent, self.stage
        )?;
        write!(f, "\n  risk: {}", risks.join(", "))?;
        for (name, value) in &self.params {
            write!(f, "\n  param {name} = {value}")?;
        }
        if let Some(reason) = self.reason {
            write!(f, "\n  reason: {reason}: {}", self.detail)?;
        }
        for policy in &self.policies {
            write!(f, "\n  {policy}")?;
        }
        if let Some(approval) = &self.approval {
            write!(f, "\n  needs: {approval}")?;
        }
        match (self.decision, self.stage_to_ask, self.stage_to_allow) {
            (Ruling::Allow, ..) => Ok(()),
            (_, None, _) => write!(f, "\n  no stage would be enough"),
            (Ruling::Hold, _, Some(stage)) => {
                write!(f, "\n  at stage {stage} it would go without asking")
            }
            (Ruling::Hold, _, None) => write!(f, "\n  at every stage it would be asked for"),
            (Ruling::Deny, Some(ask), Some(allow)) if ask == allow => {
                write!(f, "\n  at stage {allow} it would go")
            }
            (Ruling::Deny, Some(ask), allow) => {
                write!(f, "\n  at stage {ask} it would be held for a person")?;
                allow.map_or(Ok(()), |allow| write!(f, ", at stage {allow} it would go"))
            }
        }
    }
}

impl fmt::Display for DeterminingPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shipped = if self.shipped { ", shipped" } else { "" };
        write!(f, "{} `{}` ({}{shipped})", self.effect, self.id, self.at)?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for NeededApproval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<&str> = self.groups.iter().map(Group::as_str).collect();
        let each = if self.quorum == 1 {
            "one approver".to_owned()
        } else {
            format!("{} approvers", self.quorum)
        };
        write!(
            f,
            "{each} of {}, within {}",
            groups.join(" and of "),
            span(self.within_seconds)
        )
    }
}

/// As `@within` is written: the largest unit that says it in a whole number.
fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let whole = units
        .into_iter()
        .find(|(unit, _)| seconds != 0 && seconds.is_multiple_of(*unit));
    let (unit, name) = whole.unwrap_or((1, "s"));
    format!("{}{name}", seconds / unit)
}
