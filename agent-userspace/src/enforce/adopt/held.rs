//! What a process that stands still holds open: sockets are taken, looked at and ended; what leads out otherwise is in the way.
//! Below `adopt`; by pidfd_getfd(2), so that the socket that is ended is the one that the process holds.
//! INVARIANT: every socket is of a listed kind or in the way; an ended one has no peer, and no packet ever reaches it again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use super::Unadopted;

const NETLINK_ROUTE: u32 = 0;
/// Descriptors that are no sockets and lead past them: an io_uring keeps sockets of its own, a device sends frames, objects of
/// bpf(2) change the kernel side.
const LEADING_OUT: [&str; 7] = [
    "anon_inode:[io_uring]",
    "anon_inode:bpf-link",
    "anon_inode:bpf-map",
    "anon_inode:bpf-prog",
    "/dev/net/tun",
    "/dev/vhost-net",
    "/dev/vhost-vsock",
];

/// A network socket that was made outside.
#[derive(Debug)]
pub(super) struct Foreign(OwnedFd);

/// The network sockets of a process, or what is in the way.
pub(super) fn sockets(pid: u32) -> Result<Vec<(u32, Foreign)>, Unadopted> {
    let mut found = Vec::new();
    let open = |pid: u32| Pid::from_raw(pid.cast_signed()).ok_or(Errno::SRCH);
    let process = open(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    let process = match process {
        Ok(process) => process,
        // It ended: somebody killed it where it stood.
        Err(Errno::SRCH) => return Ok(found),
        Err(errno) => return Err(hidden(pid)(errno.into())),
    };
    let own = descriptors(Path::new(&format!("/proc/{pid}/fd"))).map_err(hidden(pid))?;
    let held = |what: &str| Unadopted::Held {
        pid,
        what: what.to_owned(),
    };
    let mut inodes = BTreeSet::new();
    for (fd, target) in own {
        if LEADING_OUT.contains(&target.as_str()) {
            return Err(held(&target));
        }
        if !target.starts_with("socket:") {
            continue;
        }
        inodes.insert(target);
        let socket = match rustix::process::pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()) {
            Ok(socket) => socket,
            Err(Errno::SRCH) => return Ok(Vec::new()),
            Err(errno) => return Err(hidden(pid)(errno.into())),
        };
        if is_foreign(&socket).map_err(|what| held(&what))? {
            found.push((pid, Foreign(socket)));
        }
    }
    // A thread may have descriptors of its own, which cannot be taken from outside.
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    for thread in threads {
        let theirs = descriptors(&thread.path().join("fd")).unwrap_or_default();
        let apart = theirs.iter().map(|(_, target)| target);
        if let Some(target) = apart
            .filter(|target| {
                target.starts_with("socket:") || LEADING_OUT.contains(&target.as_str())
            })
            .find(|target| !inodes.contains(*target))
        {
            return Err(held(&format!(
                "{target} in a thread with descriptors of its own"
            )));
        }
    }
    Ok(found)
}

/// Ends a socket for good: its connection is reset or it listens no more, and whatever arrives for it is dropped.
pub(super) fn end(socket: &Foreign) -> io::Result<()> {
    disconnect(&socket.0)?;
    drop_what_arrives(&socket.0)
}

/// Whether a socket must be ended: TCP and UDP. Unix sockets and questions about routes stay; anything else is in the way.
fn is_foreign(socket: &OwnedFd) -> Result<bool, String> {
    let asked = |errno: Errno| format!("a socket that does not say what it is ({errno})");
    let family = sockopt::socket_domain(socket).map_err(asked)?;
    let kind = sockopt::socket_type(socket).map_err(asked)?;
    let protocol = sockopt::socket_protocol(socket).map_err(asked)?;
    let protocol = protocol.map_or(0, |protocol| protocol.as_raw().get());
    let number = family.as_raw();
    match (family, kind) {
        (AddressFamily::UNIX, _) => Ok(false),
        (AddressFamily::NETLINK, _) if protocol == NETLINK_ROUTE => Ok(false),
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM)
            if protocol == libc::IPPROTO_TCP.cast_unsigned() =>
        {
            Ok(true)
        }
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM)
            if protocol == libc::IPPROTO_UDP.cast_unsigned() =>
        {
            Ok(true)
        }
        _ => Err(format!(
            "a socket of family {number}, type {}, protocol {protocol}",
            kind.as_raw()
        )),
    }
}

/// connect(2) with AF_UNSPEC: a connection is reset, a listener listens no more, a datagram socket has no peer.
fn disconnect(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `sockaddr`, of family AF_UNSPEC.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives across the call and is as long as said.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    if done < 0 {
        let error = io::Error::last_os_error();
        // It had no connection to begin with.
        if error.raw_os_error() != Some(libc::ENOTCONN) {
            return Err(error);
        }
    }
    Ok(())
}

/// A filter that takes no byte of any packet (socket(7), SO_ATTACH_FILTER), and that nobody can take off again.
fn drop_what_arrives(socket: &OwnedFd) -> io::Result<()> {
    let mut nothing = [libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: nothing.as_mut_ptr(),
    };
    match set(socket, libc::SO_ATTACH_FILTER, &program) {
        // A process that shares it was looked at before, or an adoption did not come to its end.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && takes_nothing(socket) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => set(socket, libc::SO_LOCK_FILTER, &1_i32),
    }
}

/// Whether the filter that cannot be taken off is the one above: the length is counted in instructions here.
fn takes_nothing(socket: &OwnedFd) -> bool {
    // SAFETY: all-zero bytes are a valid instruction.
    let mut there: libc::sock_filter = unsafe { std::mem::zeroed() };
    there.k = u32::MAX;
    let mut length: libc::socklen_t = 1;
    let filter: *mut libc::sock_filter = &raw mut there;
    // SAFETY: one instruction is written at most, and there is room for one.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            filter.cast(),
            &raw mut length,
        )
    };
    let is_return = i32::from(there.code) == (libc::BPF_RET | libc::BPF_K) as i32;
    done == 0 && length == 1 && is_return && there.k == 0
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value: *const T = value;
    // SAFETY: the value lives across the call and is as long as said; what it points to is the caller's local.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.cast(),
            length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Each descriptor of a process or thread, and what it is.
fn descriptors(directory: &Path) -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // One that was closed meanwhile is none.
        if let (Some(number), Ok(target)) = (number, fs::read_link(entry.path())) {
            found.push((number, target.to_string_lossy().into_owned()));
        }
    }
    Ok(found)
}

fn hidden(pid: u32) -> impl FnOnce(io::Error) -> Unadopted {
    Unadopted::system("looking into the descriptors of process", pid.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use super::*;

    /// This process's own copy of a socket, as it would be taken from another.
    fn taken(socket: impl std::os::fd::AsFd) -> Foreign {
        let socket = socket.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(is_foreign(&socket), Ok(true));
        Foreign(socket)
    }

    #[test]
    fn an_ended_socket_has_no_peer_and_hears_nothing_more() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = server.local_addr().unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let (mut peer, _) = server.accept().unwrap();
        // The control.
        client.write_all(b"before").unwrap();
        let mut bytes = [0; 6];
        peer.read_exact(&mut bytes).unwrap();

        end(&taken(&client)).unwrap();
        assert!(client.write_all(b"after").is_err());
        peer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert!(!matches!(peer.read(&mut bytes), Ok(count) if count > 0));
        // A listener takes nobody, not even if it is made to listen again.
        end(&taken(&server)).unwrap();
        let listened = rustix::net::listen(&server, 1);
        let tried = TcpStream::connect_timeout(&at, Duration::from_millis(300));
        assert!(tried.is_err(), "{listened:?}");
        // Shared, it is ended twice; a filter that somebody else locked is in the way.
        end(&taken(&server)).unwrap();
        let locked = UdpSocket::bind("127.0.0.1:0").unwrap().into();
        set(&locked, libc::SO_LOCK_FILTER, &1_i32).unwrap();
        assert!(drop_what_arrives(&locked).is_err());

        let one = UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        one.set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let at = one.local_addr().unwrap();
        other.send_to(b"x", at).unwrap();
        one.recv(&mut bytes).unwrap();
        end(&taken(&one)).unwrap();
        let _nobody_may_be_there = other.send_to(b"x", at);
        assert!(one.recv(&mut bytes).is_err());
    }

    #[test]
    fn what_is_of_no_listed_kind_is_in_the_way() {
        let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(is_foreign(&unix.into()), Ok(false));
        let make = |family: i32, kind: i32, protocol: i32| -> OwnedFd {
            use std::os::fd::FromRawFd as _;
            // SAFETY: no pointers are passed, and the descriptor is made for us.
            unsafe {
                let fd = libc::socket(family, kind, protocol);
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                OwnedFd::from_raw_fd(fd)
            }
        };
        let route = make(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        assert_eq!(is_foreign(&route), Ok(false));
        for (family, kind, protocol) in [
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG),
        ] {
            assert!(is_foreign(&make(family, kind, protocol)).is_err());
        }
    }
}
