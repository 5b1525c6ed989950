//! Finds the two file systems that enforcement lives on, cgroup2 and bpffs, and mounts what is missing.
//! Place on the path: before anything is loaded.
//! INVARIANT: nothing is ever mounted over an existing mount: what another daemon pinned would vanish from sight.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::mount::MountFlags;

use super::error::EnforceError;

const BPFFS: &str = "/sys/fs/bpf";
const SECURITYFS: &str = "/sys/kernel/security";
const CGROUP: &str = "/sys/fs/cgroup";

/// A mounted cgroup v2 hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cgroup2 {
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The directory of the hierarchy that is mounted there, `/`.
    pub(super) root: String,
}

impl Cgroup2 {
    /// How far below the hierarchy's root the mount begins.
    pub(super) fn depth(&self) -> u32 {
        self.root.split('/').filter(|part| !part.is_empty()).count() as u32
    }
}

/// The cgroup v2 hierarchy, mounted if need be.
pub(super) fn cgroup2() -> Result<Cgroup2, EnforceError> {
    if let Some(found) = find_cgroup2(&mountinfo()?) {
        return Ok(found);
    }
    mount_once("cgroup2", Path::new(CGROUP), || {
        Ok(find_cgroup2(&mountinfo()?).is_some())
    })?;
    find_cgroup2(&mountinfo()?).ok_or(EnforceError::CgroupMissing)
}

/// The BPF file system, mounted if need be.
pub(super) fn bpffs() -> Result<PathBuf, EnforceError> {
    let find = || {
        Ok(mountinfo()?
            .lines()
            .filter_map(parse)
            .find(|m| m.kind == "bpf" && m.root == "/")
            .map(|m| m.point))
    };
    if let Some(point) = find()? {
        return Ok(point);
    }
    mount_once("bpf", Path::new(BPFFS), || Ok(find()?.is_some()))?;
    find()?.ok_or_else(|| {
        let source = std::io::Error::other("the mount is not visible here");
        EnforceError::Io {
            what: "mounting the BPF file system at",
            path: BPFFS.into(),
            source,
        }
    })
}

/// The kernel's list of active security modules, `lockdown,yama,bpf`; none where it has no securityfs.
pub(super) fn active_lsms() -> Option<String> {
    let list = Path::new(SECURITYFS).join("lsm");
    if !list.exists() && Path::new(SECURITYFS).is_dir() {
        // Without it the answer is "none", which is the weaker claim.
        let _unavailable = mount_once("securityfs", Path::new(SECURITYFS), || Ok(list.exists()));
    }
    fs::read_to_string(list).ok()
}

/// Mounts under a lock on the directory beneath, so that two starting daemons do not mount over each other.
fn mount_once(
    kind: &str,
    point: &Path,
    is_mounted: impl Fn() -> Result<bool, EnforceError>,
) -> Result<(), EnforceError> {
    let beneath = File::open(point).map_err(EnforceError::io("opening", point))?;
    rustix::fs::flock(&beneath, FlockOperation::LockExclusive)
        .map_err(|errno| EnforceError::io("locking", point)(errno.into()))?;
    if is_mounted()? {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount(kind, point, kind, flags, None)
        .map_err(|errno| EnforceError::io("mounting a file system at", point)(errno.into()))
}

fn mountinfo() -> Result<String, EnforceError> {
    const MOUNTINFO: &str = "/proc/self/mountinfo";
    fs::read_to_string(MOUNTINFO).map_err(EnforceError::io("reading", MOUNTINFO))
}

/// The mount that shows most of the hierarchy.
fn find_cgroup2(mountinfo: &str) -> Option<Cgroup2> {
    let mounts = mountinfo
        .lines()
        .filter_map(parse)
        .filter(|mount| mount.kind == "cgroup2");
    mounts
        .map(|mount| Cgroup2 {
            point: mount.point,
            root: mount.root,
        })
        .min_by_key(Cgroup2::depth)
}

struct Mount {
    root: String,
    point: PathBuf,
    kind: String,
}

/// One line of proc_pid_mountinfo(5): `36 35 98:0 /root /point options - type source options`.
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    Some(Mount {
        root: unescape(fields.next()?),
        point: PathBuf::from(unescape(fields.next()?)),
        kind: right.split(' ').next()?.to_owned(),
    })
}

/// Blanks are written as octal escapes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_hierarchy_is_found() {
        let text = "\
24 1 0:21 /user.slice /mnt/part rw - cgroup2 cgroup2 rw
25 1 0:22 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
26 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        let found = find_cgroup2(text);
        let whole = Cgroup2 {
            point: "/sys/fs/cgroup/unified".into(),
            root: "/".into(),
        };
        assert_eq!(found, Some(whole));
        let part = find_cgroup2("24 1 0:21 /a/b /mnt rw - cgroup2 none rw");
        assert_eq!(part.map(|found| found.depth()), Some(2));
        assert_eq!(find_cgroup2("26 1 0:23 / /sys rw - sysfs none rw"), None);
    }
}
