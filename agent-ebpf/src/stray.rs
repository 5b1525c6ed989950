//! Sockets at the root of the hierarchy, by label: what a task that was moved out of its workload may not do where no BPF LSM runs.
//! On the path: beside `foreign`; its own programs, because before Linux 6.18 or so the verifier knows no task storage in them.
//! INVARIANT: who carries no label is let through after one look; who is outside its cgroup makes, connects and sends nothing.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};

use crate::label::{Standing, refuse, standing};
use crate::verdict::{ALLOW, REFUSE};

#[cgroup_sock(sock_create)]
pub fn stray_create(ctx: SockContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(connect4)]
pub fn stray_connect4(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn stray_connect6(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn stray_sendmsg4(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn stray_sendmsg6(ctx: SockAddrContext) -> i32 {
    judge(&ctx)
}

#[inline(always)]
fn judge<C: EbpfContext>(ctx: &C) -> i32 {
    match standing() {
        Standing::Strayed(workload) => {
            refuse(ctx, workload);
            REFUSE
        }
        Standing::Free | Standing::Of(_) => ALLOW,
    }
}
