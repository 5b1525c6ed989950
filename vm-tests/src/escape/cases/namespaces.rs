//! Namespaces and devices of one's own, whose packets the host forwards: no socket of the host's sends them.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;

use super::cgroups::send;
use super::protocols::packet;
use crate::escape::order::{At, Order, Stop};
use crate::escape::{Case, Class, Who, sys};

const ADMIN: &str = "needs CAP_NET_ADMIN";
/// The host's end of what an attempt makes; the suite removes it.
pub(crate) const OWN: &str = "own0";
const INNER: &str = "own1";
const INNER4: Ipv4Addr = Ipv4Addr::new(10, 84, 0, 2);

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E85",
        "a network namespace of its own, and back",
        Class::Namespaces,
        Who::Root,
        |order| {
            let before = File::open("/proc/self/ns/net").at("open")?;
            sys::process::unshare(libc::CLONE_NEWNET).at("unshare")?;
            sys::process::enter(before.as_fd(), libc::CLONE_NEWNET).at("setns")?;
            send(order)
        },
    ),
    Case::new(
        "E86",
        "a veth pair, forwarded: frames of its own",
        Class::Namespaces,
        Who::Root,
        |order| {
            inside()?;
            let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).at("socket")?;
            let mut frame = vec![2, 0, 0, 0, 0, 10];
            frame.extend([2, 0, 0, 0, 0, 11, 8, 0]);
            frame.extend(packet(INNER4, order.v4, order.data()));
            let mut order = order.clone();
            order.device = INNER.to_owned();
            sys::send_to(socket.as_fd(), &frame, 0, &super::families::link(&order)).at("send")?;
            std::thread::sleep(std::time::Duration::from_millis(50));
            Ok(())
        },
    )
    .open_without(&["lsm"])
    .launcher_closes(ADMIN),
    Case::new(
        "E87",
        "a veth pair, forwarded: datagrams",
        Class::Namespaces,
        Who::Root,
        |order| {
            inside()?;
            send(order)?;
            std::thread::sleep(std::time::Duration::from_millis(50));
            Ok(())
        },
    ),
    Case::new(
        "E88",
        "a TUN device, forwarded",
        Class::Namespaces,
        Who::Root,
        tun,
    )
    .launcher_closes(ADMIN),
    Case::new(
        "E89",
        "a filter that sends loopback to the wire",
        Class::Namespaces,
        Who::Root,
        mirror,
    )
    .launcher_closes(ADMIN),
];

fn tool(program: &str, words: &str) -> Result<(), Stop> {
    let output = Command::new(program)
        .args(words.split_whitespace())
        .output()
        .at("tool")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Stop::because("tool", &format!("{program} {words}: {said}")))
}

fn forward() -> Result<(), Stop> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").at("forwarding")
}

/// A namespace behind a veth pair; this process goes there.
fn inside() -> Result<(), Stop> {
    forward()?;
    let outside = File::open("/proc/self/ns/net").at("open")?;
    sys::process::unshare(libc::CLONE_NEWNET).at("unshare")?;
    let inside = File::open("/proc/self/ns/net").at("open")?;
    // The pair is made outside, and one end is sent in.
    sys::process::enter(outside.as_fd(), libc::CLONE_NEWNET).at("setns")?;
    tool(
        "ip",
        &format!(
            "link add {OWN} address 02:00:00:00:00:0a type veth peer name {INNER} address 02:00:00:00:00:0b"
        ),
    )?;
    tool("ip", &format!("addr add 10.84.0.1/24 dev {OWN}"))?;
    tool("ip", &format!("link set {OWN} up"))?;
    let pid = std::process::id();
    sys::process::enter(inside.as_fd(), libc::CLONE_NEWNET).at("setns")?;
    sys::process::fork(|| {
        sys::process::enter(outside.as_fd(), libc::CLONE_NEWNET)?;
        tool("ip", &format!("link set {INNER} netns {pid}"))
            .map_err(|_| std::io::ErrorKind::Other.into())
    })
    .at("veth")?;
    tool("ip", &format!("addr add {INNER4}/24 dev {INNER}"))?;
    tool("ip", &format!("link set {INNER} up"))?;
    tool("ip", "route add default via 10.84.0.1")?;
    // Nobody has to be asked who that is.
    tool(
        "ip",
        &format!("neigh replace 10.84.0.1 lladdr 02:00:00:00:00:0a dev {INNER}"),
    )
}

fn tun(order: &Order) -> Result<(), Stop> {
    const TUNSETIFF: u64 = 0x4004_54ca;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .at("open")?;
    let mut request = [0; 64];
    for (to, from) in request.iter_mut().zip(OWN.bytes()) {
        *to = from;
    }
    // IFF_TUN | IFF_NO_PI
    for (to, from) in request.iter_mut().skip(16).zip(0x1001_u16.to_ne_bytes()) {
        *to = from;
    }
    sys::ioctl(device.as_fd(), TUNSETIFF, &mut request).at("TUNSETIFF")?;
    tool("ip", &format!("addr add 10.84.0.1/24 dev {OWN}"))?;
    tool("ip", &format!("link set {OWN} up"))?;
    forward()?;
    std::io::Write::write_all(&mut &device, &packet(INNER4, order.v4, order.data())).at("write")?;
    std::thread::sleep(std::time::Duration::from_millis(50));
    Ok(())
}

/// What a workload says to itself on loopback, redirected on its way.
fn mirror(order: &Order) -> Result<(), Stop> {
    tool("tc", "qdisc add dev lo clsact")?;
    let added = tool(
        "tc",
        &format!(
            "filter add dev lo egress protocol ip matchall action mirred egress redirect dev {}",
            order.device
        ),
    );
    let sent = added.and_then(|()| {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").at("bind")?;
        let to = server.local_addr().at("bind")?;
        std::net::UdpSocket::bind("127.0.0.1:0")
            .at("socket")?
            .send_to(order.data(), to)
            .at("send")
            .map(drop)
    });
    tool("tc", "qdisc del dev lo clsact")?;
    sent
}
