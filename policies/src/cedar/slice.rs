//! Policies per action: at load, each capability gets the set of those whose scope can match it.
//! Evaluation is linear in the policies it sees, so this is what keeps a decision's cost flat as policies grow.
//! INVARIANT: a policy is left out only where its action scope names actions and groups and none is this one's; unsure is in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cedar_policy::{ActionConstraint, EntityUid, PolicySet};

use super::names;
use super::rules::Rule;
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
