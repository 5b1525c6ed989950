//! UDP in all its forms: a datagram goes to the policy resolver or nowhere.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use socket2::{MsgHdr, SockAddr, SockRef};

use crate::escape::order::{At, Order, PORT, Stop, raw};
use crate::escape::{Case, Class, Trace, Who, sys};

pub(super) const CASES: &[Case] = &[
    Case::new("E10", "sendto by IPv4", Class::Udp, Who::User, |order| {
        plain(order, "0.0.0.0:0", order.to4())
    }),
    Case::new("E11", "sendto by IPv6", Class::Udp, Who::User, |order| {
        plain(order, "[::]:0", order.to6())
    }),
    Case::new(
        "E12",
        "sendto by a v4-mapped address",
        Class::Udp,
        Who::User,
        |order| plain(order, "[::]:0", order.to_mapped()),
    ),
    Case::new(
        "E13",
        "sendto of an address whose family is AF_UNSPEC",
        Class::Udp,
        Who::User,
        unspecified,
    ),
    Case::new(
        "E14",
        "an IPv4 address by an IPv6 socket",
        Class::Udp,
        Who::User,
        other_family,
    ),
    Case::new(
        "E15",
        "connect, then send",
        Class::Udp,
        Who::User,
        |order| connected(order, "0.0.0.0:0", order.to4()),
    ),
    Case::new("E16", "sendmmsg", Class::Udp, Who::User, many),
    Case::new(
        "E17",
        "a multicast datagram",
        Class::Udp,
        Who::User,
        |order| plain(order, "0.0.0.0:0", (order.group4(), PORT).into()),
    )
    .seen_by(Trace::Token),
    Case::new("E18", "a broadcast", Class::Udp, Who::User, broadcast).seen_by(Trace::Token),
    Case::new("E19", "corked pieces", Class::Udp, Who::User, corked),
    Case::new(
        "E20",
        "segmentation offload",
        Class::Udp,
        Who::User,
        segmented,
    ),
    Case::new(
        "E21",
        "connect to the resolver, then send elsewhere",
        Class::Udp,
        Who::User,
        after_resolver,
    ),
    Case::new("E22", "QUIC's port", Class::Udp, Who::User, |order| {
        connected(order, "[::]:0", (order.v6, 443).into())
    }),
];

fn socket(at: &str) -> Result<UdpSocket, Stop> {
    UdpSocket::bind(at).at("socket")
}

fn plain(order: &Order, at: &str, to: SocketAddr) -> Result<(), Stop> {
    socket(at)?.send_to(order.data(), to).at("send").map(drop)
}

fn connected(order: &Order, at: &str, to: SocketAddr) -> Result<(), Stop> {
    let socket = socket(at)?;
    socket.connect(to).at("connect")?;
    socket.send(order.data()).at("send").map(drop)
}

fn unspecified(order: &Order) -> Result<(), Stop> {
    let socket = socket("0.0.0.0:0")?;
    let mut to = raw(order.to4());
    for byte in to.iter_mut().take(2) {
        *byte = 0;
    }
    sys::send_to(socket.as_fd(), order.data(), 0, &to).at("send")
}

fn other_family(order: &Order) -> Result<(), Stop> {
    let socket = socket("[::]:0")?;
    sys::send_to(socket.as_fd(), order.data(), 0, &raw(order.to4())).at("send")
}

fn many(order: &Order) -> Result<(), Stop> {
    let socket = socket("0.0.0.0:0")?;
    sys::send_many(socket.as_fd(), order.data(), &raw(order.to4())).at("send")
}

fn broadcast(order: &Order) -> Result<(), Stop> {
    let socket = socket("0.0.0.0:0")?;
    socket.set_broadcast(true).at("option")?;
    socket
        .send_to(order.data(), "255.255.255.255:4433")
        .or_else(|_| socket.send_to(order.data(), "10.83.0.255:4433"))
        .at("send")
        .map(drop)
}

fn corked(order: &Order) -> Result<(), Stop> {
    let socket = socket("0.0.0.0:0")?;
    let to = raw(order.to4());
    let (first, second) = order.data().split_at(order.data().len() / 2);
    sys::send_to(socket.as_fd(), first, libc::MSG_MORE, &to).at("first piece")?;
    sys::send_to(socket.as_fd(), second, 0, &to).at("second piece")
}

/// The segment size is ancillary data: one call, many datagrams.
fn segmented(order: &Order) -> Result<(), Stop> {
    const UDP_SEGMENT: i32 = 103;
    let socket = socket("0.0.0.0:0")?;
    let size = (order.data().len() as u16).to_ne_bytes();
    let control = super::ways::control(libc::SOL_UDP, UDP_SEGMENT, &size);
    let text = order.data().repeat(3);
    let to = SockAddr::from(order.to4());
    let parts = [IoSlice::new(&text)];
    let message = MsgHdr::new()
        .with_addr(&to)
        .with_buffers(&parts)
        .with_control(&control);
    SockRef::from(&socket)
        .sendmsg(&message, 0)
        .at("send")
        .map(drop)
}

/// The one destination that a datagram may have comes first.
fn after_resolver(order: &Order) -> Result<(), Stop> {
    let socket = socket("0.0.0.0:0")?;
    socket
        .connect(SocketAddr::from((order.v4, 53)))
        .at("connect")?;
    let _to_the_resolver = socket.send(b"x");
    socket
        .send_to(order.data(), order.to4())
        .at("send")
        .map(drop)
}
