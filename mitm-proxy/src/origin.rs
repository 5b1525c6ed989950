//! Where a connection or datagram of an agent wanted to go, and which workload sent it, as the kernel recorded it.
//! Place on the path: before the first byte is read; implemented by the crate that may speak to the kernel.
//! INVARIANT: an origin is a fact of the kernel, never of the peer; without one nothing is served.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use policies::WorkloadId;

/// What the kernel wrote down when a workload opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The workload (its cgroup v2 id) that owns the socket.
    pub workload: WorkloadId,
    /// The address and port that it asked for, before the kernel sent it here.
    pub destination: SocketAddr,
}

/// The source of origins; the daemon implements it over BPF maps, tests over a table.
pub trait Origins: Send + Sync + 'static {
    /// The origin of an accepted TCP connection; `None` means that no governed workload opened it.
    fn accepted(&self, socket: BorrowedFd<'_>) -> Option<Origin>;

    /// The origin of a datagram that came from `from` to `socket`; `None` means that no governed workload sent it.
    /// The same source exists once in each network namespace: the socket says which one is meant.
    fn datagram(&self, socket: BorrowedFd<'_>, from: SocketAddr) -> Option<Origin>;
}
