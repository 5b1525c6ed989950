//! connect() and sendmsg() at the root of the hierarchy: sockets that were born elsewhere, in a workload's hands.
//! On the path: beside `connect` and `datagram`, whose programs follow a socket's cgroup of birth and never see these sockets.
//! INVARIANT: who is in none of this instance's workloads is let through after a few comparisons; who is, uses its workload's own sockets.

use agent_abi::refusal;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::connect::{destination4, destination6, socket_of};
use crate::destination::Destination;
use crate::maps;
use crate::verdict::{ALLOW, REFUSE, conclude};

#[cgroup_sock_addr(connect4)]
pub fn root_connect4(ctx: SockAddrContext) -> i32 {
    judge(&ctx, || destination4(ctx.sock_addr))
}

#[cgroup_sock_addr(connect6)]
pub fn root_connect6(ctx: SockAddrContext) -> i32 {
    judge(&ctx, || destination6(ctx.sock_addr))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn root_sendmsg4(ctx: SockAddrContext) -> i32 {
    judge(&ctx, || destination4(ctx.sock_addr))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn root_sendmsg6(ctx: SockAddrContext) -> i32 {
    judge(&ctx, || destination6(ctx.sock_addr))
}

#[inline(always)]
fn judge(ctx: &SockAddrContext, to: impl FnOnce() -> Destination) -> i32 {
    // Not configured: no workload exists yet, and everybody on the host comes by here.
    let Some(config) = maps::unpublished_config() else {
        return ALLOW;
    };
    if !maps::is_governed(config) {
        return ALLOW;
    }
    let workload = maps::current_id(config);
    match maps::SOCKETS.get(socket_of(ctx.sock_addr).cast(), refusal::SOCKET_FOREIGN) {
        Ok(socket) if socket.read().origin.workload == workload => ALLOW,
        // Another workload's: the programs of its own cgroup say no as well, and count it.
        Ok(_) => REFUSE,
        Err(foreign) => conclude(ctx, Err(foreign), &to().subject(workload)),
    }
}
