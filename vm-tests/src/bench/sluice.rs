//! Sluice as it is compared: as installed, with grouped reads, and with many agents and policies.
//! Each is an instance of its own; the generator runs inside it as an agent that knows nothing of Sluice.
//! Invariant: every flavour has the same connections for the agent that is measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};

use super::{H2, PLAIN};
use crate::instance::Instance;
use crate::pki::Authority;

const AGENT: &str = "acme/bench";
/// How many agents and policies there are beside the one that is measured, where there are many.
const AGENTS: usize = 999;
const POLICIES: usize = 2_000;
const CONNECTORS: usize = 200;

/// What is different.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Flavour {
    Plain,
    /// `[audit] reads = "grouped"`.
    Grouped,
    /// 1,000 agents and 2,000 policies.
    Large,
    /// 10 policies, and nothing else beside the agent: what the next three are compared with.
    Small,
    /// 1,000 agents.
    Agents,
    /// 2,000 policies.
    Policies,
    /// 200 connectors.
    Connectors,
}

impl Flavour {
    /// How many agents beside the one that is measured, policies, and connectors of its own.
    fn sizes(self) -> (usize, usize, usize) {
        match self {
            Self::Plain | Self::Grouped => (0, 0, 0),
            Self::Large => (AGENTS, POLICIES, 0),
            Self::Small => (0, 10, 0),
            Self::Agents => (AGENTS, 10, 0),
            Self::Policies => (0, POLICIES, 0),
            Self::Connectors => (0, 10, CONNECTORS),
        }
    }
}

/// A running daemon with one agent to measure.
pub(super) struct Sluice(Instance);

impl Sluice {
    pub(super) fn start(
        flavour: Flavour,
        authority: &Authority,
        upstreams: &BTreeMap<&str, SocketAddr>,
    ) -> Result<Self> {
        let mut instance = Instance::new()?;
        instance.configure("ca.pem", authority.pem())?;
        let metrics = instance.metrics_port();
        instance.configure("config.toml", &settings(flavour, upstreams, metrics))?;
        instance.configure("agents.d/bench.toml", &agent("bench"))?;
        let (agents, many, connectors) = flavour.sizes();
        for number in 0..agents {
            let name = format!("other{number}");
            instance.configure(&format!("agents.d/{name}.toml"), &agent(&name))?;
        }
        for number in 0..connectors {
            instance.configure(
                &format!("connectors.d/vendor{number}.toml"),
                &connector(number),
            )?;
        }
        if many > 0 {
            instance.configure("policies/many.cedar", &policies(many))?;
        }
        instance.start()?;
        for (name, secret) in [
            ("acme/stripe-live", "sk_live_bench_4eC39HqLyjWDarjtT1zdp7dc"),
            ("acme/plain", "bench-key-8dc1f0a27b3e4d55"),
        ] {
            instance.tell(&["vault", "put", name], secret)?;
        }
        Ok(Self(instance))
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.0.daemon_pid()
    }

    pub(super) fn is_reduced(&self) -> bool {
        self.0.is_reduced()
    }

    /// The generator as the agent, with these arguments.
    pub(super) fn agent(&self, arguments: &[String]) -> Result<Command> {
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        let mut all = vec![&*own];
        all.extend(arguments.iter().map(String::as_str));
        Ok(self.0.agent(AGENT, &all))
    }

    /// How many records its logs have.
    pub(super) fn records(&self) -> Result<u64> {
        let metrics = self.0.metrics()?;
        let total = metrics
            .lines()
            .find_map(|line| line.strip_prefix("sluice_audit_records_total "))
            .context("no count of records")?;
        Ok(total.trim().parse()?)
    }
}

fn settings(flavour: Flavour, upstreams: &BTreeMap<&str, SocketAddr>, metrics: u16) -> String {
    let mut text = format!(
        "[proxy]\nextra_roots = [\"ca.pem\"]\nuser = \"65534\"\n\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n"
    );
    if flavour == Flavour::Grouped {
        text.push_str("\n[audit]\nreads = \"grouped\"\n");
    }
    text.push_str("\n[proxy.connect_to]\n");
    for (name, address) in upstreams {
        // NOTE: writing to a String cannot fail.
        let _ = writeln!(text, "\"{name}:443\" = \"{address}\"");
    }
    text
}

fn agent(name: &str) -> String {
    format!(
        r#"tenant = "acme"
name = "{name}"
owner = "bench"
stage = "write"

[[connections]]
name = "stripe"
connector = "stripe"
credential = "stripe-live"

[[connections]]
name = "plain"
connector = "generic-http"
hosts = ["{PLAIN}", "{H2}"]
credential = "plain"
auth = {{ kind = "bearer" }}
"#
    )
}

/// Policies as a large installation has them: each about one agent and one capability.
fn policies(many: usize) -> String {
    const CAPABILITIES: [&str; 4] = [
        "stripe::Action::\"refunds.create\"",
        "stripe::Action::\"balance.read\"",
        "stripe::Action::\"charges.read\"",
        "stripe::Action::\"customers.delete\"",
    ];
    let mut text = String::new();
    for number in 0..many {
        let agent = number % AGENTS;
        let action = CAPABILITIES.get(number % CAPABILITIES.len()).unwrap_or(&"");
        let _ = writeln!(
            text,
            "@id(\"many-{number}\")\nforbid (principal == Agent::\"acme/other{agent}\", action == {action}, resource);"
        );
    }
    text
}

/// A connector that nobody here uses.
fn connector(number: usize) -> String {
    format!(
        r#"schema = 1
id = "vendor{number}"
hosts = ["api.vendor{number}.example"]
docs = "https://vendor{number}.example/docs"

[auth]
kind = "bearer"

[[capability]]
name = "things.list"
risk = "read"
match = {{ method = "GET", path = "/v1/things" }}
[capability.examples]
hit = [{{ method = "GET", path = "/v1/things" }}]

[[capability]]
name = "things.create"
risk = "write"
match = {{ method = "POST", path = "/v1/things" }}
opaque_body = true
[capability.examples]
hit = [{{ method = "POST", path = "/v1/things" }}]
"#
    )
}
