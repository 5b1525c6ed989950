//! The workload's Landlock domain: other processes of its uid are out of reach of ptrace, /proc/PID/mem and signals.
//! Made in the parent, entered by the child after its credentials are final.
//! INVARIANT: it takes nothing from an ordinary program: renames, links and all file access work as before.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

use super::step::check;

/// The first version of the ABI whose domains can allow renames across directories (Linux 5.19).
const OLDEST: i64 = 2;
/// The version that scopes abstract Unix sockets and signals (Linux 6.12).
const SCOPES: i64 = 6;

const ACCESS_FS_MAKE_BLOCK: u64 = 1 << 11;
const ACCESS_FS_REFER: u64 = 1 << 13;
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

/// A domain to enter, or none where the kernel has no Landlock; `leaves_open` tells the person who launches.
#[derive(Debug)]
pub(super) struct Domain(Option<OwnedFd>);

impl Domain {
    /// Makes the rule set.
    pub(super) fn new() -> io::Result<Domain> {
        let version = version();
        if version < OLDEST {
            return Ok(Domain(None));
        }
        // Any domain forbids ptrace across its border. Creating block devices is denied because a rule set must
        // handle something; moving files between directories is denied by every domain that does not allow it.
        let attributes = RulesetAttributes {
            handled_access_fs: ACCESS_FS_MAKE_BLOCK | ACCESS_FS_REFER,
            handled_access_net: 0,
            scoped: if version < SCOPES {
                0
            } else {
                SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL
            },
        };
        let size = if version < SCOPES {
            size_of::<u64>()
        } else {
            size_of::<RulesetAttributes>()
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
        let ruleset = unsafe { OwnedFd::from_raw_fd(fd) };
        allow_renames(&ruleset)?;
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

/// True if launched commands get a domain.
pub(super) fn available() -> bool {
    version() >= OLDEST
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

fn allow_renames(ruleset: &OwnedFd) -> io::Result<()> {
    let root = rustix::fs::open(
        c"/",
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    let rule = PathBeneath {
        allowed_access: ACCESS_FS_REFER,
        parent_fd: root.as_raw_fd(),
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
