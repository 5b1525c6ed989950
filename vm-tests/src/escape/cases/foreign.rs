//! Sockets that somebody outside made: the programs of the workload's own cgroup never see them.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::families::link;
use super::protocols::packet;
use super::streams;
use crate::escape::helper::{Role, receive_fd, send_fd};
use crate::escape::order::{At, Order, Stop, raw};
use crate::escape::stage::Given;
use crate::escape::wire::HOST4;
use crate::escape::{Case, Class, Trace, Who, sys};

/// What `sluice doctor` says of sockets that are connected already.
const CONNECTED: &[&str] = &["lsm_socket", "foreign_socket"];

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E66",
        "connected by TCP before",
        Class::Foreign,
        Who::User,
        |order| streams::send(rustix::stdio::stdin(), order),
    )
    .given(Given::TcpConnected)
    .seen_by(Trace::Token)
    .open_without(CONNECTED),
    Case::new(
        "E67",
        "connected by UDP before",
        Class::Foreign,
        Who::User,
        |order| streams::send(rustix::stdio::stdin(), order),
    )
    .given(Given::UdpConnected)
    .seen_by(Trace::Token)
    .open_without(CONNECTED),
    Case::new(
        "E68",
        "a TCP socket, connected now",
        Class::Foreign,
        Who::User,
        |order| {
            sys::connect(rustix::stdio::stdin(), &raw(order.to4())).at("connect")?;
            streams::send(rustix::stdio::stdin(), order)
        },
    )
    .given(Given::TcpFresh),
    Case::new(
        "E69",
        "a UDP socket, not connected",
        Class::Foreign,
        Who::User,
        |order| sys::send_to(rustix::stdio::stdin(), order.data(), 0, &raw(order.to4())).at("send"),
    )
    .given(Given::UdpFresh),
    Case::new(
        "E70",
        "a listening socket",
        Class::Foreign,
        Who::User,
        accept,
    )
    .given(Given::TcpListening)
    .seen_by(Trace::Token)
    .open_without(CONNECTED),
    Case::new("E71", "a raw socket", Class::Foreign, Who::User, |order| {
        sys::send_to(
            rustix::stdio::stdin(),
            order.data(),
            0,
            &raw((order.v4, 0).into()),
        )
        .at("send")
    })
    .given(Given::Raw)
    .open_without(CONNECTED),
    Case::new(
        "E72",
        "a packet socket",
        Class::Foreign,
        Who::User,
        |order| {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
            frame.extend(packet(HOST4, order.v4, order.data()));
            sys::send_to(rustix::stdio::stdin(), &frame, 0, &link(order)).at("send")
        },
    )
    .given(Given::Packet)
    .open_without(CONNECTED),
    Case::new(
        "E73",
        "SCM_RIGHTS: a socket from outside",
        Class::Foreign,
        Who::User,
        |order| {
            let stream = UnixStream::connect(&order.helper).at("connect")?;
            let socket = receive_fd(stream.as_fd()).at("receive")?;
            streams::send(&socket, order)
        },
    )
    .with(Role::Giver)
    .seen_by(Trace::Token)
    .open_without(CONNECTED),
    Case::new(
        "E74",
        "SCM_RIGHTS: its own socket to somebody outside",
        Class::Foreign,
        Who::User,
        |order| {
            let stream = UnixStream::connect(&order.helper).at("connect")?;
            let socket = UdpSocket::bind("0.0.0.0:0").at("socket")?;
            send_fd(stream.as_fd(), socket.as_fd()).at("hand over")?;
            // Until it has been used.
            let _ended = (&stream).read(&mut [0]);
            Ok(())
        },
    )
    .with(Role::Taker),
];

fn accept(order: &Order) -> Result<(), Stop> {
    let listener = TcpListener::from(rustix::io::dup(rustix::stdio::stdin()).at("duplicate")?);
    listener.set_nonblocking(true).at("accept")?;
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, _)) => {
                streams::send(&stream, order)?;
                std::thread::sleep(Duration::from_millis(200));
                return Ok(());
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error).at("accept"),
        }
    }
    Err(Stop::because("accept", "nobody came"))
}
