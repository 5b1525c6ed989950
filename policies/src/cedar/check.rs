//! What strict validation finds, with positions, and what it cannot: names of agents, stages and connectors in policies.
//! Load time only.
//! INVARIANT: a warning of Cedar's validator is an error here; a forbid that can never apply is a hole, not a matter of style.

use std::collections::BTreeSet;

use cedar_policy::{EntityUid, Schema, ValidationError, ValidationMode, Validator};

use super::entities::SubjectError;
use super::names;
use super::rules::{Rule, located};
use super::slice::policy_set;
use crate::diagnostic::did_you_mean;
use crate::{Agent, Catalogue, Diagnostic, Diagnostics, PolicyId, Stage};

/// Validates every rule; what is not wrong but worth knowing comes back as notices.
pub(super) fn rules(
    rules: &[Rule],
    schema: &Schema,
    catalogue: &Catalogue,
) -> Result<Vec<Diagnostic>, Diagnostics> {
    let mut problems = Diagnostics::default();
    let mut notices = Vec::new();
    let known = Known::of(catalogue, schema);
    let mut misnamed = BTreeSet::new();
    for rule in rules {
        let mut unknown = known.unknown(rule, &mut notices);
        if !unknown.is_empty() {
            misnamed.insert(&rule.id);
        }
        problems.0.append(&mut unknown);
    }
    problems.0.append(&mut validate(rules, schema, &misnamed)?);
    problems.or(notices)
}

/// Cedar's strict validation. What `Known` has reported better is left out.
fn validate(
    rules: &[Rule],
    schema: &Schema,
    misnamed: &BTreeSet<&PolicyId>,
) -> Result<Vec<Diagnostic>, Diagnostics> {
    let set = policy_set(rules.iter())?;
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    let find = |id: &cedar_policy::PolicyId| {
        rules
            .iter()
            .find(|rule| rule.id.as_str() == AsRef::<str>::as_ref(id))
    };
    let mut found: Vec<Diagnostic> = Vec::new();
    for error in result.validation_errors() {
        let Some(rule) = find(error.policy_id()) else {
            continue;
        };
        if !(is_about_names(error) && misnamed.contains(&rule.id)) {
            found.push(at_rule(rule, error, error.to_string()));
        }
    }
    for warning in result.validation_warnings() {
        let Some(rule) = find(warning.policy_id()) else {
            continue;
        };
        if !misnamed.contains(&rule.id) {
            found.push(at_rule(rule, warning, warning.to_string()));
        }
    }
    // The same fault is found once per kind of request that the policy covers.
    found.sort_by(|one, other| {
        (&one.file, one.line, one.column, &one.message).cmp(&(
            &other.file,
            other.line,
            other.column,
            &other.message,
        ))
    });
    found.dedup();
    Ok(found)
}

fn is_about_names(error: &ValidationError) -> bool {
    matches!(
        error,
        ValidationError::InvalidActionApplication(_)
            | ValidationError::UnrecognizedActionId(_)
            | ValidationError::UnrecognizedEntityType(_)
    )
}

fn at_rule(rule: &Rule, error: &dyn miette::Diagnostic, message: String) -> Diagnostic {
    let diagnostic = located(&rule.source, error, message);
    if error.labels().is_some() {
        diagnostic
    } else {
        Diagnostic {
            hint: diagnostic.hint,
            ..rule.diagnostic(diagnostic.message)
        }
    }
}

/// The entities that exist, as policies write them.
struct Known {
    actions: Vec<EntityUid>,
    connectors: Vec<EntityUid>,
    stages: Vec<EntityUid>,
    /// Agents, tenants and connections: a policy may be written before they are, so these give notices only.
    here: Vec<EntityUid>,
}

impl Known {
    fn of(catalogue: &Catalogue, schema: &Schema) -> Self {
        let mut here = Vec::new();
        for agent in catalogue.agents() {
            here.push(names::agent(agent.id()));
            here.push(names::tenant(&agent.id().tenant));
            here.extend(
                agent
                    .connections()
                    .iter()
                    .map(|one| names::connection(agent.id(), one.name())),
            );
        }
        Self {
            actions: schema
                .actions()
                .chain(schema.action_groups())
                .cloned()
                .collect(),
            connectors: catalogue
                .connectors()
                .map(|connector| names::connector(connector.id()))
                .collect(),
            stages: Stage::ALL
                .iter()
                .map(|stage| names::stage(*stage))
                .collect(),
            here,
        }
    }

    /// Names in the rule that mean nothing. Cedar would let most of them pass: a forbid for stage `wirte` never applies.
    fn unknown(&self, rule: &Rule, notices: &mut Vec<Diagnostic>) -> Vec<Diagnostic> {
        let mut literals = rule.policy.entity_literals();
        literals.sort_by_key(ToString::to_string);
        literals.dedup();
        let mut problems = Vec::new();
        for uid in literals {
            let (what, known) = match uid.type_name().basename() {
                "Action" => ("capability or risk class", &self.actions),
                "Connector" => ("connector", &self.connectors),
                "Stage" => ("stage", &self.stages),
                "Agent" | "Connection" | "Tenant" => {
                    if !self.here.contains(&uid) {
                        notices.push(misnamed(rule, &uid, "entity of this bundle", &self.here));
                    }
                    continue;
                }
                _ => continue,
            };
            if !known.contains(&uid) {
                problems.push(misnamed(rule, &uid, what, known));
            }
        }
        problems
    }
}

fn misnamed(rule: &Rule, uid: &EntityUid, what: &str, known: &[EntityUid]) -> Diagnostic {
    let message = format!("policy `{}` names `{uid}`, which is no {what}", rule.id);
    let diagnostic = rule.diagnostic_at(&uid.to_string(), message);
    match nearest(uid, known) {
        Some(hint) => diagnostic.hint(hint),
        None => diagnostic,
    }
}

/// The nearest id of the same type first; else the nearest type, so that `strpie::Action::".."` finds `stripe`.
fn nearest(uid: &EntityUid, known: &[EntityUid]) -> Option<String> {
    let text = uid.to_string();
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    let of_type = format!("{}::", uid.type_name());
    let same_type = known
        .iter()
        .filter(|one| one.starts_with(&of_type))
        .map(String::as_str);
    did_you_mean(&text, same_type).or_else(|| did_you_mean(&text, known.iter().map(String::as_str)))
}

/// An agent without entities: nothing in a file leads here, so it is said plainly.
pub(super) fn no_entities(agent: &Agent, error: &SubjectError) -> Diagnostics {
    let message = format!(
        "the agent `{}` cannot be shown to the policies: {error}",
        agent.id()
    );
    agent.place().diagnostic(message).into()
}
