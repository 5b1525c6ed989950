//! The packet-level floor: whatever the socket calls did, only these packets leave.
//! On the path: after connect() and sendmsg(), for each packet; it trusts the packet's own bytes and the interface, nothing else.
//! INVARIANT: out by loopback only, plain headers only (and the kernel's own jumbo header), TCP or UDP only, to the proxy, the resolver, or a socket of the same workload.

use agent_abi::{Config, FlowKey, PROTOCOL_TCP, PROTOCOL_UDP, Socket, refusal};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use crate::connect::loopback_like;
use crate::maps::{self, Slot};
use crate::own::{Ends, receives};
use crate::packet::{self, Flags};
use crate::verdict::{Refusal, Subject, conclude};

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    let mut subject = Subject::default();
    let result = leave(&ctx, &mut subject);
    conclude(&ctx, result, &subject)
}

#[inline(always)]
fn leave(ctx: &SkBuffContext, subject: &mut Subject) -> Result<(), Refusal> {
    let config = maps::config()?;
    let slot = maps::SOCKETS.get(packet::owner(ctx)?, refusal::SOCKET_FOREIGN)?;
    let socket = slot.read();
    subject.workload = socket.origin.workload;
    maps::admitted(socket.origin.workload)?;
    let (ends, flags) = packet::parse(ctx)?;
    subject.addr = ends.destination;
    subject.port = ends.destination_port;
    subject.protocol = ends.protocol;
    if packet::ifindex(ctx) != config.loopback_ifindex {
        return Err(Refusal(refusal::PACKET));
    }
    // A workload that got hold of our ports must not be able to answer.
    if ends.source_port == config.proxy_port || ends.source_port == config.resolver_port {
        return Err(Refusal(refusal::PACKET));
    }
    if ends.destination == loopback_like(&ends.destination) {
        if ends.protocol == PROTOCOL_TCP && is_ours(config, ends.destination_port) {
            return Ok(());
        }
        if ends.protocol == PROTOCOL_UDP && ends.destination_port == config.resolver_port {
            return remember(&socket, &ends);
        }
    }
    within(ctx, slot, &ends, flags)
}

#[inline(always)]
fn is_ours(config: &Config, port: u16) -> bool {
    port == config.proxy_port || port == config.resolver_port
}

/// A datagram to the resolver: its source is where the answer goes, and the name of the flow.
#[inline(always)]
fn remember(socket: &Socket, ends: &Ends) -> Result<(), Refusal> {
    if socket.origin.family == 0 {
        return Err(Refusal(refusal::PACKET));
    }
    let key = FlowKey {
        netns: socket.netns,
        addr: ends.source,
        port: ends.source_port,
        protocol: PROTOCOL_UDP as u16,
        pad: 0,
    };
    maps::FLOWS
        .insert(key, socket.origin, 0)
        .map_err(|_| Refusal(refusal::MAP_FULL))
}

/// Traffic between two sockets of one workload. A connection's peer is looked up once; handshakes always.
#[inline(always)]
fn within(
    ctx: &SkBuffContext,
    slot: Slot<Socket>,
    ends: &Ends,
    flags: Flags,
) -> Result<(), Refusal> {
    let socket = slot.read();
    let connected = ends.protocol == PROTOCOL_TCP && !flags.handshakes();
    if connected
        && socket.peer_port == u32::from(ends.destination_port)
        && socket.peer == ends.destination
    {
        return Ok(());
    }
    if !receives(ctx, socket.origin.workload, ends) {
        return Err(Refusal(refusal::PACKET));
    }
    // A listener answers many peers with SYN-ACKs and hands its storage down: it must not vouch for any of them.
    if connected {
        slot.set_peer(ends.destination, u32::from(ends.destination_port));
    }
    Ok(())
}
