//! Network namespaces: made, entered, compared, and found through the processes that live in them.
//! Place on the path: the listener helper enters one before it opens a socket; the enforcer finds those of live workloads.
//! INVARIANT: a namespace is named by a descriptor or its inode, never by a pid; only the helper ever enters one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Most processes of one workload that are looked at for their namespace.
const MAX_PROCESSES: usize = 4096;
/// Most namespaces of one workload that get listeners.
const MAX_NAMESPACES: usize = 8;

/// A network namespace, held by its descriptor.
#[derive(Debug)]
pub struct NetNamespace {
    fd: OwnedFd,
    /// Its inode: equal for two descriptors of one namespace as long as either is open.
    inode: u64,
}

impl NetNamespace {
    /// The one that this process is in.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn own() -> io::Result<NetNamespace> {
        open("/proc/self/ns/net")
    }

    /// The one that a process is in at this moment.
    ///
    /// # Errors
    /// The process is gone or may not be looked into.
    pub fn of(pid: u32) -> io::Result<NetNamespace> {
        open(format!("/proc/{pid}/ns/net"))
    }

    /// One that came as a descriptor.
    ///
    /// # Errors
    /// The descriptor cannot be looked at.
    pub fn from_fd(fd: OwnedFd) -> io::Result<NetNamespace> {
        let inode = rustix::fs::fstat(&fd)?.st_ino;
        Ok(NetNamespace { fd, inode })
    }

    /// The namespaces that the processes of a cgroup live in, without `besides`.
    ///
    /// # Errors
    /// The cgroup cannot be read. A process that ends meanwhile is none.
    pub fn of_cgroup(cgroup: &Path, besides: &NetNamespace) -> io::Result<Vec<NetNamespace>> {
        let mut pids = Vec::new();
        collect(cgroup, &mut pids)?;
        let mut found: Vec<NetNamespace> = Vec::new();
        for pid in pids {
            let Ok(namespace) = NetNamespace::of(pid) else {
                continue;
            };
            let known = namespace.is(besides) || found.iter().any(|known| known.is(&namespace));
            if !known && found.len() < MAX_NAMESPACES {
                found.push(namespace);
            }
        }
        Ok(found)
    }

    /// Whether both are the same namespace.
    #[must_use]
    pub fn is(&self, other: &NetNamespace) -> bool {
        self.inode == other.inode
    }

    /// Moves this thread into it.
    ///
    /// # Errors
    /// The caller lacks CAP_SYS_ADMIN there.
    pub fn enter(&self) -> io::Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(self.fd.as_fd(), kind)?;
        Ok(())
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<NetNamespace> for OwnedFd {
    fn from(namespace: NetNamespace) -> OwnedFd {
        namespace.fd
    }
}

/// Moves this thread into a new, empty namespace.
///
/// # Errors
/// The caller lacks CAP_SYS_ADMIN, or there are too many namespaces.
pub(super) fn enter_new() -> io::Result<()> {
    // SAFETY: FILES is not unshared, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// Brings `lo` of this thread's namespace up, as `ip link set lo up` does; without it 127.0.0.1 is no address.
///
/// # Errors
/// The caller lacks CAP_NET_ADMIN there.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    // SAFETY: the request names an interface, lives across the call, and is what this command reads and writes.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the flags are the member that the call above wrote.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn open(path: impl AsRef<Path>) -> io::Result<NetNamespace> {
    let file = File::open(path)?;
    let inode = file.metadata()?.ino();
    Ok(NetNamespace {
        fd: file.into(),
        inode,
    })
}

/// The processes of a cgroup and of those below it.
fn collect(cgroup: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) => text,
        // A threaded cgroup: its processes stand in the one above.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => String::new(),
        Err(error) => return Err(error),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if pids.len() < MAX_PROCESSES && entry.file_type()?.is_dir() {
            collect(&entry.path(), pids)?;
        }
    }
    pids.truncate(MAX_PROCESSES);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_itself_and_no_other() {
        let own = NetNamespace::own().unwrap();
        assert!(own.is(&NetNamespace::of(std::process::id()).unwrap()));
        let other = std::thread::spawn(|| {
            enter_new().unwrap();
            loopback_up().unwrap();
            // Up is up: the second time changes nothing.
            loopback_up().unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            open("/proc/thread-self/ns/net").unwrap()
        });
        assert!(!own.is(&other.join().unwrap()));
        assert!(NetNamespace::of(u32::MAX).is_err());
    }
}
