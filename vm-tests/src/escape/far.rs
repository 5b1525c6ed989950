//! The rest of the world, at the far end of the wire: it takes every connection and answers names.
//! Under the suite: an attempt that gets out must get far enough to carry its token.
//! Invariant: never the judge; it only makes handshakes complete.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cases::{ALLOWED, REBOUND};
use super::dns;
use super::order::PORT;
use super::wire::FAR4;

/// Somebody public.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(45, 83, 0, 1);
/// Somebody public whom no connection names.
const OTHER: Ipv4Addr = Ipv4Addr::new(45, 83, 0, 2);

/// Ports where connections are taken, for both families.
const PORTS: [u16; 4] = [PORT, 53, 80, 443];

/// Starts the servers in the namespace of the calling thread.
pub(super) fn serve() -> Result<()> {
    for port in PORTS {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .with_context(|| format!("the far end's port {port}"))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let _bounded = stream.set_read_timeout(Some(Duration::from_secs(5)));
                    if port == 80 {
                        let _answered = answer_http(&stream);
                    }
                    let _ended = std::io::copy(&mut (&stream).take(1 << 20), &mut std::io::sink());
                });
            }
        });
    }
    let names = UdpSocket::bind((FAR4, 53)).context("the far end's port of names")?;
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = names.recv_from(&mut buffer) {
            let question = buffer.get(..length).unwrap_or_default();
            if let Some(answer) = dns::answer(question, leads_to) {
                drop(names.send_to(&answer, from));
            }
        }
    });
    // Datagrams are taken, too, so that no answer of the kernel's makes an attempt stop early.
    for port in [PORT, 443] {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
        std::thread::spawn(move || while socket.recv(&mut [0; 2048]).is_ok() {});
    }
    Ok(())
}

/// Connects from an address of the world to the host, until it is taken or for two seconds.
pub(super) fn dial(from: std::net::Ipv4Addr, to: std::net::SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let deadline = std::time::Instant::now() + Duration::from_secs(4);
    let datagrams = UdpSocket::bind((from, 0));
    while std::time::Instant::now() < deadline {
        if let Ok(socket) = &datagrams {
            drop(socket.send_to(b"hello", to));
        }
        let reached = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| {
            socket.bind(&std::net::SocketAddr::from((from, 0)).into())?;
            socket.connect_timeout(&to.into(), Duration::from_millis(500))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut bytes = [0; 64];
            let count = (&socket).read(&mut bytes)?;
            Ok(count)
        });
        if reached.is_ok_and(|count| count > 0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn leads_to(name: &str) -> Option<IpAddr> {
    if name == ALLOWED {
        return Some(PUBLIC.into());
    }
    if name == "other.test" {
        return Some(OTHER.into());
    }
    REBOUND
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, address)| *address)
}

fn answer_http(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let _request = stream.read(&mut head)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
}
