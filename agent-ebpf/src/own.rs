//! Whether the socket at the other end of a loopback address belongs to the same workload.
//! On the path: asked when a workload dials loopback, and again for the packets (the socket may have changed in between).
//! INVARIANT: the answer comes from the socket that the kernel itself would deliver to, never from a remembered port.

use core::ffi::c_void;
use core::mem::size_of;

use agent_abi::{Address, PROTOCOL_TCP, is_mapped, refusal};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use aya_ebpf::programs::SockAddrContext;

use crate::destination::Destination;
use crate::maps::SOCKETS;

/// `BPF_F_CURRENT_NETNS`: look in the network namespace of the program's own socket or packet.
const CURRENT_NETNS: u64 = u64::MAX;

/// One packet's ends. Ports in host byte order.
pub struct Ends {
    pub source: Address,
    pub source_port: u16,
    pub destination: Address,
    pub destination_port: u16,
    pub protocol: u32,
}

impl Ends {
    /// Those of the packet that would answer this one.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// Whether a server of this workload listens where `to` leads.
#[inline(always)]
pub fn listens(ctx: &SockAddrContext, workload: u64, to: &Destination) -> bool {
    let at = to.dialled();
    let ends = Ends {
        source: at,
        source_port: 0,
        destination: at,
        destination_port: to.port,
        protocol: to.protocol,
    };
    receives(ctx, workload, &ends)
}

/// Whether the socket that would receive such a packet was made by this workload.
#[inline(always)]
pub fn receives<C: EbpfContext>(ctx: &C, workload: u64, ends: &Ends) -> bool {
    let sk = if is_mapped(&ends.destination) {
        find4(ctx.as_ptr(), ends)
    } else {
        find6(ctx.as_ptr(), ends)
    };
    if sk.is_null() {
        return false;
    }
    let own = match SOCKETS.get(sk.cast(), refusal::SOCKET_FOREIGN) {
        Ok(socket) => socket.read().origin.workload == workload,
        Err(_) => false,
    };
    // SAFETY: the reference that the lookup took, given back exactly once.
    unsafe { bpf_sk_release(sk.cast()) };
    own
}

#[inline(always)]
fn find4(ctx: *mut c_void, ends: &Ends) -> *mut bpf_sock {
    let [_, _, _, saddr] = ends.source;
    let [_, _, _, daddr] = ends.destination;
    let ipv4 = Tuple4 {
        saddr,
        daddr,
        sport: ends.source_port.to_be(),
        dport: ends.destination_port.to_be(),
    };
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 },
    };
    find(ctx, &mut tuple, size_of::<Tuple4>() as u32, ends.protocol)
}

#[inline(always)]
fn find6(ctx: *mut c_void, ends: &Ends) -> *mut bpf_sock {
    let ipv6 = Tuple6 {
        saddr: ends.source,
        daddr: ends.destination,
        sport: ends.source_port.to_be(),
        dport: ends.destination_port.to_be(),
    };
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 },
    };
    find(ctx, &mut tuple, size_of::<Tuple6>() as u32, ends.protocol)
}

#[inline(always)]
fn find(ctx: *mut c_void, tuple: &mut bpf_sock_tuple, size: u32, protocol: u32) -> *mut bpf_sock {
    if protocol == PROTOCOL_TCP {
        // SAFETY: `tuple` outlives the call and has at least `size` initialised bytes.
        unsafe { bpf_sk_lookup_tcp(ctx, tuple, size, CURRENT_NETNS, 0) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_sk_lookup_udp(ctx, tuple, size, CURRENT_NETNS, 0) }
    }
}
