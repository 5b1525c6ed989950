//! setsockopt(): options that say something on the link by themselves, or that choose another way for packets.
//! On the path: before any packet; `egress` sees packets with an owner, and a membership report (IGMP, MLD) has none.
//! INVARIANT: at the IP and IPv6 levels only the options listed here exist; elsewhere only those that choose no way and no other protocol.

use agent_abi::refusal;
use aya_ebpf::bindings::bpf_sockopt;
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;

use crate::maps;
use crate::verdict::{Refusal, Subject, conclude};

/// What the kernel copies of an option for the program; longer ones it hands on untouched if told so.
const VISIBLE: i32 = 4096;

// Levels (linux/socket.h) and options (linux/in.h, in6.h, tcp.h, udp.h, asm-generic/socket.h).
const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SOL_UDP: i32 = 17;
const SOL_IPV6: i32 = 41;
const SOL_NETLINK: i32 = 270;
const SOL_TLS: i32 = 282;
const SO_DONTROUTE: i32 = 5;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const TCP_ULP: i32 = 31;
const UDP_ENCAP: i32 = 100;

#[cgroup_sockopt(setsockopt)]
pub fn set_option(ctx: SockoptContext) -> i32 {
    let (level, name) = option_of(ctx.sockopt);
    if !may_be_set(ctx.sockopt, level, name) {
        let subject = Subject {
            workload: maps::unpublished_config().map_or(0, |config| {
                maps::current_workload(config).unwrap_or_default()
            }),
            family: level as u16,
            protocol: name as u32,
            ..Subject::default()
        };
        return conclude(&ctx, Err(Refusal(refusal::OPTION)), &subject);
    }
    pass_on(ctx.sockopt);
    conclude(&ctx, Ok(()), &Subject::default())
}

#[inline(always)]
fn may_be_set(ctx: *mut bpf_sockopt, level: i32, name: i32) -> bool {
    match level {
        SOL_IP => ip_may_be_set(name),
        SOL_IPV6 => ipv6_may_be_set(name),
        SOL_SOCKET => !matches!(
            name,
            SO_DONTROUTE | SO_BINDTODEVICE | SO_MARK | SO_BINDTOIFINDEX
        ),
        SOL_TCP => name != TCP_ULP || is_tls(ctx),
        SOL_UDP => name != UDP_ENCAP,
        SOL_NETLINK | SOL_TLS => true,
        _ => false,
    }
}

/// TOS, TTL, receiving (PKTINFO, TTL, TOS, errors, fragment sizes), path MTU, minimum TTL, checksums, late and ranged ports,
/// and what to do with multicast that was never joined. Not: options of the header, transparency, interfaces, memberships.
#[inline(always)]
fn ip_may_be_set(name: i32) -> bool {
    matches!(
        name,
        1 | 2 | 8 | 10 | 11 | 12 | 13 | 21 | 23 | 24 | 25 | 26 | 33 | 34 | 49 | 51
    )
}

/// The same for IPv6: hops, loops, path MTU, errors, V6ONLY, receiving, traffic class, address preferences.
#[inline(always)]
fn ipv6_may_be_set(name: i32) -> bool {
    matches!(
        name,
        16 | 18
            | 19
            | 23
            | 24
            | 25
            | 26
            | 29
            | 31
            | 49
            | 51
            | 60
            | 62
            | 66
            | 67
            | 70
            | 72
            | 73
            | 77
    )
}

/// The one upper-layer protocol that stays TCP on the wire.
#[inline(always)]
fn is_tls(ctx: *mut bpf_sockopt) -> bool {
    // SAFETY: the kernel passes a valid context; both fields are pointers into its copy of the value.
    let (value, end) = unsafe {
        (
            (&raw const (*ctx).__bindgen_anon_2.optval).read_volatile(),
            (&raw const (*ctx).__bindgen_anon_3.optval_end).read_volatile(),
        )
    };
    let value: *const u8 = value.cast_const().cast();
    if value as usize + 3 > end as usize {
        return false;
    }
    // SAFETY: three bytes lie before the end, as was just checked.
    let bytes = unsafe {
        [
            value.read_volatile(),
            value.add(1).read_volatile(),
            value.add(2).read_volatile(),
        ]
    };
    bytes == *b"tls"
}

/// An option that is longer than what the program sees (a large socket filter): the kernel takes the caller's own bytes.
#[inline(always)]
fn pass_on(ctx: *mut bpf_sockopt) {
    // SAFETY: as in `is_tls`; the length is writable in this hook.
    unsafe {
        if (&raw const (*ctx).optlen).read_volatile() > VISIBLE {
            (&raw mut (*ctx).optlen).write_volatile(0);
        }
    }
}

#[inline(always)]
fn option_of(ctx: *mut bpf_sockopt) -> (i32, i32) {
    // SAFETY: as in `is_tls`.
    unsafe {
        (
            (&raw const (*ctx).level).read_volatile(),
            (&raw const (*ctx).optname).read_volatile(),
        )
    }
}
