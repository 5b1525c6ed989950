//! What a puppet does with tasks: one more, here or in another cgroup, or one that is launched as `sluice run` does.
//! In a child only system calls happen: the puppet has other threads.

#![allow(
    unsafe_code,
    reason = "fork and clone3 have no safe form; each block says what the child does"
)]

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use agent_userspace::enforce::launch::{self, Launch};

/// `CLONE_INTO_CGROUP`, Linux 5.7.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Not a real certificate; the launcher only copies it.
const ROOT: &str = "-----BEGIN CERTIFICATE-----\nU0xVSUNFIFRFU1Q=\n-----END CERTIFICATE-----\n";

/// `struct clone_args` up to its `cgroup` field.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    unused: [u64; 3],
    exit_signal: u64,
    unused_too: [u64; 5],
    cgroup: u64,
}

/// Starts a child in a cgroup, which makes a socket and says on the puppet's strings what came of it: `ok child ERRNO`.
/// The puppet itself only answers where it could not start one.
pub(crate) fn clone_into(cgroup: &Path) -> io::Result<String> {
    let cgroup = File::open(cgroup)?;
    let arguments = CloneArguments {
        flags: INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    // SAFETY: a fork; the child makes system calls only, and ends by itself.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of_val(&arguments),
        )
    };
    match pid {
        0 => say_what_a_socket_says(),
        1.. => {
            // SAFETY: waits for our own child; no status is asked for.
            unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) };
            // The child has answered.
            Err(io::ErrorKind::AlreadyExists.into())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a child right in a cgroup, which executes this command with the strings as its standard input: its pid.
pub(crate) fn bear_into(cgroup: &Path, command: &Command, strings: &OwnedFd) -> io::Result<String> {
    let cgroup = File::open(cgroup)?;
    let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap();
    let words: Vec<CString> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(text)
        .collect();
    let variables: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| text(&[name, value].join(OsStr::new("="))))
        .collect();
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        let all = texts.iter().map(|text| text.as_ptr());
        all.chain([std::ptr::null()]).collect()
    };
    let (words, variables) = (pointers(&words), pointers(&variables));
    let arguments = CloneArguments {
        flags: INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArguments::default()
    };
    // SAFETY: a fork; the child makes system calls only, on texts that were made before, and executes or ends.
    unsafe {
        let pid = libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of_val(&arguments),
        );
        match pid {
            0 => {
                libc::dup2(strings.as_raw_fd(), 0);
                libc::execve(words[0], words.as_ptr(), variables.as_ptr());
                libc::_exit(1)
            }
            1.. => Ok(pid.to_string()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Starts a child that does nothing.
pub(crate) fn fork_once() -> io::Result<String> {
    // SAFETY: the child ends at once.
    match unsafe { libc::fork() } {
        // SAFETY: ends this process at once.
        0 => unsafe { libc::_exit(0) },
        pid @ 1.. => {
            // SAFETY: waits for our own child; no status is asked for.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Ok(String::new())
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn say_what_a_socket_says() -> ! {
    // SAFETY: no pointers are passed; the descriptor goes when this process does.
    let made = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    let answer: &[u8] = match made {
        0.. => b"ok child 0\n",
        // SAFETY: this thread's own errno.
        _ if unsafe { *libc::__errno_location() } == libc::EPERM => b"ok child 1\n",
        _ => b"ok child -1\n",
    };
    // SAFETY: the bytes are as long as that, and the process ends.
    unsafe {
        libc::write(0, answer.as_ptr().cast(), answer.len());
        libc::_exit(0)
    }
}

/// Launches a shell that ends with 7, and waits for it.
pub(crate) fn launch(cgroup: &str, directory: &str) -> io::Result<String> {
    let directory = Path::new(directory);
    let launch = Launch {
        command: ["/bin/sh", "-c", "exit 7"].map(Into::into).into(),
        environment: std::env::vars_os().collect(),
        directory: directory.to_owned(),
        account: None,
        cgroup: File::open(cgroup)?.into(),
        netns: None,
        root_pem: ROOT.to_owned(),
        trust: Vec::new(),
        nameserver: "198.18.0.1".parse().unwrap(),
        runtime_dir: directory.join("run"),
        hidden: Vec::new(),
    };
    let running = launch::start(launch).map_err(|error| {
        eprintln!("{error}");
        io::Error::other(error)
    })?;
    let code = running.wait().map_err(io::Error::other)?;
    Ok(code.to_string())
}
