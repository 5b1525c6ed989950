//! Carries the original destination from the workload's socket to the one that the proxy accepts.
//! On the path: between connect() and accept(): socket storage -> flow (by source address) -> accepted socket's storage.
//! INVARIANT: an accepted socket has an origin only if a governed socket with exactly this source was led here.

use agent_abi::{Address, FlowKey, PROTOCOL_TCP, mapped, refusal};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::maps::{ACCEPTED, FLOWS, SOCKETS};
use crate::verdict::{Refusal, Subject, report};

const AF_INET: u32 = 2;
/// The hook's reply where it has nothing to say.
const DONE: u32 = 1;

/// On the workloads' cgroup: the source port is chosen, the SYN is not sent yet.
#[sock_ops]
pub fn flows(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB
        && let Err(refused) = depart(&ctx)
    {
        // The connection goes on, and the proxy refuses it: it finds no origin.
        report(&ctx, refused, &Subject::default());
    }
    DONE
}

/// On the proxy's cgroup: the handshake is over, accept() has not returned yet.
#[sock_ops]
pub fn accepted(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        && let Err(refused) = arrive(&ctx)
    {
        report(&ctx, refused, &Subject::default());
    }
    DONE
}

#[inline(always)]
fn depart(ctx: &SockOpsContext) -> Result<(), Refusal> {
    let sk = socket_of(ctx.ops)?;
    let origin = SOCKETS.get(sk, refusal::SOCKET_FOREIGN)?.read().origin;
    if origin.family == 0 {
        return Ok(());
    }
    let key = key(ctx, local(ctx.ops), local_port(ctx.ops));
    FLOWS
        .insert(key, origin, 0)
        .map_err(|_| Refusal(refusal::MAP_FULL))
}

#[inline(always)]
fn arrive(ctx: &SockOpsContext) -> Result<(), Refusal> {
    let key = key(ctx, remote(ctx.ops), remote_port(ctx.ops));
    // SAFETY: the value is copied before the entry is removed.
    let Some(origin) = (unsafe { FLOWS.get(key) }).copied() else {
        // Not an agent's: the proxy will refuse it. Nothing is remembered.
        return Ok(());
    };
    ACCEPTED.make(socket_of(ctx.ops)?)?.write(origin);
    // One flow, one connection: a source port that is used again starts afresh.
    let _already_gone = FLOWS.remove(key);
    Ok(())
}

#[inline(always)]
fn key(ctx: &SockOpsContext, addr: Address, port: u16) -> FlowKey {
    // SAFETY: the context of this hook is what the helper wants.
    let netns = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    FlowKey {
        netns,
        addr,
        port,
        protocol: PROTOCOL_TCP as u16,
        pad: 0,
    }
}

#[inline(always)]
fn socket_of(ops: *mut bpf_sock_ops) -> Result<*mut core::ffi::c_void, Refusal> {
    // SAFETY: the kernel passes a valid context.
    let sk = unsafe { (&raw const (*ops).__bindgen_anon_2.sk).read_volatile() };
    if sk.is_null() {
        Err(Refusal(refusal::SOCKET_FOREIGN))
    } else {
        Ok(sk.cast())
    }
}

// Context fields are read one by one, volatile: the verifier knows no merged or wider access to them.

#[inline(always)]
fn local(ops: *mut bpf_sock_ops) -> Address {
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let v4 = (&raw const (*ops).local_ip4).read_volatile();
        let v6 = (&raw const (*ops).local_ip6).cast::<u32>();
        address(ops, v4, v6)
    }
}

#[inline(always)]
fn remote(ops: *mut bpf_sock_ops) -> Address {
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let v4 = (&raw const (*ops).remote_ip4).read_volatile();
        let v6 = (&raw const (*ops).remote_ip6).cast::<u32>();
        address(ops, v4, v6)
    }
}

/// # Safety
/// `v6` points to the four words of an address in the context.
#[inline(always)]
unsafe fn address(ops: *mut bpf_sock_ops, v4: u32, v6: *const u32) -> Address {
    // SAFETY: as the caller promises.
    unsafe {
        if (&raw const (*ops).family).read_volatile() == AF_INET {
            return mapped(v4);
        }
        [
            v6.read_volatile(),
            v6.add(1).read_volatile(),
            v6.add(2).read_volatile(),
            v6.add(3).read_volatile(),
        ]
    }
}

/// `local_port` is in host byte order.
#[inline(always)]
fn local_port(ops: *mut bpf_sock_ops) -> u16 {
    // SAFETY: the kernel passes a valid context.
    unsafe { (&raw const (*ops).local_port).read_volatile() as u16 }
}

/// `remote_port` is in network byte order, as a 32-bit number.
#[inline(always)]
fn remote_port(ops: *mut bpf_sock_ops) -> u16 {
    // SAFETY: the kernel passes a valid context.
    unsafe { u32::from_be((&raw const (*ops).remote_port).read_volatile()) as u16 }
}
