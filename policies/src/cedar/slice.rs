//! Policies per action and agent: at load, each capability gets the set of those whose action scope can match it; at the first call
//! of an agent, that set is narrowed to those whose principal scope can match the agent.
//! Evaluation is linear in the policies it sees, so this is what keeps a decision's cost flat as policies grow.
//! INVARIANT: a policy is left out only where a scope of it names others, and none is this agent's or this action's; unsure is in.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use cedar_policy::{ActionConstraint, EntityUid, Policy, PolicySet, PrincipalConstraint};

use super::entities::Subject;
use super::names;
use super::rules::Rule;
use super::steady::Steady;
use crate::{Capability, CapabilityId, Catalogue, Diagnostics};

/// Every capability's action and policies.
#[derive(Debug)]
pub(super) struct Slices {
    actions: HashMap<CapabilityId, Action>,
}

/// A capability as Cedar sees it.
#[derive(Debug)]
pub(super) struct Action {
    pub(super) uid: EntityUid,
    /// Shared by all capabilities that the same policies can match.
    pub(super) policies: Arc<PolicySet>,
}

impl Slices {
    pub(super) fn build(catalogue: &Catalogue, rules: &[Rule]) -> Result<Self, Diagnostics> {
        let scopes: Vec<ActionConstraint> = rules
            .iter()
            .map(|rule| rule.policy.action_constraint())
            .collect();
        let mut sets: BTreeMap<Vec<usize>, Arc<PolicySet>> = BTreeMap::new();
        let mut actions = HashMap::new();
        for capability in catalogue
            .connectors()
            .flat_map(|connector| connector.capabilities())
        {
            let Some(uid) = names::capability(capability.id()) else {
                continue;
            };
            let groups = groups(capability);
            let matching = scopes
                .iter()
                .enumerate()
                .filter(|(_, scope)| can_match(scope, &uid, &groups));
            let matching: Vec<usize> = matching.map(|(at, _)| at).collect();
            let policies = match sets.get(&matching) {
                Some(known) => Arc::clone(known),
                None => {
                    let chosen = matching.iter().filter_map(|at| rules.get(*at));
                    let set = Arc::new(policy_set(chosen)?);
                    sets.insert(matching, Arc::clone(&set));
                    set
                }
            };
            actions.insert(capability.id().clone(), Action { uid, policies });
        }
        Ok(Self { actions })
    }

    pub(super) fn action(&self, capability: &CapabilityId) -> Option<&Action> {
        self.actions.get(capability)
    }
}

/// One agent's policies by capability, as far as it has called them. Nothing that decides: what is missing is made again, the same.
#[derive(Debug, Default)]
pub(super) struct Narrowed(RwLock<HashMap<CapabilityId, Arc<Slice>>>);

/// The policies that can match calls of one agent and one capability.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) policies: Arc<PolicySet>,
    /// What they have decided before.
    pub(super) steady: Steady,
}

impl Action {
    /// The policies of this action that can match this agent.
    pub(super) fn slice_for(&self, capability: &CapabilityId, subject: &Subject) -> Arc<Slice> {
        let known = &subject.narrowed.0;
        if let Some(set) = known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(capability)
        {
            return Arc::clone(set);
        }
        let policies = self.narrowed(subject);
        let steady = Steady::of(&policies);
        let slice = Arc::new(Slice { policies, steady });
        known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(capability.clone(), Arc::clone(&slice));
        slice
    }

    fn narrowed(&self, subject: &Subject) -> Arc<PolicySet> {
        let matching = |policy: &&Policy| can_be(&policy.principal_constraint(), subject);
        if self.policies.policies().all(|policy| matching(&policy)) {
            return Arc::clone(&self.policies);
        }
        let mut set = PolicySet::new();
        for policy in self.policies.policies().filter(matching) {
            // They stood in one set before, so their ids are unique; if one did not fit, the whole set would serve.
            if set.add(policy.clone()).is_err() {
                return Arc::clone(&self.policies);
            }
        }
        Arc::new(set)
    }
}

/// Whether a principal scope can match this agent. Its groups, stage and tenant are its ancestors.
fn can_be(scope: &PrincipalConstraint, subject: &Subject) -> bool {
    let is = |uid: &EntityUid| *uid == subject.uid;
    let within = |uid: &EntityUid| is(uid) || subject.entities.is_ancestor_of(uid, &subject.uid);
    match scope {
        PrincipalConstraint::Any => true,
        PrincipalConstraint::Eq(one) => is(one),
        PrincipalConstraint::In(group) => within(group),
        PrincipalConstraint::Is(kind) => kind == subject.uid.type_name(),
        PrincipalConstraint::IsIn(kind, group) => kind == subject.uid.type_name() && within(group),
    }
}

/// These rules as one Cedar set. Ids are unique by now, so this fails only if that is broken.
pub(super) fn policy_set<'a>(
    rules: impl Iterator<Item = &'a Rule>,
) -> Result<PolicySet, Diagnostics> {
    let mut set = PolicySet::new();
    for rule in rules {
        set.add(rule.policy.clone())
            .map_err(|error| rule.diagnostic(error.to_string()))?;
    }
    Ok(set)
}

fn groups(capability: &Capability) -> Vec<EntityUid> {
    capability
        .risks()
        .iter()
        .map(|risk| names::risk(*risk))
        .collect()
}

/// An action is in itself and in its risk classes, which are in nothing: the schema has no other groups.
fn can_match(scope: &ActionConstraint, action: &EntityUid, groups: &[EntityUid]) -> bool {
    match scope {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(one) => one == action,
        ActionConstraint::In(any) => any.iter().any(|one| one == action || groups.contains(one)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::*;
    use crate::{Bundle, Source, Sources, Stage, Timestamp};

    const SCOPES: [&str; 9] = [
        "action",
        "action in Action::\"read\"",
        "action in [Action::\"write\", Action::\"message\"]",
        "action in [Action::\"financial\", Action::\"destructive\"]",
        "action == desk::Action::\"refunds.create\"",
        "action in [desk::Action::\"tickets.read\", desk::Action::\"tickets.export\"]",
        "action in desk::Action::\"tickets.update\"",
        "action in Action::\"bulk\"",
        "action in [Action::\"export\"]",
    ];
    const CONDITIONS: [&str; 5] = [
        "",
        "when { action in Action::\"write\" || context.now > 1000 }",
        "when { principal in Stage::\"draft\" }",
        "unless { action in [Action::\"financial\", Action::\"read\"] && context.now > 500 }",
        "when { context.now > 1000 }",
    ];

    const PRINCIPALS: [&str; 7] = [
        "principal",
        "principal == Agent::\"acme/support\"",
        "principal == Agent::\"acme/other\"",
        "principal in Stage::\"draft\"",
        "principal in Tenant::\"acme\"",
        "principal in Tenant::\"umbrella\"",
        "principal is Agent in Group::\"pilots\"",
    ];

    /// Policies of every mixture of effect, scopes, condition and approval.
    fn policies() -> impl Strategy<Value = String> {
        let one = (
            any::<bool>(),
            (0..PRINCIPALS.len(), 0..SCOPES.len()),
            0..CONDITIONS.len(),
            any::<bool>(),
        );
        prop::collection::vec(one, 0..12).prop_map(|ones| {
            let text = |(number, (permit, (principal, scope), condition, approval)): (
                usize,
                (bool, (usize, usize), usize, bool),
            )| {
                let effect = if permit { "permit" } else { "forbid" };
                let (ask, lift) = match approval && !permit {
                    true => (
                        "@approval(\"ops\")",
                        "unless { context.approvals.contains(Group::\"ops\") }",
                    ),
                    false => ("", ""),
                };
                format!(
                    "@id(\"p{number}\") {ask} {effect} ({}, {}, resource) {} {lift};\n",
                    PRINCIPALS[principal], SCOPES[scope], CONDITIONS[condition]
                )
            };
            ones.into_iter().enumerate().map(text).collect()
        })
    }

    /// One bundle per stage: only the policies change from case to case.
    fn base(stage: Stage) -> &'static Bundle {
        static BASES: [OnceLock<Bundle>; 5] = [const { OnceLock::new() }; 5];
        let place = Stage::ALL.iter().position(|one| *one == stage).unwrap();
        BASES[place].get_or_init(|| load(stage))
    }

    fn bundle(stage: Stage, policies: &str) -> Bundle {
        let source = Source {
            path: "p.cedar".into(),
            text: policies.to_owned(),
        };
        base(stage)
            .with_policies([source])
            .unwrap_or_else(|problems| panic!("{problems}\n{policies}"))
    }

    fn load(stage: Stage) -> Bundle {
        let source = |path: &str, text: &str| Source {
            path: path.into(),
            text: text.to_owned(),
        };
        let agent = format!(
            "tenant = \"acme\"\nname = \"support\"\nowner = \"o\"\nstage = \"{stage}\"\n[[connections]]\nname = \"desk\"\nconnector = \"desk\"\n"
        );
        let sources = Sources {
            agents: vec![source("a.toml", &agent)],
            connectors: vec![source(
                "desk.toml",
                include_str!("../../tests/common/desk.toml"),
            )],
            policies: Vec::new(),
        };
        Bundle::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn call(bundle: &Bundle, capability: &Capability) -> crate::Call {
        let agent = bundle.agents().next().unwrap();
        crate::Call {
            agent: agent.id().clone(),
            owner: agent.owner().clone(),
            connection: "desk".parse().unwrap(),
            capability: capability.id().clone(),
            risks: capability.risks().to_vec(),
            params: capability
                .params()
                .iter()
                .filter(|(_, param)| param.required())
                .map(|(name, _)| (name.clone(), crate::Value::Text("1".into())))
                .collect(),
            credential: None,
            auth: crate::Auth::None,
            strip: std::sync::Arc::from([]),
            endpoint: "api.desk.example.com:443".parse().unwrap(),
            template: String::new(),
            peer: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_slice_decides_as_the_whole_set_does(policies in policies(), stage in 0..Stage::ALL.len(), approved: bool, now in 0..2000i64) {
            let bundle = bundle(Stage::ALL[stage], &policies);
            let engine = bundle.engine();
            let whole = policy_set(engine.rules.values()).unwrap();
            let approvals: BTreeSet<_> = approved.then(|| "ops".parse().unwrap()).into_iter().collect();
            let now = Timestamp::from_millis(now);
            let desk = bundle.connector(&"desk".parse().unwrap()).unwrap();
            for capability in desk.capabilities() {
                let call = call(&bundle, capability);
                // What is remembered of another moment changes nothing.
                engine.decide(&call, Timestamp::from_millis(0), &BTreeSet::new());
                let sliced = engine.decide(&call, now, &approvals);
                let (subject, action) = (&engine.subjects[call.agent()], engine.slices.action(capability.id()).unwrap());
                let whole = engine.two_passes(subject, action, &whole, &call, now, &approvals);
                prop_assert_eq!(sliced, whole, "{} under\n{}", capability.id(), policies);
            }
        }
    }

    #[test]
    fn a_narrowed_slice_leaves_out_what_is_for_other_agents() {
        let policies = "@id(\"mine\") forbid (principal == Agent::\"acme/support\", action, resource);\n\
                        @id(\"tenant\") forbid (principal in Tenant::\"acme\", action, resource);\n\
                        @id(\"stage\") forbid (principal in Stage::\"read\", action, resource);\n\
                        @id(\"agents\") forbid (principal is Agent, action, resource);\n\
                        @id(\"other\") forbid (principal == Agent::\"acme/other\", action, resource);\n\
                        @id(\"others\") forbid (principal in Tenant::\"umbrella\", action, resource);\n\
                        @id(\"higher\") forbid (principal in Stage::\"autonomous\", action, resource);";
        let bundle = bundle(Stage::Write, policies);
        let engine = bundle.engine();
        let capability = "desk/tickets.read".parse().unwrap();
        let subject = &engine.subjects[bundle.agents().next().unwrap().id()];
        let action = engine.slices.action(&capability).unwrap();
        let slice = action.slice_for(&capability, subject);
        let kept = |set: &PolicySet| {
            let ids = [
                "mine", "tenant", "stage", "agents", "other", "others", "higher",
            ];
            ids.into_iter()
                .filter(|id| set.policy(&cedar_policy::PolicyId::new(id)).is_some())
                .collect::<Vec<_>>()
        };
        // Positive control: the slice of the action has them all.
        assert_eq!(kept(&action.policies).len(), 7);
        assert_eq!(kept(&slice.policies), ["mine", "tenant", "stage", "agents"]);
        assert!(Arc::ptr_eq(&slice, &action.slice_for(&capability, subject)));
    }

    #[test]
    fn a_slice_leaves_out_what_is_for_other_actions() {
        let policies = "@id(\"mine\") forbid (principal, action == desk::Action::\"refunds.create\", resource);\n\
                        @id(\"class\") forbid (principal, action in Action::\"financial\", resource);\n\
                        @id(\"other\") forbid (principal, action == desk::Action::\"tickets.read\", resource);\n\
                        @id(\"all\") forbid (principal, action, resource);";
        let bundle = bundle(Stage::Write, policies);
        let of = |name: &str| {
            let action = bundle
                .engine()
                .slices
                .action(&name.parse().unwrap())
                .unwrap();
            let ids = ["mine", "class", "other", "all"].into_iter();
            ids.filter(|id| {
                action
                    .policies
                    .policy(&cedar_policy::PolicyId::new(id))
                    .is_some()
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(of("desk/refunds.create"), ["mine", "class", "all"]);
        assert_eq!(of("desk/tickets.read"), ["other", "all"]);
        assert_eq!(of("desk/replies.send"), ["all"]);
    }
}
