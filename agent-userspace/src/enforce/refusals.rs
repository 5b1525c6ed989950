//! The kernel side's refusals as user space sees them: counted by kind, and some of them one by one.
//! Place on the path: beside it; metrics, `sluice status` and the audit log read them, decisions never do.
//! INVARIANT: the kinds are exactly those of `agent_abi::refusal`, one name each.

use std::fmt;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use agent_abi::{Event, refusal};
use aya::maps::{MapData, RingBuf};
use policies::WorkloadId;
use serde::Serialize;

use super::object;

/// Why the kernel side said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// Binding the proxy's or the resolver's port.
    Bind,
    /// A Unix socket of somebody outside the workload.
    Broker,
    /// A privilege that no governed task has, whatever its user and namespaces say.
    Capability,
    /// The configuration is absent, of another version, or its ports are not published.
    Config,
    /// A UDP destination that is neither a resolver nor the workload's own.
    Datagram,
    /// A UDP socket towards a synthetic address: QUIC, or the C library sorting addresses.
    DatagramName,
    /// A TCP destination that stands for no name.
    DestinationUnknown,
    /// A socket family, type or protocol that may not exist.
    Family,
    /// A packet from outside the workload, to a socket of it.
    Inbound,
    /// A task that carries a workload's label is outside that workload's cgroup, or puts a task there.
    Label,
    /// A map or the storage of a socket or a task could not remember.
    MapFull,
    /// A socket option that joins a group or chooses another way for packets.
    Option,
    /// A packet that the egress floor does not let out.
    Packet,
    /// Dialling the proxy's or the resolver's own port.
    ProxyPort,
    /// A socket that another workload, or nobody governed, made.
    SocketForeign,
    /// Reaching into another process, or bpf(2).
    Task,
    /// What io_uring does with somebody else's task: kernel polling, other credentials, commands to drivers.
    Uring,
    /// The workload is switched off.
    WorkloadDisabled,
    /// A task under the governed cgroup, in no admitted workload.
    WorkloadUnknown,
}

impl RefusalKind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [RefusalKind; refusal::COUNT as usize] = [
        RefusalKind::Bind,
        RefusalKind::Broker,
        RefusalKind::Capability,
        RefusalKind::Config,
        RefusalKind::Datagram,
        RefusalKind::DatagramName,
        RefusalKind::DestinationUnknown,
        RefusalKind::Family,
        RefusalKind::Inbound,
        RefusalKind::Label,
        RefusalKind::MapFull,
        RefusalKind::Option,
        RefusalKind::Packet,
        RefusalKind::ProxyPort,
        RefusalKind::SocketForeign,
        RefusalKind::Task,
        RefusalKind::Uring,
        RefusalKind::WorkloadDisabled,
        RefusalKind::WorkloadUnknown,
    ];

    /// The name in metrics, output and records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RefusalKind::Bind => "bind",
            RefusalKind::Broker => "broker",
            RefusalKind::Capability => "capability",
            RefusalKind::Config => "config",
            RefusalKind::Datagram => "datagram",
            RefusalKind::DatagramName => "datagram_name",
            RefusalKind::DestinationUnknown => "destination_unknown",
            RefusalKind::Family => "family",
            RefusalKind::Inbound => "inbound",
            RefusalKind::Label => "label",
            RefusalKind::MapFull => "map_full",
            RefusalKind::Option => "option",
            RefusalKind::Packet => "packet",
            RefusalKind::ProxyPort => "proxy_port",
            RefusalKind::SocketForeign => "socket_foreign",
            RefusalKind::Task => "task",
            RefusalKind::Uring => "uring",
            RefusalKind::WorkloadDisabled => "workload_disabled",
            RefusalKind::WorkloadUnknown => "workload_unknown",
        }
    }

    /// The kind's number in the ABI.
    pub(super) fn number(self) -> u32 {
        match self {
            RefusalKind::Bind => refusal::BIND,
            RefusalKind::Broker => refusal::BROKER,
            RefusalKind::Capability => refusal::CAPABILITY,
            RefusalKind::Config => refusal::CONFIG,
            RefusalKind::Datagram => refusal::DATAGRAM,
            RefusalKind::DatagramName => refusal::DATAGRAM_NAME,
            RefusalKind::DestinationUnknown => refusal::DESTINATION_UNKNOWN,
            RefusalKind::Family => refusal::FAMILY,
            RefusalKind::Inbound => refusal::INBOUND,
            RefusalKind::Label => refusal::LABEL,
            RefusalKind::MapFull => refusal::MAP_FULL,
            RefusalKind::Option => refusal::OPTION,
            RefusalKind::Packet => refusal::PACKET,
            RefusalKind::ProxyPort => refusal::PROXY_PORT,
            RefusalKind::SocketForeign => refusal::SOCKET_FOREIGN,
            RefusalKind::Task => refusal::TASK,
            RefusalKind::Uring => refusal::URING,
            RefusalKind::WorkloadDisabled => refusal::WORKLOAD_DISABLED,
            RefusalKind::WorkloadUnknown => refusal::WORKLOAD_UNKNOWN,
        }
    }

    fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One refusal of the kernel side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelRefusal {
    /// The workload, where the kernel knew it.
    pub workload: Option<WorkloadId>,
    /// Why.
    pub kind: RefusalKind,
    /// Where it wanted to go, where there was a destination.
    pub destination: Option<SocketAddr>,
    /// The IP protocol (6, 17, ..) that was used or asked for; the option's name where an option was refused.
    pub protocol: u32,
    /// The address family (`AF_*`) that was used or asked for, or the level of an option; 0 where it does not matter.
    pub family: u16,
}

/// The stream of refusals: at most 16 a second per kind and CPU. One reader at a time.
pub struct Events {
    pub(super) ring: RingBuf<MapData>,
    pub(super) log: Option<super::Flush>,
}

impl Events {
    /// The next refusal, if there is one. Wait with the descriptor (readable) when there is none.
    pub fn next_refusal(&mut self) -> Option<KernelRefusal> {
        if let Some(flush) = &mut self.log {
            flush();
        }
        // An event of another shape is no event of this version: skipped, and still counted.
        loop {
            let item = self.ring.next()?;
            if let Some(refusal) = read(&item).and_then(|event| understand(&event)) {
                return Some(refusal);
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

fn read(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: long enough, and any bytes are an `Event` (integers only); the copy needs no alignment.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

fn understand(event: &Event) -> Option<KernelRefusal> {
    let has_destination = event.addr != [0; 4] || event.port != 0;
    Some(KernelRefusal {
        workload: (event.workload != 0).then_some(WorkloadId(event.workload)),
        kind: RefusalKind::of_number(event.kind)?,
        destination: has_destination.then(|| SocketAddr::new(object::ip(&event.addr), event.port)),
        protocol: event.protocol,
        family: event.family,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_dense_alphabetical_and_numbered_as_the_kernel_numbers_them() {
        for (index, kind) in RefusalKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.number() as usize, index);
        }
        let names: Vec<_> = RefusalKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert!(names.is_sorted(), "{names:?}");
    }
}
