//! Our names as Cedar's: namespaces, entity types and entity ids, in one place so that schema, entities and requests agree.
//! Used at load and on each decision.
//! INVARIANT: every id is the text form of one of our names, so two things are never one entity.

use std::sync::LazyLock;

use cedar_policy::{EntityId, EntityTypeName, EntityUid};

use crate::{AgentId, CapabilityId, ConnectionName, ConnectorId, Group, Risk, Stage, Tenant};

/// The namespace of the placeholder capability that keeps every risk group in use (see `schema`).
pub(super) const OWN_NAMESPACE: &str = "sluice";

/// Words that Cedar's grammars keep for themselves.
const RESERVED: [&str; 13] = [
    "action",
    "else",
    "entity",
    "enum",
    "false",
    "has",
    "if",
    "in",
    "is",
    "like",
    "namespace",
    "then",
    "true",
];

static ACTION: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Action"));
static AGENT: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Agent"));
static CONNECTION: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Connection"));
static CONNECTOR: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Connector"));
static GROUP: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Group"));
static STAGE: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Stage"));
static TENANT: LazyLock<EntityTypeName> = LazyLock::new(|| builtin("Tenant"));

/// `generic-http` is `generic_http`; an id that Cedar could not read as an identifier gets a `c_` in front.
pub(super) fn namespace(connector: &ConnectorId) -> String {
    let plain = connector.as_str().replace('-', "_");
    let digit_first = plain.starts_with(|first: char| first.is_ascii_digit());
    if digit_first || RESERVED.contains(&plain.as_str()) {
        format!("c_{plain}")
    } else {
        plain
    }
}

/// `stripe::Action::"refunds.create"`. `None` only for a namespace that Cedar cannot read, which the schema refuses first.
pub(super) fn capability(id: &CapabilityId) -> Option<EntityUid> {
    let action = format!("{}::Action", namespace(&id.connector))
        .parse()
        .ok()?;
    Some(EntityUid::from_type_name_and_id(
        action,
        EntityId::new(id.name.as_str()),
    ))
}

pub(super) fn agent(id: &AgentId) -> EntityUid {
    uid(&AGENT, &id.to_string())
}

pub(super) fn connection(agent: &AgentId, name: &ConnectionName) -> EntityUid {
    uid(&CONNECTION, &format!("{agent}/{name}"))
}

pub(super) fn connector(id: &ConnectorId) -> EntityUid {
    uid(&CONNECTOR, id.as_str())
}

pub(super) fn tenant(tenant: &Tenant) -> EntityUid {
    uid(&TENANT, tenant.as_str())
}

pub(super) fn group(group: &Group) -> EntityUid {
    uid(&GROUP, group.as_str())
}

pub(super) fn stage(stage: Stage) -> EntityUid {
    uid(&STAGE, stage.as_str())
}

pub(super) fn risk(risk: Risk) -> EntityUid {
    uid(&ACTION, risk.as_str())
}

fn uid(of: &LazyLock<EntityTypeName>, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id((**of).clone(), EntityId::new(id))
}

#[expect(
    clippy::expect_used,
    reason = "one identifier, a literal of this file; a test reads them all"
)]
fn builtin(name: &str) -> EntityTypeName {
    name.parse().expect("an identifier")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_the_cedar_ids_that_policies_write() {
        let agent_id: AgentId = "acme/support".parse().unwrap();
        let cases = [
            (agent(&agent_id), r#"Agent::"acme/support""#),
            (
                connection(&agent_id, &"stripe".parse().unwrap()),
                r#"Connection::"acme/support/stripe""#,
            ),
            (
                connector(&"generic-http".parse().unwrap()),
                r#"Connector::"generic-http""#,
            ),
            (tenant(&"acme".parse().unwrap()), r#"Tenant::"acme""#),
            (group(&"finance".parse().unwrap()), r#"Group::"finance""#),
            (stage(Stage::Draft), r#"Stage::"draft""#),
            (risk(Risk::Financial), r#"Action::"financial""#),
            (
                capability(&"generic-http/get.json".parse().unwrap()).unwrap(),
                r#"generic_http::Action::"get.json""#,
            ),
        ];
        for (uid, text) in cases {
            assert_eq!(uid.to_string(), text);
        }
    }

    #[test]
    fn every_connector_id_has_a_namespace_that_cedar_reads() {
        for (id, expected) in [
            ("stripe", "stripe"),
            ("aws-s3", "aws_s3"),
            ("4chan", "c_4chan"),
            ("if", "c_if"),
            ("in", "c_in"),
        ] {
            let id: ConnectorId = id.parse().unwrap();
            assert_eq!(namespace(&id), expected);
            assert!(namespace(&id).parse::<EntityTypeName>().is_ok());
        }
    }
}
