//! The launcher: starts a command inside its workload's cgroup, with nothing it could leave it by.
//! Called by `sluice run` once the enforcer has made the cgroup; the parent of the command until it ends.
//! INVARIANT: the command is born in the cgroup, and runs only if every step of the plan succeeded.

mod account;
mod child;
mod container;
mod hide;
mod home;
mod java;
mod landlock;
mod plan;
mod proxy;
mod seccomp;
mod signals;
mod step;
mod trust;
mod unit;
mod wait;

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

pub use account::{Account, AccountError};
pub use container::{FurnishError, Furniture};
pub use home::HomeError;
pub use proxy::{ConfineError, confine_proxy};
pub(crate) use trust::{Overlaid, combined_bundle, overlaid, sets_variable};
pub use unit::{UnitFiles, settings as unit_settings};
pub use wait::Running;

/// A command to start, and what it may see.
#[derive(Debug)]
pub struct Launch {
    /// The command and its arguments; the first is looked up in the environment's `PATH`.
    pub command: Vec<OsString>,
    /// The environment it inherits; the variables of CA trust are added.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
    /// Whom it runs as; without it, as the caller.
    pub account: Option<Account>,
    /// The workload's cgroup directory.
    pub cgroup: OwnedFd,
    /// The network namespace to start in; without it, the caller's. Only where it is not the caller's own does `/sys` show it.
    pub netns: Option<OwnedFd>,
    /// The tenant's root certificate, PEM.
    pub root_pem: String,
    /// Further bundle files to overlay, from `--trust`.
    pub trust: Vec<PathBuf>,
    /// The name server of its resolv.conf.
    pub nameserver: IpAddr,
    /// The daemon's runtime directory: covered by one that holds the workload's own files.
    pub runtime_dir: PathBuf,
    /// Further directories to cover by empty ones: state, configuration.
    pub hidden: Vec<PathBuf>,
}

/// Why a command was not started. It did not run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command is empty, or holds a NUL byte.
    #[error("the command line is empty or holds a NUL byte")]
    BadCommand,
    /// The kernel did not make the process.
    #[error("cannot create the process in its cgroup: {0}")]
    Clone(#[source] io::Error),
    /// The file is there and cannot be executed; shells say 126.
    #[error("cannot execute {command}: {error}")]
    CannotExecute {
        /// As given.
        command: String,
        /// What execve said.
        #[source]
        error: io::Error,
    },
    /// Standard input, output or error is a network socket that was opened outside.
    #[error("descriptor {fd} is a network socket from outside the workload; redirect it")]
    ForeignSocket {
        /// 0, 1 or 2.
        fd: i32,
    },
    /// There is no such command; shells say 127.
    #[error("{command}: command not found")]
    NotFound {
        /// As given.
        command: String,
    },
    /// Something that the plan needs cannot be read.
    #[error("cannot prepare: {what}: {error}")]
    Prepare {
        /// What was being read or made.
        what: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// A step between the process's birth and its execve failed.
    #[error("cannot {step}: {error}")]
    Step {
        /// What was being done, such as `hide /sys/fs/bpf`.
        step: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The tenant's root is not a PEM certificate, so nothing could trust the proxy.
    #[error("the tenant's root certificate is not PEM")]
    BadRoot,
}

impl LaunchError {
    /// The exit code that stands for this failure: 127 not found, 126 not executable, 125 refused.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::NotFound { .. } => 127,
            LaunchError::CannotExecute { .. } => 126,
            _ => 125,
        }
    }
}

/// What starting this would leave open, one sentence each, for the person who starts it.
#[must_use]
pub fn leaves_open(launch: &Launch) -> Vec<String> {
    let mut open = Vec::new();
    let root = launch.account.as_ref().map_or_else(
        || rustix::process::getuid().is_root(),
        |account| account.uid == 0,
    );
    if root {
        open.push(
            "the command runs as uid 0: without capabilities, but it owns root's files and block devices, so it can \
             change what others run as root (cron, units, shell start-up files). Leave --user out, or name another"
                .to_owned(),
        );
    }
    if !landlock::available() {
        open.push(
            "this kernel has no Landlock: the command can reach into other processes of its own uid \
             (/proc/PID/mem) and connect to abstract Unix sockets. Use --user with a uid of its own"
                .to_owned(),
        );
    }
    open
}

/// Starts the command in its cgroup. On return it executes; on error it never ran.
///
/// # Errors
/// Names the step that failed.
pub fn start(launch: Launch) -> Result<Running, LaunchError> {
    refuse_foreign_sockets()?;
    let landlock = landlock::Domain::workload().map_err(|error| LaunchError::Prepare {
        what: "Landlock".to_owned(),
        error,
    })?;
    let plan = plan::Plan::new(&launch, landlock)?;
    let signals = signals::Forwarding::install().map_err(|error| LaunchError::Prepare {
        what: "signal handlers".to_owned(),
        error,
    })?;
    let pid = child::spawn(&plan, &launch.cgroup)?;
    Ok(Running::new(pid, signals))
}

/// Marks every descriptor above 2, whoever opened it, to be closed when this process executes something.
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_inherited_on_exec() -> io::Result<()> {
    Ok(step::close_on_exec_above_two()?)
}

/// Sockets keep the cgroup they were opened in: one that comes in from outside would be governed by nobody.
fn refuse_foreign_sockets() -> Result<(), LaunchError> {
    use rustix::net::AddressFamily;
    for (fd, stream) in [
        (0, rustix::stdio::stdin()),
        (1, rustix::stdio::stdout()),
        (2, rustix::stdio::stderr()),
    ] {
        match rustix::net::sockopt::socket_domain(stream) {
            Ok(AddressFamily::UNIX) | Err(rustix::io::Errno::NOTSOCK | rustix::io::Errno::BADF) => {
            }
            Ok(_) => return Err(LaunchError::ForeignSocket { fd }),
            Err(errno) => {
                return Err(LaunchError::Prepare {
                    what: format!("descriptor {fd}"),
                    error: errno.into(),
                });
            }
        }
    }
    Ok(())
}
