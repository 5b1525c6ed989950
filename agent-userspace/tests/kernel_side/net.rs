//! Network set-up that no safe crate offers: interfaces, routes, a TUN device, a socket option.
//! Under the tests; a TUN device shows what would have left the host.
//! INVARIANT: only the network namespace of the calling thread is changed.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::Socket;

/// A network namespace for this thread, with `lo` and a TUN device that everything else is routed to.
pub(crate) struct Wire {
    tun: File,
}

impl Wire {
    /// Must come before anything that the test starts: processes inherit the namespace of this thread.
    pub(crate) fn make() -> Wire {
        #[expect(
            deprecated,
            reason = "its unsafe successor guards descriptor tables, which are not unshared here"
        )]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).unwrap();
        interface_up("lo").unwrap();
        let tun = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        let mut request = request("wire0");
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &mut request) }).unwrap();
        address("wire0", Ipv4Addr::new(10, 77, 0, 1)).unwrap();
        interface_up("wire0").unwrap();
        default_routes("wire0").unwrap();
        rustix::io::ioctl_fionbio(&tun, true).unwrap();
        Wire { tun }
    }

    /// Forgets what came so far; nobody who is not governed may be sending any more.
    pub(crate) fn clear(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        while self.tun.read(&mut [0; 2048]).is_ok() {}
    }

    /// A packet comes in by the device.
    pub(crate) fn inject(&mut self, packet: &[u8]) {
        std::io::Write::write_all(&mut self.tun, packet).unwrap();
    }

    /// Whether a packet like this arrives within a moment; everything that arrived is taken off.
    pub(crate) fn saw(&mut self, wanted: impl Fn(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_millis(500);
        let mut packet = [0; 2048];
        while Instant::now() < deadline {
            match self.tun.read(&mut packet) {
                Ok(count) if wanted(&packet[..count]) => return true,
                Ok(_) => {}
                Err(_nothing_yet) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        false
    }
}

/// Brings an interface up in this thread's network namespace.
pub(crate) fn interface_up(name: &str) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })
}

fn address(name: &str, addr: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = request(name);
    request.ifr_ifru.ifru_addr = inet(addr);
    // SAFETY: SIOCSIFADDR reads one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR as _, &request) })
}

/// Everything that is not local goes to the device, IPv4 and IPv6.
fn default_routes(device: &str) -> io::Result<()> {
    let mut name = device.as_bytes().to_vec();
    name.push(0);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all-zero bytes are a valid `rtentry`.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = inet(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = inet(Ipv4Addr::UNSPECIFIED);
    route.rt_flags = libc::RTF_UP;
    route.rt_dev = name.as_mut_ptr().cast();
    // SAFETY: SIOCADDRT reads one `rtentry` and the name in it, which both live across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &route) })?;

    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    let mut query = request(device);
    // SAFETY: SIOCGIFINDEX reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &mut query) })?;
    let route = In6Route {
        flags: u32::from(libc::RTF_UP),
        metric: 1,
        // SAFETY: the kernel has just written this member.
        ifindex: unsafe { query.ifr_ifru.ifru_ifindex },
        ..In6Route::default()
    };
    // SAFETY: SIOCADDRT on an IPv6 socket reads one `in6_rtmsg`, which this is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT as _, &route) })
}

/// A routing header: the packet goes to its first hop, not to the address that sendto() names.
pub(crate) fn routing_header(through: Ipv6Addr) -> Vec<u8> {
    // RFC 8754, type 4: next header, length in 8 octets, type, segments left, last entry, flags, tag, two segments
    // (the kernel writes the destination into the first).
    let mut header = vec![0u8, 4, 4, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(through.octets());
    header
}

/// `struct ip_mreqn`: a membership on whichever interface the route takes.
pub(crate) fn membership4(group: Ipv4Addr) -> Vec<u8> {
    [&group.octets()[..], &[0; 8]].concat()
}

/// `struct ipv6_mreq`, likewise.
pub(crate) fn membership6(group: Ipv6Addr) -> Vec<u8> {
    [&group.octets()[..], &[0; 4]].concat()
}

/// `struct in_pktinfo`: leave by this interface, whatever the route says.
pub(crate) fn leave_by(device: &str) -> Vec<u8> {
    let mut name = device.as_bytes().to_vec();
    name.push(0);
    // SAFETY: the name ends with a zero and lives across the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr().cast()) };
    assert_ne!(index, 0, "{device} is there");
    [&index.to_ne_bytes()[..], &[0; 8]].concat()
}

/// Any socket option, its value as bytes.
pub(crate) fn set_option(socket: &Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    })
}

/// A connection's own address and its peer, the latter as two system calls tell it.
pub(crate) fn names(socket: &Socket) -> io::Result<String> {
    const SO_PEERNAME: libc::c_int = 28;
    let (own, peer) = (socket.local_addr()?, socket.peer_addr()?);
    // SAFETY: the pointers and lengths describe a `sockaddr_storage`, which any bytes are a value of.
    let ((), optioned) = unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            // The kernel wants room for the name and no more.
            *length = peer.len();
            check(libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERNAME,
                storage.cast(),
                length,
            ))
        })?
    };
    let [own, peer, optioned] = [own, peer, optioned].map(|name| name.as_socket().unwrap());
    Ok(format!("{own} {peer} {optioned}"))
}

/// A datagram as it would come over a wire.
pub(crate) fn datagram4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), text: &[u8]) -> Vec<u8> {
    let length = 28 + text.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    for word in [from.1, to.1, length - 20, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(text);
    packet
}

/// Sends a datagram with one piece of ancillary data, which no hook on socket options sees.
pub(crate) fn send_with(
    socket: &Socket,
    to: SocketAddr,
    (level, kind): (i32, i32),
    data: &[u8],
) -> io::Result<()> {
    let to = socket2::SockAddr::from(to);
    let mut text = *b"leak";
    let mut part = libc::iovec {
        iov_base: text.as_mut_ptr().cast(),
        iov_len: text.len(),
    };
    // Words, so that the header in it is aligned.
    let mut control = [0u64; 32];
    // SAFETY: all-zero bytes are a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: `control` is longer than one header with `data` (asserted), and everything lives across the call.
    check(unsafe {
        let length = data.len() as libc::c_uint;
        message.msg_controllen = libc::CMSG_SPACE(length) as usize;
        assert!(message.msg_controllen <= size_of_val(&control));
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
        std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(header), data.len());
        libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) as libc::c_int
    })
}

/// Asks for the id of a BPF program: the smallest bpf(2) call that needs its privilege.
pub(crate) fn first_bpf_program() -> io::Result<()> {
    const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
    let mut attr = [0u64; 16];
    // SAFETY: the kernel reads and writes at most the given length, all of it initialised.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_GET_NEXT_ID,
            attr.as_mut_ptr(),
            size_of_val(&attr),
        ) as libc::c_int
    })
}

/// Detaches a pinned link, as somebody with root's rights can: the pin stays, and leads nowhere.
pub(crate) fn detach_link(pin: &std::path::Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(pin.as_os_str().as_bytes()).unwrap();
    let mut attr = [0u64; 16];
    attr[0] = path.as_ptr() as u64;
    // SAFETY: the kernel reads at most the given length, all of it initialised, and the path lives across the call.
    let link = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    check(link as libc::c_int)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let link = unsafe { std::os::fd::OwnedFd::from_raw_fd(link as i32) };
    let mut attr = [0u32; 32];
    attr[0] = link.as_raw_fd() as u32;
    // SAFETY: as above; there is no path in it.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            attr.as_ptr(),
            size_of_val(&attr),
        ) as libc::c_int
    })
}

/// Bytes as a word of a puppet's command.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// `struct in6_rtmsg` of linux/ipv6_route.h; libc's has private fields.
#[repr(C)]
#[derive(Default)]
struct In6Route {
    destination: [u8; 16],
    source: [u8; 16],
    gateway: [u8; 16],
    kind: u32,
    destination_prefix: u16,
    source_prefix: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    ifindex: libc::c_int,
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn inet(addr: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: all-zero bytes are a valid `sockaddr_in`, and the two types have the same size.
    unsafe {
        let mut inet: libc::sockaddr_in = std::mem::zeroed();
        inet.sin_family = libc::AF_INET as libc::sa_family_t;
        inet.sin_addr.s_addr = u32::from_ne_bytes(addr.octets());
        std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A socket of any kind, by its numbers.
pub(crate) fn raw_socket(family: &str, kind: &str, protocol: &str) -> io::Result<OwnedFd> {
    let [family, kind, protocol] =
        [family, kind, protocol].map(|number| number.parse::<u32>().unwrap());
    Ok(rustix::net::socket(
        rustix::net::AddressFamily::from_raw(family as u16),
        rustix::net::SocketType::from_raw(kind),
        NonZeroU32::new(protocol).map(rustix::net::Protocol::from_raw),
    )?)
}
