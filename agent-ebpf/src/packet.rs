//! A packet's own bytes: its ends, its flags, the socket it belongs to and the interface it is on.
//! On the path: `egress` and `ingress` judge what is read here.
//! INVARIANT: plain headers only (and the kernel's own jumbo header), TCP or UDP only; everything else is refused before it is judged.

use core::ffi::c_void;

use agent_abi::{PROTOCOL_TCP, PROTOCOL_UDP, is_mapped, mapped, refusal};
use aya_ebpf::helpers::generated::bpf_sk_fullsock;
use aya_ebpf::programs::SkBuffContext;

use crate::own::Ends;
use crate::verdict::Refusal;

const IPV4_PLAIN: u8 = 0x45;
/// More-fragments and the fragment offset: packets are whole here, before the kernel splits them.
const IPV4_FRAGMENT: u16 = 0x3fff;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// RFC 2675: a hop-by-hop header with nothing but the jumbo payload option. The kernel puts it before TCP segments that are
/// longer than 64 KiB and not yet split (BIG TCP, 5.19); it leads nowhere.
const HOP_BY_HOP: u8 = 0;
const JUMBO_HEADER: usize = 8;
const JUMBO: u8 = 0xc2;
const JUMBO_LENGTH: u8 = 4;
const TCP_FLAGS: usize = 13;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

#[repr(C)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
struct Ipv6 {
    version_class: u8,
    class_flow: [u8; 3],
    length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// The flags of a TCP header; none are set for UDP.
#[derive(Clone, Copy)]
pub struct Flags(u8);

impl Flags {
    /// The first packet of a connection.
    #[inline(always)]
    pub fn begins(self) -> bool {
        self.0 & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// The first packet, or the answer to it.
    #[inline(always)]
    pub fn handshakes(self) -> bool {
        self.0 & TCP_SYN != 0
    }

    #[inline(always)]
    pub fn resets(self) -> bool {
        self.0 & TCP_RST != 0
    }
}

#[inline(always)]
pub fn parse(ctx: &SkBuffContext) -> Result<(Ends, Flags), Refusal> {
    let version: u8 = load(ctx, 0)?;
    match version >> 4 {
        4 => parse4(ctx),
        6 => parse6(ctx),
        _ => Err(Refusal(refusal::PACKET)),
    }
}

#[inline(always)]
fn parse4(ctx: &SkBuffContext) -> Result<(Ends, Flags), Refusal> {
    let header: Ipv4 = load(ctx, 0)?;
    if header.version_ihl != IPV4_PLAIN || u16::from_be(header.fragment) & IPV4_FRAGMENT != 0 {
        return Err(Refusal(refusal::PACKET));
    }
    transport(
        ctx,
        IPV4_HEADER,
        header.protocol,
        mapped(header.source),
        mapped(header.destination),
    )
}

#[inline(always)]
fn parse6(ctx: &SkBuffContext) -> Result<(Ends, Flags), Refusal> {
    let header: Ipv6 = load(ctx, 0)?;
    // An IPv6 packet with mapped addresses would be taken for IPv4 further on.
    if is_mapped(&header.source) || is_mapped(&header.destination) {
        return Err(Refusal(refusal::PACKET));
    }
    if header.next_header == HOP_BY_HOP {
        let [next, length, option, option_length] = load::<[u8; 4]>(ctx, IPV6_HEADER)?;
        let jumbo =
            header.length == 0 && length == 0 && option == JUMBO && option_length == JUMBO_LENGTH;
        if !jumbo || u32::from(next) != PROTOCOL_TCP {
            return Err(Refusal(refusal::PACKET));
        }
        return transport(
            ctx,
            IPV6_HEADER + JUMBO_HEADER,
            next,
            header.source,
            header.destination,
        );
    }
    transport(
        ctx,
        IPV6_HEADER,
        header.next_header,
        header.source,
        header.destination,
    )
}

/// The ports; another extension header or protocol is refused here.
#[inline(always)]
fn transport(
    ctx: &SkBuffContext,
    offset: usize,
    protocol: u8,
    source: [u32; 4],
    destination: [u32; 4],
) -> Result<(Ends, Flags), Refusal> {
    let protocol = u32::from(protocol);
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return Err(Refusal(refusal::PACKET));
    }
    let [source_port, destination_port]: [u16; 2] = load(ctx, offset)?;
    let flags = match protocol {
        PROTOCOL_TCP => load(ctx, offset + TCP_FLAGS)?,
        _ => 0,
    };
    let ends = Ends {
        source,
        source_port: u16::from_be(source_port),
        destination,
        destination_port: u16::from_be(destination_port),
        protocol,
    };
    Ok((ends, Flags(flags)))
}

#[inline(always)]
fn load<T>(ctx: &SkBuffContext, offset: usize) -> Result<T, Refusal> {
    ctx.load(offset).map_err(|_| Refusal(refusal::PACKET))
}

/// The socket that sends or receives; a packet without one is nobody's.
#[inline(always)]
pub fn owner(ctx: &SkBuffContext) -> Result<*mut c_void, Refusal> {
    // SAFETY: the kernel passes a valid context.
    let sk = unsafe { (&raw const (*ctx.skb.skb).__bindgen_anon_2.sk).read_volatile() };
    if sk.is_null() {
        return Err(Refusal(refusal::PACKET));
    }
    // SAFETY: `sk` is not null, as the helper wants.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        Err(Refusal(refusal::PACKET))
    } else {
        Ok(sk.cast())
    }
}

#[inline(always)]
pub fn ifindex(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    unsafe { (&raw const (*ctx.skb.skb).ifindex).read_volatile() }
}
