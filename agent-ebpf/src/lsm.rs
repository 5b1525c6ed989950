//! Sockets, where the kernel runs BPF LSM programs: what no cgroup hook sees, judged by the task that asks.
//! On the path: before and beside `socket`, `foreign` and `egress`; the launcher's seccomp filter says the same of some.
//! INVARIANT: only governed tasks, by label or cgroup, and sockets of theirs are judged; the verdict is one of two constants (the verifier proves it).

use core::ffi::c_void;

use agent_abi::{Origin, Socket, refusal};
use aya_ebpf::bindings::file;
use aya_ebpf::helpers::generated::{bpf_skc_to_unix_sock, bpf_sock_from_file};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::label::{Standing, is_managers, refuse, standing};
use crate::maps;
use crate::verdict::{Refusal, Subject, report};

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
/// Where `struct socket` keeps its `struct sock`, on every 64-bit kernel so far. The verifier knows the type of what is there:
/// were it anything else, the programs below would not load, and their layers would be absent.
const SOCK_OF_SOCKET: usize = 24;
/// No cgroup's id.
const STRAYED: u64 = u64::MAX - 1;
pub const EPERM: i32 = 1;

/// Families that never reach a cgroup hook (packet, vsock, XDP, netlink); none at all for a task outside its workload's cgroup.
#[lsm(hook = "socket_create")]
pub fn socket_create(ctx: LsmContext) -> i32 {
    let (family, protocol, kern): (i32, i32, i32) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    if kern != 0 {
        return 0;
    }
    let workload = match standing() {
        Standing::Free => return 0,
        Standing::Strayed(workload) => {
            refuse(&ctx, workload);
            return -EPERM;
        }
        Standing::Of(workload) => workload,
    };
    if may_exist(family, protocol) {
        return 0;
    }
    let subject = Subject {
        workload,
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
    if kern != 0 {
        return 0;
    }
    let workload = match standing() {
        Standing::Free => return 0,
        Standing::Of(workload) | Standing::Strayed(workload) => workload,
    };
    match label(sock_of(ctx.arg(0)), workload) {
        Ok(()) => 0,
        Err(refused) => deny(&ctx, refused, workload),
    }
}

#[lsm(hook = "socket_connect")]
pub fn socket_connect(ctx: LsmContext) -> i32 {
    use_of(&ctx)
}

/// A socket from outside takes no port, and nobody's connection.
#[lsm(hook = "socket_bind")]
pub fn socket_bind(ctx: LsmContext) -> i32 {
    use_of(&ctx)
}

#[lsm(hook = "socket_listen")]
pub fn socket_listen(ctx: LsmContext) -> i32 {
    use_of(&ctx)
}

#[lsm(hook = "socket_accept")]
pub fn socket_accept(ctx: LsmContext) -> i32 {
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
    let (workload, strayed) = match standing() {
        Standing::Free => return 0,
        Standing::Of(workload) => (workload, false),
        Standing::Strayed(workload) => (workload, true),
    };
    // SAFETY: the argument is a `struct file`, as the verifier checks.
    let socket = unsafe { bpf_sock_from_file(ctx.arg::<*mut file>(0)) };
    if socket.is_null() {
        return 0;
    }
    if strayed {
        refuse(&ctx, workload);
        return -EPERM;
    }
    if is_of(sock_of(socket.cast_const().cast()), workload) {
        return 0;
    }
    deny(&ctx, Refusal(refusal::SOCKET_FOREIGN), workload)
}

/// Streams over Unix sockets stay within a workload, in both directions.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(ctx: LsmContext) -> i32 {
    let (other, accepted): (*mut c_void, *mut c_void) = (ctx.arg(1), ctx.arg(2));
    let mine = match mine() {
        STRAYED => return stray(&ctx),
        mine => mine,
    };
    let theirs = workload_of(other);
    if mine == 0 && theirs == 0 {
        return 0;
    }
    if mine != theirs {
        // A service manager's child connects the output of what it is about to execute.
        if theirs == 0 && is_managers() {
            return 0;
        }
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
    let mine = match mine() {
        STRAYED => return stray(&ctx),
        mine => mine,
    };
    if mine == workload_of(sock_of(ctx.arg(1))) {
        return 0;
    }
    deny(&ctx, Refusal(refusal::BROKER), mine)
}

/// A governed task uses sockets of its own workload. A Unix socket may be its standard input, given to it at launch.
#[inline(always)]
fn use_of(ctx: &LsmContext) -> i32 {
    let (workload, strayed) = match standing() {
        Standing::Free => return 0,
        Standing::Of(workload) => (workload, false),
        Standing::Strayed(workload) => (workload, true),
    };
    let sk = sock_of(ctx.arg(0));
    if is_unix(sk) {
        return 0;
    }
    if strayed {
        refuse(ctx, workload);
        return -EPERM;
    }
    if is_of(sk, workload) {
        return 0;
    }
    deny(ctx, Refusal(refusal::SOCKET_FOREIGN), workload)
}

/// What is refused to a task outside its workload's cgroup.
#[inline(always)]
fn stray(ctx: &LsmContext) -> i32 {
    if let Standing::Strayed(workload) = standing() {
        refuse(ctx, workload);
    }
    -EPERM
}

/// Counts and says no.
#[inline(always)]
pub fn deny(ctx: &LsmContext, refused: Refusal, workload: u64) -> i32 {
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

/// The workload of the current task; 0 for everybody else, and [`STRAYED`] outside its workload's cgroup. A governed task in no
/// workload is told apart from all of them.
#[inline(always)]
fn mine() -> u64 {
    match standing() {
        Standing::Free => 0,
        Standing::Of(0) => u64::MAX,
        Standing::Of(workload) => workload,
        Standing::Strayed(_) => STRAYED,
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
