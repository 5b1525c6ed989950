//! socket() and bind(): which sockets may exist, whose they are, and the ports that a workload may not take.
//! On the path: before any destination; what is stored here makes a socket usable at all.
//! INVARIANT: a governed socket is TCP or UDP over IPv4 or IPv6 and carries its workload; none sits on the proxy's or the resolver's port.

use agent_abi::{
    Address, FAMILY_V4, FAMILY_V6, Origin, PROTOCOL_TCP, PROTOCOL_UDP, Socket, mapped, refusal,
};
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};

use crate::connect::{destination4, destination6};
use crate::destination::Destination;
use crate::maps;
use crate::verdict::{Refusal, Subject, conclude};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let (family, kind, protocol) = kind_of(ctx.sock);
    let result = create(ctx.sock, family, kind, protocol);
    let subject = Subject {
        family: family as u16,
        protocol,
        ..Subject::default()
    };
    conclude(&ctx, result, &subject)
}

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    let at = destination4(ctx.sock_addr);
    conclude(&ctx, bind(&at), &at.subject(0))
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    let at = destination6(ctx.sock_addr);
    conclude(&ctx, bind(&at), &at.subject(0))
}

/// After the kernel chose a port: asking for any may have given one of ours.
#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a valid context; this hook shows the address and the port.
    let (addr, port) = unsafe {
        (
            (&raw const (*ctx.sock).src_ip4).read_volatile(),
            (&raw const (*ctx.sock).src_port).read_volatile(),
        )
    };
    bound(&ctx, mapped(addr), port)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    // SAFETY: as in `post_bind4`.
    let (addr, port) = unsafe {
        let words = (&raw const (*ctx.sock).src_ip6).cast::<u32>();
        (
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ],
            (&raw const (*ctx.sock).src_port).read_volatile(),
        )
    };
    bound(&ctx, addr, port)
}

#[inline(always)]
fn bound(ctx: &SockContext, addr: Address, port: u32) -> i32 {
    let at = Destination {
        addr,
        port: port as u16,
        protocol: 0,
    };
    conclude(ctx, bind(&at), &at.subject(0))
}

#[inline(always)]
fn create(sk: *mut bpf_sock, family: u32, kind: u32, protocol: u32) -> Result<(), Refusal> {
    let config = maps::config()?;
    let workload = maps::current_workload(config)?;
    let exists = (family == u32::from(FAMILY_V4) || family == u32::from(FAMILY_V6))
        && ((kind == SOCK_STREAM && protocol == PROTOCOL_TCP)
            || (kind == SOCK_DGRAM && protocol == PROTOCOL_UDP));
    if !exists {
        return Err(Refusal(refusal::FAMILY));
    }
    maps::SOCKETS.make(sk.cast())?.write(Socket {
        // SAFETY: the context of this hook is what the helper wants.
        netns: unsafe { bpf_get_netns_cookie(sk.cast()) },
        origin: Origin {
            workload,
            ..Origin::NONE
        },
        peer: [0; 4],
        peer_port: 0,
        pad: 0,
    });
    Ok(())
}

/// While the daemon is down its ports are free: whoever took them would receive other workloads' connections.
#[inline(always)]
fn bind(at: &Destination) -> Result<(), Refusal> {
    let config = maps::config()?;
    if at.port != 0 && (at.port == config.proxy_port || at.port == config.resolver_port) {
        return Err(Refusal(refusal::BIND));
    }
    Ok(())
}

#[inline(always)]
fn kind_of(sk: *mut bpf_sock) -> (u32, u32, u32) {
    // SAFETY: the kernel passes a valid context; fields are read one by one, as the verifier wants.
    unsafe {
        (
            (&raw const (*sk).family).read_volatile(),
            (&raw const (*sk).type_).read_volatile(),
            (&raw const (*sk).protocol).read_volatile(),
        )
    }
}
