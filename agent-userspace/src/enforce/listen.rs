//! Opens the sockets of the proxy and the resolver from inside the `proxy` cgroup.
//! Place on the path: in a short-lived child of the enforcer, for each network namespace; an accepted socket belongs to its listener's cgroup,
//! and only there does the kernel side write down origins.
//! INVARIANT: the process is in the cgroup before it makes its first socket; IPv4 and IPv6 share each port.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::Ports;
use super::error::EnforceError;
use super::netns::{self, NetNamespace};

/// Connections that wait for accept().
const BACKLOG: i32 = 4096;
/// Room for a burst of questions while the proxy is busy.
const DATAGRAM_BUFFER: usize = 1 << 20;
/// How often a port that is free for IPv4 may turn out taken for another family or protocol.
const ATTEMPTS: usize = 32;

/// The ports to open; 0 takes any free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Of the proxy.
    pub proxy: u16,
    /// Of the resolver.
    pub resolver: u16,
}

/// The open sockets: non-blocking, closed on exec, on 127.0.0.1 and (where the host has it) ::1.
#[derive(Debug)]
pub struct Opened {
    /// The proxy's.
    pub tcp: Vec<TcpListener>,
    /// The resolver's, for questions over TCP.
    pub dns_tcp: Vec<TcpListener>,
    /// The resolver's, for questions over UDP.
    pub dns_udp: Vec<UdpSocket>,
    /// The ports they got.
    pub ports: Ports,
}

/// The network namespace to open the sockets in.
#[derive(Debug)]
pub enum Place {
    /// An existing one, such as a container's.
    In(NetNamespace),
    /// The caller's own.
    Here,
    /// A new one that has nothing but loopback; the caller stays in it.
    New,
}

/// Moves this process into the `proxy` cgroup and opens the sockets.
///
/// Call it from a single-threaded child made for this purpose: the caller stays in that cgroup, and in the network
/// namespace, until it exits.
pub fn open(proxy_cgroup: &Path, place: &Place, want: Want) -> Result<Opened, EnforceError> {
    let procs = proxy_cgroup.join("cgroup.procs");
    fs::write(&procs, "0").map_err(EnforceError::io("entering the cgroup by", &procs))?;
    let enter = || match place {
        Place::In(namespace) => namespace.enter().and_then(|()| netns::loopback_up()),
        Place::Here => Ok(()),
        Place::New => netns::enter_new().and_then(|()| netns::loopback_up()),
    };
    enter().map_err(EnforceError::io(
        "entering a network namespace from",
        proxy_cgroup,
    ))?;
    open_sockets(want).map_err(EnforceError::io(
        "opening the proxy's sockets from inside",
        proxy_cgroup,
    ))
}

fn open_sockets(want: Want) -> io::Result<Opened> {
    let hosts = loopbacks();
    let tcp = retry(want.proxy, |port| tcp(&hosts, port))?;
    let (dns_tcp, dns_udp) = retry(want.resolver, |port| {
        let dns_tcp = self::tcp(&hosts, port)?;
        let port = first_port(&dns_tcp)?;
        Ok((dns_tcp, udp(&hosts, port)?))
    })?;
    let ports = Ports {
        proxy: first_port(&tcp)?,
        resolver: first_port(&dns_tcp)?,
    };
    Ok(Opened {
        tcp,
        dns_tcp,
        dns_udp,
        ports,
    })
}

/// A free port of one family may be taken in the other: try again where any will do.
fn retry<T>(port: u16, mut open: impl FnMut(u16) -> io::Result<T>) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        match open(port) {
            Ok(opened) => return Ok(opened),
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// The loopback addresses that this network namespace has.
fn loopbacks() -> Vec<IpAddr> {
    let mut hosts = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        hosts.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
    hosts
}

fn tcp(hosts: &[IpAddr], mut port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::with_capacity(hosts.len());
    for host in hosts {
        let socket = socket(*host, Type::STREAM, Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(*host, port).into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

fn udp(hosts: &[IpAddr], port: u16) -> io::Result<Vec<UdpSocket>> {
    let mut sockets = Vec::with_capacity(hosts.len());
    for host in hosts {
        let socket = socket(*host, Type::DGRAM, Protocol::UDP)?;
        socket.set_recv_buffer_size(DATAGRAM_BUFFER)?;
        socket.bind(&SocketAddr::new(*host, port).into())?;
        sockets.push(UdpSocket::from(socket));
    }
    Ok(sockets)
}

/// socket2 sets close-on-exec.
fn socket(host: IpAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(SocketAddr::new(host, 0)),
        kind,
        Some(protocol),
    )?;
    if host.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn first_port(listeners: &[TcpListener]) -> io::Result<u16> {
    let first = listeners.first().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(first.local_addr()?.port())
}
