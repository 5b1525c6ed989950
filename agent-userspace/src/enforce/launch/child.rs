//! Birth: a process that is in its cgroup from its first instruction, performs the plan and becomes the command.
//! Between clone3 and execve the child shares nothing but descriptors with its parent, which may have other threads.
//! INVARIANT: in the child only system calls happen; any failure is written to the parent and ends the child.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use super::LaunchError;
use super::plan::Plan;

/// `CLONE_INTO_CGROUP`, Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND`, Linux 5.5: handled signals get their default action, ignored ones stay ignored.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// `struct clone_args` up to its `cgroup` field.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What the child says before it ends without having become the command: one packet of eight bytes.
struct Failure {
    /// The step's place in the plan, or [`EXEC`].
    place: u32,
    errno: i32,
}

const EXEC: u32 = u32::MAX;

/// Starts the child and waits until it has become the command.
pub(super) fn spawn(plan: &Plan, cgroup: &OwnedFd) -> Result<Pid, LaunchError> {
    let (report, reporter) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| LaunchError::Prepare {
            what: "a pipe".to_owned(),
            error: errno.into(),
        })?;
    let arguments = CloneArguments {
        flags: CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::from(cgroup.as_raw_fd().cast_unsigned()),
        ..CloneArguments::default()
    };
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything. It runs only `become_command`,
    // which allocates nothing and takes no lock, so it does not matter what the parent's other threads held.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArguments>(),
        )
    };
    if pid == 0 {
        become_command(plan, &reporter);
    }
    let pid = i32::try_from(pid)
        .ok()
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw);
    let Some(pid) = pid else {
        return Err(LaunchError::Clone(io::Error::last_os_error()));
    };
    drop(reporter);
    match read_failure(report) {
        Ok(None) => Ok(pid),
        Ok(Some(failure)) => {
            reap(pid);
            Err(plan.explain(failure.place, failure.errno))
        }
        Err(error) => {
            // Nothing is known of the child: it must not go on unseen.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            reap(pid);
            Err(LaunchError::Prepare {
                what: "the child's report".to_owned(),
                error,
            })
        }
    }
}

/// The child's whole life.
fn become_command(plan: &Plan, reporter: &OwnedFd) -> ! {
    for (place, step) in (0_u32..).zip(&plan.steps) {
        if let Err(errno) = step.act.perform() {
            give_up(
                reporter,
                &Failure {
                    place,
                    errno: errno.raw_os_error(),
                },
            );
        }
    }
    let errno = execute(plan);
    give_up(
        reporter,
        &Failure {
            place: EXEC,
            errno: errno.raw_os_error(),
        },
    )
}

/// Tries the candidates in order, as execvp does; returns only when none could be executed.
fn execute(plan: &Plan) -> Errno {
    let mut verdict = Errno::NOENT;
    for candidate in &plan.candidates {
        // SAFETY: the path and both arrays are NUL-terminated and live in the plan.
        unsafe {
            libc::execve(
                candidate.as_ptr(),
                plan.arguments.as_ptr(),
                plan.environment.as_ptr(),
            )
        };
        // SAFETY: __errno_location always gives this thread's errno.
        match Errno::from_raw_os_error(unsafe { *libc::__errno_location() }) {
            Errno::NOENT | Errno::NOTDIR => {}
            // Another directory of PATH may hold one that may be executed.
            Errno::ACCESS => verdict = Errno::ACCESS,
            errno => return errno,
        }
    }
    verdict
}

fn give_up(reporter: &OwnedFd, failure: &Failure) -> ! {
    let [a, b, c, d] = failure.place.to_ne_bytes();
    let [e, f, g, h] = failure.errno.to_ne_bytes();
    let _ = rustix::io::write(reporter.as_fd(), &[a, b, c, d, e, f, g, h]);
    // SAFETY: ends this process at once, running nothing of the parent's.
    unsafe { libc::_exit(125) }
}

/// Reads until execve closed the child's end, or the child told what failed.
fn read_failure(report: OwnedFd) -> io::Result<Option<Failure>> {
    let mut bytes = Vec::new();
    File::from(report).take(16).read_to_end(&mut bytes)?;
    match bytes.as_slice() {
        [] => Ok(None),
        &[a, b, c, d, e, f, g, h] => {
            let (place, errno) = (
                u32::from_ne_bytes([a, b, c, d]),
                i32::from_ne_bytes([e, f, g, h]),
            );
            Ok(Some(Failure { place, errno }))
        }
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

fn reap(pid: Pid) {
    while matches!(
        rustix::process::waitpid(Some(pid), WaitOptions::empty()),
        Err(Errno::INTR)
    ) {}
}

/// True for the place that stands for execve.
pub(super) fn is_exec(place: u32) -> bool {
    place == EXEC
}
