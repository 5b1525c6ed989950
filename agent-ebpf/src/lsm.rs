//! A second wall where the kernel runs BPF LSM programs: socket families that never reach a cgroup hook (packet, vsock, XDP, netlink).
//! On the path: before `socket`; the launcher's seccomp filter and the missing CAP_NET_RAW say the same.
//! INVARIANT: only tasks under the governed cgroup are judged; everybody else gets the verdict that was there before.

use agent_abi::refusal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::maps;
use crate::verdict::{Refusal, Subject, report};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
const EPERM: i32 = 1;

#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let (family, protocol, kern): (i32, i32, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    let before: i32 = ctx.arg(4);
    if before != 0 {
        return -EPERM;
    }
    if kern != 0 || may_exist(family, protocol) {
        return 0;
    }
    let Some(config) = maps::unpublished_config() else {
        return 0;
    };
    if !maps::is_governed(config) {
        return 0;
    }
    let subject = Subject {
        family: family as u16,
        protocol: protocol as u32,
        ..Subject::default()
    };
    report(&ctx, Refusal(refusal::FAMILY), &subject);
    -EPERM
}

#[inline(always)]
fn may_exist(family: i32, protocol: i32) -> bool {
    family == AF_UNIX
        || family == AF_INET
        || family == AF_INET6
        || (family == AF_NETLINK && protocol == NETLINK_ROUTE)
}
