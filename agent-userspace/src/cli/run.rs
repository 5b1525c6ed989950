//! `sluice run`: starts a command as an agent's workload, waits for it, exits with its code.
//! Asks the enforcer for a cgroup and hands everything to the launcher.
//! INVARIANT: the command runs governed or not at all; 125 says that it did not run, as env(1) and timeout(1) do.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use policies::AgentId;

use super::enforcer::Enforcer;
use super::output::Output;
use super::{Failure, Global};
use crate::config::UidRange;
use crate::daemon::protocol::FromRun;
use crate::enforce::launch::{self, Account, Launch, LaunchError};

/// The command did not run.
const REFUSED: u8 = 125;

/// Run a command as an agent
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The agent, as tenant/name
    #[arg(long, value_name = "TENANT/NAME")]
    agent: AgentId,
    /// Run as this user (a name or a uid) instead of the agent's own uid
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Give it a network namespace of its own, with nothing but loopback and the proxy
    #[arg(long)]
    isolate: bool,
    /// Show the tenant's certificate in this bundle file, too (may be repeated)
    #[arg(long = "trust", value_name = "FILE")]
    trust: Vec<PathBuf>,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// Runs the command and exits with its code.
///
/// # Errors
/// The command did not run: 127 where it was not found, 126 where it cannot be executed, 125 otherwise.
pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(refused(
            "only root may start workloads; `--user` runs the command as somebody else",
        ));
    }
    let named = args.user.as_deref().map(Account::find).transpose();
    let named = named.map_err(|error| refused(&error.to_string()))?;
    let directory = crate::config::working_directory()
        .map_err(|error| refused(&format!("the working directory: {error}")))?;
    let enforcer = Enforcer::connect(global).map_err(|error| refused(&error))?;
    let asked = enforcer.ask(&question(&args, &directory), &[]);
    let admitted = asked.map_err(|error| refused(&error))?;
    if args.isolate && admitted.netns.is_none() {
        return Err(refused("the daemon sent no network namespace"));
    }
    let root_pem = admitted.root_pem().map_err(|error| refused(&error))?;
    let mut environment = crate::config::environment();
    let account = match named {
        Some(account) => account,
        None => own_account(global, &args.agent, admitted.uids, &mut environment)?,
    };
    let launch = Launch {
        command: args.command,
        environment,
        directory,
        account: Some(account),
        cgroup: admitted.cgroup,
        netns: admitted.netns,
        root_pem,
        trust: args.trust,
        nameserver: admitted.nameserver,
        runtime_dir: global.paths.runtime.clone(),
        hidden: vec![global.paths.state.clone(), global.paths.config.clone()],
    };
    for open in launch::leaves_open(&launch) {
        Output::complain(&format!("sluice: warning: {open}"));
    }
    let running = launch::start(launch).map_err(failed)?;
    if let Err(error) = enforcer.tell_of(running.pid()) {
        Output::complain(&format!("sluice: warning: {error}"));
    }
    let code = running.wait().map_err(failed)?;
    Ok(ExitCode::from(code))
}

/// The uid that is the agent's alone, and the directories that are. What another user's variables lead to would only fail.
fn own_account(
    global: &Global,
    agent: &AgentId,
    uids: UidRange,
    environment: &mut Vec<(OsString, OsString)>,
) -> Result<Account, Failure> {
    let account = Account::of_agent(agent, &global.paths.homes(), uids)
        .map_err(|error| refused(&error.to_string()))?;
    environment.retain(|(name, _)| name != "TMPDIR" && name != "XDG_RUNTIME_DIR");
    if let Some(home) = &account.home {
        environment.push(("TMPDIR".into(), home.join("tmp").into()));
    }
    Ok(account)
}

fn question(args: &Args, directory: &Path) -> FromRun {
    let argv0 = args
        .command
        .first()
        .map(|command| command.to_string_lossy().into_owned());
    FromRun::Run {
        agent: args.agent.clone(),
        argv0: argv0.unwrap_or_default(),
        cwd: directory.to_owned(),
        isolate: args.isolate,
    }
}

fn refused(detail: &str) -> Failure {
    Failure::Process {
        detail: detail.to_owned(),
        code: REFUSED,
    }
}

fn failed(error: LaunchError) -> Failure {
    Failure::Process {
        code: error.exit_code(),
        detail: error.to_string(),
    }
}
