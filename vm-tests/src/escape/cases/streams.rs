//! TCP in all its forms: whatever the call and the form of the address, the connection goes to the proxy or nowhere.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::escape::order::{At, Order, PORT, Stop, raw};
use crate::escape::{Case, Class, Who, sys};

pub(super) const CASES: &[Case] = &[
    Case::new("E01", "connect by IPv4", Class::Tcp, Who::User, |order| {
        plain(order, order.to4())
    }),
    Case::new("E02", "connect by IPv6", Class::Tcp, Who::User, |order| {
        plain(order, order.to6())
    }),
    Case::new(
        "E03",
        "connect by a v4-mapped address",
        Class::Tcp,
        Who::User,
        |order| plain(order, order.to_mapped()),
    ),
    Case::new(
        "E04",
        "connect again after AF_UNSPEC",
        Class::Tcp,
        Who::User,
        again,
    ),
    Case::new(
        "E05",
        "Fast Open by sendto",
        Class::Tcp,
        Who::User,
        fast_open,
    ),
    Case::new(
        "E06",
        "Fast Open by the socket option",
        Class::Tcp,
        Who::User,
        fast_open_connect,
    ),
    Case::new("E07", "MPTCP", Class::Tcp, Who::User, multipath),
    Case::new(
        "E08",
        "TCP repair: a connection without a handshake",
        Class::Tcp,
        Who::Root,
        repair,
    )
    .launcher_closes("needs CAP_NET_ADMIN"),
    Case::new(
        "E09",
        "connect to the port of names",
        Class::Tcp,
        Who::User,
        |order| plain(order, SocketAddr::new(order.v4.into(), 53)),
    ),
];

/// What every one of them does once it is connected.
pub(super) fn send(socket: impl AsFd, order: &Order) -> Result<(), Stop> {
    rustix::net::send(socket, order.data(), rustix::net::SendFlags::NOSIGNAL)
        .at("send")
        .map(drop)
}

fn stream(family: i32, protocol: i32) -> Result<OwnedFd, Stop> {
    let socket = sys::socket(family, libc::SOCK_STREAM, protocol).at("socket")?;
    // A handshake that nobody answers ends soon.
    let milliseconds = 1500_i32.to_ne_bytes();
    let bounded = sys::set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_USER_TIMEOUT,
        &milliseconds,
    );
    drop(bounded);
    let attempts = 1_i32.to_ne_bytes();
    drop(sys::set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_SYNCNT,
        &attempts,
    ));
    Ok(socket)
}

fn plain(order: &Order, to: SocketAddr) -> Result<(), Stop> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).at("connect")?;
    stream.write_all(order.data()).at("send")
}

/// Connected to somewhere harmless first; the second connect() is of the same socket.
fn again(order: &Order) -> Result<(), Stop> {
    let socket = stream(libc::AF_INET, 0)?;
    let _may_be_refused = sys::connect(
        socket.as_fd(),
        &raw(SocketAddr::from(([127, 0, 0, 1], PORT))),
    );
    sys::connect(socket.as_fd(), &[0; 16]).at("disconnect")?;
    sys::connect(socket.as_fd(), &raw(order.to4())).at("connect")?;
    send(&socket, order)
}

fn fast_open(order: &Order) -> Result<(), Stop> {
    let socket = stream(libc::AF_INET, 0)?;
    sys::send_to(
        socket.as_fd(),
        order.data(),
        libc::MSG_FASTOPEN,
        &raw(order.to4()),
    )
    .at("send")
}

fn fast_open_connect(order: &Order) -> Result<(), Stop> {
    let socket = stream(libc::AF_INET6, 0)?;
    let on = 1_i32.to_ne_bytes();
    sys::set_option(
        socket.as_fd(),
        libc::IPPROTO_TCP,
        libc::TCP_FASTOPEN_CONNECT,
        &on,
    )
    .at("option")?;
    sys::connect(socket.as_fd(), &raw(order.to6())).at("connect")?;
    send(&socket, order)
}

fn multipath(order: &Order) -> Result<(), Stop> {
    let socket = stream(libc::AF_INET, libc::IPPROTO_MPTCP)?;
    sys::connect(socket.as_fd(), &raw(order.to4())).at("connect")?;
    send(&socket, order)
}

fn repair(order: &Order) -> Result<(), Stop> {
    let socket = stream(libc::AF_INET, 0)?;
    let option = |value: i32| {
        sys::set_option(
            socket.as_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            &value.to_ne_bytes(),
        )
    };
    option(1).at("repair")?;
    sys::connect(socket.as_fd(), &raw(order.to4())).at("connect")?;
    option(0).at("repair's end")?;
    send(&socket, order)
}
