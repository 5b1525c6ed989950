//! Agents: the files of `agents.d`, one agent each: who it is, who answers for it, how far it is trusted, what it may reach.
//! Read when a bundle is loaded; the catalogue binds each connection to its connector.
//! INVARIANT: an `Agent` is well formed by itself; whether its connectors and capabilities exist is the catalogue's check.

use crate::connector::{OneOrMany, RawAuth};
use crate::diagnostic::Place;
use crate::{
    AgentId, AgentName, Auth, CgroupPattern, ConnectionName, ConnectorId, CredentialId,
    CredentialName, Diagnostics, Group, HostPattern, NameError, Owner, Peer, Pin, Source, Tenant,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use toml::Spanned;

/// How far an agent is trusted; each stage includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Everything is refused, and recorded.
    Observe,
    /// May read.
    Read,
    /// May also make drafts.
    Draft,
    /// May also write.
    Write,
    /// May do what policy allows without a stage in its way.
    Autonomous,
}

impl Stage {
    /// Every stage, the least trusted first.
    pub const ALL: [Stage; 5] = [
        Stage::Observe,
        Stage::Read,
        Stage::Draft,
        Stage::Write,
        Stage::Autonomous,
    ];

    /// The name used in files and policies.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Observe => "observe",
            Stage::Read => "read",
            Stage::Draft => "draft",
            Stage::Write => "write",
            Stage::Autonomous => "autonomous",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Capability names with `*` for any run of characters: `refunds.create`, `refunds.*`, `*.read`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilityPattern(String);

impl CapabilityPattern {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern covers this capability name.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl FromStr for CapabilityPattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<CapabilityPattern, NameError> {
        let valid = !text.is_empty()
            && text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'*'));
        let rule = "a capability name, with `*` for any run of characters";
        if valid {
            Ok(CapabilityPattern(text.to_owned()))
        } else {
            Err(NameError::new("capability pattern", text, rule))
        }
    }
}

impl fmt::Display for CapabilityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::names::serde_as_text!(CapabilityPattern);

/// An agent: a service identity with an owner, a stage and its connections.
#[derive(Debug, Clone)]
pub struct Agent {
    id: AgentId,
    owner: Owner,
    stage: Stage,
    groups: Vec<Group>,
    connections: Vec<Connection>,
    processes: Vec<(CgroupPattern, Place)>,
    place: Place,
}

impl Agent {
    /// Reads one file of `agents.d`.
    ///
    /// Keys: `tenant`, `name`, `owner`, `stage`, optional `groups`, and `[[connections]]` with `name`, `connector`, optional
    /// `credential`, `hosts`, `capabilities`, `pins`, `client_certificate` and (for `generic-http` only) `auth`;
    /// `[[processes]]` with `cgroup`.
    pub fn parse(source: &Source) -> Result<Agent, Diagnostics> {
        let raw: RawAgent = source.toml()?;
        let mut problems = Diagnostics::default();
        let mut seen = BTreeMap::new();
        let mut connections = Vec::new();
        for connection in raw.connections {
            if seen.insert(connection.name.get_ref().clone(), ()).is_some() {
                let message = format!(
                    "the connection `{}` is declared twice",
                    connection.name.get_ref()
                );
                problems
                    .0
                    .push(source.diagnostic(connection.name.span(), message));
            }
            connections.extend(problems.keep(Connection::read(connection, &raw.tenant, source)));
        }
        let rules = raw.processes.into_iter().map(|rule| rule.cgroup);
        let processes = rules
            .map(|cgroup| (source.place(cgroup.span()), cgroup.into_inner()))
            .map(|(place, cgroup)| (cgroup, place))
            .collect();
        let place = source.place(raw.name.span());
        let id = AgentId {
            tenant: raw.tenant,
            name: raw.name.into_inner(),
        };
        problems.or(Agent {
            id,
            owner: raw.owner,
            stage: raw.stage,
            groups: raw.groups,
            connections,
            processes,
            place,
        })
    }

    /// `tenant/name`.
    pub fn id(&self) -> &AgentId {
        &self.id
    }

    /// Who answers for it.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// How far it is trusted.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The groups it belongs to, for policies to name.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// What it may reach, in file order.
    pub fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// The cgroups whose processes run as it without being started by it, in file order.
    pub fn processes(&self) -> impl Iterator<Item = &CgroupPattern> {
        self.processes.iter().map(|(cgroup, _)| cgroup)
    }

    pub(crate) fn process_rules(&self) -> &[(CgroupPattern, Place)] {
        &self.processes
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

/// An agent's use of a connector: which hosts, which credential, which capabilities.
#[derive(Debug, Clone)]
pub struct Connection {
    name: ConnectionName,
    connector: ConnectorId,
    credential: Option<CredentialName>,
    hosts: Vec<HostPattern>,
    capabilities: Option<Vec<CapabilityPattern>>,
    auth: Option<Auth>,
    peer: Option<Arc<Peer>>,
    place: Place,
    connector_place: Place,
    capability_places: Vec<Place>,
}

impl Connection {
    fn read(
        raw: RawConnection,
        tenant: &Tenant,
        source: &Source,
    ) -> Result<Connection, Diagnostics> {
        let mut problems = Diagnostics::default();
        let peer = problems.keep(raw.peer(tenant, source)).flatten();
        let auth = raw.auth.and_then(|auth| {
            let span = auth.span();
            auth.into_inner()
                .kind()
                .map_err(|message| problems.0.push(source.diagnostic(span, message)))
                .ok()
        });
        let (mut capabilities, mut capability_places) = (None, Vec::new());
        if let Some(patterns) = raw.capabilities {
            capability_places = patterns
                .iter()
                .map(|pattern| source.place(pattern.span()))
                .collect();
            capabilities = Some(patterns.into_iter().map(Spanned::into_inner).collect());
        }
        problems.or(Connection {
            place: source.place(raw.name.span()),
            name: raw.name.into_inner(),
            connector_place: source.place(raw.connector.span()),
            connector: raw.connector.into_inner(),
            credential: raw.credential,
            hosts: raw.hosts.map(|hosts| hosts.0).unwrap_or_default(),
            capabilities,
            auth,
            peer: peer.map(Arc::new),
            capability_places,
        })
    }

    /// Its name within the agent.
    pub fn name(&self) -> &ConnectionName {
        &self.name
    }

    /// The connector it uses.
    pub fn connector(&self) -> &ConnectorId {
        &self.connector
    }

    /// The credential lent to its calls, of the agent's tenant.
    pub fn credential(&self) -> Option<&CredentialName> {
        self.credential.as_ref()
    }

    /// The hosts it is for, instead of the connector's own; empty where the connector's own hold.
    pub fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// The capabilities it is limited to; `None` for all of the connector's.
    pub fn capabilities(&self) -> Option<&[CapabilityPattern]> {
        self.capabilities.as_deref()
    }

    /// Where the credential goes, instead of the connector's own place (`generic-http` only).
    pub fn auth(&self) -> Option<&Auth> {
        self.auth.as_ref()
    }

    /// What it asks of its upstream's TLS, and shows of itself there; `None` where it says nothing about it.
    pub fn peer(&self) -> Option<&Arc<Peer>> {
        self.peer.as_ref()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn connector_place(&self) -> &Place {
        &self.connector_place
    }

    pub(crate) fn capability_places(&self) -> &[Place] {
        &self.capability_places
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAgent {
    tenant: Tenant,
    name: Spanned<AgentName>,
    owner: Owner,
    stage: Stage,
    #[serde(default)]
    groups: Vec<Group>,
    #[serde(default)]
    connections: Vec<RawConnection>,
    #[serde(default)]
    processes: Vec<RawProcesses>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProcesses {
    cgroup: Spanned<CgroupPattern>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConnection {
    name: Spanned<ConnectionName>,
    connector: Spanned<ConnectorId>,
    credential: Option<CredentialName>,
    hosts: Option<OneOrMany<HostPattern>>,
    capabilities: Option<Vec<Spanned<CapabilityPattern>>>,
    auth: Option<Spanned<RawAuth>>,
    pins: Option<Spanned<Vec<Spanned<String>>>>,
    client_certificate: Option<CredentialName>,
}

impl RawConnection {
    fn peer(&self, tenant: &Tenant, source: &Source) -> Result<Option<Peer>, Diagnostics> {
        let mut problems = Diagnostics::default();
        let mut pins = Vec::new();
        if let Some(written) = &self.pins {
            if written.get_ref().is_empty() {
                let message = "an empty list pins nothing; leave `pins` out, or name a pin";
                problems.0.push(source.diagnostic(written.span(), message));
            }
            for pin in written.get_ref() {
                let read = match pin.get_ref().parse::<Pin>() {
                    Ok(read) if pins.contains(&read) => {
                        Err(format!("the pin {read} is named twice"))
                    }
                    Ok(read) => Ok(read),
                    Err(error) => Err(error.to_string()),
                };
                match read {
                    Ok(read) => pins.push(read),
                    Err(message) => problems.0.push(source.diagnostic(pin.span(), message)),
                }
            }
        }
        let client_certificate = self.client_certificate.as_ref().map(|name| CredentialId {
            tenant: tenant.clone(),
            name: name.clone(),
        });
        let says = !pins.is_empty() || client_certificate.is_some();
        problems.or(says.then(|| Peer {
            connection: self.name.get_ref().clone(),
            pins,
            client_certificate,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Agent, Diagnostics> {
        Agent::parse(&Source {
            path: "agents.d/support.toml".into(),
            text: text.into(),
        })
    }

    const SUPPORT: &str = r#"
tenant = "acme"
name = "support"
owner = "Support <support@example.com>"
stage = "write"
[[connections]]
name = "stripe"
connector = "stripe"
credential = "stripe-live"
capabilities = ["refunds.*", "charges.read"]
"#;

    #[test]
    fn an_agent_file_reads_as_written() {
        let agent = parse(SUPPORT).unwrap();
        assert_eq!(agent.id().to_string(), "acme/support");
        assert_eq!(agent.stage(), Stage::Write);
        assert_eq!(agent.connections().len(), 1);
        assert_eq!(
            agent.connections()[0].credential().unwrap().as_str(),
            "stripe-live"
        );
    }

    #[test]
    fn a_wrong_agent_file_is_refused_with_place_and_hint() {
        let check = |from: &str, to: &str, expected: &str| {
            let shown = parse(&SUPPORT.replace(from, to)).unwrap_err().to_string();
            assert!(shown.contains(expected), "{shown}");
        };
        check(
            "stage = \"write\"",
            "stage = \"wirte\"",
            ":5:9: unknown variant `wirte`",
        );
        check(
            "stage = \"write\"",
            "stage = \"wirte\"",
            "did you mean `write`?",
        );
        check("credential =", "credentail =", "did you mean `credential`?");
        check(
            "\"acme\"",
            "\"ac/me\"",
            "`ac/me` is not a valid tenant name",
        );
        check(
            "owner = \"Support <support@example.com>\"\n",
            "",
            "missing field `owner`",
        );
    }

    #[test]
    fn a_rule_for_processes_is_a_cgroup_pattern() {
        let with = |rule: &str| parse(&format!("{SUPPORT}[[processes]]\n{rule}\n"));
        let agent = with("cgroup = \"/machine.slice/bot-*.scope\"").unwrap();
        let rules: Vec<&str> = agent.processes().map(CgroupPattern::as_str).collect();
        assert_eq!(rules, ["/machine.slice/bot-*.scope"]);
        for (rule, expected) in [
            (
                "cgroup = \"/*\"",
                ":12:10: `/*` is not a valid cgroup pattern",
            ),
            ("cgruop = \"/a/b\"", "did you mean `cgroup`?"),
            ("", "missing field `cgroup`"),
        ] {
            let shown = with(rule).unwrap_err().to_string();
            assert!(shown.contains(expected), "{shown}");
        }
    }

    #[test]
    fn pins_and_a_client_certificate_are_read_and_bad_ones_refused_with_their_place() {
        const PIN: &str = "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM=";
        let with = |lines: &str| parse(&format!("{SUPPORT}{lines}\n"));
        let agent = with(&format!(
            "pins = [\"{PIN}\"]\nclient_certificate = \"stripe-client\""
        ))
        .unwrap();
        let peer = agent.connections()[0].peer().unwrap();
        assert_eq!(peer.pins()[0].to_string(), PIN);
        assert_eq!(
            peer.client_certificate().unwrap().to_string(),
            "acme/stripe-client"
        );
        assert!(parse(SUPPORT).unwrap().connections()[0].peer().is_none());
        for (lines, expected) in [
            ("pins = []".to_owned(), ":11:8: an empty list pins nothing"),
            (
                format!("pins = [\"{PIN}\", \"{PIN}\"]"),
                ":11:64: the pin sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM= is named twice",
            ),
            (
                "pins = [\"sha256/abc\"]".to_owned(),
                ":11:9: `sha256/abc` is not a valid pin: `sha256/` and the base64 of 32 bytes",
            ),
            (
                "client_certificat = \"x\"".to_owned(),
                "did you mean `client_certificate`?",
            ),
        ] {
            let shown = with(&lines).unwrap_err().to_string();
            assert!(shown.contains(expected), "{shown}");
        }
    }

    #[test]
    fn a_connection_name_is_used_once() {
        let twice =
            format!("{SUPPORT}[[connections]]\nname = \"stripe\"\nconnector = \"stripe\"\n");
        assert!(
            parse(&twice)
                .unwrap_err()
                .to_string()
                .contains(":12:8: the connection `stripe` is declared twice")
        );
    }

    #[test]
    fn capability_patterns_cover_whole_names() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(
                pattern.parse::<CapabilityPattern>().unwrap().matches(name),
                expected,
                "{pattern} {name}"
            );
        };
        check("refunds.create", "refunds.create", true);
        check("refunds.create", "refunds.created", false);
        check("refunds.*", "refunds.create", true);
        check("*.read", "refunds.read", true);
        check("*.read", "refunds.reads", false);
        check("a*b*c", "aXbXbc", true);
        check("a*a", "a", false);
        check("*", "anything.at_all", true);
    }
}
