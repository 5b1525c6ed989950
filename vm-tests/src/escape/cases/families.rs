//! Families other than IPv4 and IPv6: packets past IP, and neighbours who would send.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::{Domain, SockAddr, Socket, Type};

use super::protocols::packet;
use super::streams;
use crate::escape::helper::{NETLINK_USERSOCK, Role, TIPC_SERVICE, VSOCK_PORT};
use crate::escape::order::{At, Order, Stop, raw};
use crate::escape::wire::HOST4;
use crate::escape::{Case, Class, Who, sys};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E36",
        "AF_PACKET with a frame of its own",
        Class::Families,
        Who::Container,
        |order| packets(order, libc::AF_PACKET, libc::SOCK_RAW),
    )
    .open_without(&["lsm"])
    .launcher_closes("needs CAP_NET_RAW"),
    Case::new(
        "E37",
        "AF_PACKET without a link header",
        Class::Families,
        Who::Container,
        |order| packets(order, libc::AF_PACKET, libc::SOCK_DGRAM),
    )
    .open_without(&["lsm"])
    .launcher_closes("needs CAP_NET_RAW"),
    Case::new(
        "E38",
        "SOCK_PACKET",
        Class::Families,
        Who::Container,
        old_packet,
    )
    .open_without(&["lsm"])
    .launcher_closes("needs CAP_NET_RAW"),
    Case::new("E39", "AF_XDP", Class::Families, Who::Root, |order| {
        sys::xdp::send(sys::interface_index(&order.device), &frame(order)).at("send")
    })
    .open_without(&["lsm"])
    .launcher_closes("needs CAP_NET_RAW"),
    Case::new(
        "E40",
        "a broker at AF_VSOCK",
        Class::Families,
        Who::User,
        vsock,
    )
    .with(Role::BrokerVsock)
    .open_without(&["lsm"]),
    Case::new(
        "E41",
        "a broker at AF_NETLINK",
        Class::Families,
        Who::User,
        netlink,
    )
    .with(Role::BrokerNetlink)
    .open_without(&["lsm"]),
    Case::new(
        "E42",
        "a broker at AF_TIPC",
        Class::Families,
        Who::User,
        tipc,
    )
    .with(Role::BrokerTipc)
    .open_without(&["lsm"]),
    Case::new("E43", "AF_RDS over TCP", Class::Families, Who::User, rds).open_without(&["lsm"]),
    Case::new("E44", "AF_SMC", Class::Families, Who::User, |order| {
        const AF_SMC: i32 = 43;
        let socket = sys::socket(AF_SMC, libc::SOCK_STREAM, 0).at("socket")?;
        sys::connect(socket.as_fd(), &raw(order.to4())).at("connect")?;
        streams::send(&socket, order)
    })
    .open_without(&["lsm"]),
];

const IPV4: u16 = 0x0800;

/// To everybody on the link: the far end takes it.
fn frame(order: &Order) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(IPV4.to_be_bytes());
    frame.extend(packet(HOST4, order.v4, order.data()));
    frame
}

fn packets(order: &Order, family: i32, kind: i32) -> Result<(), Stop> {
    let socket = sys::socket(family, kind, 0).at("socket")?;
    let content = if kind == libc::SOCK_RAW {
        frame(order)
    } else {
        packet(HOST4, order.v4, order.data())
    };
    sys::send_to(socket.as_fd(), &content, 0, &link(order)).at("send")
}

/// `struct sockaddr_ll`: family, protocol, index, hardware type, packet type, length and address.
pub(super) fn link(order: &Order) -> Vec<u8> {
    let mut to = Vec::from((libc::AF_PACKET as u16).to_ne_bytes());
    to.extend(IPV4.to_be_bytes());
    to.extend(sys::interface_index(&order.device).to_ne_bytes());
    to.extend([1, 0, 0, 6]);
    to.extend([0xff; 6]);
    to.extend([0, 0]);
    to
}

/// The packet socket of Linux 2.0: by family AF_INET, its address names the device.
fn old_packet(order: &Order) -> Result<(), Stop> {
    const SOCK_PACKET: i32 = 10;
    let protocol = i32::from(IPV4.to_be());
    let socket = sys::socket(libc::AF_INET, SOCK_PACKET, protocol).at("socket")?;
    let mut to = Vec::from((libc::AF_INET as u16).to_ne_bytes());
    to.extend(order.device.as_bytes());
    to.resize(16, 0);
    to.extend(IPV4.to_be_bytes());
    to.resize(18, 0);
    sys::send_to(socket.as_fd(), &frame(order), 0, &to).at("send")
}

pub(super) fn request(order: &Order) -> String {
    format!("{} {}\n", order.token, order.v4)
}

fn vsock(order: &Order) -> Result<(), Stop> {
    /// This host itself.
    const LOCAL: u32 = 1;
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None).at("socket")?;
    socket
        .connect(&SockAddr::vsock(LOCAL, VSOCK_PORT))
        .at("connect")?;
    socket.send(request(order).as_bytes()).at("send").map(drop)
}

fn netlink(order: &Order) -> Result<(), Stop> {
    let socket = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_USERSOCK).at("socket")?;
    let port: u32 = order.helper.parse().unwrap_or_default();
    let to = crate::escape::helper::netlink_address(port);
    sys::send_to(socket.as_fd(), request(order).as_bytes(), 0, &to).at("send")
}

fn tipc(order: &Order) -> Result<(), Stop> {
    let socket = sys::socket(libc::AF_TIPC, libc::SOCK_RDM, 0).at("socket")?;
    let to = crate::escape::helper::tipc_address(2, TIPC_SERVICE);
    sys::send_to(socket.as_fd(), request(order).as_bytes(), 0, &to).at("send")
}

/// The kernel connects by TCP for the socket.
fn rds(order: &Order) -> Result<(), Stop> {
    let socket = sys::socket(libc::AF_RDS, libc::SOCK_SEQPACKET, 0).at("socket")?;
    let own: SocketAddr = (HOST4, 4435).into();
    sys::bind(socket.as_fd(), &raw(own)).at("bind")?;
    sys::send_to(
        socket.as_fd(),
        order.data(),
        libc::MSG_DONTWAIT,
        &raw(order.to4()),
    )
    .at("send")?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    Ok(())
}
