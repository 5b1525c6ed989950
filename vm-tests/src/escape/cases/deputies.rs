//! Others on the host who act for whoever asks, and Sluice's own ports among them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use super::families::request;
use crate::escape::helper::Role;
use crate::escape::order::{At, Order, PORT, Stop};
use crate::escape::{Case, Class, Who};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E90",
        "a broker at a Unix socket with a path",
        Class::Deputies,
        Who::User,
        |order| {
            let mut stream = UnixStream::connect(&order.helper).at("connect")?;
            stream.write_all(request(order).as_bytes()).at("send")
        },
    )
    .with(Role::BrokerPath)
    .open_without(&["lsm_unix"]),
    Case::new(
        "E91",
        "a broker at an abstract Unix socket",
        Class::Deputies,
        Who::User,
        |order| {
            let name = UnixAddr::from_abstract_name(&order.helper).at("name")?;
            let mut stream = UnixStream::connect_addr(&name).at("connect")?;
            stream.write_all(request(order).as_bytes()).at("send")
        },
    )
    .with(Role::BrokerAbstract)
    .open_without(&["lsm_unix"]),
    Case::new(
        "E92",
        "a broker at a Unix datagram socket",
        Class::Deputies,
        Who::User,
        |order| {
            let socket = UnixDatagram::unbound().at("socket")?;
            socket
                .send_to(request(order).as_bytes(), &order.helper)
                .at("send")
                .map(drop)
        },
    )
    .with(Role::BrokerDatagram)
    .open_without(&["lsm_unix"]),
    Case::new(
        "E93",
        "a broker on loopback, by TCP",
        Class::Deputies,
        Who::User,
        |order| {
            let port = order.helper.parse().unwrap_or_default();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).at("connect")?;
            stream.write_all(request(order).as_bytes()).at("send")
        },
    )
    .with(Role::BrokerLoopback),
    Case::new(
        "E94",
        "a broker on loopback, by UDP",
        Class::Deputies,
        Who::User,
        |order| {
            let port: u16 = order.helper.parse().unwrap_or_default();
            UdpSocket::bind("127.0.0.1:0")
                .at("socket")?
                .send_to(request(order).as_bytes(), (Ipv4Addr::LOCALHOST, port))
                .at("send")
                .map(drop)
        },
    )
    .with(Role::BrokerLoopbackUdp),
    Case::new(
        "E95",
        "asks every listener on loopback, the proxy's among them",
        Class::Proxy,
        Who::User,
        everybody,
    )
    .with(Role::BrokerLoopback),
];

/// As `/proc/net/tcp` lists them: local address and port in hexadecimal, state 0A.
fn everybody(order: &Order) -> Result<(), Stop> {
    let table = fs::read_to_string("/proc/net/tcp").at("look")?;
    let ports = table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (_, port) = words.nth(1)?.split_once(':')?;
        let listens = words.nth(1)? == "0A";
        listens.then(|| u16::from_str_radix(port, 16).ok())?
    });
    let mut last = Err(Stop::because("look", "nobody listens"));
    for port in ports {
        last = ask(order, (Ipv4Addr::LOCALHOST, port).into());
    }
    last
}

fn ask(order: &Order, at: SocketAddr) -> Result<(), Stop> {
    let mut last = Ok(());
    for text in [
        request(order),
        format!(
            "CONNECT {}:{PORT} HTTP/1.1\r\nHost: {}\r\n\r\n{}",
            order.v4, order.v4, order.token
        ),
        format!(
            "GET http://{}:{PORT}/{} HTTP/1.1\r\nHost: {}\r\n\r\n",
            order.v4, order.token, order.v4
        ),
    ] {
        last = TcpStream::connect_timeout(&at, Duration::from_secs(1))
            .at("connect")
            .and_then(|mut stream| {
                stream
                    .set_read_timeout(Some(Duration::from_millis(200)))
                    .at("connect")?;
                stream.write_all(text.as_bytes()).at("send")?;
                let _answer = stream.read(&mut [0; 64]);
                Ok(())
            });
    }
    last
}
