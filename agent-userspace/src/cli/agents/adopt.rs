//! `sluice agents adopt`: a process tree that runs already becomes a workload, without the sockets that it had.
//! Asks the enforcer, which stops it, looks at it, governs it and lets it go on.
//! INVARIANT: what is adopted by its pid is pinned before it is looked at, and this command descends from none of it.

use std::path::PathBuf;
use std::process::ExitCode;

use policies::AgentId;

use super::super::enforcer::{Admitted, Enforcer};
use super::super::{Failure, Global};
use super::attach::{Pinned, failed, report, require_root};
use crate::daemon::protocol::{CgroupRef, FromRun, Running};
use crate::enforce::{descends_from, started};

/// What runs, and as whom it is to go on
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The agent, as tenant/name
    #[arg(long, value_name = "TENANT/NAME")]
    agent: AgentId,
    #[command(flatten)]
    what: What,
}

#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Everything in this cgroup, where it is
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// This process and what it started, in a cgroup of their own
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// Adopts.
///
/// # Errors
/// `not_root`, `adopt_unfit`, `held_open`, `tree_unsettled`, and what `attach` refuses.
pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    let admitted = adopt(global, &args).map_err(failed)?;
    report(global, &args.agent, &admitted, "adopted")
}

fn adopt(global: &Global, args: &Args) -> Result<Admitted, String> {
    require_root()?;
    let enforcer = Enforcer::connect(global)?;
    // It stays pinned until the answer: its number means no other meanwhile.
    let mut pinned = None;
    let what = match args.what.pid {
        Some(pid) if descends_from(std::process::id(), pid) => {
            return Err("adopt_unfit: this command is part of it".to_owned());
        }
        Some(pid) => {
            let process = pinned.insert(Pinned::new(pid)?);
            let gone = || format!("process_gone: there is no process {pid}");
            let started = started(pid).filter(|_| !process.ended()).ok_or_else(gone)?;
            Running::Tree { pid, started }
        }
        None => Running::Cgroup(CgroupRef::Directory(
            args.what.cgroup.clone().unwrap_or_default(),
        )),
    };
    let question = FromRun::Adopt {
        agent: args.agent.clone(),
        what,
    };
    enforcer.ask(&question, &[])
}
