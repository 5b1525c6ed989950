//! What strict validation finds, with positions, and what it cannot: names of agents, stages and connectors in policies.
//! Load time only.
//! INVARIANT: a warning of Cedar's validator is an error here; a forbid that can never apply is a hole, not a matter of style.

use cedar_policy::{EntityUid, Schema, ValidationError, ValidationMode, Validator};

use super::entities::SubjectError;
use super::names;
use super::rules::{Rule, located};
use super::slice::policy_set;
use crate::diagnostic::did_you_mean;
use crate::{Agent, Catalogue, Diagnostic, Diagnostics, Stage};

/// The schema as Cedar reads it. A fault in it is a connector's, and `schema::text` has named the likely ones.
pub(super) fn schema(text: &str) -> Result<Schema, Diagnostics> {
    let read = Schema::from_cedarschema_str(text);
    read.map(|(schema, _)| schema).map_err(|error| {
        let source = crate::Source {
            path: "generated.cedarschema".into(),
            text: text.to_owned(),
        };
        located(&source, &error, error.to_string()).into()
    })
}

/// Validates every rule; what is not wrong but worth knowing comes back as notices.
pub(super) fn rules(
    rules: &[Rule],
    schema: &Schema,
    catalogue: &Catalogue,
) -> Result<Vec<Diagnostic>, Diagnostics> {
    let mut problems = Diagnostics::default();
    let mut notices = Vec::new();
    let known = Known::of(catalogue, schema);
    for rule in rules {
        let unknown = known.unknown(rule, &mut notices);
        let misnamed = !unknown.is_empty();
        problems.0.extend(unknown);
        problems.0.extend(validate(rule, schema, misnamed)?);
    }
    problems.or(notices)
}

/// Cedar's strict validation of one rule. What `Known` has reported better is left out.
fn validate(rule: &Rule, schema: &Schema, misnamed: bool) -> Result<Vec<Diagnostic>, Diagnostics> {
    let set = policy_set(std::iter::once(rule))?;
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    let errors = result
        .validation_errors()
        .filter(|error| !(misnamed && is_about_names(error)));
    let mut found: Vec<Diagnostic> = errors
        .map(|error| at_rule(rule, error, error.to_string()))
        .collect();
    found.extend(
        result
            .validation_warnings()
            .map(|warning| at_rule(rule, warning, warning.to_string())),
    );
    // The same fault is found once per kind of request that the policy covers.
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
