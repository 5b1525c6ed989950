//! How the proxy process gives up root: groups, uid, every capability, new privileges, core dumps, swap, being looked into.
//! Called once, by the worker, after the master key was read and before the first thread or agent byte.
//! INVARIANT: on return nothing that root could do is left; if any step fails, the process must end.

use std::io;

use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::protocol::WorkerAccount;
use crate::layers::{LayerReport, LayerState};

/// Becomes the account, for good.
pub(super) fn give_up(account: &WorkerAccount) -> io::Result<()> {
    // Credentials are per thread in the kernel: another thread would keep root.
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other(
            "privileges must be given up before the first thread is started",
        ));
    }
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    if uid.is_root() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    empty_bounding_set()?;
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    // Both are reset by the change of credentials, so they come after it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Keeps every page of this process, secrets and their copies among them, from being written to swap. To be called while
/// it is root: the limit is raised for good, since memory that cannot be locked could not be had at all any more.
pub(super) fn lock_memory() -> LayerReport {
    let endless = Rlimit {
        current: None,
        maximum: None,
    };
    // Pages are locked as they are touched; reserving all of every stack and arena now would cost memory.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let locked = rustix::process::setrlimit(Resource::Memlock, endless)
        .and_then(|()| rustix::mm::mlockall(flags));
    let (state, leaves_open) = match locked {
        Ok(()) => (LayerState::Live, Vec::new()),
        Err(errno) => {
            let open = format!("swap can hold secrets: memory cannot be locked ({errno})");
            (LayerState::Degraded, vec![open])
        }
    };
    LayerReport {
        name: "proxy_memory".to_owned(),
        state,
        leaves_open,
    }
}

fn empty_bounding_set() -> io::Result<()> {
    for number in 0..64_u32 {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
            1 << number,
        )) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(rustix::io::Errno::INVAL) if number > 0 => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
