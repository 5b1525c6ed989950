//! The wire: a network namespace that stands for the host, another that stands for the rest of the world, and a veth pair between them.
//! Under the suite: the far end's packet socket is the oracle, and sees every frame that left.
//! Invariant: what the oracle says has left has left; a look waits until everything sent before it has arrived.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::UnshareFlags;

use super::cases::OWN;
use super::{far, sys};

/// The near end: the host's interface that leads out.
pub(super) const NEAR: &str = "wire0";
const FAR: &str = "wire1";
/// The host's own address.
pub(super) const HOST4: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
/// The far end's, and the way to everywhere.
pub(super) const FAR4: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 2);
const HOST6: &str = "fd83::1";
const FAR6: &str = "fd83::2";
/// Everybody else in the world.
const WORLD: [&str; 9] = [
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001:db8::/32",
    // Where names lead: somebody public, and those whom a name must not lead to.
    "45.83.0.0/24",
    "169.254.169.254/32",
    "10.99.0.0/16",
    "100.100.0.0/16",
    "fd99::/16",
];
/// The discard port: what a look sends to see that all before it has arrived.
const DISCARD: u16 = 9;
/// All Ethernet protocols, in network order.
const ALL: i32 = 0x0300;
const SOL_PACKET: i32 = 263;
const PACKET_IGNORE_OUTGOING: i32 = 23;

type Job = Box<dyn FnOnce() + Send>;

/// The wire and what went over it.
pub(super) struct Wire {
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    far: Sender<Job>,
    sentinel: UdpSocket,
}

/// What tells a frame of an attempt from any other.
pub(super) enum Sign {
    /// It carries these bytes.
    Bytes(Vec<u8>),
    /// It opens a connection to this address. What closes an earlier one comes late, and says nothing.
    Dials(Vec<u8>),
}

impl Sign {
    fn is_on(&self, frame: &[u8]) -> bool {
        match self {
            Self::Bytes(bytes) => contains(frame, bytes),
            Self::Dials(address) => opens(frame) && contains(frame, address),
        }
    }
}

/// The first segment of a TCP connection.
fn opens(frame: &[u8]) -> bool {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let byte = |at: usize| frame.get(at).copied().unwrap_or_default();
    let flags = match (byte(12), byte(13)) {
        (8, 0) if byte(23) == 6 => byte(14 + usize::from(byte(14) & 15) * 4 + 13),
        (0x86, 0xdd) if byte(20) == 6 => byte(54 + 13),
        _ => 0,
    };
    flags & (SYN | ACK) == SYN
}

/// A place in the order of frames.
#[derive(Clone, Copy)]
pub(super) struct Mark(usize);

impl Wire {
    /// Makes both namespaces. From here on this process and what it starts live in the near one.
    pub(super) fn make() -> Result<Wire> {
        unshare(UnshareFlags::NEWNET).context("a network namespace")?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", NEAR, "type", "veth", "peer", "name", FAR])?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let (far, jobs) = mpsc::channel::<Job>();
        let (told, tells) = mpsc::channel();
        let seen = Arc::clone(&frames);
        let (moved, arrived) = mpsc::channel();
        std::thread::spawn(move || {
            let begun = unshare(UnshareFlags::NEWNET)
                .context("a network namespace of the far end")
                .map(|()| rustix::thread::gettid().as_raw_nonzero().to_string());
            if told.send(begun).is_err() || arrived.recv().is_err() {
                return;
            }
            let set = set_up_far()
                .and_then(|()| listen(seen))
                .map(|()| String::new());
            if told.send(set).is_err() {
                return;
            }
            // The namespace lives as long as this thread.
            for job in jobs {
                job();
            }
        });
        let thread = tells.recv().context("the far end is gone")??;
        ip(&["link", "set", FAR, "netns", &thread])?;
        moved.send(()).context("the far end is gone")?;
        tells.recv().context("the far end is gone")??;
        // No router, no duplicate detection: nothing is late.
        quiet(NEAR);
        ip(&["addr", "add", &format!("{HOST4}/24"), "dev", NEAR])?;
        ip(&["addr", "add", &format!("{HOST6}/64"), "dev", NEAR, "nodad"])?;
        ip(&["link", "set", NEAR, "up"])?;
        ip(&["route", "add", "default", "via", &FAR4.to_string()])?;
        ip(&["-6", "route", "add", "default", "via", FAR6, "dev", NEAR])?;
        // Whom the kernel lets make ping sockets is a setting of the namespace; Debian's is: everybody.
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        let sentinel = UdpSocket::bind((HOST4, 0))?;
        sentinel.connect((FAR4, DISCARD))?;
        let wire = Wire {
            frames,
            far,
            sentinel,
        };
        wire.until_it_carries()?;
        Ok(wire)
    }

    fn until_it_carries(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.flush().is_err() {
            if Instant::now() > deadline {
                bail!("the wire carries nothing");
            }
        }
        Ok(())
    }

    /// Runs something at the far end, in its namespace.
    pub(super) fn at_far_end(&self, job: impl FnOnce() + Send + 'static) {
        // Fails only if the far end is gone, and then nothing arrives there either.
        drop(self.far.send(Box::new(job)));
    }

    /// Now.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.frames().len())
    }

    /// The first frame since then that carries one of these, within this time; then everything that was under way has been looked at.
    pub(super) fn wait(
        &self,
        since: Mark,
        signs: &[Sign],
        patience: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.find(since, signs) {
                return Ok(Some(frame));
            }
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.flush()?;
        Ok(self.find(since, signs))
    }

    fn find(&self, since: Mark, signs: &[Sign]) -> Option<Vec<u8>> {
        let frames = self.frames();
        let new = frames.get(since.0..).unwrap_or_default();
        new.iter()
            .find(|frame| is_loopback(frame) || signs.iter().any(|sign| sign.is_on(frame)))
            .cloned()
    }

    /// Waits until a frame sent now has arrived: everything before it has, too.
    fn flush(&self) -> Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let text = format!("sentinel-{}-", NUMBER.fetch_add(1, Ordering::Relaxed));
        let sentinel = [Sign::Bytes(text.clone().into_bytes())];
        let before = self.mark();
        let deadline = Instant::now() + Duration::from_secs(5);
        // Answered by "port unreachable", which the next send tells.
        let _told_of_the_last = self.sentinel.send(text.as_bytes());
        let _told_again = self.sentinel.send(text.as_bytes());
        while Instant::now() < deadline {
            if self.find(before, &sentinel).is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("the wire lost a frame: the oracle is blind")
    }

    fn frames(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_up_far() -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    quiet(FAR);
    ip(&["addr", "add", &format!("{FAR4}/24"), "dev", FAR])?;
    ip(&["addr", "add", &format!("{FAR6}/64"), "dev", FAR, "nodad"])?;
    ip(&["link", "set", FAR, "up"])?;
    // Every address of the world is the far end's own.
    for net in WORLD {
        let family = if net.contains(':') { "-6" } else { "-4" };
        ip(&[family, "route", "add", "local", net, "dev", "lo"])?;
    }
    far::serve()
}

/// Fewer frames of the kernel's own.
fn quiet(device: &str) {
    for (setting, value) in [
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("router_solicitations", "0"),
    ] {
        let path = format!("/proc/sys/net/ipv6/conf/{device}/{setting}");
        // Not there without IPv6; then the addresses below say so.
        drop(std::fs::write(path, value));
    }
}

/// Keeps every frame that comes in.
fn listen(frames: Arc<Mutex<Vec<Vec<u8>>>>) -> Result<()> {
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, ALL).context("a packet socket")?;
    let on = 1_i32.to_ne_bytes();
    sys::set_option(socket.as_fd(), SOL_PACKET, PACKET_IGNORE_OUTGOING, &on)
        .context("a packet socket that hears only what comes in")?;
    let buffer = (8_i32 << 20).to_ne_bytes();
    sys::set_option(
        socket.as_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        &buffer,
    )
    .context("a large buffer")?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok(count) = sys::receive(socket.as_fd(), &mut buffer) {
            let frame = buffer.get(..count).unwrap_or_default().to_vec();
            frames
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(frame);
        }
    });
    Ok(())
}

/// A frame to a loopback address: nothing on a host puts one on a wire by itself.
fn is_loopback(frame: &[u8]) -> bool {
    let at = |from: usize, length: usize| frame.get(from..from + length).unwrap_or_default();
    match at(12, 2) {
        [8, 0] => at(30, 1) == [127],
        [0x86, 0xdd] => at(38, 16) == Ipv6Addr::LOCALHOST.octets(),
        _ => false,
    }
}

/// Takes back what an attempt has made of the near namespace.
pub(super) fn tidy() {
    // Each fails where the attempt did not come so far.
    drop(ip(&["link", "del", OWN]));
    drop(std::fs::write("/proc/sys/net/ipv4/ip_forward", "0"));
    let words = ["qdisc", "del", "dev", "lo", "clsact"];
    drop(Command::new("tc").args(words).output());
}

fn contains(frame: &[u8], mark: &[u8]) -> bool {
    // Behind the link's own addresses, which are made up by the kernel.
    frame
        .get(12..)
        .is_some_and(|rest| rest.windows(mark.len()).any(|part| part == mark))
}

/// A frame in a few words.
pub(super) fn describe(frame: &[u8]) -> String {
    let byte = |at: usize| frame.get(at).copied().unwrap_or_default();
    let port = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    match (byte(12), byte(13)) {
        (8, 0) => {
            let to = Ipv4Addr::new(byte(30), byte(31), byte(32), byte(33));
            let at = 14 + usize::from(byte(14) & 15) * 4;
            match byte(23) {
                6 => format!("TCP to {to}:{}", port(at + 2)),
                17 => format!("UDP to {to}:{}", port(at + 2)),
                1 => format!("ICMP to {to}"),
                2 => format!("IGMP to {to}"),
                protocol => format!("IP protocol {protocol} to {to}"),
            }
        }
        (0x86, 0xdd) => {
            let mut octets = [0; 16];
            for (index, octet) in octets.iter_mut().enumerate() {
                *octet = byte(38 + index);
            }
            let to = Ipv6Addr::from(octets);
            match byte(20) {
                6 => format!("TCP to [{to}]:{}", port(56)),
                17 => format!("UDP to [{to}]:{}", port(56)),
                58 => format!("ICMPv6 to {to}"),
                next => format!("IPv6, next header {next}, to {to}"),
            }
        }
        (high, low) => format!("frame of type {:#06x}", u16::from_be_bytes([high, low])),
    }
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    #[expect(
        deprecated,
        reason = "its unsafe successor guards descriptor tables, which are not unshared here"
    )]
    rustix::thread::unshare(flags)
}

/// `ip` of iproute2, in the namespace of this thread.
pub(super) fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .context("cannot start ip (iproute2)")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
