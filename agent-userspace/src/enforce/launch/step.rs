//! One step between a workload process's birth and its execve, and how it is carried out.
//! Steps are made by `plan` in the parent, with all their texts; the child only performs them, in order.
//! INVARIANT: performing a step makes system calls and nothing else: no allocation, no lock, no formatting.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags};

use super::landlock::Domain;
use super::seccomp::Filter;

/// A step, and its name for the person who reads why it failed.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) act: Act,
}

/// What a step does.
#[derive(Debug)]
pub(super) enum Act {
    /// The workload's own network namespace, in which the proxy listens already.
    Network(OwnedFd),
    /// The interfaces of this network namespace, not of the one that `/sys` was mounted in.
    Sysfs,
    /// Own mount and cgroup namespaces. After the birth in the cgroup, so that the cgroup namespace's root is the workload.
    Namespaces,
    /// No mount made here reaches the host.
    Private,
    /// Covers a directory by an empty file system.
    Cover { at: CString, options: CString },
    /// Makes a directory on a covering file system.
    Directory { at: CString },
    /// Writes a file on the covering file system.
    File {
        at: CString,
        content: Vec<u8>,
        mode: Mode,
    },
    /// Shows one file in place of another.
    Overlay { file: CString, onto: CString },
    /// Makes a place of its own out of a directory, so that it can be made read-only alone.
    Bind { at: CString },
    /// Makes a mount read-only, with those below it if asked.
    ReadOnly { at: CString, recursive: bool },
    /// Goes to the working directory by its path, so that none below a covered directory is kept.
    Enter { directory: CString },
    /// Nothing that is executed from here on can have a capability.
    Bounding,
    /// Groups, gid and uid.
    Account {
        uid: Uid,
        gid: Gid,
        groups: Vec<Gid>,
    },
    /// No capability in any set.
    Capabilities,
    /// A file that the workload must be able to read.
    Readable { file: CString },
    /// No privilege through set-uid files.
    NoNewPrivileges,
    /// Its own Landlock domain.
    Landlock(Domain),
    /// Closes every descriptor above 2 at execve.
    Descriptors,
    /// SIGPIPE ends the process again; Rust's runtime had it ignored.
    Signals,
    /// The system call filter.
    Seccomp(Filter),
}

impl Act {
    /// Carries the step out, in the child.
    pub(super) fn perform(&self) -> Result<(), Errno> {
        match self {
            Act::Network(netns) => {
                let kind = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(netns.as_fd(), kind)
            }
            Act::Sysfs => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                rustix::mount::mount(c"sysfs", c"/sys", c"sysfs", flags, None)
            }
            // SAFETY: FILES is not unshared, so no descriptor changes its meaning.
            Act::Namespaces => unsafe {
                rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP)
            },
            Act::Private => rustix::mount::mount_change(
                c"/",
                MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
            ),
            Act::Cover { at, options } => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                rustix::mount::mount(
                    c"sluice",
                    at.as_c_str(),
                    c"tmpfs",
                    flags,
                    Some(options.as_c_str()),
                )
            }
            Act::Directory { at } => {
                match rustix::fs::mkdir(at.as_c_str(), Mode::from_raw_mode(0o755)) {
                    Err(Errno::EXIST) => Ok(()),
                    made => made,
                }
            }
            Act::File { at, content, mode } => write_file(at, content, *mode),
            Act::Overlay { file, onto } => {
                rustix::mount::mount_bind(file.as_c_str(), onto.as_c_str())
            }
            Act::Bind { at } => rustix::mount::mount_bind_recursive(at.as_c_str(), at.as_c_str()),
            Act::ReadOnly { at, recursive } => read_only(at, *recursive),
            Act::Enter { directory } => rustix::process::chdir(directory.as_c_str()),
            Act::Bounding => empty_bounding_set(),
            Act::Account { uid, gid, groups } => {
                rustix::thread::set_thread_groups(groups)?;
                rustix::thread::set_thread_res_gid(*gid, *gid, *gid)?;
                rustix::thread::set_thread_res_uid(*uid, *uid, *uid)
            }
            Act::Capabilities => {
                rustix::thread::clear_ambient_capability_set()?;
                let none = CapabilitySet::empty();
                let sets = CapabilitySets {
                    effective: none,
                    permitted: none,
                    inheritable: none,
                };
                rustix::thread::set_capabilities(None, sets)
            }
            Act::Readable { file } => rustix::fs::access(file.as_c_str(), Access::READ_OK),
            Act::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
            Act::Landlock(domain) => domain.enter(),
            Act::Descriptors => close_on_exec_above_two(),
            Act::Signals => default_sigpipe(),
            Act::Seccomp(filter) => filter.install(),
        }
    }
}

fn write_file(at: &CString, content: &[u8], mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(at.as_c_str(), flags, mode)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    // The umask of whoever called may have taken away what the workload needs.
    rustix::fs::fchmod(file.as_fd(), mode)
}

/// `struct mount_attr` of mount_setattr(2), Linux 5.12.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn read_only(at: &CString, recursive: bool) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path and the attributes outlive the call, and the size is theirs.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            at.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    check(result)
}

fn empty_bounding_set() -> Result<(), Errno> {
    for capability in 0..64_u64 {
        // SAFETY: PR_CAPBSET_DROP takes one number and touches no memory.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into()) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(Errno::INVAL) if capability > 0 => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Every descriptor above 2 is closed when this process executes something.
pub(super) fn close_on_exec_above_two() -> Result<(), Errno> {
    // SAFETY: descriptors are only marked; they stay open until execve, so no owner in this process is betrayed.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3_u32,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })
}

fn default_sigpipe() -> Result<(), Errno> {
    // SAFETY: an all-zero sigaction is SIG_DFL with an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the new action outlives the call; the old one is not asked for.
    check(
        unsafe { libc::sigaction(libc::SIGPIPE, &raw const default, std::ptr::null_mut()) }.into(),
    )
}

/// A libc result as a `Result`; errno is this thread's own, reading it takes no lock.
pub(super) fn check(result: libc::c_long) -> Result<(), Errno> {
    if result >= 0 {
        return Ok(());
    }
    // SAFETY: __errno_location always gives this thread's errno.
    Err(Errno::from_raw_os_error(unsafe {
        *libc::__errno_location()
    }))
}
