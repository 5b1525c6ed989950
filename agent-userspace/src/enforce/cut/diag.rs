//! sock_diag(7): lists the sockets of a network namespace and destroys one of them.
//! Below `cut`; the messages are those of linux/inet_diag.h, `inet_diag_req_v2` and `inet_diag_msg`.
//! INVARIANT: what the kernel sends is read within its own bounds; a message that is too short ends the reading.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Attribute of `inet_diag_msg` since Linux 5.8.
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Every state but LISTEN and TIME_WAIT: a listener of the workload's own harms nobody, and what waits is over.
const STATES: u32 = !((1 << 10) | (1 << 6));
const HEADER: usize = 16;
const ID: usize = 48;
/// `inet_diag_msg` before its attributes.
const MESSAGE: usize = 72;

/// The protocols whose sockets a workload can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp = 6,
    Udp = 17,
}

/// One socket, as the kernel describes it.
#[derive(Clone, Debug)]
pub(super) struct Socket {
    family: u8,
    protocol: Protocol,
    id: [u8; ID],
    pub(super) cgroup: Option<u64>,
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ends {
    from: SocketAddr,
    to: SocketAddr,
}

impl Ends {
    /// The same connection as the socket at its other end has it; none where that is another host's.
    pub(super) fn turned(self) -> Option<Ends> {
        self.to.ip().is_loopback().then_some(Ends {
            from: self.to,
            to: self.from,
        })
    }
}

impl Socket {
    /// Both ends of a connection; none where there is no connection.
    pub(super) fn ends(&self) -> Option<Ends> {
        let port = |at| Some(u16::from_be_bytes(self.bytes(at)?));
        let (from, to) = (port(0)?, port(2)?);
        // A v4-mapped address is an IPv4 one: its other end may be an IPv4 socket.
        (to != 0).then_some(Ends {
            from: SocketAddr::new(self.address(4)?.to_canonical(), from),
            to: SocketAddr::new(self.address(20)?.to_canonical(), to),
        })
    }

    fn address(&self, at: usize) -> Option<IpAddr> {
        if i32::from(self.family) == libc::AF_INET {
            Some(Ipv4Addr::from(self.bytes::<4>(at)?).into())
        } else {
            Some(Ipv6Addr::from(self.bytes::<16>(at)?).into())
        }
    }

    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        bytes(&self.id, at)
    }
}

/// A connection to the kernel in one network namespace.
pub(super) struct Diag(OwnedFd);

impl Diag {
    pub(super) fn open() -> io::Result<Diag> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(SOCK_DIAG),
        )?;
        Ok(Diag(socket))
    }

    /// Every socket of a family and protocol that is not a listener.
    pub(super) fn list(&self, family: u8, protocol: Protocol) -> io::Result<Vec<Socket>> {
        self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol, &[0; ID])?;
        let mut found = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = self.receive(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, message, next)) = split(rest) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return Err(error_of(message)),
                    _ => found.extend(socket_of(message, protocol)),
                }
                rest = next;
            }
        }
    }

    /// Ends a socket; false where it is gone already.
    pub(super) fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        self.send(
            SOCK_DESTROY,
            NLM_F_ACK,
            socket.family,
            socket.protocol,
            &socket.id,
        )?;
        let mut buffer = vec![0; 4096];
        let length = self.receive(&mut buffer)?;
        let answer = split(buffer.get(..length).unwrap_or_default());
        let Some((NLMSG_ERROR, message, _)) = answer else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let error = error_of(message);
        match error.raw_os_error() {
            Some(0) => Ok(true),
            Some(libc::ENOENT | libc::ESTALE) => Ok(false),
            _ => Err(error),
        }
    }

    fn send(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        protocol: Protocol,
        id: &[u8; ID],
    ) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + 8 + ID);
        let length = (HEADER + 8 + ID) as u32;
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([family, protocol as u8, 0, 0]);
        message.extend(STATES.to_ne_bytes());
        message.extend(id);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, &message, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (length, _) = rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty())?;
        Ok(length)
    }
}

/// The first message: its type, its content, and what follows it.
fn split(text: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes(text, 0)?) as usize;
    let kind = u16::from_ne_bytes(bytes(text, 4)?);
    let message = text.get(HEADER..length)?;
    let next = length.checked_next_multiple_of(4)?;
    Some((kind, message, text.get(next..).unwrap_or_default()))
}

fn socket_of(message: &[u8], protocol: Protocol) -> Option<Socket> {
    Some(Socket {
        family: *message.first()?,
        protocol,
        id: bytes(message, 4)?,
        cgroup: cgroup_of(message.get(MESSAGE..)?),
    })
}

fn cgroup_of(mut attributes: &[u8]) -> Option<u64> {
    loop {
        let length = usize::from(u16::from_ne_bytes(bytes(attributes, 0)?));
        let kind = u16::from_ne_bytes(bytes(attributes, 2)?);
        if kind == INET_DIAG_CGROUP_ID {
            return Some(u64::from_ne_bytes(bytes(attributes, 4)?));
        }
        if length < 4 {
            return None;
        }
        attributes = attributes.get(length.checked_next_multiple_of(4)?..)?;
    }
}

/// The errno of an acknowledgement, 0 included.
fn error_of(message: &[u8]) -> io::Error {
    let errno = bytes(message, 0).map_or(libc::EIO, |errno| {
        i32::from_ne_bytes(errno).saturating_neg()
    });
    io::Error::from_raw_os_error(errno)
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_a_connection_is_its_mirror_image() {
        let mut id = [0; ID];
        id[0..4].copy_from_slice(&[0x12, 0x34, 0x1f, 0x90]);
        id[4..8].copy_from_slice(&[127, 0, 0, 2]);
        id[20..24].copy_from_slice(&[127, 0, 0, 1]);
        let socket = Socket {
            family: libc::AF_INET as u8,
            protocol: Protocol::Tcp,
            id,
            cgroup: Some(1),
        };
        let ends = socket.ends().unwrap();
        let other = ends.turned().unwrap();
        assert_eq!((other.from, other.to), (ends.to, ends.from));
        assert_eq!(ends.to, "127.0.0.1:8080".parse().unwrap());
        // A mapped address is the same end.
        let mut mapped = socket.clone();
        mapped.family = libc::AF_INET6 as u8;
        for (at, last) in [(4, 2), (20, 1)] {
            let bytes = Ipv4Addr::new(127, 0, 0, last).to_ipv6_mapped().octets();
            mapped.id[at..at + 16].copy_from_slice(&bytes);
        }
        assert_eq!(mapped.ends(), Some(ends));
        // Another host's end is not ours to touch, and who is not connected has none.
        let mut elsewhere = socket.clone();
        elsewhere.id[20..24].copy_from_slice(&[192, 0, 2, 1]);
        assert!(elsewhere.ends().unwrap().turned().is_none());
        let mut alone = socket;
        alone.id[2..4].copy_from_slice(&[0, 0]);
        assert!(alone.ends().is_none());
    }

    #[test]
    fn a_short_message_is_no_socket() {
        assert!(split(&[1, 2, 3]).is_none());
        assert!(socket_of(&[2; 40], Protocol::Tcp).is_none());
        assert!(cgroup_of(&[4, 0, 1, 0]).is_none());
        let mut attributes = vec![8, 0, 9, 0, 1, 2, 3, 4, 12, 0, 21, 0];
        attributes.extend(77_u64.to_ne_bytes());
        assert_eq!(cgroup_of(&attributes), Some(77));
    }
}
