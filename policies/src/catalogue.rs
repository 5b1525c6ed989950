//! The catalogue: agents bound to connectors, and the one place where a request becomes a call.
//! Step 5 of a request's path.
//! INVARIANT: a request that more than one capability could be is refused when the files are loaded, not when it arrives.
#![expect(clippy::todo, reason = "signatures first")]

use crate::{
    Agent, AgentId, BodyNeed, Call, Connector, ConnectorId, Diagnostics, Endpoint, Host, Refused,
    RequestView,
};

/// Every agent with its connections, and every connector: what a request is matched against.
#[derive(Debug)]
pub struct Catalogue;

impl Catalogue {
    /// Binds agents to connectors. The shipped connectors are always part; an operator's connector of the same id replaces one.
    pub fn build(
        _agents: Vec<Agent>,
        _connectors: Vec<Connector>,
    ) -> Result<Catalogue, Diagnostics> {
        todo!()
    }

    /// Every agent, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        std::iter::empty()
    }

    /// One agent.
    pub fn agent(&self, _id: &AgentId) -> Option<&Agent> {
        todo!()
    }

    /// Every connector, by id.
    pub fn connectors(&self) -> impl Iterator<Item = &Connector> {
        std::iter::empty()
    }

    /// One connector.
    pub fn connector(&self, _id: &ConnectorId) -> Option<&Connector> {
        todo!()
    }

    /// Whether some connection of the agent names this host.
    pub fn resolves(&self, _agent: &AgentId, _host: &Host) -> bool {
        todo!()
    }

    /// The hosts that the agent's connections name exactly, each once, in order.
    pub fn exact_hosts(&self, _agent: &AgentId) -> Vec<Host> {
        todo!()
    }

    /// Whether mapping this request needs its body.
    pub fn body_need(&self, _agent: &AgentId, _at: &Endpoint, _head: &RequestView<'_>) -> BodyNeed {
        todo!()
    }

    /// The call that this request is.
    pub fn call(
        &self,
        _agent: &AgentId,
        _at: &Endpoint,
        _request: &RequestView<'_>,
    ) -> Result<Call, Refused> {
        todo!()
    }
}
