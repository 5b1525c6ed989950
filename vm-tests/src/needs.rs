//! What some tests need of a kernel, found out by trying: where it is not there, the test machine ignores them with a reason.
//! For the first process of a test machine; on the host such a test runs, and fails where it cannot.
//! Invariant: a test is left out only if what it is about does not exist here.

use std::io;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;

use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// One test that not every kernel can run.
#[derive(Clone, Copy, Debug)]
pub struct Needing {
    /// The program that it is in, up to the digest in the file's name.
    pub program: &'static str,
    /// Its name there.
    pub test: &'static str,
    /// Why it is left out here; nothing where it runs.
    pub missing: fn() -> Option<&'static str>,
}

/// All of them.
pub const ALL: [Needing; 2] = [
    Needing {
        program: "kernel_side",
        test: "limits::a_socket_without_room_for_its_storage_is_refused_and_counted",
        missing: room_of_a_namespace,
    },
    Needing {
        program: "kernel_side",
        test: "upkeep::cutting_ends_the_sockets_of_one_workload_in_every_network_namespace",
        missing: cutting,
    },
];

/// The limit of socket storage is a namespace's own since Linux 6.8; before, it is the host's, and not a test's to change.
fn room_of_a_namespace() -> Option<&'static str> {
    // A namespace shows the file only if the limit is its own.
    let entered = std::thread::spawn(|| {
        #[expect(
            deprecated,
            reason = "its unsafe successor guards descriptor tables, which are not unshared here"
        )]
        let unshared = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        unshared.is_ok() && own_room()
    });
    match entered.join() {
        Ok(true) => None,
        _ => Some("the limit of socket storage is the host's own before Linux 6.8"),
    }
}

fn own_room() -> bool {
    Path::new("/proc/sys/net/core/optmem_max").exists()
}

/// sock_diag's destroy, for TCP.
fn cutting() -> Option<&'static str> {
    match destroy() {
        Ok(true) => None,
        _ => Some("this kernel destroys no sockets for sock_diag (INET_DIAG_DESTROY, tcp_diag)"),
    }
}

/// Makes a connection and has it destroyed.
fn destroy() -> io::Result<bool> {
    const SOCK_DESTROY: u16 = 21;
    const REQUEST_AND_ACK: u16 = 5;
    const TCP: u8 = 6;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let mut message = Vec::with_capacity(72);
    message.extend(72_u32.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([AddressFamily::INET.as_raw() as u8, TCP, 0, 0]);
    message.extend(u32::MAX.to_ne_bytes());
    let ends = [stream.local_addr()?, stream.peer_addr()?];
    for end in ends {
        message.extend(end.port().to_be_bytes());
    }
    for end in ends {
        let std::net::SocketAddr::V4(end) = end else {
            return Ok(false);
        };
        message.extend(SocketAddrV4::ip(&end).octets());
        message.extend([0; 12]);
    }
    // Any interface, any cookie.
    message.extend([0; 4]);
    message.extend([0xff; 8]);
    let kind = SocketType::RAW;
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        kind,
        SocketFlags::CLOEXEC,
        Some(SOCK_DIAG),
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    let mut answer = [0_u8; 512];
    let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    // NLMSG_ERROR with 0 is the acknowledgement.
    let word = |at: usize| {
        let bytes = answer.get(at..at + 4)?.try_into().ok()?;
        Some(i32::from_ne_bytes(bytes))
    };
    Ok(length >= 20 && word(16) == Some(0))
}
