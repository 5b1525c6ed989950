//! The others on the host: brokers that send for whoever asks, a victim with a connection of its own, somebody who hands sockets on.
//! Processes outside of every workload, started by the suite beside an attempt.
//! Invariant: each says `ready` and where it is found before the attempt begins, and ends with its standard input.

use std::fs;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::agent::become_who;
use super::order::{At, Order, PORT, Stop};
use super::sys;

/// Netlink between processes.
pub(super) const NETLINK_USERSOCK: i32 = 2;
/// The service of the TIPC broker.
pub(super) const TIPC_SERVICE: u32 = 18_883;
/// The port of the vsock broker.
pub(super) const VSOCK_PORT: u32 = 18_883;

/// What a helper is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Sends for whoever asks at a Unix stream socket with a path.
    BrokerPath,
    /// The same at an abstract name.
    BrokerAbstract,
    /// The same by Unix datagrams.
    BrokerDatagram,
    /// The same at a TCP port of the loopback interface.
    BrokerLoopback,
    /// The same by datagrams.
    BrokerLoopbackUdp,
    /// The same at AF_NETLINK.
    BrokerNetlink,
    /// The same at AF_TIPC.
    BrokerTipc,
    /// The same at AF_VSOCK.
    BrokerVsock,
    /// Moves whoever leaves a file with its pid to the root of the hierarchy of cgroups.
    Mover,
    /// Sends what lies in its memory, over a connection of its own.
    Victim,
    /// Hands a connected socket to whoever connects to it.
    Giver,
    /// Takes a socket from whoever connects to it, and sends by it.
    Taker,
}

const ROLES: [(&str, Role); 12] = [
    ("broker-path", Role::BrokerPath),
    ("broker-abstract", Role::BrokerAbstract),
    ("broker-datagram", Role::BrokerDatagram),
    ("broker-loopback", Role::BrokerLoopback),
    ("broker-loopback-udp", Role::BrokerLoopbackUdp),
    ("broker-netlink", Role::BrokerNetlink),
    ("broker-tipc", Role::BrokerTipc),
    ("broker-vsock", Role::BrokerVsock),
    ("mover", Role::Mover),
    ("victim", Role::Victim),
    ("giver", Role::Giver),
    ("taker", Role::Taker),
];

impl Role {
    pub(super) fn word(self) -> &'static str {
        ROLES
            .iter()
            .find(|(_, role)| *role == self)
            .map_or("", |(word, _)| word)
    }
}

/// Runs until standard input ends. The first word is the role; `helper=` is the path or name to be found at.
pub(super) fn run(words: &[String]) -> Result<(), Stop> {
    let role = words
        .first()
        .and_then(|word| ROLES.iter().find(|(name, _)| name == word))
        .map(|(_, role)| *role)
        .ok_or_else(|| Stop::because("start", "no such role"))?;
    let order = Order::parse(words).ok_or_else(|| Stop::because("start", "no order"))?;
    if let Some(who) = order.who {
        become_who(who).at("become")?;
    }
    std::thread::spawn(|| {
        let _ended = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    match role {
        Role::BrokerPath => {
            let listener = UnixListener::bind(&order.helper).at("bind")?;
            open(&order.helper);
            ready(&order.helper);
            serve_lines(|| listener.accept().map(|(stream, _)| stream))
        }
        Role::BrokerAbstract => {
            let name = UnixAddr::from_abstract_name(&order.helper).at("name")?;
            let listener = UnixListener::bind_addr(&name).at("bind")?;
            ready(&order.helper);
            serve_lines(|| listener.accept().map(|(stream, _)| stream))
        }
        Role::BrokerDatagram => {
            let socket = UnixDatagram::bind(&order.helper).at("bind")?;
            open(&order.helper);
            ready(&order.helper);
            serve_datagrams(|buffer| socket.recv(buffer))
        }
        Role::BrokerLoopbackUdp => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).at("bind")?;
            let port = socket.local_addr().at("bind")?.port();
            ready(&port.to_string());
            serve_datagrams(|buffer| socket.recv(buffer))
        }
        Role::BrokerNetlink => {
            let socket =
                sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_USERSOCK).at("socket")?;
            let port = std::process::id();
            sys::bind(socket.as_fd(), &netlink_address(port)).at("bind")?;
            ready(&port.to_string());
            serve_datagrams(|buffer| sys::receive(socket.as_fd(), buffer))
        }
        Role::BrokerTipc => {
            let socket = sys::socket(libc::AF_TIPC, libc::SOCK_RDM, 0).at("socket")?;
            sys::bind(socket.as_fd(), &tipc_address(1, TIPC_SERVICE)).at("bind")?;
            ready("tipc");
            serve_datagrams(|buffer| sys::receive(socket.as_fd(), buffer))
        }
        Role::BrokerVsock => {
            let socket = Socket::new(Domain::VSOCK, Type::STREAM, None).at("socket")?;
            socket
                .bind(&SockAddr::vsock(u32::MAX, VSOCK_PORT))
                .at("bind")?;
            socket.listen(4).at("listen")?;
            ready("vsock");
            serve_lines(|| socket.accept().map(|(stream, _)| stream))
        }
        Role::Mover => {
            ready(&order.helper);
            loop {
                if let Ok(pid) = fs::read_to_string(&order.helper) {
                    fs::write(order.hierarchy.join("cgroup.procs"), pid.trim()).at("move")?;
                    fs::remove_file(&order.helper).at("move")?;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Role::BrokerLoopback => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("bind")?;
            let port = listener.local_addr().at("bind")?.port();
            ready(&port.to_string());
            serve_lines(|| listener.accept().map(|(stream, _)| stream))
        }
        Role::Victim => victim(&order),
        Role::Giver => giver(&order),
        Role::Taker => taker(&order),
    }
}

/// Anybody may connect, whoever made the socket.
fn open(path: &str) {
    use std::os::unix::fs::PermissionsExt;
    let _best_effort = fs::set_permissions(path, fs::Permissions::from_mode(0o777));
}

fn ready(place: &str) {
    println!("ready {place}");
}

fn serve_lines<S: Read>(mut accept: impl FnMut() -> io::Result<S>) -> Result<(), Stop> {
    loop {
        let stream = accept().at("accept")?;
        let mut line = String::new();
        if BufReader::new(stream).read_line(&mut line).is_ok() {
            forward(&line);
        }
    }
}

fn serve_datagrams(mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Result<(), Stop> {
    let mut buffer = [0; 256];
    loop {
        let count = receive(&mut buffer).at("receive")?;
        forward(&String::from_utf8_lossy(
            buffer.get(..count).unwrap_or_default(),
        ));
    }
}

/// `struct sockaddr_nl`: the process of that port.
pub(super) fn netlink_address(port: u32) -> Vec<u8> {
    let mut bytes = Vec::from((libc::AF_NETLINK as u16).to_ne_bytes());
    bytes.extend([0, 0]);
    bytes.extend(port.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// `struct sockaddr_tipc` with node scope; kind 1 is a range of services (to bind), 2 one of them (to ask).
pub(super) fn tipc_address(kind: u8, service: u32) -> Vec<u8> {
    let mut bytes = Vec::from((libc::AF_TIPC as u16).to_ne_bytes());
    bytes.extend([kind, 3]);
    bytes.extend(service.to_ne_bytes());
    bytes.extend(1_u32.to_ne_bytes());
    // The end of the range, or the domain.
    bytes.extend(if kind == 1 { 1_u32 } else { 0 }.to_ne_bytes());
    bytes
}

/// `TOKEN ADDRESS`: what a broker does for whoever asks.
pub(super) fn forward(line: &str) {
    let mut words = line.split_whitespace();
    if let (Some(token), Some(Ok(address))) =
        (words.next(), words.next().map(str::parse::<Ipv4Addr>))
    {
        let sent = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .and_then(|socket| socket.send_to(token.as_bytes(), (address, PORT)));
        drop(sent);
    }
}

fn outward(order: &Order) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::from((order.v4, PORT)))?;
    Ok(socket)
}

/// Its buffer's address is told, as a debugger would find it out.
fn victim(order: &Order) -> Result<(), Stop> {
    let socket = outward(order).at("connect")?;
    // Where Yama asks: any process may look, which is as if it were a descendant.
    let _not_there = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    let mut buffer = vec![b'.'; order.token.len()];
    ready(&format!(
        "{} {}",
        std::process::id(),
        buffer.as_ptr() as u64
    ));
    loop {
        // Somebody else may have written there.
        let content: &mut Vec<u8> = black_box(&mut buffer);
        let _unreachable = socket.send(content);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn giver(order: &Order) -> Result<(), Stop> {
    let listener = UnixListener::bind(&order.helper).at("bind")?;
    open(&order.helper);
    ready(&order.helper);
    loop {
        let (stream, _) = listener.accept().at("accept")?;
        let socket = outward(order).at("connect")?;
        drop(send_fd(stream.as_fd(), socket.as_fd()));
    }
}

fn taker(order: &Order) -> Result<(), Stop> {
    let listener = UnixListener::bind(&order.helper).at("bind")?;
    open(&order.helper);
    ready(&order.helper);
    loop {
        let (stream, _) = listener.accept().at("accept")?;
        if let Ok(fd) = receive_fd(stream.as_fd()) {
            drop(UdpSocket::from(fd).send_to(order.data(), order.to4()));
        }
    }
}

/// Sends one descriptor over a Unix socket.
pub(super) fn send_fd(over: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(
        over,
        &[IoSlice::new(b"\n")],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

/// Receives one descriptor over a Unix socket.
pub(super) fn receive_fd(over: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(
        over,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    // The kernel takes refused descriptors out of the message without an error.
    Err(io::Error::from_raw_os_error(libc::EPERM))
}
