//! `sluice run`: starts a command as an agent's workload, waits for it, exits with its code.
//! Asks the enforcer for a cgroup and hands everything to the launcher.
//! INVARIANT: the command runs governed or not at all; 125 says that it did not run, as env(1) and timeout(1) do.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use policies::AgentId;
use rustix::fs::{FileType, Mode, OFlags};

use super::output::Output;
use super::{Failure, Global};
use crate::config::UidRange;
use crate::daemon::protocol::{FromRun, Refusal, ToRun};
use crate::daemon::{Channel, ChannelError, connect_to_enforcer};
use crate::enforce::launch::{self, Account, Launch, LaunchError, Running};

/// The command did not run.
const REFUSED: u8 = 125;
/// How long the daemon may take to admit the workload.
const PATIENCE: Duration = Duration::from_secs(10);
/// A certificate longer than this is none.
const MAX_PEM: u64 = 64 * 1024;

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
    let enforcer = connect(global)?;
    let admitted = ask(&enforcer, &args, &directory)?;
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
        root_pem: read_root(&admitted.ca_pem)
            .map_err(|error| refused(&format!("{}: {error}", admitted.ca_pem.display())))?,
        trust: args.trust,
        nameserver: admitted.nameserver,
        runtime_dir: global.paths.runtime.clone(),
        hidden: vec![global.paths.state.clone(), global.paths.config.clone()],
    };
    for open in launch::leaves_open(&launch) {
        Output::complain(&format!("sluice: warning: {open}"));
    }
    let running = launch::start(launch).map_err(failed)?;
    tell(&enforcer, &running);
    let code = running.wait().map_err(failed)?;
    Ok(ExitCode::from(code))
}

fn connect(global: &Global) -> Result<Channel, Failure> {
    connect_to_enforcer(&global.paths).map_err(|error| {
        let socket = global.paths.enforcer_socket();
        let hint = match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "; is `sluice daemon` running?"
            }
            _ => "",
        };
        refused(&format!("{}: {error}{hint}", socket.display()))
    })
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

/// What the enforcer granted.
struct Admitted {
    cgroup: OwnedFd,
    netns: Option<OwnedFd>,
    uids: UidRange,
    ca_pem: PathBuf,
    nameserver: std::net::IpAddr,
}

fn ask(enforcer: &Channel, args: &Args, directory: &Path) -> Result<Admitted, Failure> {
    let argv0 = args
        .command
        .first()
        .map(|command| command.to_string_lossy().into_owned())
        .unwrap_or_default();
    let question = FromRun::Run {
        agent: args.agent.clone(),
        argv0,
        cwd: directory.to_owned(),
        isolate: args.isolate,
    };
    let heard = enforcer
        .send(&question, &[])
        .and_then(|()| enforcer.receive_within::<ToRun>(PATIENCE));
    let heard = heard.map_err(|error| match error {
        ChannelError::Late(_) => refused(&format!("admission_timeout: the daemon: {error}")),
        error => refused(&format!("the daemon: {error}")),
    })?;
    match heard {
        Some((
            ToRun::Admitted {
                ca_pem,
                nameserver,
                uids,
                ..
            },
            fds,
        )) => {
            let mut fds = fds.into_iter();
            let cgroup = fds
                .next()
                .ok_or_else(|| refused("the daemon sent no cgroup"))?;
            let netns = fds.next();
            if args.isolate && netns.is_none() {
                return Err(refused("the daemon sent no network namespace"));
            }
            Ok(Admitted {
                cgroup,
                netns,
                uids,
                ca_pem,
                nameserver,
            })
        }
        Some((
            ToRun::Refused {
                refusal: Refusal { reason, detail },
            },
            _,
        )) => {
            let name = reason
                .map(|reason| format!("{reason}: "))
                .unwrap_or_default();
            Err(refused(&format!("{name}{detail}")))
        }
        Some((ToRun::Done {}, _)) | None => Err(refused("the daemon hung up")),
    }
}

/// The first process, for the record. If the daemon is gone the workload is governed all the same.
fn tell(enforcer: &Channel, running: &Running) {
    if let Err(error) = enforcer.send(&FromRun::Started { pid: running.pid() }, &[]) {
        Output::complain(&format!("sluice: warning: the daemon: {error}"));
    }
}

/// The tenant's root. It lies in a directory of the proxy process, so a link or a pipe in its place is refused.
fn read_root(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut text = String::new();
    File::from(file).take(MAX_PEM).read_to_string(&mut text)?;
    Ok(text)
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
