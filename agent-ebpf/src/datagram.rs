//! sendmsg() and recvmsg() on UDP sockets: questions to any port 53 go to the resolver, and answers seem to come from the asked server.
//! On the path: names are asked before anything else; no other datagram leaves.
//! INVARIANT: the hook's own family decides how the address is read, never the caller's claimed family.

use agent_abi::{FAMILY_V4, FAMILY_V6, PROTOCOL_UDP, mapped};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::connect::{
    LOOPBACK4, asked, destination4, destination6, finish, lead, loopback_like, socket_of, write4,
    write6,
};
use crate::destination::Destination;
use crate::maps;
use crate::verdict::ALLOW;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let to = destination4(ctx.sock_addr);
    if is_led_already(&ctx, &to) {
        return ALLOW;
    }
    let led = lead(&ctx, &to);
    if let Ok((Some(port), _)) = led {
        write4(ctx.sock_addr, LOOPBACK4, port);
    }
    finish(&ctx, led, &to)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let to = destination6(ctx.sock_addr);
    let led = lead(&ctx, &to);
    if let Ok((Some(port), _)) = led {
        write6(ctx.sock_addr, &loopback_like(&to.addr), port);
    }
    finish(&ctx, led, &to)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = asked(&ctx, &destination4(ctx.sock_addr)) {
        let [_, _, _, addr] = asked.addr;
        write4(ctx.sock_addr, addr, asked.port);
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = asked(&ctx, &destination6(ctx.sock_addr)) {
        write6(ctx.sock_addr, &asked.addr, asked.port);
    }
    ALLOW
}

/// An IPv6 socket that is connected to a v4-mapped address: the kernel fills in the peer's address, which connect() has
/// already changed to the resolver's, and only then calls the IPv4 hook.
#[inline(always)]
fn is_led_already(ctx: &SockAddrContext, to: &Destination) -> bool {
    // SAFETY: the kernel passes a valid context.
    let family = unsafe { (&raw const (*ctx.sock_addr).family).read_volatile() };
    if family != u32::from(FAMILY_V6) || to.addr != mapped(LOOPBACK4) {
        return false;
    }
    let Ok(config) = maps::config() else {
        return false;
    };
    let Ok((socket, _)) = maps::own_socket(config, socket_of(ctx.sock_addr)) else {
        return false;
    };
    let asked = socket.read().origin;
    to.port == config.resolver_port && asked.family == FAMILY_V4 && asked.protocol == PROTOCOL_UDP
}
