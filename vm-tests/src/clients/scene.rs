//! The scene of the matrix: one instance, one tenant, agents that differ only in what becomes of a write, and the far side.
//! Place: set up once, asked by every cell.
//! Invariant: the credential that the far side wants is in the vault and in no client's reach.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Case;
use super::far::{Far, SECRET};
use super::judge::NOTE;
use super::peers::Peers;
use super::rows::{Kind, Row, word};
use crate::demo::stage::{is_open_to_all, make_repository};
use crate::instance::Instance;
use crate::leftovers;
use crate::pki::Authority;

/// One connection of every agent: its name, its connector, its host, its credential's form, a credential or none.
const CONNECTIONS: [(&str, &str, &str, &str, bool); 11] = [
    ("api", "generic-http", "api.clients.example", "bearer", true),
    ("ws", "generic-http", "ws.clients.example", "bearer", true),
    (
        "grpc",
        "generic-http",
        "grpc.clients.example",
        "bearer",
        true,
    ),
    ("mcp", "generic-http", "mcp.clients.example", "bearer", true),
    (
        "google",
        "generic-http",
        "www.googleapis.com",
        "bearer",
        true,
    ),
    (
        "aws",
        "generic-http",
        "dynamodb.us-east-1.amazonaws.com",
        "",
        false,
    ),
    ("stripe", "stripe", "api.stripe.com", "", true),
    ("slack", "slack", "slack.com", "", true),
    ("github", "github", "api.github.com", "", true),
    ("openai", "openai", "api.openai.com", "", true),
    ("anthropic", "anthropic", "api.anthropic.com", "", true),
];

/// Its agents: what a write of theirs meets.
const POLICY: &str = r#"
@id("writes-are-held") @approval("approvers") @within("5m") @quorum("1")
forbid (principal == Agent::"acme/held", action, resource)
unless { action in Action::"read" && context.host != "ws.clients.example" }
unless { context.approvals.contains(Group::"approvers") };

@id("tools-are-held") @approval("approvers") @within("5m") @quorum("1")
forbid (principal == Agent::"acme/held-tools", action, resource)
when { context.host == "api.clients.example" }
unless { action in Action::"read" }
unless { context.approvals.contains(Group::"approvers") };

@id("writes-are-refused")
forbid (principal == Agent::"acme/refused", action, resource)
unless { action in Action::"read" && context.host != "ws.clients.example" };

@id("tools-are-refused")
forbid (principal == Agent::"acme/refused-tools", action, resource)
when { context.host == "api.clients.example" }
unless { action in Action::"read" };
"#;

const AGENTS: [&str; 5] = ["free", "held", "held-tools", "refused", "refused-tools"];

/// Everything that a cell needs.
pub(super) struct Scene {
    instance: Instance,
    far: Far,
    peers: Peers,
    /// Where the clients are installed.
    pub(super) kits: PathBuf,
    kits_are_open: bool,
}

impl Scene {
    pub(super) fn set(kits: &Path, keep: bool) -> Result<Self> {
        let _removed = leftovers::clean();
        let mut instance = Instance::new()?;
        if keep {
            instance.keep();
        }
        let authority = Authority::new()?;
        let place = instance.root().join("far");
        fs::create_dir_all(&place)?;
        let repositories = instance.root().join("repositories");
        make_repository(&repositories)?;
        let far = Far::start(&authority, &repositories, &place)?;
        let peers = Peers::start(&authority, &place, kits)?;
        instance.configure("ca.pem", authority.pem())?;
        let mut settings = format!(
            "[proxy]\nextra_roots = [\"ca.pem\"]\nuser = \"65534\"\n\n[metrics]\nlisten = \"127.0.0.1:{}\"\n\n\
             [approvals]\nhold = \"30s\"\n\n[proxy.connect_to]\n\"github.com:443\" = \"{}\"\n",
            instance.metrics_port(),
            far.address(),
        );
        let mut agent = String::new();
        for (name, connector, host, auth, credential) in CONNECTIONS {
            let port = peers.port(name).unwrap_or_else(|| far.address().port());
            settings.push_str(&format!("\"{host}:443\" = \"127.0.0.1:{port}\"\n"));
            agent.push_str(&format!(
                "\n[[connections]]\nname = \"{name}\"\nconnector = \"{connector}\"\nhosts = [\"{host}\"]\n"
            ));
            if !auth.is_empty() {
                agent.push_str(&format!("auth = {{ kind = \"{auth}\" }}\n"));
            }
            if credential {
                agent.push_str("credential = \"real\"\n");
            }
        }
        agent.push_str("\n[[connections]]\nname = \"git\"\nconnector = \"github\"\nhosts = [\"github.com\"]\ncredential = \"git\"\n");
        instance.configure("config.toml", &settings)?;
        instance.configure("policies/clients.cedar", POLICY)?;
        for name in AGENTS {
            let head = format!(
                "tenant = \"acme\"\nname = \"{name}\"\nowner = \"the matrix\"\nstage = \"write\"\n"
            );
            instance.configure(&format!("agents.d/{name}.toml"), &(head + &agent))?;
        }
        instance.start()?;
        instance.tell(&["vault", "put", "acme/real"], SECRET)?;
        instance.tell(
            &["vault", "put", "acme/git"],
            &format!("x-access-token:{SECRET}"),
        )?;
        let kits_are_open = is_open_to_all(kits);
        Ok(Self {
            instance,
            far,
            peers,
            kits: kits.to_owned(),
            kits_are_open,
        })
    }

    /// Forgets what was before this case.
    pub(super) fn begin(&self, case: Case) -> Result<()> {
        let work = self.work();
        drop(fs::remove_dir_all(&work));
        fs::create_dir_all(&work)?;
        fs::set_permissions(&work, fs::Permissions::from_mode(0o1777))?;
        self.far.begin();
        self.peers.begin(case)
    }

    /// Where a client works.
    fn work(&self) -> PathBuf {
        self.instance.root().join("home/work")
    }

    /// The client as the agent to whom this case happens.
    pub(super) fn client(&self, row: &Row, case: Case) -> Command {
        let agent = match (case, row.kind) {
            (Case::Read | Case::Write | Case::Stream, _) => "acme/free",
            (Case::Held, Kind::Plain) => "acme/held",
            (Case::Held, Kind::Tools) => "acme/held-tools",
            (Case::Refused, Kind::Plain) => "acme/refused",
            (Case::Refused, Kind::Tools) => "acme/refused-tools",
        };
        let mut words = vec!["run", "--agent", agent];
        // What lies below somebody's closed home is closed to the agent's own uid.
        if !self.kits_are_open {
            words.extend(["--user", "root"]);
        }
        words.push("--");
        let mut command = self.instance.sluice(&words);
        command
            .args(row.command.iter().map(|text| word(text, &self.kits)))
            .arg(case.asked())
            .current_dir(self.work())
            .env_remove("VIRTUAL_ENV")
            .env_remove("PYTHONPATH");
        for (name, _) in std::env::vars_os() {
            // The clients are to reach us as a user's would on a plain host.
            let name = name.to_string_lossy().to_ascii_lowercase();
            if name.ends_with("_proxy") {
                command.env_remove(&name).env_remove(name.to_uppercase());
            }
        }
        command
    }

    /// Says yes to whatever waits, and how many that were.
    pub(super) fn approve_all(&self) -> Result<u32> {
        let list = ["approvals", "list", "--format", "json"];
        let mut approved = 0;
        for approval in self.instance.ask(&list)?.ok()?.json_lines()? {
            let state = approval.pointer("/state").and_then(|state| state.as_str());
            let id = approval.pointer("/id").and_then(|id| id.as_str());
            if let Some(id) = id.filter(|_| state.is_none_or(|state| state == "pending")) {
                // Somebody may have been quicker: what counts is what arrives.
                if self
                    .instance
                    .ask(&["approvals", "approve", id])?
                    .status
                    .success()
                {
                    approved += 1;
                }
            }
        }
        Ok(approved)
    }

    /// The client has shown one more piece of a streamed answer.
    pub(super) fn acknowledge(&self) -> Result<()> {
        use std::io::Write as _;
        let pace = self.instance.root().join("far/pace");
        let mut file = fs::File::options().append(true).create(true).open(pace)?;
        file.write_all(b".").context("the pace of the far side")
    }

    /// How many writes have arrived in this case.
    pub(super) fn arrived(&self) -> Result<usize> {
        Ok(self.far.arrived(NOTE) + self.peers.arrived(NOTE)?)
    }
}
