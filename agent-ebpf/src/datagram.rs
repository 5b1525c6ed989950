//! sendmsg() and recvmsg() on UDP sockets: questions to any port 53 go to the resolver, and answers seem to come from the asked server.
//! On the path: names are asked before anything else; no other datagram leaves.
//! INVARIANT: the hook's own family decides how the address is read, never the caller's claimed family.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::connect::{
    LOOPBACK4, asked, destination4, destination6, finish, lead, loopback_like, write4, write6,
};
use crate::verdict::ALLOW;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let to = destination4(ctx.sock_addr);
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
