//! Connectors: what a vendor's API looks like, as data: hosts, where the credential goes, capabilities, examples.
//! Loaded with a bundle; the catalogue asks them what a request is.
//! INVARIANT: a `Connector` maps each request to one capability or refuses it; which one never depends on file order.

mod alike;
mod capability;
mod compile;
mod condition;
mod example;
mod fields;
mod file;
mod json;
mod param;
mod path;
mod request;
mod route;
mod shipped;
mod template;

pub use capability::Capability;
pub use example::ExampleResult;
pub(crate) use file::{OneOrMany, RawAuth};
pub use param::{Param, ParamKind};
pub(crate) use request::Request;
pub(crate) use route::Mapped;

use crate::diagnostic::Place;
use crate::{
    Auth, CapabilityName, ConnectorId, Diagnostics, Endpoint, HostPattern, Refused, RequestView,
    Source, Strip,
};
use std::sync::{Arc, LazyLock};

/// A vendor's API.
#[derive(Debug, Clone)]
pub struct Connector {
    id: ConnectorId,
    docs: String,
    notes: String,
    hosts: Vec<HostPattern>,
    require_hosts: bool,
    opaque: bool,
    default_host: Option<HostPattern>,
    auth: Auth,
    auth_by_host: Vec<(HostPattern, Auth)>,
    settable_auth: bool,
    strip: Vec<Strip>,
    capabilities: Vec<Capability>,
    routes: route::Routes,
    place: Place,
}

impl Connector {
    /// Reads one connector file; every problem that is found is reported, with its place.
    pub fn parse(source: &Source) -> Result<Connector, Diagnostics> {
        compile::connector(source.toml()?, source)
    }

    /// The connectors that come with Sluice. They are compiled in, read once, and loaded by this crate's tests.
    pub fn shipped() -> Result<Vec<Arc<Connector>>, Diagnostics> {
        static SHIPPED: LazyLock<Result<Vec<Arc<Connector>>, Diagnostics>> = LazyLock::new(|| {
            shipped::sources()
                .iter()
                .map(|source| Connector::parse(source).map(Arc::new))
                .collect()
        });
        SHIPPED.clone()
    }

    /// The files of the shipped connectors, as they are compiled in.
    pub fn shipped_sources() -> Vec<Source> {
        shipped::sources()
    }

    /// The JSON Schema of connector files.
    pub fn schema() -> &'static str {
        shipped::SCHEMA
    }

    /// Its id.
    pub fn id(&self) -> &ConnectorId {
        &self.id
    }

    /// The vendor's documentation.
    pub fn docs(&self) -> &str {
        &self.docs
    }

    /// What an operator should know before using it; may be empty.
    pub fn notes(&self) -> &str {
        &self.notes
    }

    /// The hosts it is for; empty where each connection names its own.
    pub fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// Whether connections must name their hosts themselves.
    pub fn require_hosts(&self) -> bool {
        self.require_hosts
    }

    /// Where the credential goes.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// What the agent sends in these places is removed.
    pub fn strip(&self) -> &[Strip] {
        &self.strip
    }

    /// Its capabilities, in file order.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// One capability.
    pub fn capability(&self, name: &CapabilityName) -> Option<&Capability> {
        self.capabilities
            .iter()
            .find(|capability| capability.id().name == *name)
    }

    /// Runs every example of the file, in file order.
    pub fn test(&self) -> Vec<ExampleResult> {
        let run = |capability: &Capability| -> Vec<ExampleResult> {
            capability
                .examples
                .iter()
                .map(|example| example.run(self, capability))
                .collect()
        };
        self.capabilities.iter().flat_map(run).collect()
    }

    /// Whether its hosts speak something else than HTTP: to connect is all that there is to decide.
    pub(crate) fn is_opaque(&self) -> bool {
        self.opaque
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether connections may set `auth`.
    pub(crate) fn settable_auth(&self) -> bool {
        self.settable_auth
    }

    /// Where the credential goes on this host.
    pub(crate) fn auth_at(&self, at: &Endpoint) -> &Auth {
        let special = self.auth_by_host.iter().find(|(host, _)| host.matches(at));
        special.map_or(&self.auth, |(_, auth)| auth)
    }

    /// Whether some capability is for this host.
    pub(crate) fn serves(&self, host: &HostPattern) -> bool {
        let matchers = self
            .capabilities
            .iter()
            .flat_map(|capability| &capability.matchers);
        matchers
            .into_iter()
            .any(|matcher| matcher.host.as_ref().is_none_or(|own| own.overlaps(host)))
    }

    /// The bytes of body that are needed to map this request; `None` where the head is enough or refuses it anyway.
    pub(crate) fn body_limit(&self, at: &Endpoint, head: &RequestView<'_>) -> Option<usize> {
        let request = Request::head(head).ok()?;
        let (candidates, _) =
            self.routes
                .candidates(&self.capabilities, at, request.kind(), request.path);
        route::body_limit(&candidates)
    }

    /// What this request is. Reads its body if a candidate needs it; `None` instead, where `stop_at_body` is set.
    pub(crate) fn map_head<'c>(
        &'c self,
        at: &Endpoint,
        request: &mut Request<'c>,
        stop_at_body: bool,
    ) -> Result<Option<Mapped<'c>>, Refused> {
        let (candidates, near) =
            self.routes
                .candidates(&self.capabilities, at, request.kind(), request.path);
        if candidates.is_empty() {
            return Err(Refused::unmapped(match near.first() {
                Some(near) => format!(
                    "no capability of {} is {}{} here; the path is known for {}",
                    self.id,
                    request.method,
                    if request.websocket {
                        " of a WebSocket"
                    } else {
                        ""
                    },
                    near.id()
                ),
                None => format!("no capability of {} has this path", self.id),
            }));
        }
        if route::body_limit(&candidates).is_some() && matches!(request.body, request::Body::Unread)
        {
            if stop_at_body {
                return Ok(None);
            }
            request.read_body()?;
        }
        route::choose(candidates, request).map(Some)
    }
}
