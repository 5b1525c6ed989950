//! The catalogue: agents bound to connectors, and the one place where a request becomes a call.
//! Step 5 of a request's path.
//! INVARIANT: a request that could be two capabilities of an agent is refused when the files are loaded, not when it arrives.

use crate::connector::{Capability, Mapped, Request};
use crate::diagnostic::{Place, did_you_mean};
use crate::{
    Agent, AgentId, Auth, BodyNeed, Call, CgroupPattern, Connection, Connector, ConnectorId,
    CredentialId, Diagnostic, Diagnostics, Endpoint, Host, HostPattern, Mapping, Reason, Refused,
    RequestView, Strip,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Every agent with its connections, and every connector: what a request is matched against.
#[derive(Debug, Clone)]
pub struct Catalogue {
    agents: BTreeMap<AgentId, Bound>,
    connectors: BTreeMap<ConnectorId, Arc<Connector>>,
}

#[derive(Debug, Clone)]
struct Bound {
    agent: Agent,
    connections: Vec<BoundConnection>,
}

/// A connection with what its connector makes of it.
#[derive(Debug, Clone)]
struct BoundConnection {
    connection: Connection,
    connector: Arc<Connector>,
    hosts: Vec<HostPattern>,
    strip: Arc<[Strip]>,
}

/// Rules of two agents that could mean the same processes.
fn shared_cgroups(agents: &BTreeMap<AgentId, Bound>) -> Vec<Diagnostic> {
    let rules = || {
        agents.values().flat_map(|bound| {
            let rules = bound.agent.process_rules().iter();
            rules.map(move |(rule, place)| (bound.agent.id(), rule, place))
        })
    };
    let mut found = Vec::new();
    for (at, (agent, rule, place)) in rules().enumerate() {
        let mut earlier = rules().take(at);
        let same = |(other, its, _): &(&AgentId, &CgroupPattern, &Place)| {
            *other != agent && its.meets(rule)
        };
        if let Some((other, its, where_it_is)) = earlier.find(same) {
            let message = format!(
                "`{rule}` can mean the same processes as `{its}` of {other}, at {where_it_is}"
            );
            let hint = "a cgroup, with all that lies below it, runs as one agent: make one of the two narrower";
            found.push(place.diagnostic(message).hint(hint));
        }
    }
    found
}

impl Catalogue {
    /// Binds agents to connectors. The shipped connectors are always part; an operator's connector of the same id replaces one.
    pub fn build(agents: Vec<Agent>, connectors: Vec<Connector>) -> Result<Catalogue, Diagnostics> {
        let mut problems = Diagnostics::default();
        let connectors = all_connectors(connectors, &mut problems);
        let mut bound = BTreeMap::new();
        for agent in agents {
            let mut connections = Vec::new();
            for connection in agent.connections() {
                connections.extend(problems.keep(BoundConnection::bind(connection, &connectors)));
            }
            problems.0.extend(overlaps(&connections));
            let id = agent.id().clone();
            let place = agent.place().clone();
            if let Some(earlier) = bound.insert(id.clone(), Bound { agent, connections }) {
                let message = format!(
                    "the agent `{id}` is already declared at {}",
                    earlier.agent.place()
                );
                problems.0.push(place.diagnostic(message));
            }
        }
        problems.0.extend(shared_cgroups(&bound));
        problems.or(Catalogue {
            agents: bound,
            connectors,
        })
    }

    /// Every agent, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values().map(|bound| &bound.agent)
    }

    /// One agent.
    pub fn agent(&self, id: &AgentId) -> Option<&Agent> {
        self.agents.get(id).map(|bound| &bound.agent)
    }

    /// Every connector, by id.
    pub fn connectors(&self) -> impl Iterator<Item = &Connector> {
        self.connectors.values().map(AsRef::as_ref)
    }

    /// One connector.
    pub fn connector(&self, id: &ConnectorId) -> Option<&Connector> {
        self.connectors.get(id).map(AsRef::as_ref)
    }

    /// Connections without a credential whose connector wants one: every call of theirs is refused. And those whose only pin
    /// shuts them out the day upstream changes its key.
    pub(crate) fn notices(&self) -> Vec<Diagnostic> {
        let connections = || self.agents.values().flat_map(|bound| &bound.connections);
        let lonely = |bound: &&BoundConnection| {
            let peer = bound.connection.peer();
            peer.is_some_and(|peer| peer.pins().len() == 1)
        };
        let lonely = connections().filter(lonely).map(|bound| {
            let message = "this connection has one pin and no backup: when upstream changes that key, every call is refused";
            let hint = "add the pin of a key that is kept for that day, or of the authority that signs (RFC 7469 section 4.3)";
            bound.connection.place().diagnostic(message).hint(hint)
        });
        connections()
            .filter(|bound| bound.connection.credential().is_none())
            .filter(|bound| bound.hosts_auth().any(|auth| *auth != Auth::None))
            .map(|bound| {
                let message = format!(
                    "`{}` needs a credential and this connection names none: its calls will be refused",
                    bound.connector.id()
                );
                bound
                    .connection
                    .place()
                    .diagnostic(message)
                    .hint("for example credential = \"NAME\", filled by `sluice vault put TENANT/NAME`")
            })
            .chain(lonely)
            .collect()
    }

    /// Whether some connection of the agent names this host, on any port.
    pub fn resolves(&self, agent: &AgentId, host: &Host) -> bool {
        self.patterns(agent).any(|pattern| pattern.names(host))
    }

    /// The hosts that the agent's connections name without a wildcard, each once, in order; addresses among them.
    pub fn exact_hosts(&self, agent: &AgentId) -> Vec<Host> {
        let mut hosts: Vec<Host> = self
            .patterns(agent)
            .filter_map(HostPattern::exact)
            .cloned()
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// Whether a connection of the agent declares this endpoint opaque.
    pub fn is_opaque(&self, agent: &AgentId, at: &Endpoint) -> bool {
        self.at(agent, at)
            .any(|connection| connection.connector.is_opaque())
    }

    /// Whether mapping this request needs its body, and how much of it may be read. `None` where the head already refuses it.
    pub fn body_need(&self, agent: &AgentId, at: &Endpoint, head: &RequestView<'_>) -> BodyNeed {
        let limits = self
            .at(agent, at)
            .filter_map(|connection| connection.connector.body_limit(at, head));
        limits
            .max()
            .map_or(BodyNeed::None, |limit| BodyNeed::Whole { limit })
    }

    /// The call that this request is; or that its body is needed, where it is not there and some connection's capabilities are told
    /// apart by it. Refusals as of [`Catalogue::call`], which reads the body that it is given.
    pub fn map(
        &self,
        agent: &AgentId,
        at: &Endpoint,
        request: &RequestView<'_>,
    ) -> Result<Mapping, Refused> {
        if let Some(call) = self.read(agent, at, request, request.body.is_none())? {
            return Ok(Mapping::Call(Box::new(call)));
        }
        match self.body_need(agent, at, request) {
            BodyNeed::Whole { limit } => Ok(Mapping::NeedsBody { limit }),
            // Not to be had: what stopped the reading is a need of the body.
            BodyNeed::None => Err(unread()),
        }
    }

    /// The call that this request is.
    ///
    /// Refusals: `host_unknown` where no connection of the agent names the endpoint, `unmapped` where no capability matches or the
    /// connection does not offer it, `ambiguous_request` where a server could read the request otherwise, `malformed_request`
    /// where a value does not fit its type.
    pub fn call(
        &self,
        agent: &AgentId,
        at: &Endpoint,
        request: &RequestView<'_>,
    ) -> Result<Call, Refused> {
        self.read(agent, at, request, false)?.ok_or_else(unread)
    }

    /// The call; `None` where `stop_at_body` is set and the body decides.
    fn read(
        &self,
        agent: &AgentId,
        at: &Endpoint,
        request: &RequestView<'_>,
        stop_at_body: bool,
    ) -> Result<Option<Call>, Refused> {
        let connections: Vec<&BoundConnection> = self.at(agent, at).collect();
        let Some(bound) = self.agents.get(agent).filter(|_| !connections.is_empty()) else {
            let detail =
                format!("no connection of {agent} names {at}; ask for a connection with this host");
            return Err(Refused::new(Reason::HostUnknown, detail));
        };
        let mut request = Request::head(request)?;
        let mut found: Option<Call> = None;
        let mut unmapped: Option<Refused> = None;
        for connection in connections {
            request.refuse_beside(&connection.strip)?;
            let mapped = connection
                .connector
                .map_head(at, &mut request, stop_at_body);
            let mapped = match mapped {
                Ok(None) => return Ok(None),
                Ok(Some(mapped)) => connection.call(&bound.agent, at, mapped),
                Err(refused) => Err(refused),
            };
            match mapped {
                Ok(_) if found.is_some() => {
                    return Err(Refused::ambiguous(format!(
                        "two connections of {agent} could make this call"
                    )));
                }
                Ok(call) => found = Some(call),
                Err(refused) if refused.reason == Reason::Unmapped => {
                    unmapped = unmapped.or(Some(refused))
                }
                Err(refused) => return Err(refused),
            }
        }
        let nothing = || Refused::unmapped(format!("no capability at {at} matches this request"));
        found
            .map(Some)
            .ok_or_else(|| unmapped.unwrap_or_else(nothing))
    }

    fn patterns(&self, agent: &AgentId) -> impl Iterator<Item = &HostPattern> {
        self.agents
            .get(agent)
            .into_iter()
            .flat_map(|bound| &bound.connections)
            .flat_map(|connection| &connection.hosts)
    }

    fn at(&self, agent: &AgentId, at: &Endpoint) -> impl Iterator<Item = &BoundConnection> {
        let connections = self
            .agents
            .get(agent)
            .into_iter()
            .flat_map(|bound| &bound.connections);
        connections.filter(|connection| connection.hosts.iter().any(|host| host.matches(at)))
    }
}

impl BoundConnection {
    fn bind(
        connection: &Connection,
        connectors: &BTreeMap<ConnectorId, Arc<Connector>>,
    ) -> Result<BoundConnection, Diagnostics> {
        let Some(connector) = connectors.get(connection.connector()) else {
            let message = format!("there is no connector `{}`", connection.connector());
            let known = connectors.keys().map(ConnectorId::as_str);
            let hint = did_you_mean(connection.connector().as_str(), known.clone())
                .unwrap_or_else(|| format!("known here: {}", known.collect::<Vec<_>>().join(", ")));
            return Err(connection
                .connector_place()
                .diagnostic(message)
                .hint(hint)
                .into());
        };
        let hosts = if connection.hosts().is_empty() {
            connector.hosts()
        } else {
            connection.hosts()
        };
        let auth_place = connection.auth().and_then(Auth::place);
        let mut strip: Vec<Strip> = connector
            .strip()
            .iter()
            .cloned()
            .chain(auth_place)
            .collect();
        strip.sort();
        strip.dedup();
        let bound = BoundConnection {
            connection: connection.clone(),
            connector: connector.clone(),
            hosts: hosts.to_vec(),
            strip: strip.into(),
        };
        Diagnostics(
            bound
                .problems()
                .into_iter()
                .chain(bound.unknown_capabilities())
                .collect(),
        )
        .or(bound)
    }

    /// What is wrong with hosts and credential of this connection.
    fn problems(&self) -> Vec<Diagnostic> {
        let (connection, connector, place) =
            (&self.connection, &self.connector, self.connection.place());
        let mut problems = Vec::new();
        if connector.require_hosts() && connection.hosts().is_empty() {
            let message = format!("a connection of `{}` names its own `hosts`", connector.id());
            problems.push(
                place
                    .diagnostic(message)
                    .hint("for example hosts = [\"example.com\"]"),
            );
        }
        for host in self.hosts.iter().filter(|host| !connector.serves(host)) {
            problems.push(place.diagnostic(format!(
                "no capability of `{}` is for the host `{host}`",
                connector.id()
            )));
        }
        if connection.auth().is_some() && !connector.settable_auth() {
            let message = format!(
                "`{}` says itself where its credential goes; `auth` is not for it",
                connector.id()
            );
            problems.push(place.diagnostic(message));
        }
        let goes_nowhere = self.hosts_auth().any(|auth| *auth == Auth::None);
        if connection.credential().is_some() && goes_nowhere {
            let message = "this connection has a credential, and nothing says where it goes";
            problems.push(
                place
                    .diagnostic(message)
                    .hint("for example auth = { kind = \"bearer\" }"),
            );
        }
        if connector.is_opaque() && connection.peer().is_some() {
            let message = "what is opaque is not read, so there is no TLS of ours in which pins or a client certificate could count";
            problems.push(
                place
                    .diagnostic(message)
                    .hint("leave `pins` and `client_certificate` out"),
            );
        }
        if connection.credential().is_none()
            && connection.auth().is_some_and(|auth| *auth != Auth::None)
        {
            problems.push(place.diagnostic("this connection has `auth` and no `credential`"));
        }
        problems
    }

    fn unknown_capabilities(&self) -> Vec<Diagnostic> {
        let names = || {
            self.connector
                .capabilities()
                .iter()
                .map(|capability| capability.id().name.as_str())
        };
        let patterns = self
            .connection
            .capabilities()
            .unwrap_or_default()
            .iter()
            .zip(self.connection.capability_places());
        let unknown = patterns.filter(|(pattern, _)| !names().any(|name| pattern.matches(name)));
        let problem = |(pattern, place): (&crate::CapabilityPattern, &crate::diagnostic::Place)| {
            let diagnostic = place.diagnostic(format!(
                "no capability of `{}` is `{pattern}`",
                self.connector.id()
            ));
            Diagnostic {
                hint: did_you_mean(pattern.as_str(), names()),
                ..diagnostic
            }
        };
        unknown.map(problem).collect()
    }

    fn hosts_auth(&self) -> impl Iterator<Item = &Auth> {
        let exact = self.hosts.iter().filter_map(|host| {
            Some(Endpoint {
                host: host.exact()?.clone(),
                port: host.port(),
            })
        });
        let own = self.connection.auth();
        let connector: &Connector = &self.connector;
        exact
            .map(move |at| own.unwrap_or_else(|| connector.auth_at(&at)))
            .chain(own.is_none().then(|| connector.auth()))
    }

    fn offers(&self, capability: &Capability) -> bool {
        let name = capability.id().name.as_str();
        self.connection
            .capabilities()
            .is_none_or(|patterns| patterns.iter().any(|pattern| pattern.matches(name)))
    }

    fn call(&self, agent: &Agent, at: &Endpoint, mapped: Mapped<'_>) -> Result<Call, Refused> {
        let (capability, connection) = (mapped.capability, &self.connection);
        if !self.offers(capability) {
            let detail = format!(
                "{} is not among the capabilities of the connection `{}`; ask for it",
                capability.id(),
                connection.name()
            );
            return Err(Refused::unmapped(detail));
        }
        let credential = connection.credential().map(|name| CredentialId {
            tenant: agent.id().tenant.clone(),
            name: name.clone(),
        });
        let auth = connection
            .auth()
            .unwrap_or_else(|| self.connector.auth_at(at));
        Ok(Call {
            agent: agent.id().clone(),
            owner: agent.owner().clone(),
            connection: connection.name().clone(),
            capability: capability.id().clone(),
            risks: capability.risks().to_vec(),
            params: mapped.params,
            auth: auth.clone(),
            credential,
            strip: Arc::clone(&self.strip),
            endpoint: at.clone(),
            template: mapped.template.to_owned(),
            peer: connection.peer().cloned(),
        })
    }
}

fn unread() -> Refused {
    Refused::ambiguous("the body decides what this request is, and it was not read")
}

/// The shipped connectors, replaced and joined by the operator's.
fn all_connectors(
    own: Vec<Connector>,
    problems: &mut Diagnostics,
) -> BTreeMap<ConnectorId, Arc<Connector>> {
    let mut declared: BTreeMap<ConnectorId, Arc<Connector>> = BTreeMap::new();
    for connector in own {
        let place = connector.place().clone();
        let id = connector.id().clone();
        if let Some(earlier) = declared.insert(id.clone(), Arc::new(connector)) {
            problems.0.push(place.diagnostic(format!(
                "the connector `{id}` is already declared at {}",
                earlier.place()
            )));
        }
    }
    for shipped in problems.keep(Connector::shipped()).unwrap_or_default() {
        declared.entry(shipped.id().clone()).or_insert(shipped);
    }
    declared
}

/// Two connections of one agent that could make the same call with different credentials.
fn overlaps(connections: &[BoundConnection]) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    for (at, left) in connections.iter().enumerate() {
        for right in connections.iter().skip(at + 1) {
            if left.connector.is_opaque() != right.connector.is_opaque() && share_host(left, right)
            {
                let message = format!(
                    "the connections `{}` (at {}) and `{}` name the same host and port, and one of them is opaque",
                    left.connection.name(),
                    left.connection.place(),
                    right.connection.name()
                );
                let hint = "what is opaque is not read; give them different hosts or ports";
                problems.push(right.connection.place().diagnostic(message).hint(hint));
            } else if let Some((a, b)) = shared_call(left, right) {
                let (names, place) = (
                    (left.connection.name(), right.connection.name()),
                    left.connection.place(),
                );
                let message = format!(
                    "the connections `{}` (at {place}) and `{}` could both make the same call, as {} and {}",
                    names.0,
                    names.1,
                    a.id(),
                    b.id()
                );
                let hint =
                    "give them different `hosts`, or `capabilities` that have nothing in common";
                problems.push(right.connection.place().diagnostic(message).hint(hint));
            }
        }
    }
    problems
}

fn share_host(left: &BoundConnection, right: &BoundConnection) -> bool {
    let shares = |host: &HostPattern| right.hosts.iter().any(|other| host.overlaps(other));
    left.hosts.iter().any(shares)
}

fn shared_call<'c>(
    left: &'c BoundConnection,
    right: &'c BoundConnection,
) -> Option<(&'c Capability, &'c Capability)> {
    if !share_host(left, right) {
        return None;
    }
    let offered = |bound: &'c BoundConnection| {
        bound
            .connector
            .capabilities()
            .iter()
            .filter(move |capability| bound.offers(capability))
    };
    // Between capabilities of one connector a special path goes first, whichever connection offers it.
    let apart_by_path = left.connector.id() == right.connector.id();
    let mut pairs = offered(left).flat_map(|a| offered(right).map(move |b| (a, b)));
    pairs.find(|(a, b)| a.id() == b.id() || a.overlaps(b, apart_by_path))
}
