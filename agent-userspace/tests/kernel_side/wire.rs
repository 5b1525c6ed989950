//! Packets that socket options send elsewhere than connect() said: a TUN device shows what would have left the host.
//! Needs /dev/net/tun. Each test has a network namespace of its own, made by a thread of its own.
//! INVARIANT: the detector is first seen to catch the same trick by a process that is not governed.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use agent_userspace::enforce::RefusalKind;
use socket2::Socket;

use crate::host::Host;
use crate::puppet::Puppet;

#[test]
fn binding_to_a_device_puts_no_loopback_packet_on_the_wire() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let proxy = host.ports.proxy;

    // The control: 127.0.0.1 through the device is a packet on the wire.
    let _timed_out = outsider.ask(&format!("connect 127.0.0.1:{proxy} device wire0"));
    assert!(
        wire.saw(|packet| is_tcp4(packet, Ipv4Addr::LOCALHOST, proxy)),
        "the detector works"
    );
    drop(outsider);
    wire.clear();

    // The workload asks for a name's address, and is led to 127.0.0.1 by the device.
    let _refused = workload.ask("connect 198.18.0.1:443 device wire0");
    let socket = workload.udp("0.0.0.0:0");
    workload.ask(&format!("device {socket} wire0")).unwrap();
    let _refused = workload.ask(&format!("sendto {socket} 192.0.2.53:53 leak"));
    assert!(
        !wire.saw(|packet| packet.first().is_some_and(|first| first >> 4 == 4)),
        "nothing leaves"
    );
    assert!(host.refusals(RefusalKind::Packet) > 0);
}

#[test]
fn a_routing_header_leads_no_packet_past_the_proxy() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let through: Ipv6Addr = "2001:db8:77::1".parse().unwrap();

    // The control: the first hop of the header is where the packet goes, whatever sendto() said.
    let socket = outsider.udp("[::]:0");
    outsider
        .ask(&format!("routing_header {socket} {through}"))
        .unwrap();
    let _sent = outsider.ask(&format!("sendto {socket} [2001:db8:66::1]:53 control"));
    assert!(
        wire.saw(|packet| is_to6(packet, through)),
        "the detector works"
    );
    drop(outsider);
    wire.clear();

    let socket = workload.udp("[::]:0");
    workload
        .ask(&format!("routing_header {socket} {through}"))
        .unwrap();
    let _refused = workload.ask(&format!("sendto {socket} [2001:db8::53]:53 leak"));
    assert!(
        !wire.saw(|packet| is_to6(packet, through)),
        "nothing leaves"
    );
    assert!(host.refusals(RefusalKind::Packet) > 0);
}

#[test]
fn nothing_reaches_the_wire_by_ordinary_means() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let asked = Ipv4Addr::new(192, 0, 2, 1);

    // The control.
    let _timed_out = outsider.ask(&format!("connect {asked}:443"));
    assert!(
        wire.saw(|packet| is_tcp4(packet, asked, 443)),
        "the detector works"
    );
    drop(outsider);
    wire.clear();

    let udp = workload.udp("0.0.0.0:0");
    for command in [
        format!("connect {asked}:443"),
        "connect [2001:db8::1]:443".to_owned(),
        "connect [::ffff:192.0.2.1]:443".to_owned(),
        format!("sendto {udp} {asked}:443 leak"),
        format!("sendto {udp} 224.0.0.251:5353 leak"),
        format!("sendto {udp} 255.255.255.255:67 leak"),
    ] {
        assert!(workload.ask(&command).is_err(), "{command}");
    }
    assert!(
        !wire.saw(|packet| packet.first().is_some_and(|first| first >> 4 == 4)),
        "nothing leaves"
    );
}

/// A network namespace for this thread, with `lo` and a TUN device that everything else is routed to.
struct Wire {
    tun: File,
}

impl Wire {
    /// Must come before anything that the test starts: processes inherit the namespace of this thread.
    fn make() -> Wire {
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
    fn clear(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        while self.tun.read(&mut [0; 2048]).is_ok() {}
    }

    /// Whether a packet like this arrives within a moment; everything that arrived is taken off.
    fn saw(&mut self, wanted: impl Fn(&[u8]) -> bool) -> bool {
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

fn is_tcp4(packet: &[u8], to: Ipv4Addr, port: u16) -> bool {
    packet.len() >= 24
        && packet[0] >> 4 == 4
        && packet[9] == 6
        && packet[16..20] == to.octets()
        && packet[22..24] == port.to_be_bytes()
}

fn is_to6(packet: &[u8], to: Ipv6Addr) -> bool {
    packet.len() >= 40 && packet[0] >> 4 == 6 && packet[24..40] == to.octets()
}

/// Brings an interface up in this thread's network namespace.
pub fn interface_up(name: &str) -> io::Result<()> {
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

/// Asks for a routing header: the packet goes to its first hop, not to the address that sendto() names.
pub fn routing_header(socket: &Socket, through: &str) -> io::Result<()> {
    let through: Ipv6Addr = through.parse().unwrap();
    // RFC 8754, type 4: next header, length in 8 octets, type, segments left, last entry, flags, tag, two segments
    // (the kernel writes the destination into the first).
    let mut header = vec![0u8, 4, 4, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(through.octets());
    // SAFETY: the pointer and length describe `header`.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_RTHDR,
            header.as_ptr().cast(),
            header.len() as libc::socklen_t,
        )
    })
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
