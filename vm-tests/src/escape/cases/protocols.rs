//! IP protocols other than TCP and UDP, and sockets that write headers themselves: none of them exists for a workload.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use super::streams;
use crate::escape::order::{At, Order, PORT, Stop, raw};
use crate::escape::wire::HOST4;
use crate::escape::{Case, Class, Who, sys};

/// RFC 3931.
const L2TP: i32 = 115;
/// For experiments (RFC 3692).
const EXPERIMENT: i32 = 253;

pub(super) const CASES: &[Case] = &[
    Case::new("E23", "UDP-Lite", Class::Protocols, Who::User, |order| {
        datagram(
            order,
            libc::AF_INET,
            libc::SOCK_DGRAM,
            libc::IPPROTO_UDPLITE,
        )
    }),
    Case::new("E24", "ping socket", Class::Protocols, Who::User, |order| {
        ping(order, libc::AF_INET, libc::IPPROTO_ICMP, 8)
    }),
    Case::new(
        "E25",
        "ping socket of IPv6",
        Class::Protocols,
        Who::User,
        |order| ping(order, libc::AF_INET6, libc::IPPROTO_ICMPV6, 128),
    ),
    Case::new("E26", "SCTP", Class::Protocols, Who::User, |order| {
        connection(order, libc::SOCK_STREAM, libc::IPPROTO_SCTP)
    }),
    Case::new(
        "E27",
        "SCTP, one to many",
        Class::Protocols,
        Who::User,
        |order| {
            datagram(
                order,
                libc::AF_INET,
                libc::SOCK_SEQPACKET,
                libc::IPPROTO_SCTP,
            )
        },
    ),
    Case::new("E28", "DCCP", Class::Protocols, Who::User, |order| {
        connection(order, libc::SOCK_DCCP, libc::IPPROTO_DCCP)
    }),
    Case::new(
        "E29",
        "L2TP over IP",
        Class::Protocols,
        Who::User,
        |order| datagram(order, libc::AF_INET, libc::SOCK_DGRAM, L2TP),
    ),
    Case::new(
        "E30",
        "raw socket",
        Class::Protocols,
        Who::Container,
        |order| datagram(order, libc::AF_INET, libc::SOCK_RAW, EXPERIMENT),
    ),
    Case::new(
        "E31",
        "raw socket of IPv6",
        Class::Protocols,
        Who::Container,
        |order| datagram(order, libc::AF_INET6, libc::SOCK_RAW, EXPERIMENT),
    ),
    Case::new(
        "E32",
        "raw socket with a header of its own",
        Class::Protocols,
        Who::Container,
        own_header,
    ),
    Case::new("E33", "GRE", Class::Protocols, Who::Container, |order| {
        datagram(order, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_GRE)
    }),
    Case::new(
        "E34",
        "IP in IP",
        Class::Protocols,
        Who::Container,
        |order| datagram(order, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_IPIP),
    ),
    Case::new(
        "E35",
        "ICMP by a raw socket",
        Class::Protocols,
        Who::Container,
        |order| {
            let socket =
                sys::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).at("socket")?;
            sys::send_to(
                socket.as_fd(),
                &echo(order, 8),
                0,
                &raw((order.v4, 0).into()),
            )
            .at("send")
        },
    ),
];

fn datagram(order: &Order, family: i32, kind: i32, protocol: i32) -> Result<(), Stop> {
    let socket = sys::socket(family, kind, protocol).at("socket")?;
    let port = if kind == libc::SOCK_RAW { 0 } else { PORT };
    let to: SocketAddr = if family == libc::AF_INET6 {
        (order.v6, port).into()
    } else {
        (order.v4, port).into()
    };
    sys::send_to(socket.as_fd(), order.data(), 0, &raw(to)).at("send")
}

fn connection(order: &Order, kind: i32, protocol: i32) -> Result<(), Stop> {
    let socket = sys::socket(libc::AF_INET, kind, protocol).at("socket")?;
    // The handshake alone is a frame that leaves; nobody answers it.
    rustix::io::ioctl_fionbio(&socket, true).at("option")?;
    sys::connect(socket.as_fd(), &raw(order.to4())).at("connect")?;
    streams::send(&socket, order)
}

fn echo(order: &Order, kind: u8) -> Vec<u8> {
    // Type, code, checksum (left wrong: the wire does not care), identifier, sequence.
    let mut message = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    message.extend(order.data());
    message
}

fn ping(order: &Order, family: i32, protocol: i32, kind: u8) -> Result<(), Stop> {
    let socket = sys::socket(family, libc::SOCK_DGRAM, protocol).at("socket")?;
    let to: SocketAddr = if family == libc::AF_INET6 {
        (order.v6, 0).into()
    } else {
        (order.v4, 0).into()
    };
    sys::send_to(socket.as_fd(), &echo(order, kind), 0, &raw(to)).at("send")
}

fn own_header(order: &Order) -> Result<(), Stop> {
    let socket = sys::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW).at("socket")?;
    let packet = packet(HOST4, order.v4, order.data());
    sys::send_to(socket.as_fd(), &packet, 0, &raw((order.v4, 0).into())).at("send")
}

/// An IPv4 packet with a UDP datagram (RFC 791, 768), checksums done.
pub(super) fn packet(from: Ipv4Addr, to: Ipv4Addr, data: &[u8]) -> Vec<u8> {
    let datagram = 8 + data.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend((20 + datagram).to_be_bytes());
    header.extend([0, 7, 0, 0, 64, 17, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    for (at, byte) in (10..).zip(checksum.to_be_bytes()) {
        if let Some(place) = header.get_mut(at) {
            *place = byte;
        }
    }
    header.extend(4444_u16.to_be_bytes());
    header.extend(PORT.to_be_bytes());
    header.extend(datagram.to_be_bytes());
    // No checksum of the datagram: allowed in IPv4.
    header.extend([0, 0]);
    header.extend(data);
    header
}
