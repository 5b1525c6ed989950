//! Options, ancillary data and headers that lead a packet elsewhere than its address says, and what the kernel sends for a socket.

use std::io::{IoSlice, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::{MsgHdr, SockAddr, SockRef};

use crate::escape::order::{At, Order, Stop};
use crate::escape::stage::INBOUND;
use crate::escape::{Case, Class, Trace, Who, sys};

/// Where a workload may send datagrams: the port of names, at an address that never leaves the host by itself.
const NAMES4: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), 53);
const NAMES6: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), 53);

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E50",
        "IPv6 routing header by option",
        Class::Ways,
        Who::User,
        |order| by_option6(order, libc::IPV6_RTHDR, &routing_header(order.v6)),
    ),
    Case::new(
        "E51",
        "IPv6 routing header by ancillary data",
        Class::Ways,
        Who::User,
        |order| {
            let header = home_address(order.v6);
            with(order, NAMES6, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)
        },
    ),
    Case::new(
        "E52",
        "bound to a device by name",
        Class::Ways,
        Who::User,
        |order| {
            let name = order.device.as_bytes();
            by_option(order, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name)
        },
    ),
    Case::new(
        "E53",
        "bound to a device by index",
        Class::Ways,
        Who::User,
        |order| {
            const SO_BINDTOIFINDEX: i32 = 62;
            by_option(order, libc::SOL_SOCKET, SO_BINDTOIFINDEX, &index(order))
        },
    ),
    Case::new("E54", "IP_PKTINFO", Class::Ways, Who::User, |order| {
        let info = [&index(order)[..], &[0; 8]].concat();
        with(order, NAMES4, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
    }),
    Case::new("E55", "IP_UNICAST_IF", Class::Ways, Who::User, |order| {
        const IP_UNICAST_IF: i32 = 50;
        let network = sys::interface_index(&order.device).to_be_bytes();
        by_option(order, libc::IPPROTO_IP, IP_UNICAST_IF, &network)
    }),
    Case::new("E56", "IPV6_PKTINFO", Class::Ways, Who::User, |order| {
        let info = [&[0; 16][..], &index(order)].concat();
        let to = (order.v6, 53).into();
        with(order, to, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
    }),
    Case::new(
        "E57",
        "source routing by option (LSRR)",
        Class::Ways,
        Who::Container,
        |order| {
            by_option(
                order,
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                &source_route(order.v4),
            )
        },
    ),
    Case::new(
        "E58",
        "source routing by ancillary data",
        Class::Ways,
        Who::Container,
        |order| {
            const IP_RETOPTS: i32 = 7;
            let route = source_route(order.v4);
            with(order, NAMES4, libc::IPPROTO_IP, IP_RETOPTS, &route)
        },
    ),
    Case::new("E59", "a mark", Class::Ways, Who::Root, mark).launcher_closes("needs CAP_NET_ADMIN"),
    Case::new(
        "E60",
        "IPv6 destination options",
        Class::Ways,
        Who::Root,
        |order| {
            // Unknown options that are to be skipped, and carry the token.
            let mut options = vec![0, 0, 0x1e, order.data().len() as u8];
            options.extend(order.data());
            let rest = options.len().next_multiple_of(8) - options.len();
            match rest {
                0 => {}
                1 => options.push(0),
                _ => {
                    options.extend([1, (rest - 2) as u8]);
                    options.resize(options.len() + rest - 2, 0);
                }
            }
            let length = (options.len() / 8 - 1) as u8;
            if let Some(place) = options.get_mut(1) {
                *place = length;
            }
            let socket = UdpSocket::bind("[::]:0").at("socket")?;
            sys::set_option(
                socket.as_fd(),
                libc::IPPROTO_IPV6,
                libc::IPV6_DSTOPTS,
                &options,
            )
            .at("option")?;
            socket
                .send_to(b"x", SocketAddr::from((order.v6, 53)))
                .at("send")
                .map(drop)
        },
    )
    .launcher_closes("needs CAP_NET_RAW"),
    Case::new("E61", "IGMP join", Class::Groups, Who::User, igmp)
        .seen_by(Trace::Group)
        .open_without(&["multicast"]),
    Case::new("E62", "MLD join", Class::Groups, Who::User, mld)
        .seen_by(Trace::Group)
        .open_without(&["multicast"]),
    Case::new(
        "E63",
        "IGMP join of a source",
        Class::Groups,
        Who::User,
        igmp_source,
    )
    .seen_by(Trace::Group)
    .open_without(&["multicast"]),
    Case::new(
        "E64",
        "listen, and answer who connects",
        Class::Inbound,
        Who::User,
        answer_stream,
    )
    .seen_by(Trace::Token),
    Case::new(
        "E65",
        "wait for a datagram, and answer it",
        Class::Inbound,
        Who::User,
        answer_datagram,
    )
    .seen_by(Trace::Token),
];

fn index(order: &Order) -> [u8; 4] {
    sys::interface_index(&order.device).to_ne_bytes()
}

fn by_option(order: &Order, level: i32, name: i32, value: &[u8]) -> Result<(), Stop> {
    let socket = UdpSocket::bind("0.0.0.0:0").at("socket")?;
    let set = sys::set_option(socket.as_fd(), level, name, value).at("option");
    // Also where the option is refused: what goes then must stay as well.
    socket.send_to(order.data(), NAMES4).at("send")?;
    set
}

fn by_option6(order: &Order, name: i32, value: &[u8]) -> Result<(), Stop> {
    let socket = UdpSocket::bind("[::]:0").at("socket")?;
    let set = sys::set_option(socket.as_fd(), libc::IPPROTO_IPV6, name, value).at("option");
    socket.send_to(order.data(), NAMES6).at("send")?;
    set
}

/// Sends a datagram with one piece of ancillary data.
fn with(order: &Order, to: SocketAddr, level: i32, kind: i32, data: &[u8]) -> Result<(), Stop> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).at("socket")?;
    let control = control(level, kind, data);
    let to = SockAddr::from(to);
    let parts = [IoSlice::new(order.data())];
    let message = MsgHdr::new()
        .with_addr(&to)
        .with_buffers(&parts)
        .with_control(&control);
    SockRef::from(&socket)
        .sendmsg(&message, 0)
        .at("send")
        .map(drop)
}

/// `struct cmsghdr` and its data, aligned.
pub(super) fn control(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + data.len()).to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// RFC 8754, type 4: next header, length in 8 octets, type, segments left, last entry, flags, tag, two segments (the kernel
/// writes the destination into the first).
fn routing_header(through: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(through.octets());
    header
}

/// RFC 6275, type 2: the one kind that ancillary data may carry.
fn home_address(through: Ipv6Addr) -> Vec<u8> {
    let mut header = vec![0, 2, 2, 1, 0, 0, 0, 0];
    header.extend(through.octets());
    header
}

/// RFC 791: loose source and record route with one hop, padded.
fn source_route(through: Ipv4Addr) -> Vec<u8> {
    let mut option = vec![131, 7, 4];
    option.extend(through.octets());
    option.push(0);
    option
}

fn mark(order: &Order) -> Result<(), Stop> {
    let socket = UdpSocket::bind("0.0.0.0:0").at("socket")?;
    SockRef::from(&socket).set_mark(0x5_1ce).at("mark")?;
    socket
        .send_to(order.data(), order.to4())
        .at("send")
        .map(drop)
}

/// The report is sent after a random while; leaving sends another.
fn linger() {
    std::thread::sleep(Duration::from_millis(300));
}

fn igmp(order: &Order) -> Result<(), Stop> {
    let socket = UdpSocket::bind("0.0.0.0:0").at("socket")?;
    socket
        .join_multicast_v4(&order.group4(), &Ipv4Addr::UNSPECIFIED)
        .at("join")?;
    linger();
    Ok(())
}

fn mld(order: &Order) -> Result<(), Stop> {
    let socket = UdpSocket::bind("[::]:0").at("socket")?;
    let device = sys::interface_index(&order.device).cast_unsigned();
    socket
        .join_multicast_v6(&order.group6(), device)
        .at("join")?;
    linger();
    Ok(())
}

/// `struct group_source_req`: an index and two addresses of the greatest kind.
fn igmp_source(order: &Order) -> Result<(), Stop> {
    const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
    let socket = UdpSocket::bind("0.0.0.0:0").at("socket")?;
    let mut request = sys::interface_index(&order.device).to_ne_bytes().to_vec();
    request.resize(8, 0);
    for address in [order.group4(), order.v4] {
        let mut storage = crate::escape::order::raw((address, 0).into());
        storage.resize(128, 0);
        request.extend(storage);
    }
    sys::set_option(
        socket.as_fd(),
        libc::IPPROTO_IP,
        MCAST_JOIN_SOURCE_GROUP,
        &request,
    )
    .at("join")?;
    linger();
    Ok(())
}

fn answer_stream(order: &Order) -> Result<(), Stop> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, INBOUND)).at("listen")?;
    listener.set_nonblocking(true).at("listen")?;
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        if let Ok((mut stream, _)) = listener.accept() {
            stream.write_all(order.data()).at("send")?;
            linger();
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Stop::because("accept", "nobody came"))
}

fn answer_datagram(order: &Order) -> Result<(), Stop> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, INBOUND)).at("bind")?;
    socket
        .set_read_timeout(Some(Duration::from_secs(3)))
        .at("bind")?;
    let (_, from) = socket.recv_from(&mut [0; 64]).at("receive")?;
    socket.send_to(order.data(), from).at("send").map(drop)
}
