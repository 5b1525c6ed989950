//! A second wall where the kernel runs BPF LSM programs: what no cgroup hook sees, judged by the task that asks.
//! On the path: before and beside `socket`, `foreign` and `egress`; the launcher's seccomp filter and dropped capabilities say the same of some.
//! INVARIANT: only tasks under the governed cgroup, and sockets of theirs, are judged; the verdict is one of two constants (the verifier proves it).

use core::ffi::c_void;

use agent_abi::{Config, Origin, Socket, refusal};
use aya_ebpf::bindings::file;
use aya_ebpf::helpers::generated::{bpf_skc_to_unix_sock, bpf_sock_from_file};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::maps;
use crate::verdict::{Refusal, Subject, report};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
/// `PTRACE_MODE_ATTACH`: also asked for by pidfd_getfd, process_vm_writev and /proc/<pid>/mem.
const ATTACH: u32 = 2;
/// Where `struct socket` keeps its `struct sock`, on every 64-bit kernel so far. The verifier knows the type of what is there:
/// were it anything else, the programs below would not load, and their layers would be absent.
const SOCK_OF_SOCKET: usize = 24;
const EPERM: i32 = 1;

/// Families that never reach a cgroup hook (packet, vsock, XDP, netlink).
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let (family, protocol, kern): (i32, i32, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    if kern != 0 || may_exist(family, protocol) || governing().is_none() {
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

/// Sockets of the other families carry their workload too, as `sock_create` writes it for IP.
#[lsm(hook = "socket_post_create")]
pub fn socket_post_create(ctx: LsmContext) -> i32 {
    let kern: i32 = ctx.arg(4);
    let Some(config) = governing() else {
        return 0;
    };
    if kern != 0 {
        return 0;
    }
    let workload = maps::current_id(config);
    match label(sock_of(ctx.arg(0)), workload) {
        Ok(()) => 0,
        Err(refused) => deny(&ctx, refused, workload),
    }
}

#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    use_of(&ctx)
}

#[lsm(hook = "socket_sendmsg")]
pub fn socket_sendmsg(ctx: LsmContext) -> i32 {
    use_of(&ctx)
}

#[lsm(hook = "socket_setsockopt")]
pub fn socket_setsockopt(ctx: LsmContext) -> i32 {
    use_of(&ctx)
}

/// A descriptor that comes over a Unix socket: sockets only from the workload itself.
#[lsm(hook = "file_receive")]
pub fn file_receive(ctx: LsmContext) -> i32 {
    let Some(config) = governing() else {
        return 0;
    };
    // SAFETY: the argument is a `struct file`, as the verifier checks.
    let socket = unsafe { bpf_sock_from_file(ctx.arg::<*mut file>(0)) };
    if socket.is_null() {
        return 0;
    }
    let workload = maps::current_id(config);
    if is_of(sock_of(socket.cast_const().cast()), workload) {
        return 0;
    }
    deny(&ctx, Refusal(refusal::SOCKET_FOREIGN), workload)
}

/// Streams over Unix sockets stay within a workload, in both directions.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(ctx: LsmContext) -> i32 {
    let (other, accepted): (*mut c_void, *mut c_void) = (ctx.arg(1), ctx.arg(2));
    let (mine, theirs) = (mine(), workload_of(other));
    if mine == 0 && theirs == 0 {
        return 0;
    }
    if mine != theirs {
        return deny(&ctx, Refusal(refusal::BROKER), mine);
    }
    // The end that the listener accepts is made for it here.
    match label(accepted, mine) {
        Ok(()) => 0,
        Err(refused) => deny(&ctx, refused, mine),
    }
}

/// Datagrams likewise.
#[lsm(hook = "unix_may_send")]
pub fn unix_may_send(ctx: LsmContext) -> i32 {
    let (mine, theirs) = (mine(), workload_of(sock_of(ctx.arg(1))));
    if mine == theirs {
        return 0;
    }
    deny(&ctx, Refusal(refusal::BROKER), mine)
}

/// A workload's process takes nothing out of another process, nor puts anything in.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if mode & ATTACH == 0 {
        return 0;
    }
    task_act(&ctx)
}

#[lsm(hook = "bpf")]
pub fn bpf_call(ctx: LsmContext) -> i32 {
    task_act(&ctx)
}

#[inline(always)]
fn task_act(ctx: &LsmContext) -> i32 {
    let Some(config) = governing() else {
        return 0;
    };
    deny(ctx, Refusal(refusal::TASK), maps::current_id(config))
}

/// A governed task uses sockets of its own workload. A Unix socket may be its standard input, given to it at launch.
#[inline(always)]
fn use_of(ctx: &LsmContext) -> i32 {
    let Some(config) = governing() else {
        return 0;
    };
    let sk = sock_of(ctx.arg(0));
    let workload = maps::current_id(config);
    if is_unix(sk) || is_of(sk, workload) {
        return 0;
    }
    deny(ctx, Refusal(refusal::SOCKET_FOREIGN), workload)
}

#[inline(always)]
fn deny(ctx: &LsmContext, refused: Refusal, workload: u64) -> i32 {
    let subject = Subject {
        workload,
        ..Subject::default()
    };
    report(ctx, refused, &subject);
    -EPERM
}

#[inline(always)]
fn may_exist(family: i32, protocol: i32) -> bool {
    family == AF_UNIX
        || family == AF_INET
        || family == AF_INET6
        || (family == AF_NETLINK && protocol == NETLINK_ROUTE)
}

/// The configuration, where the current task is governed.
#[inline(always)]
fn governing() -> Option<&'static Config> {
    maps::unpublished_config().filter(|config| maps::is_governed(config))
}

/// The workload of the current task; 0 for everybody else. A governed task in no workload is told apart from them.
#[inline(always)]
fn mine() -> u64 {
    match governing() {
        Some(config) => match maps::current_id(config) {
            0 => u64::MAX,
            workload => workload,
        },
        None => 0,
    }
}

/// The workload that a socket was made by; 0 where nobody governed made it.
#[inline(always)]
fn workload_of(sk: *mut c_void) -> u64 {
    if sk.is_null() {
        return 0;
    }
    maps::SOCKETS
        .get(sk, refusal::SOCKET_FOREIGN)
        .map_or(0, |socket| socket.read().origin.workload)
}

#[inline(always)]
fn is_of(sk: *mut c_void, workload: u64) -> bool {
    workload != 0 && workload_of(sk) == workload
}

#[inline(always)]
fn is_unix(sk: *mut c_void) -> bool {
    // SAFETY: `sk` is not null, and a `struct sock`, as the verifier checks.
    !sk.is_null() && !unsafe { bpf_skc_to_unix_sock(sk) }.is_null()
}

/// Writes down whose a socket is, unless that is known.
#[inline(always)]
fn label(sk: *mut c_void, workload: u64) -> Result<(), Refusal> {
    if sk.is_null() {
        return Err(Refusal(refusal::SOCKET_FOREIGN));
    }
    let slot = maps::SOCKETS.make(sk)?;
    if slot.read().origin.workload == 0 {
        slot.write(Socket {
            origin: Origin {
                workload,
                ..Origin::NONE
            },
            ..Socket::NONE
        });
    }
    Ok(())
}

#[inline(always)]
fn sock_of(socket: *const c_void) -> *mut c_void {
    // SAFETY: `socket` is a `struct socket`; the verifier knows what lies there.
    unsafe {
        socket
            .byte_add(SOCK_OF_SOCKET)
            .cast::<*mut c_void>()
            .read_volatile()
    }
}
