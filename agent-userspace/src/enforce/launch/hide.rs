//! What a workload must not see: cgroup and BPF file systems, kernel tracing, brokers that act for others.
//! Read from the host in the parent; covered by the child in its own mount namespace.
//! INVARIANT: a broker that is missing at launch is none; a cgroup mount wherever it may be is always covered.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// File systems through which root without capabilities could still leave a cgroup or reach kernel programs.
const FILE_SYSTEMS: [&[u8]; 5] = [b"bpf", b"cgroup", b"cgroup2", b"debugfs", b"tracefs"];

/// Brokers: processes that open sockets or start programs for whoever asks. Directories are covered, files masked.
pub(super) const BROKERS: &[&str] = &[
    "/dev/net/tun",
    "/dev/vhost-net",
    "/dev/vhost-vsock",
    "/run/avahi-daemon",
    "/run/containerd",
    "/run/crio",
    "/run/dbus",
    "/run/docker",
    "/run/docker.sock",
    "/run/libvirt",
    "/run/nscd",
    "/run/nslcd",
    "/run/podman",
    "/run/samba",
    "/run/snapd.socket",
    "/run/sssd",
    "/run/systemd/io.systemd.ManagedOOM",
    "/run/systemd/journal/io.systemd.journal",
    "/run/systemd/machine",
    "/run/systemd/machines",
    "/run/systemd/private",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "/run/systemd/userdb",
    "/run/unbound.ctl",
    "/var/lib/sss/pipes",
];

/// The brokers of one user's session, below `/run/user/UID`.
const SESSION_BROKERS: &[&str] = &[
    "at-spi",
    "bus",
    "containerd",
    "dbus-1",
    "docker.sock",
    "gnupg",
    "keyring",
    "podman",
    "systemd",
];

/// Kernel interfaces that root without capabilities could still write; made read-only.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The mount points of the file systems that a workload must not see, in mount order.
pub(super) fn file_systems() -> io::Result<Vec<PathBuf>> {
    Ok(mount_points(&fs::read("/proc/self/mountinfo")?))
}

/// The brokers that are there: directories to cover and files to mask.
pub(super) fn brokers(sockets_named_in_environment: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let sessions = fs::read_dir("/run/user")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let of_sessions =
        sessions.flat_map(|session| SESSION_BROKERS.iter().map(move |name| session.join(name)));
    let named = sockets_named_in_environment.iter().cloned();
    let all = BROKERS
        .iter()
        .map(PathBuf::from)
        .chain(of_sessions)
        .chain(named);
    let mut found: Vec<PathBuf> = all.filter_map(|path| fs::canonicalize(path).ok()).collect();
    found.sort();
    found.dedup();
    found.into_iter().partition(|path| path.is_dir())
}

/// The kernel interfaces to make read-only that are there.
pub(super) fn read_only() -> impl Iterator<Item = &'static Path> {
    READ_ONLY.iter().map(Path::new).filter(|path| path.exists())
}

/// Picks the mount points out of `/proc/self/mountinfo` (proc(5)): the fifth field, with octal escapes; the file system's
/// type follows the lone hyphen.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(at) = fields.nth(4) else { continue };
        let kind = fields.skip_while(|field| *field != b"-").nth(1);
        if kind.is_some_and(|kind| FILE_SYSTEMS.contains(&kind)) {
            found.push(PathBuf::from(OsString::from_vec(unescape(at))));
        }
    }
    found
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = |digit: &u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
        if let (b'\\', [a, b, c, tail @ ..]) = (first, after)
            && let (Some(a), Some(b), Some(c)) = (octal(a), octal(b), octal(c))
            && let Ok(byte) = u8::try_from(a * 64 + b * 8 + c)
        {
            text.push(byte);
            rest = tail;
        } else {
            text.push(*first);
            rest = after;
        }
    }
    text
}

/// True if the path is one of the directories or below one of them.
pub(super) fn is_below(path: &Path, directories: &[PathBuf]) -> bool {
    directories.iter().any(|directory| {
        path.as_os_str().as_bytes() != directory.as_os_str().as_bytes()
            && path.starts_with(directory)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_and_bpf_mounts_are_found_wherever_they_are() {
        let mountinfo = b"22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            30 22 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n\
            31 22 0:27 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n\
            40 28 0:26 /a /mnt/with\\040blank\\134s rw master:1 propagate_from:2 - cgroup2 none rw\n\
            41 28 0:40 / /srv/cgroup rw - tmpfs tmpfs rw\n";
        let expected = ["/sys/fs/cgroup", "/sys/fs/bpf", "/mnt/with blank\\s"];
        assert_eq!(mount_points(mountinfo), expected.map(PathBuf::from));
    }

    #[test]
    fn a_lone_backslash_is_itself() {
        assert_eq!(unescape(b"a\\9b\\12"), b"a\\9b\\12");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }

    #[test]
    fn below_is_not_beside() {
        let directories = [PathBuf::from("/run/sluice")];
        assert!(is_below(Path::new("/run/sluice/ca"), &directories));
        assert!(!is_below(Path::new("/run/sluice"), &directories));
        assert!(!is_below(Path::new("/run/sluice2"), &directories));
    }
}
