//! The attacker: carries out one attempt as the order says, and tells how far it came.
//! Run as the agent by `sluice run`, or by the suite itself for baselines and for the kernel's wall alone.
//! Invariant: joins its workload and becomes its user before it does anything else; what it says is for people, the wire is the judge.

use std::fs;
use std::io;
use std::process::ExitCode;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::order::{At, Order, Stop};
use super::{Who, cases, helper, sys};

/// No escape: the call that must go through.
pub(super) const ALLOWED: &str = "allowed";

/// Said right before the attempt: without it, none was made.
pub(super) const BEGUN: &str = "begun";
/// Said at its end, and how far it came.
pub(super) const OUTCOME: &str = "outcome";
/// Said by `serve` when it takes lines.
pub(super) const READY: &str = "ready";
/// Said by `serve` after each.
pub(super) const END: &str = "end";

/// An attempt that hangs is stopped.
const SECONDS: u32 = 15;

/// nobody, on every Debian.
const NOBODY: u32 = 65534;

/// What `escape-agent` does: one attempt, or one of the helpers.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = words
        .split_first()
        .map_or(("", &[][..]), |(verb, rest)| (verb.as_str(), rest));
    let outcome = match verb {
        "attempt" => attempt(rest),
        "serve" => {
            serve();
            return ExitCode::SUCCESS;
        }
        "help" => helper::run(rest),
        "upcall" => cases::upcall(rest),
        _ => Err(Stop::because(
            "start",
            "the words are attempt, serve or help",
        )),
    };
    tell(outcome);
    ExitCode::SUCCESS
}

/// One attempt a line of standard input, each in a child of its own: it has everything that this process was started with.
fn serve() {
    println!("{READY} {}", std::process::id());
    for line in io::stdin().lines() {
        let Ok(line) = line else { return };
        let words: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let ended = sys::process::fork(|| {
            tell(attempt(&words));
            Ok(())
        });
        match ended {
            Ok(()) => println!("{END} well"),
            Err(error) => println!("{END} {error}"),
        }
    }
}

fn tell(outcome: Result<(), Stop>) {
    match outcome {
        Ok(()) => println!("{OUTCOME} done"),
        Err(stop) => println!("{OUTCOME} {}", stop.words()),
    }
}

fn attempt(words: &[String]) -> Result<(), Stop> {
    let order = Order::parse(words).ok_or_else(|| Stop::because("start", "no order"))?;
    let attempt = if order.case == ALLOWED {
        cases::allowed
    } else {
        cases::all()
            .into_iter()
            .find(|case| case.id == order.case)
            .ok_or_else(|| Stop::because("start", "no such case"))?
            .attempt
    };
    if let Some(cgroup) = &order.cgroup {
        fs::write(cgroup.join("cgroup.procs"), "0").at("join")?;
    }
    if let Some(who) = order.who {
        become_who(who).at("become")?;
    }
    sys::process::end_within(SECONDS);
    println!("{BEGUN}");
    attempt(&order)
}

/// Gives up what this one would not have.
pub(super) fn become_who(who: Who) -> io::Result<()> {
    let kept = match who {
        Who::Root => return Ok(()),
        Who::User => {
            let (uid, gid) = (
                rustix::process::Uid::from_raw(NOBODY),
                rustix::process::Gid::from_raw(NOBODY),
            );
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            // A change of user makes a process undumpable, and its own /proc files root's.
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
            return Ok(());
        }
        Who::Bare => CapabilitySet::empty(),
        // Docker's and containerd's default.
        Who::Container => {
            CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::FSETID
                | CapabilitySet::FOWNER
                | CapabilitySet::MKNOD
                | CapabilitySet::NET_RAW
                | CapabilitySet::SETGID
                | CapabilitySet::SETUID
                | CapabilitySet::SETFCAP
                | CapabilitySet::SETPCAP
                | CapabilitySet::NET_BIND_SERVICE
                | CapabilitySet::SYS_CHROOT
                | CapabilitySet::KILL
                | CapabilitySet::AUDIT_WRITE
        }
    };
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}
