//! Landlock domains: a workload's, which takes only other processes from it, and the proxy process's, which names its files.
//! A domain is made while its files can be opened and entered for good, before execve or the first thread.
//! INVARIANT: a domain forbids ptrace, /proc/PID/mem and (from ABI 6) signals across its border.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::step::check;

/// The first version of the ABI whose domains can allow renames across directories (Linux 5.19).
const RENAMES: i64 = 2;
/// The version that knows truncation (Linux 6.2).
const TRUNCATION: i64 = 3;
/// The version that knows ioctl on devices (Linux 6.10).
const DEVICES: i64 = 5;
/// The version that scopes abstract Unix sockets and signals (Linux 6.12).
const SCOPES: i64 = 6;

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_BLOCK: u64 = 1 << 11;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// What the first version knows.
const FIRST: u64 = (1 << 13) - 1;
/// What can be granted on something that is no directory.
const OF_FILES: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1 << 0;
const SCOPE_SIGNAL: u64 = 1 << 1;
const RULE_PATH_BENEATH: i32 = 1;
const CREATE_RULESET_VERSION: u32 = 1;

/// `struct landlock_ruleset_attr`, up to ABI 6.
#[repr(C)]
struct RulesetAttributes {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// What a process may do with a file, or with everything below a directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Grant {
    /// Read files whose names it knows.
    Files,
    /// Read files and list directories.
    Read,
    /// Make, read, change, rename and remove plain files and directories.
    Write,
}

impl Grant {
    fn access(self) -> u64 {
        match self {
            Grant::Files => READ_FILE,
            Grant::Read => READ_FILE | READ_DIR,
            Grant::Write => {
                READ_FILE
                    | READ_DIR
                    | WRITE_FILE
                    | TRUNCATE
                    | MAKE_REG
                    | MAKE_DIR
                    | REMOVE_FILE
                    | REMOVE_DIR
                    | REFER
            }
        }
    }
}

/// A domain to enter, or none where the kernel has no Landlock; `leaves_open` tells the person who launches.
#[derive(Debug)]
pub(super) struct Domain(Option<OwnedFd>);

impl Domain {
    /// A workload's: it takes nothing from an ordinary program; renames, links and all file access work as before.
    pub(super) fn workload() -> io::Result<Domain> {
        if !available() {
            return Ok(Domain(None));
        }
        // Any domain forbids ptrace across its border. Creating block devices is denied because a rule set must
        // handle something; moving files between directories is denied by every domain that does not allow it.
        let ruleset = create(MAKE_BLOCK | REFER)?;
        grant(&ruleset, Path::new("/"), REFER)?;
        Ok(Domain(Some(ruleset)))
    }

    /// Enters it; for good, and for everything executed from here.
    pub(super) fn enter(&self) -> Result<(), Errno> {
        let Some(ruleset) = &self.0 else {
            return Ok(());
        };
        // SAFETY: the call takes a descriptor and a number and touches no memory.
        check(unsafe {
            libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32)
        })
    }
}

/// How much of a domain of listed files this kernel can hold to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Strength {
    /// No Landlock.
    None,
    /// Files can be listed; some ways around them are unknown to the kernel.
    Partial,
    /// Every access that is handled here is known to the kernel.
    Whole,
}

/// A domain in which nothing but the listed files exists, under construction.
#[derive(Debug)]
pub(super) struct Listed {
    ruleset: Option<OwnedFd>,
    handled: u64,
}

impl Listed {
    /// An empty list.
    pub(super) fn new() -> io::Result<Listed> {
        let version = version();
        if version < 1 {
            return Ok(Listed {
                ruleset: None,
                handled: 0,
            });
        }
        let mut handled = FIRST;
        for (since, access) in [
            (RENAMES, REFER),
            (TRUNCATION, TRUNCATE),
            (DEVICES, IOCTL_DEV),
        ] {
            if version >= since {
                handled |= access;
            }
        }
        Ok(Listed {
            ruleset: Some(create(handled)?),
            handled,
        })
    }

    /// Puts a file, or everything below a directory, on the list.
    pub(super) fn add(&mut self, path: &Path, grant: Grant) -> io::Result<()> {
        match &self.ruleset {
            Some(ruleset) => self::grant(ruleset, path, grant.access() & self.handled),
            None => Ok(()),
        }
    }

    /// The domain of what is listed.
    pub(super) fn finish(self) -> (Domain, Strength) {
        let strength = match version() {
            ..1 => Strength::None,
            1..SCOPES => Strength::Partial,
            _ => Strength::Whole,
        };
        (Domain(self.ruleset), strength)
    }
}

/// True if launched commands get a domain.
pub(super) fn available() -> bool {
    version() >= RENAMES
}

/// The kernel's Landlock ABI, or a negative number where it is not built in or switched off.
fn version() -> i64 {
    // SAFETY: with this flag the kernel reads no attributes and returns its version.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttributes>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    }
}

/// A rule set that denies these accesses, and signals and abstract sockets where the kernel knows them.
fn create(handled: u64) -> io::Result<OwnedFd> {
    let scopes = version() >= SCOPES;
    let attributes = RulesetAttributes {
        handled_access_fs: handled,
        handled_access_net: 0,
        scoped: if scopes {
            SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL
        } else {
            0
        },
    };
    let size = if scopes {
        size_of::<RulesetAttributes>()
    } else {
        size_of::<u64>()
    };
    // SAFETY: the attributes outlive the call, and the kernel reads `size` bytes of them at most.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attributes,
            size,
            0_u32,
        )
    };
    check(fd)?;
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just gave us this descriptor, close-on-exec; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Allows these accesses to a file, or to everything below a directory. Links are followed now, not later.
fn grant(ruleset: &OwnedFd, path: &Path, access: u64) -> io::Result<()> {
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let directory =
        FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) == FileType::Directory;
    let rule = PathBeneath {
        allowed_access: if directory { access } else { access & OF_FILES },
        parent_fd: place.as_raw_fd(),
    };
    // SAFETY: the rule and both descriptors outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0_u32,
        )
    };
    Ok(check(result)?)
}
