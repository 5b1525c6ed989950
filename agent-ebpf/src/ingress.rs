//! What comes in: the other half of the packet-level floor.
//! On the path: for each packet that one of a workload's sockets would receive, listening sockets included; `egress` judged it before if it is the workload's own.
//! INVARIANT: in by loopback only, from the proxy, the resolver, or a socket of the same workload; nobody else begins a conversation or takes part in one.

use core::ffi::c_void;

use agent_abi::{Config, PROTOCOL_TCP, PROTOCOL_UDP, Socket, refusal};
use aya_ebpf::bindings::{BPF_TCP_LISTEN, bpf_sock};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use crate::connect::loopback_like;
use crate::maps::{self, Slot};
use crate::own::{Ends, receives};
use crate::packet::{self, Flags};
use crate::verdict::{Refusal, Subject, conclude};

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    let mut subject = Subject::default();
    let result = enter(&ctx, &mut subject);
    conclude(&ctx, result, &subject)
}

#[inline(always)]
fn enter(ctx: &SkBuffContext, subject: &mut Subject) -> Result<(), Refusal> {
    let config = maps::config()?;
    let sk = packet::owner(ctx)?;
    let slot = maps::SOCKETS.get(sk, refusal::SOCKET_FOREIGN)?;
    let socket = slot.read();
    subject.workload = socket.origin.workload;
    maps::admitted(socket.origin.workload)?;
    let (ends, flags) = packet::parse(ctx)?;
    subject.addr = ends.destination;
    subject.port = ends.destination_port;
    subject.protocol = ends.protocol;
    if packet::ifindex(ctx) != config.loopback_ifindex {
        return Err(Refusal(refusal::INBOUND));
    }
    // A reset carries nothing, and its socket may be gone already: a closed port is to be refused at once, not after a time-out.
    if is_answer(config, &ends, flags) || flags.resets() {
        return Ok(());
    }
    within(ctx, sk, slot, &socket, &ends, flags)
}

/// From the proxy or the resolver, which begin no connection.
#[inline(always)]
fn is_answer(config: &Config, ends: &Ends, flags: Flags) -> bool {
    if ends.source != loopback_like(&ends.source) {
        return false;
    }
    match ends.protocol {
        PROTOCOL_TCP => {
            !flags.begins()
                && (ends.source_port == config.proxy_port
                    || ends.source_port == config.resolver_port)
        }
        PROTOCOL_UDP => ends.source_port == config.resolver_port,
        _ => false,
    }
}

/// The socket at the other end is found as the kernel would find it if we answered. A connection's is looked up once.
#[inline(always)]
fn within(
    ctx: &SkBuffContext,
    sk: *mut c_void,
    slot: Slot<Socket>,
    socket: &Socket,
    ends: &Ends,
    flags: Flags,
) -> Result<(), Refusal> {
    let connected = ends.protocol == PROTOCOL_TCP && !flags.handshakes();
    if connected && socket.peer_port == u32::from(ends.source_port) && socket.peer == ends.source {
        return Ok(());
    }
    if !receives(ctx, socket.origin.workload, &ends.reversed()) {
        return Err(Refusal(refusal::INBOUND));
    }
    // The last packet of a handshake still comes to the listener, which must not vouch for any peer (see `egress`).
    if connected && !is_listening(sk) {
        slot.set_peer(ends.source, u32::from(ends.source_port));
    }
    Ok(())
}

#[inline(always)]
fn is_listening(sk: *mut c_void) -> bool {
    let sk: *mut bpf_sock = sk.cast();
    // SAFETY: the verifier checks that `sk` is a full socket.
    unsafe { (&raw const (*sk).state).read_volatile() == BPF_TCP_LISTEN }
}
