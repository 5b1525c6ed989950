//! The parent's life while the command runs: passes signals on, stops and goes on with it, ends with its code.
//! The command stays in our process group and session, so that the terminal and the shell's job control see one job.
//! INVARIANT: a signal is passed on once: not when the terminal already sent it to the command.

use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::LaunchError;
use super::signals::{Delivered, Forwarding};

/// A command that runs in its workload.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    signals: Forwarding,
}

impl Running {
    pub(super) fn new(pid: Pid, signals: Forwarding) -> Running {
        Running { pid, signals }
    }

    /// The command's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the command has ended, and gives its exit code: 128 + n when signal n ended it.
    ///
    /// # Errors
    /// The process can no longer be waited for.
    pub fn wait(self) -> Result<u8, LaunchError> {
        let lost = |error: io::Error| LaunchError::Prepare {
            what: "waiting for the command".to_owned(),
            error,
        };
        loop {
            // INVARIANT: signals are taken before the command is looked at. What happens to it after the look leaves its
            // SIGCHLD in the pipe, and the wait below ends at once.
            while let Some(delivered) = self.signals.next() {
                self.pass_on(delivered);
            }
            while let Some(change) = self.change().map_err(|errno| lost(errno.into()))? {
                if let Some(code) = exit_code(&change) {
                    return Ok(code);
                }
                self.stop_along();
            }
            self.signals.wait().map_err(lost)?;
        }
    }

    /// What has happened to the command since last asked.
    fn change(&self) -> Result<Option<WaitIdStatus>, Errno> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        loop {
            match rustix::process::waitid(WaitId::Pid(self.pid), options) {
                Err(Errno::INTR) => {}
                changed => return changed,
            }
        }
    }

    fn pass_on(&self, delivered: Delivered) {
        let Some(signal) = Signal::from_named_raw(delivered.signal) else {
            return;
        };
        if signal == Signal::CHILD || delivered.sender == self.pid.as_raw_nonzero().get() {
            return;
        }
        // A shell continues the whole job: a command that already goes on need not hear of it twice.
        if signal == Signal::CONT && !self.is_stopped() {
            return;
        }
        // The kernel sends what the terminal makes (^C, ^Z, a new size, a hang-up) to the whole foreground group.
        if !delivered.sent_by_a_process() && self.in_our_group() {
            return;
        }
        // It may just have ended; then there is nobody to tell.
        let _ = rustix::process::kill_process(self.pid, signal);
    }

    fn in_our_group(&self) -> bool {
        rustix::process::getpgid(Some(self.pid))
            .is_ok_and(|group| group == rustix::process::getpgrp())
    }

    /// The command has stopped: stop too, so that the shell takes the terminal; when continued, so is the command.
    /// Without a terminal there is no job control, and whoever stopped the command continues it.
    fn stop_along(&self) {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Ok(terminal) = rustix::fs::open(c"/dev/tty", flags, Mode::empty()) else {
            return;
        };
        let group = rustix::process::getpgid(Some(self.pid)).ok();
        // An interactive shell made a group of its own and gave it the terminal: hand that over and back.
        let theirs = group.filter(|group| {
            *group != rustix::process::getpgrp()
                && rustix::termios::tcgetpgrp(&terminal)
                    .is_ok_and(|foreground| foreground == *group)
        });
        if theirs.is_some() {
            give_terminal(&terminal, rustix::process::getpgrp());
        }
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::STOP);
        // Here again: somebody continued us, and perhaps the command with us.
        if let Some(group) = theirs {
            give_terminal(&terminal, group);
            let _ = rustix::process::kill_process_group(group, Signal::CONT);
        } else if self.is_stopped() {
            let _ = rustix::process::kill_process(self.pid, Signal::CONT);
        }
    }

    fn is_stopped(&self) -> bool {
        // proc(5): the state follows the name, which may itself hold parentheses.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    }
}

/// Makes a group the terminal's foreground group, also from the background.
fn give_terminal(terminal: &rustix::fd::OwnedFd, group: Pid) {
    // SAFETY: an all-zero sigset_t is valid storage; both sets outlive the calls, and only this thread's mask changes.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
        let _ = rustix::termios::tcsetpgrp(terminal, group);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
    }
}

/// The code a shell would see, once the command has ended.
fn exit_code(change: &WaitIdStatus) -> Option<u8> {
    if let Some(code) = change.exit_status() {
        return Some(u8::try_from(code & 0xFF).unwrap_or(u8::MAX));
    }
    let signal = change.terminating_signal()?;
    Some(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}
