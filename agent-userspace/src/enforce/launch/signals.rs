//! Signals of the process that waits for the command: caught, and told to the wait loop through a pipe.
//! Who sent a signal decides whether it is passed on: the terminal has already sent its own to the whole group.
//! INVARIANT: a signal that was ignored when we started stays ignored, here and in the command (nohup).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// Where the handler writes; -1 while nobody waits.
static SINK: AtomicI32 = AtomicI32::new(-1);
/// Handlers belong to the process, so one command at a time is waited for.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const CAUGHT: [i32; 11] = [
    libc::SIGALRM,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGTSTP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// One signal as it was delivered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Delivered {
    pub(super) signal: i32,
    /// `si_code`: who made it.
    pub(super) code: i32,
    /// The sender, where a process sent it.
    pub(super) sender: i32,
}

impl Delivered {
    /// True if a process sent it, rather than the kernel on behalf of a terminal.
    pub(super) fn sent_by_a_process(self) -> bool {
        matches!(self.code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL)
    }
}

/// The handlers, for as long as the command is waited for.
#[derive(Debug)]
pub(super) struct Forwarding {
    pipe: OwnedFd,
    sink: OwnedFd,
    before: Vec<(i32, libc::sigaction)>,
    _turn: MutexGuard<'static, ()>,
}

impl Forwarding {
    /// Installs the handlers; before the command is born, so that none is lost.
    pub(super) fn install() -> io::Result<Forwarding> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (pipe, sink) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        SINK.store(sink.as_raw_fd(), Ordering::SeqCst);
        let mut forwarding = Forwarding {
            pipe,
            sink,
            before: Vec::with_capacity(CAUGHT.len()),
            _turn: turn,
        };
        for signal in CAUGHT {
            let before = action(signal, None)?;
            if before.sa_sigaction == libc::SIG_IGN && signal != libc::SIGCHLD {
                continue;
            }
            action(signal, Some(&catching()))?;
            forwarding.before.push((signal, before));
        }
        Ok(forwarding)
    }

    /// The next signal that was delivered, if any.
    pub(super) fn next(&self) -> Option<Delivered> {
        let mut record = [0; 12];
        match rustix::io::read(&self.pipe, &mut record) {
            Ok(12) => {
                let [a, b, c, d, e, f, g, h, i, j, k, l] = record;
                Some(Delivered {
                    signal: i32::from_ne_bytes([a, b, c, d]),
                    code: i32::from_ne_bytes([e, f, g, h]),
                    sender: i32::from_ne_bytes([i, j, k, l]),
                })
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// Waits until a signal has been delivered.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut polled = [rustix::event::PollFd::new(
            &self.pipe,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Forwarding {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            let _ = action(*signal, Some(before));
        }
        let _ = SINK.compare_exchange(
            self.sink.as_raw_fd(),
            -1,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
    }
}

fn catching() -> libc::sigaction {
    // SAFETY: an all-zero sigaction is a valid one with an empty mask.
    let mut catching: libc::sigaction = unsafe { std::mem::zeroed() };
    catching.sa_sigaction = handler as *const () as libc::sighandler_t;
    catching.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    catching
}

/// Sets a signal's action, or only asks for it.
fn action(signal: i32, new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: an all-zero sigaction is a valid one to be overwritten.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both actions outlive the call; the handler only makes async-signal-safe calls.
    if unsafe { libc::sigaction(signal, new, &raw mut old) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(old)
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let sink = SINK.load(Ordering::SeqCst);
    if sink < 0 {
        return;
    }
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo; si_pid is only read where a process sent the signal.
    let (code, sender) = unsafe {
        let code = (*info).si_code;
        (
            code,
            if matches!(code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL) {
                (*info).si_pid()
            } else {
                0
            },
        )
    };
    let record = [signal, code, sender];
    // SAFETY: __errno_location always gives this thread's errno; write(2) is async-signal-safe, and on a full pipe the
    // record is dropped, as signals merge anyway. The record outlives the call.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(sink, record.as_ptr().cast(), size_of_val(&record));
        *libc::__errno_location() = errno;
    }
}
