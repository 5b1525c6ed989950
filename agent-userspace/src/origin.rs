//! Reads original destinations from the kernel's maps, in the proxy process, without any capability.
//! Place on the path: step 2, right after accept(); the answer is what the kernel recorded, never what the peer says.
//! INVARIANT: every failure is "no origin", and a connection without an origin is refused.

#![allow(
    unsafe_code,
    reason = "bpf(2) lookups by descriptor; every block says why it is sound"
)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use agent_abi::{FAMILY_V4, FAMILY_V6, FlowKey, PROTOCOL_UDP};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use mitm_proxy::{Origin, Origins};
use policies::WorkloadId;

use crate::enforce::object::{address, ip};

/// `SO_NETNS_COOKIE`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// Linux 6.5.
const SO_PEERPIDFD: libc::c_int = 77;

/// Origins as the kernel side wrote them down, read through two inherited map descriptors.
#[derive(Debug)]
pub struct KernelOrigins {
    accepted: OwnedFd,
    flows: OwnedFd,
}

impl KernelOrigins {
    /// Takes the descriptors of [`crate::enforce::MapFds`].
    ///
    /// # Errors
    /// The kernel does not tell the cookie of the network namespace (before Linux 5.14).
    pub fn from_fds(accepted: OwnedFd, flows: OwnedFd) -> io::Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        netns_cookie(socket.as_fd())?;
        Ok(Self { accepted, flows })
    }
}

impl Origins for KernelOrigins {
    fn accepted(&self, socket: BorrowedFd<'_>) -> Option<Origin> {
        let key = socket.as_raw_fd();
        understand(&lookup(self.accepted.as_fd(), &key)?)
    }

    fn datagram(&self, socket: BorrowedFd<'_>, from: SocketAddr) -> Option<Origin> {
        let key = FlowKey {
            netns: netns_cookie(socket).ok()?,
            addr: address(from.ip()),
            port: from.port(),
            protocol: PROTOCOL_UDP as u16,
            pad: 0,
        };
        understand(&lookup(self.flows.as_fd(), &key)?)
    }
}

/// A handle on the process at the other end of a connected Unix socket (`SO_PEERPIDFD`), which no reuse of its pid can change.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; whatever else getsockopt(2) says.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `fd` has `length` bytes and both live across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us (close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn understand(kept: &agent_abi::Origin) -> Option<Origin> {
    if kept.workload == 0 || (kept.family != FAMILY_V4 && kept.family != FAMILY_V6) {
        return None;
    }
    Some(Origin {
        workload: WorkloadId(kept.workload),
        destination: SocketAddr::new(ip(&kept.addr), kept.port),
    })
}

/// One lookup by descriptor: allowed to everybody who holds the descriptor, also under `unprivileged_bpf_disabled=2`.
fn lookup<K>(map: BorrowedFd<'_>, key: &K) -> Option<agent_abi::Origin> {
    let mut value = agent_abi::Origin::default();
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    // SAFETY: writing a plain field of the union's active member.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd() as u32;
    element.key = std::ptr::from_ref(key) as u64;
    element.__bindgen_anon_1.value = (&raw mut value) as u64;
    // SAFETY: key and value live across the call; both maps have values of this size (checked when they were taken over).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_LOOKUP_ELEM as libc::c_long,
            &raw mut attr,
            size_of::<bpf_attr>(),
        )
    };
    (result == 0).then_some(value)
}

fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has `length` bytes and both live across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
