//! A bundle: agents, connectors and policies that were checked together, under one version.
//! Everything a decision reads besides the call; replaced as a whole, so a request never sees half of a change.
//! INVARIANT: a bundle with anything wrong in it does not exist; every fault of every file is reported at once.

use std::sync::Arc;

use crate::canonical::Canonical;
use crate::cedar::{self, Engine, Rule};
use crate::{
    Agent, AgentId, BodyNeed, Call, Catalogue, Connector, ConnectorId, Diagnostic, Diagnostics,
    Endpoint, Host, Mapping, PolicyVersion, Refused, RequestView, Source,
};

/// The operator's files. The shipped connectors and policies are part of every bundle and not listed here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// `agents.d/*.toml`: one agent each.
    pub agents: Vec<Source>,
    /// `connectors.d/*.toml`: one connector each; one with a shipped id replaces the shipped one.
    pub connectors: Vec<Source>,
    /// `policies/*.cedar`; a policy with a shipped `@id` replaces the shipped one.
    pub policies: Vec<Source>,
}

/// Everything that decides, checked and ready.
#[derive(Debug)]
pub struct Bundle {
    catalogue: Catalogue,
    /// The part of `notices` that policies have no part in.
    connector_notices: Vec<Diagnostic>,
    engine: Engine,
    version: PolicyVersion,
    notices: Vec<Diagnostic>,
    sources: Arc<Sources>,
}

impl Bundle {
    /// Reads and checks the operator's files together with what is shipped.
    ///
    /// # Errors
    /// Everything that is wrong, with file, line, column and, where one can be guessed, a hint.
    pub fn load(sources: &Sources) -> Result<Bundle, Diagnostics> {
        let mut problems = Diagnostics::default();
        let mut agents = Vec::new();
        for source in &sources.agents {
            agents.extend(problems.keep(Agent::parse(source)));
        }
        let mut connectors = Vec::new();
        for source in &sources.connectors {
            connectors.extend(problems.keep(Connector::parse(source)));
        }
        let all_connectors = connectors.len() == sources.connectors.len();
        let connector_notices = replaced_connectors(&connectors);

        match problems.keep(Catalogue::build(agents, connectors.clone())) {
            Some(catalogue) if all_connectors => Self::assemble(
                problems,
                sources.clone(),
                catalogue,
                connector_notices,
                Engine::build,
            ),
            // An agent is at fault, and the policies can still be checked.
            None if all_connectors => {
                let bare = problems.keep(Catalogue::build(Vec::new(), connectors));
                let (rules, _) = cedar::load(&sources.policies, &mut problems);
                problems.keep(bare.map_or(Err(Diagnostics::default()), |bare| {
                    Engine::build(&bare, rules)
                }));
                Err(problems)
            }
            // Policies name capabilities: without every connector, most faults found in them would not be real.
            _ => {
                cedar::load(&sources.policies, &mut problems);
                Err(problems)
            }
        }
    }

    /// This bundle with more policies. Agents and connectors are as they are, and so are their checks: for
    /// `sluice policy test`, whose cases try policies one after the other.
    ///
    /// # Errors
    /// What is wrong with the policies.
    pub fn with_policies(
        &self,
        more: impl IntoIterator<Item = Source>,
    ) -> Result<Bundle, Diagnostics> {
        let mut sources = Sources::clone(&self.sources);
        sources.policies.extend(more);
        let (catalogue, notices) = (self.catalogue.clone(), self.connector_notices.clone());
        let engine = |catalogue: &Catalogue, rules| self.engine.with_rules(catalogue, rules);
        Self::assemble(Diagnostics::default(), sources, catalogue, notices, engine)
    }

    fn assemble(
        mut problems: Diagnostics,
        sources: Sources,
        catalogue: Catalogue,
        connector_notices: Vec<Diagnostic>,
        engine: impl FnOnce(&Catalogue, Vec<Rule>) -> Result<Engine, Diagnostics>,
    ) -> Result<Bundle, Diagnostics> {
        let (rules, replaced) = cedar::load(&sources.policies, &mut problems);
        let Some(engine) = problems.keep(engine(&catalogue, rules)) else {
            return Err(problems);
        };
        let notices = [
            connector_notices.clone(),
            catalogue.notices(),
            replaced,
            engine.notices().to_vec(),
        ]
        .concat();
        let version = version(&sources, &engine);
        let bundle = Bundle {
            catalogue,
            connector_notices,
            engine,
            version,
            notices,
            sources: Arc::new(sources),
        };
        problems.or(bundle)
    }

    /// The digest over everything that decides: the operator's files, what is shipped, and the schema made of them.
    pub fn version(&self) -> PolicyVersion {
        self.version
    }

    /// What is not wrong but worth knowing: shipped connectors and policies that the operator's files replace,
    /// connections that lack the credential their connector needs, and policies that name an agent, tenant or connection which does not exist here.
    pub fn notices(&self) -> &[Diagnostic] {
        &self.notices
    }

    /// The files this bundle was loaded from.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The generated Cedar schema that policies are validated against.
    pub fn schema_text(&self) -> &str {
        self.engine.schema_text()
    }

    /// Every agent, by id.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.catalogue.agents()
    }

    /// One agent.
    pub fn agent(&self, id: &AgentId) -> Option<&Agent> {
        self.catalogue.agent(id)
    }

    /// Every connector, shipped and the operator's.
    pub fn connectors(&self) -> impl Iterator<Item = &Connector> {
        self.catalogue.connectors()
    }

    /// One connector.
    pub fn connector(&self, id: &ConnectorId) -> Option<&Connector> {
        self.catalogue.connector(id)
    }

    /// Whether some connection of the agent allows this name.
    pub fn resolves(&self, agent: &AgentId, host: &Host) -> bool {
        self.catalogue.resolves(agent, host)
    }

    /// The names that the agent's connections allow and that are no wildcards, each once.
    pub fn exact_hosts(&self, agent: &AgentId) -> Vec<Host> {
        self.catalogue.exact_hosts(agent)
    }

    /// Whether a connection of the agent declares this endpoint opaque: it speaks something else than HTTP.
    pub fn is_opaque(&self, agent: &AgentId, at: &Endpoint) -> bool {
        self.catalogue.is_opaque(agent, at)
    }

    /// Whether mapping this request needs its body.
    pub fn body_need(&self, agent: &AgentId, at: &Endpoint, head: &RequestView<'_>) -> BodyNeed {
        self.catalogue.body_need(agent, at, head)
    }

    /// The call that this request is, or that its body must be read first: [`Bundle::body_need`] and [`Bundle::call`] in one
    /// reading of the head.
    ///
    /// # Errors
    /// As [`Bundle::call`].
    pub fn map(
        &self,
        agent: &AgentId,
        at: &Endpoint,
        request: &RequestView<'_>,
    ) -> Result<Mapping, Refused> {
        self.catalogue.map(agent, at, request)
    }

    /// The call that this request is.
    ///
    /// # Errors
    /// `HostUnknown`, `Unmapped`, `AmbiguousRequest` or `MalformedRequest`, with what to ask for.
    pub fn call(
        &self,
        agent: &AgentId,
        at: &Endpoint,
        request: &RequestView<'_>,
    ) -> Result<Call, Refused> {
        self.catalogue.call(agent, at, request)
    }

    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// Says so where an operator's connector takes a shipped one's place.
fn replaced_connectors(own: &[Connector]) -> Vec<Diagnostic> {
    if own.is_empty() {
        return Vec::new();
    }
    // A shipped connector that does not load is the catalogue's to report.
    let shipped = Connector::shipped().unwrap_or_default();
    let replaces = |connector: &&Connector| shipped.iter().any(|one| one.id() == connector.id());
    let notice = |connector: &Connector| {
        let message = format!("replaces the shipped connector `{}`", connector.id());
        connector.place().diagnostic(message)
    };
    own.iter().filter(replaces).map(notice).collect()
}

/// File names do not decide, so they are left out; the order of files does not either, so texts are sorted.
fn version(sources: &Sources, engine: &Engine) -> PolicyVersion {
    let mut canonical = Canonical::new("sluice bundle v1");
    canonical.text(env!("CARGO_PKG_VERSION"));
    for (_, text) in cedar::SHIPPED {
        canonical.text(text);
    }
    for shipped in Connector::shipped_sources() {
        canonical.text(&shipped.text);
    }
    canonical.text(engine.schema_text());
    for files in [&sources.agents, &sources.connectors, &sources.policies] {
        let mut texts: Vec<&str> = files.iter().map(|source| source.text.as_str()).collect();
        texts.sort_unstable();
        canonical.count(texts.len());
        texts.into_iter().for_each(|text| canonical.text(text));
    }
    PolicyVersion::new(canonical.digest())
}
