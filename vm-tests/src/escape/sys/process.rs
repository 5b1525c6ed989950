//! Calls on processes: who one is, other processes' memory, children in other cgroups.
//! Under the attempts on other processes, and the launcher of baselines.
//! Invariant: a child made here never returns into its parent's code: it sends what it was told and exits.
#![allow(
    unsafe_code,
    reason = "an attacker's system calls have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// process_vm_writev(2): our bytes over another process's.
pub(in super::super) fn write_memory(pid: i32, at: u64, data: &[u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let remote = libc::iovec {
        iov_base: at as *mut libc::c_void,
        iov_len: data.len(),
    };
    // SAFETY: `local` describes `data`; `remote` is memory of another process, which the kernel checks.
    check(
        unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) }
            as i64,
    )
    .map(drop)
}

/// ptrace(2): attach, write one word, detach.
pub(in super::super) fn poke(pid: i32, at: u64, data: &[u8]) -> io::Result<()> {
    // SAFETY: attaching takes no pointer.
    check(unsafe {
        libc::ptrace(
            libc::PTRACE_ATTACH,
            pid,
            std::ptr::null_mut::<libc::c_void>(),
            std::ptr::null_mut::<libc::c_void>(),
        )
    })?;
    let mut status = 0;
    // SAFETY: `status` lives across the call.
    check(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }.into())?;
    let mut outcome = Ok(0);
    for (index, chunk) in data.chunks(8).enumerate() {
        let mut word = [0_u8; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        // SAFETY: the address is the other process's; the kernel checks it. The data is a number.
        outcome = check(unsafe {
            libc::ptrace(
                libc::PTRACE_POKEDATA,
                pid,
                (at + 8 * index as u64) as *mut libc::c_void,
                u64::from_ne_bytes(word) as *mut libc::c_void,
            )
        });
        if outcome.is_err() {
            break;
        }
    }
    // SAFETY: detaching takes no pointer.
    let _detached = unsafe {
        libc::ptrace(
            libc::PTRACE_DETACH,
            pid,
            std::ptr::null_mut::<libc::c_void>(),
            std::ptr::null_mut::<libc::c_void>(),
        )
    };
    outcome.map(drop)
}

/// clone3(2) with CLONE_INTO_CGROUP: a child in that cgroup runs `act` and exits with 0 or its errno.
pub(in super::super) fn clone_into(
    cgroup: BorrowedFd<'_>,
    act: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup
    let arguments: [u64; 11] = [
        CLONE_INTO_CGROUP,
        0,
        0,
        0,
        libc::SIGCHLD as u64,
        0,
        0,
        0,
        0,
        0,
        cgroup.as_raw_fd() as u64,
    ];
    // SAFETY: without CLONE_VM this is a fork; the process has one thread. The structure is as long as told.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        )
    })?;
    end_child(pid, act)
}

/// fork(2): a child runs `act` and exits with 0 or its errno.
pub(in super::super) fn fork(act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the process has one thread, so the child may use everything.
    let pid = check(unsafe { libc::fork() }.into())?;
    end_child(pid, act)
}

fn end_child(pid: libc::c_long, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if pid == 0 {
        let code = match act() {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(255),
        };
        // SAFETY: ends this child without running the parent's destructors.
        unsafe { libc::_exit(code) }
    }
    let mut status = 0;
    // SAFETY: `status` lives across the call.
    check(unsafe { libc::waitpid(pid as i32, &raw mut status, 0) }.into())?;
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        code if libc::WIFEXITED(status) => Err(io::Error::from_raw_os_error(code)),
        _ => Err(io::Error::other("the child was killed")),
    }
}

/// unshare(2) in this single-threaded process.
pub(in super::super) fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: no pointers; descriptor tables are not unshared.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// setns(2).
pub(in super::super) fn enter(namespace: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) }.into()).map(drop)
}

/// The process ends after this many seconds, whatever it waits for; inherited by nobody.
pub(in super::super) fn end_within(seconds: u32) {
    // SAFETY: no pointers are passed; the default action of SIGALRM ends the process.
    let _none_before = unsafe { libc::alarm(seconds) };
}
