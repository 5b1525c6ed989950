//! `sluice agents detach`: undoes `attach`, for a unit's next starts or for a cgroup.
//! The counterpart of `attach` and `unit`.
//! INVARIANT: a live process is never set free: it ends first, or stays governed.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::super::enforcer::Enforcer;
use super::super::{Failure, Global, Output};
use super::attach::{failed, require_root};
use super::unit::{self, UnitName};
use crate::daemon::protocol::{CgroupRef, FromRun};

/// What is no agent's any more
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    what: What,
    /// End the processes that live in the cgroup; without it they keep it governed
    #[arg(long, requires = "cgroup")]
    kill: bool,
}

#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The cgroup's directory
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// The systemd service: its drop-in is removed, and what runs stays governed until it ends
    #[arg(long, value_name = "NAME.service")]
    unit: Option<UnitName>,
}

/// Detaches.
///
/// # Errors
/// `not_root`, `not_attached`, `workload_alive`, `cgroup_unknown`.
pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    if let Some(unit) = &args.what.unit {
        return unit::detach(global, unit);
    }
    let directory = args.what.cgroup.unwrap_or_default();
    let question = FromRun::Detach {
        cgroup: CgroupRef::Directory(directory.clone()),
        kill: args.kill,
    };
    require_root()
        .and_then(|()| Enforcer::connect(global)?.tell(&question))
        .map_err(failed)?;
    let answer = json!({ "cgroup": directory, "detached": true });
    Output::new(global).object(&answer, |_| {
        format!("{} is nobody's any more", directory.display())
    })?;
    Ok(ExitCode::SUCCESS)
}
