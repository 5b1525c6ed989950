//! The types that the kernel side and the user side share: map keys, map values, events.
//! Both sides are compiled against exactly these bytes; [`ABI_VERSION`] names the pin directory and is checked in [`Config`].
//! INVARIANT: fixed-width fields, explicit padding, no enum, bool or Option; an all-zero value never allows anything.
//!
//! Addresses are four 32-bit words in network byte order (the bytes of the address, as they lie in a packet);
//! an IPv4 address is kept v4-mapped (`::ffff:a.b.c.d`). Ports are in host byte order.

#![no_std]
#![forbid(unsafe_code)]

/// The version of everything in this crate. Any change of a size, a field or a meaning raises it.
pub const ABI_VERSION: u32 = 6;

/// An address as its bytes lie in a packet, read as four native words.
pub type Address = [u32; 4];

/// `AF_INET`, as stored in [`Origin::family`].
pub const FAMILY_V4: u16 = 2;
/// `AF_INET6`, as stored in [`Origin::family`].
pub const FAMILY_V6: u16 = 10;
/// `IPPROTO_TCP`.
pub const PROTOCOL_TCP: u32 = 6;
/// `IPPROTO_UDP`.
pub const PROTOCOL_UDP: u32 = 17;

/// What the daemon tells the kernel side; one value, index 0 of `CONFIG`. All-zero denies everything.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Must equal [`ABI_VERSION`].
    pub version: u32,
    /// 1 when the ports are published; anything else denies, [`PANIC`] until somebody lifts it.
    pub enabled: u32,
    /// The ancestor level of a workload's cgroup, counted from the root of the hierarchy (level 0).
    pub workload_level: u32,
    /// The interface that packets may leave by: `lo` has index 1 in every network namespace.
    pub loopback_ifindex: u32,
    /// The cgroup id of the directory that holds all workloads.
    pub agents: u64,
    /// Where redirected connections go, on 127.0.0.1 and ::1.
    pub proxy_port: u16,
    /// Where names are asked, on 127.0.0.1 and ::1, UDP and TCP.
    pub resolver_port: u16,
    /// The synthetic IPv4 pool: network address in network byte order.
    pub pool4: u32,
    /// Its mask in network byte order; 0 means no pool.
    pub pool4_mask: u32,
    /// Zero.
    pub pad: u32,
    /// The synthetic IPv6 pool: network address.
    pub pool6: Address,
    /// Its mask; all-zero means no pool.
    pub pool6_mask: Address,
    /// The ancestor levels at which workloads lie whose cgroup is elsewhere ([`workload_flag::OUTSIDE`]); the first 0 ends the list.
    pub outside_levels: [u8; MAX_OUTSIDE_LEVELS],
}

/// [`Config::enabled`] of a host whose operator has stopped every agent. INVARIANT: `version` and `enabled` are the first
/// two words of the configuration in every version, so that any `sluice panic` stops what any daemon left.
pub const PANIC: u32 = 2;

/// Where a connection or datagram of a workload wanted to go. `family == 0` means none is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The cgroup id of the workload.
    pub workload: u64,
    /// The destination that the workload named; v4-mapped for IPv4.
    pub addr: Address,
    /// Its port, host byte order.
    pub port: u16,
    /// [`FAMILY_V4`] or [`FAMILY_V6`]; a v4-mapped destination counts as IPv4.
    pub family: u16,
    /// [`PROTOCOL_TCP`] or [`PROTOCOL_UDP`].
    pub protocol: u32,
}

impl Origin {
    /// No origin; all-zero.
    pub const NONE: Self = Self {
        workload: 0,
        addr: [0; 4],
        port: 0,
        family: 0,
        protocol: 0,
    };
}

/// Names one flow by its source: what the proxy sees as the peer of a connection or datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The cookie of the network namespace of both ends.
    pub netns: u64,
    /// The source address; v4-mapped for IPv4.
    pub addr: Address,
    /// The source port, host byte order.
    pub port: u16,
    /// 6 or 17.
    pub protocol: u16,
    /// Zero.
    pub pad: u32,
}

/// What the kernel side remembers with each socket that a workload makes (`SOCKETS`, socket storage).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// The cookie of the network namespace that the socket was made in.
    pub netns: u64,
    /// The workload that made it, and where it last asked to go.
    pub origin: Origin,
    /// The address at the other end of a connection inside the workload; checked once, then kept.
    pub peer: Address,
    /// Its port, host byte order; 0 means none was checked yet.
    pub peer_port: u32,
    /// Zero.
    pub pad: u32,
}

impl Socket {
    /// Nothing known; all-zero.
    pub const NONE: Self = Self {
        netns: 0,
        origin: Origin::NONE,
        peer: [0; 4],
        peer_port: 0,
        pad: 0,
    };
}

/// What is known of a workload; the value of `WORKLOADS`. Absent means unknown, and unknown is refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkloadState {
    /// Bits of [`workload_flag`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`WorkloadState::flags`].
pub mod workload_flag {
    /// The workload was admitted; without this bit it is refused.
    pub const ADMITTED: u32 = 1;
    /// The kill switch: nothing leaves, open connections included.
    pub const DISABLED: u32 = 2;
    /// Its cgroup is not under the directory of all workloads; it lies at one of the levels in [`Config`](super::Config).
    pub const OUTSIDE: u32 = 4;
}

/// The sticky label of a task (`TASKS`, task storage): whose it is, wherever it is moved to. Absent means that it was never governed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The cgroup id of the workload; never changes.
    pub workload: u64,
    /// Bits of [`task_flag`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

/// Bits of [`Task::flags`].
pub mod task_flag {
    /// It runs a program of the workload's, not the launcher between birth and execve: no privileges.
    pub const ARMED: u32 = 1;
    /// It came into a cgroup elsewhere by itself and has executed nothing since: it is its service manager's or runtime's own
    /// code, which still has output to connect.
    pub const MANAGER: u32 = 2;
    /// It was born there, of somebody outside: the first program that it executes as root, with privileges to gain, is still its
    /// manager's (`systemd-executor`, `runc init`).
    pub const BORN: u32 = 4;
}

/// A refusal of the kernel side, as it travels through the ring buffer `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The cgroup id of the workload, or 0 where it is not known.
    pub workload: u64,
    /// The destination, or zero where there is none.
    pub addr: Address,
    /// One of [`refusal`].
    pub kind: u32,
    /// The IP protocol; for kind [`refusal::FAMILY`] the protocol that was asked for, for [`refusal::OPTION`] the option's name.
    pub protocol: u32,
    /// The destination's port, host byte order.
    pub port: u16,
    /// The address family that was asked for; for [`refusal::OPTION`] the option's level.
    pub family: u16,
    /// Zero.
    pub pad: u32,
}

/// Counter slot of the rate limit of events; the value of `EVENT_RATE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// The second (of the monotonic clock) that `count` belongs to.
    pub second: u64,
    /// Events sent in that second.
    pub count: u64,
}

/// The kinds of refusals; the index of `REFUSALS`. Alphabetical, dense, never reused within one ABI version.
pub mod refusal {
    /// Binding the proxy's or the resolver's port.
    pub const BIND: u32 = 0;
    /// A Unix socket of somebody outside the workload.
    pub const BROKER: u32 = 1;
    /// A privilege that no governed task has, whatever its user and namespaces say.
    pub const CAPABILITY: u32 = 2;
    /// The configuration is absent, of another version, or its ports are not published.
    pub const CONFIG: u32 = 3;
    /// A UDP destination that is neither a resolver nor the workload's own.
    pub const DATAGRAM: u32 = 4;
    /// A UDP socket towards a synthetic address: QUIC, or the C library sorting addresses.
    pub const DATAGRAM_NAME: u32 = 5;
    /// A TCP destination that stands for no name.
    pub const DESTINATION_UNKNOWN: u32 = 6;
    /// A socket family, type or protocol that may not exist.
    pub const FAMILY: u32 = 7;
    /// A packet from outside the workload, to a socket of it.
    pub const INBOUND: u32 = 8;
    /// A task that carries a workload's label is outside that workload's cgroup, or puts a task there.
    pub const LABEL: u32 = 9;
    /// A map or the storage of a socket or a task could not remember.
    pub const MAP_FULL: u32 = 10;
    /// A socket option that joins a group or chooses another way for packets.
    pub const OPTION: u32 = 11;
    /// A packet that the egress floor does not let out.
    pub const PACKET: u32 = 12;
    /// Dialling the proxy's or the resolver's own port.
    pub const PROXY_PORT: u32 = 13;
    /// A socket that another workload, or nobody governed, made.
    pub const SOCKET_FOREIGN: u32 = 14;
    /// Reaching into another process, or bpf(2).
    pub const TASK: u32 = 15;
    /// What io_uring does with somebody else's task: kernel polling, other credentials, commands to drivers.
    pub const URING: u32 = 16;
    /// The workload is switched off.
    pub const WORKLOAD_DISABLED: u32 = 17;
    /// A task under the governed cgroup, in no admitted workload.
    pub const WORKLOAD_UNKNOWN: u32 = 18;
    /// How many kinds there are.
    pub const COUNT: u32 = 19;
}

/// Different levels at which workloads may lie elsewhere.
pub const MAX_OUTSIDE_LEVELS: usize = 8;
/// Entries of `WORKLOADS`.
pub const MAX_WORKLOADS: u32 = 4096;
/// Entries of `FLOWS`.
pub const MAX_FLOWS: u32 = 65_536;
/// Entries of `LITERALS`.
pub const MAX_LITERALS: u32 = 4096;
/// Bytes of `EVENTS`; a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 256 * 1024;
/// Events of one kind that one CPU sends in a second at most; all refusals are counted.
pub const EVENTS_PER_SECOND: u64 = 16;

const _: () = {
    assert!(size_of::<Config>() == 80);
    assert!(size_of::<Event>() == 40);
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<Origin>() == 32);
    assert!(size_of::<Rate>() == 16);
    assert!(size_of::<Socket>() == 64);
    assert!(size_of::<Task>() == 16);
    assert!(size_of::<WorkloadState>() == 8);
};

/// The v4-mapped form of an IPv4 address given in network byte order.
#[inline(always)]
#[must_use]
pub const fn mapped(v4: u32) -> Address {
    [0, 0, 0xffff_u32.to_be(), v4]
}

/// Whether an address is a v4-mapped IPv4 address.
#[inline(always)]
#[must_use]
pub const fn is_mapped(addr: &Address) -> bool {
    let [a, b, c, _] = *addr;
    a == 0 && b == 0 && c == 0xffff_u32.to_be()
}
