//! Other processes of the same user: their descriptors and their memory, with their way out.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::streams;
use crate::escape::helper::Role;
use crate::escape::order::{At, Order, Stop};
use crate::escape::{Case, Class, Trace, Who, sys};

pub(super) const CASES: &[Case] = &[
    victim("E75", "pidfd_getfd", take_descriptor),
    victim("E76", "process_vm_writev", |order| {
        let (pid, at) = found(order)?;
        sys::process::write_memory(pid, at, order.data()).at("write")?;
        wait()
    }),
    victim("E77", "/proc/PID/mem", |order| {
        let (pid, at) = found(order)?;
        let memory = File::options()
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .at("open")?;
        memory.write_all_at(order.data(), at).at("write")?;
        wait()
    }),
    victim("E78", "ptrace", |order| {
        let (pid, at) = found(order)?;
        sys::process::poke(pid, at, order.data()).at("attach")?;
        wait()
    }),
];

const fn victim(
    id: &'static str,
    name: &'static str,
    attempt: fn(&Order) -> Result<(), Stop>,
) -> Case {
    Case::new(id, name, Class::Processes, Who::User, attempt)
        .with(Role::Victim)
        .seen_by(Trace::Token)
        .open_without(&["lsm_ptrace"])
}

/// `PID ADDRESS`.
fn found(order: &Order) -> Result<(i32, u64), Stop> {
    let mut words = order.helper.split_whitespace();
    let pid = words.next().and_then(|word| word.parse().ok());
    let at = words.next().and_then(|word| word.parse().ok());
    pid.zip(at)
        .ok_or_else(|| Stop::because("start", "no victim"))
}

/// Until the victim has sent what it now holds.
fn wait() -> Result<(), Stop> {
    std::thread::sleep(std::time::Duration::from_millis(100));
    Ok(())
}

fn take_descriptor(order: &Order) -> Result<(), Stop> {
    let (pid, _) = found(order)?;
    let pid = Pid::from_raw(pid).ok_or_else(|| Stop::because("start", "no victim"))?;
    let process = pidfd_open(pid, PidfdFlags::empty()).at("pidfd_open")?;
    let mut last = Err(Stop::because("pidfd_getfd", "no socket was found"));
    for number in 3..16 {
        last = pidfd_getfd(process.as_fd(), number, PidfdGetfdFlags::empty())
            .at("pidfd_getfd")
            .and_then(|socket| streams::send(&socket, order));
        if last.is_ok() {
            return Ok(());
        }
    }
    last
}
