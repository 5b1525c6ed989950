//! Decisions that were made before: where policies look at nothing of a call but its capability, agent, connection and host, calls
//! that are equal in these are decided equally, and Cedar is asked once.
//! INVARIANT: what is known is left aside as soon as a policy reads anything that two such calls could differ in.

use std::sync::{PoisonError, RwLock};

use cedar_policy::PolicySet;
use serde_json::Value as Json;

use super::Outcome;
use crate::{Call, ConnectionName, Host, Reason, Value};

/// Members of the context in which calls that count as equal are equal: the host is compared, approvals there are none.
const COMPARED: [&str; 2] = ["approvals", "host"];
/// How many different calls are remembered of one agent and capability; the rest are decided each time.
const MOST: usize = 16;

/// What is known of the decisions of one slice.
#[derive(Debug, Default)]
pub(super) struct Steady {
    /// `None` where some policy reads more than is compared.
    known: Option<RwLock<Vec<Known>>>,
}

#[derive(Debug)]
struct Known {
    connection: ConnectionName,
    host: Host,
    params: Vec<(String, Shape)>,
    outcome: Outcome,
}

/// What Cedar's schema can tell of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Bool,
    Empty,
    Integer,
    Text,
    Texts,
}

impl Steady {
    /// Looks at every policy of the slice once.
    pub(super) fn of(policies: &PolicySet) -> Self {
        let compared = |policy: &cedar_policy::Policy| {
            policy
                .to_json()
                .is_ok_and(|policy| reads_what_is_compared(&policy))
        };
        let known = policies.policies().all(compared).then(RwLock::default);
        Self { known }
    }

    /// How an equal call was decided, or what `decide` says. Only for calls without approvals.
    pub(super) fn outcome(&self, call: &Call, decide: impl FnOnce() -> Outcome) -> Outcome {
        let Some(known) = &self.known else {
            return decide();
        };
        {
            let known = known.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = known.iter().find(|known| known.is(call)) {
                return known.outcome.clone();
            }
        }
        let outcome = decide();
        if let Some(fresh) = Known::new(call, &outcome) {
            let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() < MOST && !known.iter().any(|known| known.is(call)) {
                known.push(fresh);
            }
        }
        outcome
    }
}

impl Known {
    /// `None` for what is not remembered: an evaluation error, and values whose type takes more than a glance.
    fn new(call: &Call, outcome: &Outcome) -> Option<Known> {
        if matches!(
            outcome,
            Outcome::Deny {
                reason: Reason::PolicyError,
                ..
            }
        ) {
            return None;
        }
        let params = call.params().iter();
        let params = params.map(|(name, value)| Some((name.clone(), shape(value)?)));
        Some(Known {
            connection: call.connection().clone(),
            host: call.endpoint().host.clone(),
            params: params.collect::<Option<_>>()?,
            outcome: outcome.clone(),
        })
    }

    fn is(&self, call: &Call) -> bool {
        let params = call
            .params()
            .iter()
            .map(|(name, value)| (name, shape(value)));
        let known = self.params.iter().map(|(name, shape)| (name, Some(*shape)));
        self.connection == *call.connection()
            && self.host == call.endpoint().host
            && known.eq(params)
    }
}

fn shape(value: &Value) -> Option<Shape> {
    match value {
        Value::Bool(_) => Some(Shape::Bool),
        Value::Integer(_) => Some(Shape::Integer),
        Value::Text(_) => Some(Shape::Text),
        Value::List(values) if values.is_empty() => Some(Shape::Empty),
        Value::List(values) => values
            .iter()
            .all(|value| matches!(value, Value::Text(_)))
            .then_some(Shape::Texts),
    }
}

/// Whether a policy, as JSON, uses the context only to read members that are compared.
/// What looks like a use of the context and is none (inside a literal) counts as one: unsure is no.
fn reads_what_is_compared(json: &Json) -> bool {
    match json {
        Json::Object(members) => {
            if members.get("Var").is_some_and(|name| name == "context") {
                return false;
            }
            if let Some(attribute) = members.get(".")
                && members.len() == 1
                && attribute.get("left").is_some_and(is_context)
            {
                let name = attribute.get("attr").and_then(Json::as_str);
                return name.is_some_and(|name| COMPARED.contains(&name));
            }
            members.values().all(reads_what_is_compared)
        }
        Json::Array(values) => values.iter().all(reads_what_is_compared),
        Json::Bool(_) | Json::Null | Json::Number(_) | Json::String(_) => true,
    }
}

fn is_context(json: &Json) -> bool {
    json.as_object().is_some_and(|json| {
        json.len() == 1 && json.get("Var").is_some_and(|name| name == "context")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steady(policy: &str) -> bool {
        let set: PolicySet = policy.parse().unwrap();
        Steady::of(&set).known.is_some()
    }

    #[test]
    fn policies_that_read_what_calls_differ_in_are_asked_each_time() {
        for same in [
            "permit (principal, action, resource);",
            "forbid (principal, action, resource) unless { context.approvals.contains(Group::\"ops\") };",
            "forbid (principal in Tenant::\"a\", action, resource) when { context.host like \"*.example.com\" };",
            "forbid (principal, action, resource) when { principal.disabled && resource in Connector::\"x\" };",
        ] {
            assert!(steady(same), "{same}");
        }
        for differs in [
            "forbid (principal, action, resource) when { context.now > 5 };",
            "forbid (principal, action, resource) when { context.params.amount > 5 };",
            "forbid (principal, action, resource) when { context.params has amount };",
            "forbid (principal, action, resource) when { context has now };",
            "forbid (principal, action, resource) when { context == {} };",
            "forbid (principal, action, resource) when { (if context.host == \"a\" then context else context).now > 5 };",
            "forbid (principal, action, resource) when { {a: context}.a.now > 5 };",
            "forbid (principal, action, resource) when { [context.now].contains(5) };",
            "forbid (principal, action, resource) when { context[\"now\"] > 5 };",
            "permit (principal, action, resource); forbid (principal, action, resource) unless { context.now > 5 };",
        ] {
            assert!(!steady(differs), "{differs}");
        }
    }
}
