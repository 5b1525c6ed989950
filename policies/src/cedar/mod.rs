//! Decisions by Cedar: schema, entities, sliced policies, and the two passes that tell hold from deny (step 6 of the path).
//! Everything is built when a bundle loads; a decision builds one context and evaluates the policies of one action.
//! INVARIANT: an evaluation error is a deny; a forbid is lifted by an approval only if it says so itself.
//!
//! # How a decision is made
//!
//! Pass 1 evaluates the call with the approvals it has (none, unless a person said yes to this very call).
//! If it is denied and *every* determining policy is a forbid with `@approval`, pass 2 assumes approvals of the groups
//! that these name. If that allows the call, it is held for them: all the groups, the shortest `@within`, the highest
//! `@quorum`. If not, it is denied, and pass 2's policies are the reason: asking people would be for nothing.
//!
//! # How shipped policies and an operator's compose
//!
//! In Cedar a forbid always wins over a permit, and what nothing permits is denied. So each shipped default is a
//! permit or a forbid by what an operator should be able to do about it *without noticing it*:
//!
//! - **Stages are permits** (`default/stages.cedar`). A stage permits a capability only if it permits every one of its
//!   risk classes: `{read, export}` is not a read. An operator's permit adds an exception for one capability, agent or
//!   tenant; that is its plain meaning. Stage `observe` is a forbid: no broad permit makes an observed agent act.
//! - **Risk defaults are forbids** (`default/risk.cedar`): below stage `autonomous`, bulk, export, financial and
//!   infrastructure are held, destructive is denied. No permit gets around them, however broad. To loosen one, an
//!   operator writes a policy with the same `@id`; it *replaces* the shipped one, and `sluice check` says so.
//! - **The kill switch is a forbid** that no policy replaces (and `Bundle::decide` asks before Cedar does).
//! - **An operator's forbids only ever tighten**, with or without `@approval`. In particular a rule about refunds over
//!   50.00 does not switch off the default about the rest: a refund without `amount` refunds *everything*, and
//!   `params has amount && ..` does not see it. The default does.
//!
//! So with the example of the design and an agent at stage `write` on a fresh install: a refund of 120.00 is held for
//! `finance` (by both policies), and so is one of 20.00 and one without amount (by `risk-financial` alone, which asks
//! `finance` and not `approvers`, so that an operator's own rule about money does not ask two groups). To let small
//! refunds go, the operator replaces `risk-financial` with one that spares them:
//!
//! ```cedar
//! @id("risk-financial") @approval("finance")
//! forbid (principal, action in Action::"financial", resource)
//! unless { principal in Stage::"autonomous" }
//! unless { action == stripe::Action::"refunds.create" && context.params has amount && context.params.amount <= 5000 }
//! unless { context.approvals.contains(Group::"finance") };
//! ```

mod check;
mod context;
mod entities;
mod explain;
mod load;
mod names;
mod rules;
mod schema;
mod slice;
mod steady;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::{Authorizer, PolicySet, Schema};

use crate::decision::Ask;
use crate::{
    AgentId, Call, Catalogue, Diagnostic, Diagnostics, Group, PolicyId, Reason, Timestamp,
};
use entities::Subject;
use slice::{Action, Slices};

pub use explain::{DeterminingPolicy, Explanation, NeededApproval, Ruling};
pub(crate) use load::{SHIPPED, load};
pub(crate) use rules::Rule;

/// The shipped policy that denies a disabled agent.
pub(crate) const KILL_SWITCH: &str = "kill-switch";
/// How long approvers have where no policy says.
const WITHIN: Duration = Duration::from_secs(15 * 60);

/// The policies of a bundle, ready to decide.
#[derive(Debug)]
pub(crate) struct Engine {
    schema: Arc<Generated>,
    rules: BTreeMap<PolicyId, Rule>,
    slices: Slices,
    subjects: HashMap<AgentId, Subject>,
    notices: Vec<Diagnostic>,
}

/// The schema made of the connectors, and its text.
#[derive(Debug)]
struct Generated {
    schema: Schema,
    text: String,
}

/// What two passes come to, without the proofs that `Bundle::decide` adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allow {
        policies: Vec<PolicyId>,
    },
    Deny {
        reason: Reason,
        policies: Vec<PolicyId>,
        detail: String,
    },
    Hold {
        policies: Vec<PolicyId>,
        ask: Ask,
    },
}

/// One evaluation. Policies are sorted.
enum Evaluated {
    Allow(Vec<PolicyId>),
    Deny(Vec<PolicyId>),
    Error(Vec<PolicyId>, String),
}

impl Engine {
    /// Checks the rules against the catalogue and builds everything that a decision reads.
    pub(crate) fn build(catalogue: &Catalogue, rules: Vec<Rule>) -> Result<Engine, Diagnostics> {
        let fragment = schema::fragment(catalogue.connectors())?;
        let text = schema::text(&fragment)?;
        let schema = Schema::from_schema_fragments([fragment])
            .map_err(|error| schema::unreadable(&error))?;
        Self::build_with(Arc::new(Generated { schema, text }), catalogue, rules)
    }

    /// The same connectors under other rules: the schema stays.
    pub(crate) fn with_rules(
        &self,
        catalogue: &Catalogue,
        rules: Vec<Rule>,
    ) -> Result<Engine, Diagnostics> {
        Self::build_with(Arc::clone(&self.schema), catalogue, rules)
    }

    fn build_with(
        schema: Arc<Generated>,
        catalogue: &Catalogue,
        rules: Vec<Rule>,
    ) -> Result<Engine, Diagnostics> {
        let notices = check::rules(&rules, &schema.schema, catalogue)?;
        let slices = Slices::build(catalogue, &rules)?;
        let mut subjects = HashMap::new();
        for agent in catalogue.agents() {
            let subject = Subject::build(catalogue, agent, agent.stage(), false);
            subjects.insert(
                agent.id().clone(),
                subject.map_err(|error| check::no_entities(agent, &error))?,
            );
        }
        let rules = rules
            .into_iter()
            .map(|rule| (rule.id.clone(), rule))
            .collect();
        Ok(Engine {
            schema,
            rules,
            slices,
            subjects,
            notices,
        })
    }

    pub(crate) fn schema_text(&self) -> &str {
        &self.schema.text
    }

    pub(crate) fn notices(&self) -> &[Diagnostic] {
        &self.notices
    }

    /// The shipped policy that denies a disabled agent, as a decision names it.
    pub(crate) fn kill_switch(&self) -> Vec<PolicyId> {
        self.rules
            .keys()
            .filter(|id| id.as_str() == KILL_SWITCH)
            .cloned()
            .collect()
    }

    /// Decides a call of a known agent with these approvals as facts.
    pub(crate) fn decide(
        &self,
        call: &Call,
        now: Timestamp,
        approvals: &BTreeSet<Group>,
    ) -> Outcome {
        match (
            self.subjects.get(call.agent()),
            self.slices.action(call.capability()),
        ) {
            (Some(subject), Some(action)) => {
                let slice = action.slice_for(call.capability(), subject);
                let decide =
                    || self.two_passes(subject, action, &slice.policies, call, now, approvals);
                if approvals.is_empty() {
                    slice.steady.outcome(call, decide)
                } else {
                    decide()
                }
            }
            _ => Outcome::Deny {
                reason: Reason::PolicyError,
                policies: Vec::new(),
                detail: format!(
                    "the policies know no agent `{}` or no capability `{}`",
                    call.agent(),
                    call.capability()
                ),
            },
        }
    }

    fn two_passes(
        &self,
        subject: &Subject,
        action: &Action,
        policies: &PolicySet,
        call: &Call,
        now: Timestamp,
        approvals: &BTreeSet<Group>,
    ) -> Outcome {
        let evaluate = |approvals: &BTreeSet<Group>| {
            let request =
                context::request(&self.schema.schema, subject, action, call, now, approvals);
            request.map_or_else(
                |error| Evaluated::Error(Vec::new(), error.to_string()),
                |request| {
                    evaluated(&Authorizer::new().is_authorized(
                        &request,
                        policies,
                        &subject.entities,
                    ))
                },
            )
        };

        let denied_by = match evaluate(approvals) {
            Evaluated::Allow(policies) => return Outcome::Allow { policies },
            Evaluated::Error(policies, detail) => return error(policies, detail),
            Evaluated::Deny(denied_by) => denied_by,
        };
        let Some(ask) = self.ask(&denied_by, approvals) else {
            return self.denied(subject, call, denied_by);
        };
        match evaluate(&ask.groups.iter().cloned().collect()) {
            Evaluated::Allow(_) => Outcome::Hold {
                policies: denied_by,
                ask,
            },
            Evaluated::Error(policies, detail) => error(policies, detail),
            Evaluated::Deny(denied_by) => self.denied(subject, call, denied_by),
        }
    }

    /// What to ask for, if asking can help: every determining policy must be a forbid with `@approval`.
    /// The groups that have approved are asked again, since a new approval starts from nothing.
    fn ask(&self, denied_by: &[PolicyId], approvals: &BTreeSet<Group>) -> Option<Ask> {
        let asked: Option<Vec<&rules::Approve>> = denied_by
            .iter()
            .map(|id| self.rules.get(id).and_then(|rule| rule.approval.as_ref()))
            .collect();
        let asked = asked.filter(|asked| !asked.is_empty())?;
        let mut groups = approvals.clone();
        groups.extend(asked.iter().map(|approve| approve.group.clone()));
        Some(Ask {
            groups: groups.into_iter().collect(),
            within: asked
                .iter()
                .filter_map(|approve| approve.within)
                .min()
                .unwrap_or(WITHIN),
            quorum: asked
                .iter()
                .filter_map(|approve| approve.quorum)
                .max()
                .unwrap_or(1),
        })
    }

    fn denied(&self, subject: &Subject, call: &Call, policies: Vec<PolicyId>) -> Outcome {
        let detail = if policies.is_empty() {
            let (capability, stage) = (call.capability(), subject.stage);
            format!("no policy permits `{capability}` to an agent at stage `{stage}`")
        } else {
            self.whys(&policies)
        };
        let disabled = policies.iter().any(|id| id.as_str() == KILL_SWITCH);
        let reason = if disabled {
            Reason::AgentDisabled
        } else {
            Reason::PolicyDenied
        };
        Outcome::Deny {
            reason,
            policies,
            detail,
        }
    }

    fn whys(&self, policies: &[PolicyId]) -> String {
        let whys: Vec<String> = policies
            .iter()
            .filter_map(|id| self.rules.get(id))
            .map(why)
            .collect();
        whys.join("; ")
    }
}

/// A policy's own words, or what it wants.
fn why(rule: &Rule) -> String {
    let plain = || match &rule.approval {
        Some(approve) => format!("policy `{}` wants approval by {}", rule.id, approve.group),
        None => format!("policy `{}` forbids it", rule.id),
    };
    let reason = rule.reason.clone().unwrap_or_else(plain);
    match &rule.hint {
        Some(hint) => format!("{reason} ({hint})"),
        None => reason,
    }
}

/// Cedar skips a policy that fails to evaluate. A skipped forbid would let a call go, so any error is one.
fn evaluated(response: &cedar_policy::Response) -> Evaluated {
    let diagnostics = response.diagnostics();
    let errors: Vec<String> = diagnostics.errors().map(ToString::to_string).collect();
    if !errors.is_empty() {
        let failed = diagnostics.errors().map(|error| match error {
            cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id(),
        });
        return Evaluated::Error(sorted(failed), errors.join("; "));
    }
    let determining = sorted(diagnostics.reason());
    match response.decision() {
        cedar_policy::Decision::Allow => Evaluated::Allow(determining),
        cedar_policy::Decision::Deny => Evaluated::Deny(determining),
    }
}

/// Rules are in the policy sets under their own ids, so every id reads back.
fn sorted<'a>(ids: impl Iterator<Item = &'a cedar_policy::PolicyId>) -> Vec<PolicyId> {
    let mut ids: Vec<PolicyId> = ids
        .filter_map(|id| AsRef::<str>::as_ref(id).parse().ok())
        .collect();
    ids.sort();
    ids
}

fn error(policies: Vec<PolicyId>, detail: String) -> Outcome {
    Outcome::Deny {
        reason: Reason::PolicyError,
        policies,
        detail,
    }
}
