//! The scenery of the demonstration: vendors, one tenant with one agent, its policy, its secrets.
//! Also what the end-to-end tests start from.
//! Invariant: the real credentials exist in the vault and at the vendors, and nowhere an agent could look.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::instance::{Instance, PATIENCE};
use crate::output::{self, Output};
use crate::pki::Authority;
use crate::upstream::{NAMES, Options, Upstream};

/// The agent that everything runs as.
pub const AGENT: &str = "acme/support";
/// What Stripe knows the tenant by. The agent never sees it.
pub const STRIPE_KEY: &str = "sk_live_demo_4eC39HqLyjWDarjtT1zdp7dc";
/// The same for Slack.
pub const SLACK_TOKEN: &str = "xoxb-demo-7394-kq2vUeTzGmDgYwRb";
/// The same for GitHub.
pub const GITHUB_TOKEN: &str = "ghp_demo9aXv2LqT7sWc4NfKe1RyUo5BzM0Hd";
/// `x-access-token:` and that token, as git's Basic authorization.
pub const GIT_AUTHORIZATION: &str =
    "Basic eC1hY2Nlc3MtdG9rZW46Z2hwX2RlbW85YVh2MkxxVDdzV2M0TmZLZTFSeVVvNUJ6TTBIZA==";
/// What the agent holds instead: SDKs refuse to start without a key.
pub const PLACEHOLDER: &str = "placeholder-for-sluice";

const AGENT_FILE: &str = r#"tenant = "acme"
name = "support"
owner = "payments team"
stage = "write"

[[connections]]
name = "stripe"
connector = "stripe"
credential = "stripe-live"

[[connections]]
name = "slack"
connector = "slack"
hosts = ["slack.com"]
credential = "slack-bot"

[[connections]]
name = "github"
connector = "github"
hosts = ["api.github.com"]
credential = "github-token"

[[connections]]
name = "git"
connector = "github"
hosts = ["github.com"]
credential = "github-git"
"#;

const POLICY: &str = r#"// Refunds over 50.00 need a person of finance.
@id("refund-over-50-needs-finance") @approval("finance") @within("15m") @quorum("1")
forbid (principal, action == stripe::Action::"refunds.create", resource)
when { context.params has amount && context.params.amount > 5000 }
unless { context.approvals.contains(Group::"finance") };
"#;

/// An instance and the vendors that it calls.
pub struct Stage {
    /// The instance; not started yet when the stage is set.
    pub instance: Instance,
    /// The vendors.
    pub upstream: Upstream,
    authority: Authority,
}

impl Stage {
    /// Sets the stage: vendors up, configuration written, daemon not started.
    ///
    /// # Errors
    /// If a port, a file or a certificate cannot be had.
    pub fn set(hold: &str) -> Result<Self> {
        let instance = Instance::new()?;
        let authority = Authority::new()?;
        let repositories = instance.root().join("repositories");
        make_repository(&repositories)?;
        let upstream = Upstream::start(
            authority.leaf(NAMES)?.server(&["h2", "http/1.1"])?,
            Options {
                repositories: Some(repositories),
            },
        )?;
        instance.configure("ca.pem", authority.pem())?;
        instance.configure(
            "config.toml",
            &settings(&upstream, hold, instance.metrics_port()),
        )?;
        instance.configure("agents.d/support.toml", AGENT_FILE)?;
        instance.configure("policies/refunds.cedar", POLICY)?;
        Ok(Self {
            instance,
            upstream,
            authority,
        })
    }

    /// Starts the daemon and puts the credentials into its vault.
    ///
    /// # Errors
    /// If the daemon does not start or the vault refuses.
    pub fn open(&mut self) -> Result<()> {
        self.instance.start()?;
        for (id, secret) in [
            ("acme/stripe-live", STRIPE_KEY.to_owned()),
            ("acme/slack-bot", SLACK_TOKEN.to_owned()),
            ("acme/github-token", GITHUB_TOKEN.to_owned()),
            // git wants Basic.
            ("acme/github-git", format!("x-access-token:{GITHUB_TOKEN}")),
        ] {
            self.instance.tell(&["vault", "put", id], &secret)?;
        }
        Ok(())
    }

    /// The root that the vendors' certificates chain to.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Runs a program as the agent.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        self.instance.run(AGENT, args)
    }

    /// `curl` as the agent, with its placeholder, giving the body and on the last line the status.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn curl(&self, args: &[&str]) -> Result<Output> {
        let bearer = format!("Authorization: Bearer {PLACEHOLDER}");
        let mut all = vec![
            "curl",
            "-sS",
            "--max-time",
            "20",
            "-H",
            &bearer,
            "-w",
            "\n%{http_code}",
        ];
        all.extend(args);
        self.run(&all)
    }

    /// A Python program as the agent, in the environment that has `requests` and `stripe`.
    #[must_use]
    pub fn python(&self, venv: &Path, program: &str) -> Command {
        let python = venv.join("bin/python");
        let mut args = vec!["run", "--agent", AGENT];
        // An interpreter below root's home is closed to the agent's own uid.
        if !is_open_to_all(&python) {
            args.extend(["--user", "root"]);
        }
        let path = python.to_string_lossy();
        args.extend(["--", &path, "-u", "-c", program]);
        let mut command = self.instance.sluice(&args);
        command
            .env("VIRTUAL_ENV", venv)
            .env("STRIPE_API_KEY", PLACEHOLDER);
        command
    }

    /// The same, run to its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn run_python(&self, venv: &Path, program: &str) -> Result<Output> {
        output::run(&mut self.python(venv, program), PATIENCE)
    }

    /// Every open approval, as `sluice approvals list --format json` shows them.
    ///
    /// # Errors
    /// If the daemon does not answer with JSON.
    pub fn approvals(&self) -> Result<Vec<serde_json::Value>> {
        self.instance
            .ask(&["approvals", "list", "--format", "json"])?
            .ok()?
            .json_lines()
    }

    /// Every record of the tenant's log.
    ///
    /// # Errors
    /// If the daemon does not answer with JSON.
    pub fn audit(&self) -> Result<Vec<serde_json::Value>> {
        self.instance
            .ask(&["audit", "list", "--format", "json"])?
            .ok()?
            .json_lines()
    }
}

/// Whether everybody may follow this path to its end, through links, too.
pub(crate) fn is_open_to_all(path: &Path) -> bool {
    let open = |path: &Path| {
        path.ancestors().all(|step| {
            fs::metadata(step).is_ok_and(|facts| facts.permissions().mode() & 0o001 != 0)
        })
    };
    open(path) && fs::canonicalize(path).is_ok_and(|real| open(&real))
}

fn settings(upstream: &Upstream, hold: &str, metrics: u16) -> String {
    let connect: String = NAMES
        .iter()
        .map(|name| format!("\"{name}:443\" = \"{}\"\n", upstream.address()))
        .collect();
    format!(
        "[proxy]\nextra_roots = [\"ca.pem\"]\nuser = \"65534\"\n\n[proxy.connect_to]\n{connect}\n\
         [metrics]\nlisten = \"127.0.0.1:{metrics}\"\n\n[approvals]\nhold = \"{hold}\"\n"
    )
}

/// A bare repository with one commit, as `acme/site.git`.
///
/// # Errors
/// If git fails.
pub fn make_repository(repositories: &Path) -> Result<()> {
    let bare = repositories.join("acme/site.git");
    let work = repositories.join("work");
    fs::create_dir_all(&work)?;
    let git = |dir: &PathBuf, args: &[&str]| -> Result<()> {
        let mut command = Command::new("git");
        command
            .args([
                "-c",
                "user.name=demo",
                "-c",
                "user.email=demo@example.com",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null");
        output::run(&mut command, PATIENCE)?
            .ok()
            .context("the demo's repository")
            .map(|_| ())
    };
    git(&work, &["init", "-q", "-b", "main"])?;
    fs::write(work.join("index.html"), "<h1>Acme</h1>\n")?;
    git(&work, &["add", "index.html"])?;
    git(&work, &["commit", "-q", "-m", "The site"])?;
    fs::create_dir_all(bare.parent().unwrap_or(repositories))?;
    git(
        &work,
        &["clone", "-q", "--bare", ".", &bare.to_string_lossy()],
    )
}
