//! `sluice agents attach`: a cgroup that somebody else made becomes a workload.
//! Asks the enforcer, which attaches the programs and opens the listeners in its network namespace.
//! INVARIANT: a pid that is given is pinned before anything is read of it, so that its number cannot come to mean another.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use policies::AgentId;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde_json::json;

use super::super::enforcer::{Admitted, Enforcer};
use super::super::{Failure, Global, Output};
use super::unit::{self, UnitName};
use crate::config::ProcessFacts;
use crate::daemon::protocol::{CgroupRef, FromRun};
use crate::enforce::NetNamespace;

/// Which cgroup, and as whom
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The agent, as tenant/name
    #[arg(long, value_name = "TENANT/NAME")]
    agent: AgentId,
    #[command(flatten)]
    what: What,
    /// Only print the service's drop-in
    #[arg(long, requires = "unit")]
    print: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The cgroup's directory; `self` is the one that this command runs in
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// The cgroup that this process is in, and its network namespace
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Each start of this systemd service, from its first instruction, by a drop-in
    #[arg(long, value_name = "NAME.service")]
    unit: Option<UnitName>,
}

/// A process whose number means it as long as this lives.
pub(in crate::cli) struct Pinned {
    pidfd: OwnedFd,
    pub(in crate::cli) pid: u32,
    pub(in crate::cli) facts: ProcessFacts,
    pub(in crate::cli) netns: NetNamespace,
}

impl Pinned {
    /// Pins a live process.
    pub(in crate::cli) fn new(pid: u32) -> Result<Pinned, String> {
        let gone = || format!("process_gone: there is no process {pid}");
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => gone(),
            _ if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => gone(),
            _ => format!("process_hidden: process {pid} may not be looked into: {error}"),
        };
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = rustix::process::pidfd_open(raw.ok_or_else(gone)?, PidfdFlags::empty())
            .map_err(|errno| failed(errno.into()))?;
        let facts = ProcessFacts::read(pid).map_err(failed)?;
        let netns = NetNamespace::of(pid).map_err(failed)?;
        let pinned = Pinned {
            pidfd,
            pid,
            facts,
            netns,
        };
        if pinned.ended() {
            return Err(gone());
        }
        Ok(pinned)
    }

    /// Whether it has ended; what was read of it before may be about another then.
    pub(in crate::cli) fn ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|ended| ended > 0)
    }

    /// Asks for its cgroup to be governed, with its network namespace.
    pub(in crate::cli) fn attach(
        &self,
        enforcer: &Enforcer,
        agent: AgentId,
    ) -> Result<Admitted, String> {
        let question = FromRun::Attach {
            agent,
            cgroup: CgroupRef::Shown(self.facts.cgroup.clone()),
            pid: Some(self.pid),
        };
        enforcer.ask(&question, &[self.netns.as_fd()])
    }
}

/// Attaches.
///
/// # Errors
/// The daemon or the kernel refused: `not_root`, `process_gone`, `cgroup_unknown`, `cgroup_unfit`, `already_governed`, `agent_unknown`.
pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    let Args { agent, what, print } = args;
    if let Some(name) = &what.unit {
        return unit::attach(global, &agent, name, print);
    }
    let admitted = attach(global, agent.clone(), &what).map_err(failed)?;
    report(global, &agent, &admitted, "attached")
}

fn attach(global: &Global, agent: AgentId, what: &What) -> Result<Admitted, String> {
    require_root()?;
    let enforcer = Enforcer::connect(global)?;
    if let Some(pid) = what.pid {
        return Pinned::new(pid)?.attach(&enforcer, agent);
    }
    let directory = what.cgroup.clone().unwrap_or_default();
    if directory.as_os_str() == "self" {
        return Pinned::new(std::process::id())?.attach(&enforcer, agent);
    }
    let question = FromRun::Attach {
        agent,
        cgroup: CgroupRef::Directory(directory),
        pid: None,
    };
    enforcer.ask(&question, &[])
}

/// What came of it, in one object.
pub(in crate::cli) fn report(
    global: &Global,
    agent: &AgentId,
    admitted: &Admitted,
    way: &str,
) -> Result<ExitCode, Failure> {
    let answer = json!({
        "agent": agent,
        "way": way,
        "workload": admitted.workload.0,
        "cgroup": admitted.shown,
    });
    Output::new(global).object(&answer, |_| {
        format!("{} runs as {agent} ({way})", admitted.shown)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn require_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err("not_root: only root may govern processes".to_owned())
}

pub(in crate::cli) fn failed(detail: String) -> Failure {
    Failure::Process { detail, code: 1 }
}
