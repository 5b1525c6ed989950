//! Agents to Cedar entities: one prebuilt store per agent, with its stages, groups, tenant, connections and their actions.
//! Built at load, read by each decision; `explain` builds one more for another stage.
//! INVARIANT: what an agent sends never becomes an entity; only files do.

use std::collections::{HashMap, HashSet};

use cedar_policy::entities_errors::EntitiesError;
use cedar_policy::{Entities, Entity, EntityAttrEvaluationError, EntityUid, RestrictedExpression};

use super::names;
use super::slice::Narrowed;
use crate::{
    Agent, AgentId, CapabilityId, Catalogue, Connection, ConnectionName, Group, Risk, Stage,
};

/// Why an agent has no entities. None is known to happen: names are checked and the hierarchy is ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum SubjectError {
    /// Cedar could not evaluate an attribute.
    #[error(transparent)]
    Attribute(#[from] Box<EntityAttrEvaluationError>),
    /// Cedar could not build the hierarchy.
    #[error(transparent)]
    Hierarchy(#[from] Box<EntitiesError>),
}

/// One agent as Cedar sees it.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) uid: EntityUid,
    pub(super) stage: Stage,
    pub(super) connections: HashMap<ConnectionName, EntityUid>,
    pub(super) entities: Entities,
    /// What `slice` keeps of the policies that can match this agent.
    pub(super) narrowed: Narrowed,
}

impl Subject {
    /// The agent at `stage`, whatever its file says: `explain` asks what another stage would change.
    pub(super) fn build(
        catalogue: &Catalogue,
        agent: &Agent,
        stage: Stage,
        disabled: bool,
    ) -> Result<Self, SubjectError> {
        let uid = names::agent(agent.id());
        let connections = agent.connections().iter();
        let connections = connections
            .map(|one| {
                (
                    one.name().clone(),
                    names::connection(agent.id(), one.name()),
                )
            })
            .collect();

        let mut entities = stages();
        entities.push(principal(agent, stage, disabled)?);
        entities.push(Entity::with_uid(names::tenant(&agent.id().tenant)));
        let groups: HashSet<&Group> = agent.groups().iter().collect();
        entities.extend(
            groups
                .into_iter()
                .map(|group| Entity::with_uid(names::group(group))),
        );
        for connection in agent.connections() {
            entities.push(resource(agent.id(), connection)?);
        }
        entities.extend(connectors(catalogue, agent));
        entities.extend(
            Risk::ALL
                .iter()
                .map(|risk| Entity::with_uid(names::risk(*risk))),
        );

        // Without a schema: it would add the actions of every connector to every agent. A test checks that the entities conform.
        let entities = Entities::from_entities(entities, None).map_err(Box::new)?;
        Ok(Self {
            uid,
            stage,
            connections,
            entities,
            narrowed: Narrowed::default(),
        })
    }
}

/// Autonomous in write in draft in read in observe.
fn stages() -> Vec<Entity> {
    let below = std::iter::once(None).chain(Stage::ALL.iter().map(Some));
    let nested = Stage::ALL.iter().zip(below);
    nested
        .map(|(stage, below)| {
            Entity::new_no_attrs(
                names::stage(*stage),
                below
                    .map(|below| names::stage(*below))
                    .into_iter()
                    .collect(),
            )
        })
        .collect()
}

fn principal(agent: &Agent, stage: Stage, disabled: bool) -> Result<Entity, SubjectError> {
    let attributes = HashMap::from([
        (
            "disabled".to_owned(),
            RestrictedExpression::new_bool(disabled),
        ),
        (
            "name".to_owned(),
            RestrictedExpression::new_string(agent.id().name.to_string()),
        ),
        (
            "owner".to_owned(),
            RestrictedExpression::new_string(agent.owner().to_string()),
        ),
    ]);
    let mut parents: HashSet<EntityUid> = agent.groups().iter().map(names::group).collect();
    parents.insert(names::stage(stage));
    parents.insert(names::tenant(&agent.id().tenant));
    Ok(Entity::new(names::agent(agent.id()), attributes, parents).map_err(Box::new)?)
}

fn resource(agent: &AgentId, connection: &Connection) -> Result<Entity, SubjectError> {
    let name = RestrictedExpression::new_string(connection.name().to_string());
    let parents = HashSet::from([
        names::connector(connection.connector()),
        names::tenant(&agent.tenant),
    ]);
    let attributes = HashMap::from([("name".to_owned(), name)]);
    Ok(Entity::new(
        names::connection(agent, connection.name()),
        attributes,
        parents,
    )
    .map_err(Box::new)?)
}

/// The connectors that the agent's connections use, and an action for each of their capabilities.
fn connectors(catalogue: &Catalogue, agent: &Agent) -> Vec<Entity> {
    let used: HashSet<_> = agent
        .connections()
        .iter()
        .map(Connection::connector)
        .collect();
    let mut entities = Vec::new();
    for connector in catalogue
        .connectors()
        .filter(|connector| used.contains(connector.id()))
    {
        entities.push(Entity::with_uid(names::connector(connector.id())));
        let capabilities = connector.capabilities().iter();
        entities.extend(capabilities.filter_map(|one| action(one.id(), one.risks())));
    }
    entities
}

fn action(id: &CapabilityId, risks: &[Risk]) -> Option<Entity> {
    let risks = risks.iter().map(|risk| names::risk(*risk)).collect();
    names::capability(id).map(|uid| Entity::new_no_attrs(uid, risks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bundle, Source, Sources};

    const AGENT: &str = r#"
tenant = "acme"
name = "support"
owner = "Support \"tier 2\" <support@example.com>"
stage = "draft"
groups = ["pilots", "pilots"]
[[connections]]
name = "payments"
connector = "stripe"
[[connections]]
name = "chat"
connector = "slack"
"#;

    #[test]
    fn entities_conform_to_the_generated_schema() {
        let agents = vec![Source {
            path: "a.toml".into(),
            text: AGENT.to_owned(),
        }];
        let bundle = Bundle::load(&Sources {
            agents,
            ..Sources::default()
        })
        .unwrap_or_else(|problems| panic!("{problems}"));
        let engine = bundle.engine();
        for stage in Stage::ALL {
            for disabled in [false, true] {
                let agent = bundle.agents().next().unwrap();
                let subject = Subject::build(bundle.catalogue(), agent, stage, disabled).unwrap();
                // Actions are the schema's own; the rest is checked against it.
                let own = subject
                    .entities
                    .iter()
                    .filter(|entity| entity.uid().type_name().basename() != "Action");
                Entities::from_entities(own.cloned(), Some(&engine.schema.schema))
                    .unwrap_or_else(|error| panic!("{error:?}"));
            }
        }
    }

    #[test]
    fn actions_are_in_their_risk_classes_as_in_the_schema() {
        let agents = vec![Source {
            path: "a.toml".into(),
            text: AGENT.to_owned(),
        }];
        let bundle = Bundle::load(&Sources {
            agents,
            ..Sources::default()
        })
        .unwrap_or_else(|problems| panic!("{problems}"));
        let ours = &bundle.engine().subjects[bundle.agents().next().unwrap().id()].entities;
        let theirs = bundle.engine().schema.schema.action_entities().unwrap();
        let sorted = |entities: &Entities, uid: &EntityUid| {
            let mut ancestors: Vec<String> = entities
                .ancestors(uid)
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect();
            ancestors.sort();
            ancestors
        };
        let capabilities = bundle
            .connectors()
            .filter(|one| ["slack", "stripe"].contains(&one.id().as_str()))
            .flat_map(|one| one.capabilities());
        let mut compared = 0;
        for capability in capabilities {
            let uid = names::capability(capability.id()).unwrap();
            assert_eq!(sorted(ours, &uid), sorted(&theirs, &uid));
            assert!(!sorted(ours, &uid).is_empty());
            compared += 1;
        }
        assert!(compared > 5);
    }
}
