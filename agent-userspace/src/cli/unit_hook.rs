//! `sluice unit-hook`: governs a systemd service between its cgroup's creation and its first instruction.
//! The first command of a service (`ExecCondition=`), written into its drop-in by `sluice agents attach --unit`.
//! INVARIANT: exit code 0 means governed; any failure is 255, which fails the unit: there is no window, and no silent skip.

use std::process::ExitCode;

use policies::AgentId;

use super::agents::{UnitName, require_root};
use super::enforcer::Enforcer;
use super::{Failure, Global};
use crate::config::{ProcessFacts, panic_mark};
use crate::daemon::protocol::{CgroupRef, FromRun};
use crate::enforce::launch::UnitFiles;
use crate::enforce::{Instance, governed_as};

/// `systemd.service(5)`: of a condition, 1 to 254 skip the service without a failure, and 255 fails it.
const FAILED: u8 = 255;
/// Where systemd runs a service's own commands if the service manages its cgroup itself (`Delegate=`).
const CONTROL: &str = "/.control";

/// What the drop-in says
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// The agent, as tenant/name
    #[arg(long, value_name = "TENANT/NAME")]
    agent: AgentId,
    /// The unit's own name; %n in a unit file
    #[arg(long, value_name = "NAME.service")]
    unit: UnitName,
}

/// Governs the unit that it is a command of.
///
/// # Errors
/// It is not governed; systemd must not start it.
pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    govern(global, &args)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| Failure::Process {
            detail: format!("{} is not governed and must not start: {error}", args.unit),
            code: FAILED,
        })
}

fn govern(global: &Global, args: &Args) -> Result<(), String> {
    require_root()?;
    let own = ProcessFacts::read(std::process::id()).map_err(|error| error.to_string())?;
    let cgroup = unit_cgroup(&own.cgroup, &args.unit)?;
    let runtime = &global.paths.runtime;
    let runtime = std::fs::canonicalize(runtime).unwrap_or_else(|_| runtime.clone());
    let known = governed_as(&Instance::of(&runtime), cgroup)
        .map_err(|error| format!("the pins: {error}"))?;
    if let Some(known) = known {
        // Processes of before kept the cgroup, and this process is the workload's, too: it may not ask. Nor need it: as long as
        // the cgroup is there it stays governed.
        return again(global, args, &known);
    }
    let question = FromRun::Attach {
        agent: args.agent.clone(),
        cgroup: CgroupRef::Shown(cgroup.to_owned()),
        pid: None,
    };
    let admitted = Enforcer::connect(global)?.ask(&question, &[])?;
    UnitFiles::of(&runtime, args.unit.as_str())
        .write(&admitted.root_pem()?, admitted.nameserver)
        .map_err(|error| format!("its files: {error}"))
}

/// A start in a cgroup that is governed since an earlier one.
fn again(global: &Global, args: &Args, known: &AgentId) -> Result<(), String> {
    if *known != args.agent {
        return Err(format!("already_governed: it is a workload of {known}"));
    }
    match panic_mark(&global.paths) {
        None => Ok(()),
        Some(_) => Err("panic: every agent is stopped; `sluice panic --lift` ends it".to_owned()),
    }
}

/// The cgroup of the unit that this process is a command of.
fn unit_cgroup<'a>(own: &'a str, unit: &UnitName) -> Result<&'a str, String> {
    let cgroup = own.strip_suffix(CONTROL).unwrap_or(own);
    let last = cgroup.rsplit('/').next().unwrap_or_default();
    // systemd writes an underscore before names that could be taken for files of the hierarchy.
    if last.strip_prefix('_').unwrap_or(last) == unit.as_str() || last == unit.as_str() {
        return Ok(cgroup);
    }
    Err(format!(
        "unit_unfit: this command runs in {own}, which is not the cgroup of {unit}; it is for the drop-in of a service"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_units_own_cgroup_is_its() {
        let unit: UnitName = "bot.service".parse().unwrap();
        for own in [
            "/system.slice/bot.service",
            "/system.slice/bot.service/.control",
        ] {
            assert_eq!(unit_cgroup(own, &unit), Ok("/system.slice/bot.service"));
        }
        for other in [
            "/",
            "/system.slice",
            "/user.slice/user-0.slice/session-1.scope",
            "/system.slice/robot.service",
            "/system.slice/bot.service/below",
        ] {
            let refused = unit_cgroup(other, &unit).unwrap_err();
            assert!(refused.starts_with("unit_unfit"), "{refused}");
        }
    }
}
