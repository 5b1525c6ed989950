//! One instance of the kernel side with a stand-in for the proxy process: its listeners, and its view of origins.
//! Every test has its own; leaving the scope kills what it started and removes its cgroups and pins.
//! INVARIANT: nothing of an instance is left behind, whether the test passed or not.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_userspace::enforce::{
    Admitted, Enforcement, Instance, Ports, RefusalKind, Settings, listen,
};
use agent_userspace::layers::{LayerReport, LayerState};
use agent_userspace::origin::KernelOrigins;
use mitm_proxy::{Origin, Origins};
use policies::WorkloadId;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::puppet::Puppet;

pub(crate) const EPERM: i32 = libc::EPERM;
pub(crate) const ECONNREFUSED: i32 = libc::ECONNREFUSED;

/// The instance in force, and the proxy's side of it.
pub(crate) struct Host {
    pub settings: Settings,
    enforcement: Option<Enforcement>,
    pub tcp: Vec<TcpListener>,
    pub dns_tcp: Vec<TcpListener>,
    pub dns_udp: Vec<UdpSocket>,
    pub ports: Ports,
    pub origins: Option<KernelOrigins>,
}

impl Host {
    /// Starts an instance and publishes its ports.
    pub(crate) fn start() -> Host {
        let mut host = Host::start_unpublished();
        host.open();
        host
    }

    /// Starts an instance that denies everything: no port is published.
    pub(crate) fn start_unpublished() -> Host {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let settings = Settings {
            instance: Instance::named(&format!("test-{}-{number}", std::process::id())),
            pool4: (Ipv4Addr::new(198, 18, 0, 0), 15),
            pool6: ("fd53:6c75:6963:65::".parse().unwrap(), 64),
        };
        let enforcement = Enforcement::start(&settings).unwrap();
        let ports = Ports {
            proxy: 0,
            resolver: 0,
        };
        Host {
            settings,
            enforcement: Some(enforcement),
            tcp: Vec::new(),
            dns_tcp: Vec::new(),
            dns_udp: Vec::new(),
            ports,
            origins: None,
        }
    }

    /// Opens the listeners as the daemon does, and publishes them.
    pub(crate) fn open(&mut self) {
        let cgroup = self.enforcement().proxy_cgroup().display().to_string();
        let mut opener = Puppet::start(None);
        opener.tell(&format!("listeners {cgroup}"));
        let mut fds = receive_fds(opener.socket()).unwrap().into_iter();
        let words = opener.answer().unwrap();
        self.ports = Ports {
            proxy: words[0].parse().unwrap(),
            resolver: words[1].parse().unwrap(),
        };
        let each = fds.len() / 3;
        self.tcp = fds.by_ref().take(each).map(TcpListener::from).collect();
        self.dns_tcp = fds.by_ref().take(each).map(TcpListener::from).collect();
        self.dns_udp = fds.map(UdpSocket::from).collect();
        let maps = self.enforcement().map_fds().unwrap();
        self.origins = Some(KernelOrigins::from_fds(maps.accepted, maps.flows).unwrap());
        let ports = self.ports;
        self.enforcement().publish(ports).unwrap();
    }

    pub(crate) fn enforcement(&mut self) -> &mut Enforcement {
        self.enforcement.as_mut().unwrap()
    }

    /// The enforcement itself, to be stopped; the test starts the next one with [`Host::adopt`], or leaves.
    pub(crate) fn take(&mut self) -> Enforcement {
        self.enforcement.take().unwrap()
    }

    /// The daemon dies: its descriptors are closed, what it pinned stays.
    pub(crate) fn die(&mut self) {
        self.enforcement = None;
        self.origins = None;
        self.tcp.clear();
        self.dns_tcp.clear();
        self.dns_udp.clear();
    }

    /// The next daemon of this instance takes over; its ports are not published yet.
    pub(crate) fn adopt(&mut self) {
        self.enforcement = Some(Enforcement::start(&self.settings).unwrap());
    }

    pub(crate) fn admit(&mut self, agent: &str) -> Admitted {
        self.enforcement().admit(&agent.parse().unwrap()).unwrap()
    }

    /// A process in a workload of its own.
    pub(crate) fn workload(&mut self) -> (Puppet, WorkloadId) {
        let admitted = self.admit("acme/support");
        (Puppet::start(Some(&admitted.path)), admitted.id)
    }

    /// The next accepted connection and its origin.
    pub(crate) fn accept(&self) -> (TcpStream, Option<Origin>) {
        let stream = accept_any(&self.tcp);
        let origin = self.origins.as_ref().unwrap().accepted(stream.as_fd());
        (stream, origin)
    }

    /// How often this kind of refusal was counted.
    pub(crate) fn refusals(&mut self, kind: RefusalKind) -> u64 {
        let counts = self.enforcement().refusals().unwrap();
        counts.iter().find(|(found, _)| *found == kind).unwrap().1
    }

    /// Where a map or link of this instance is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        Path::new("/sys/fs/bpf")
            .join(self.settings.instance.as_str())
            .join(format!("v{}", agent_abi::ABI_VERSION))
            .join(name)
    }

    /// How a layer stands.
    pub(crate) fn layer(&mut self, name: &str) -> LayerReport {
        let layers = self.enforcement().layers();
        layers.into_iter().find(|layer| layer.name == name).unwrap()
    }

    pub(crate) fn is_live(&mut self, layer: &str) -> bool {
        self.layer(layer).state == LayerState::Live
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let enforcement = match self.enforcement.take() {
            Some(enforcement) => enforcement,
            None => match Enforcement::start(&self.settings) {
                Ok(enforcement) => enforcement,
                Err(error) => {
                    return eprintln!("left behind: {} ({error})", self.settings.instance);
                }
            },
        };
        kill_all(enforcement.agents_cgroup());
        if let Err(error) = enforcement.stop() {
            eprintln!("left behind: {} ({error})", self.settings.instance);
        }
    }
}

/// The processes that a failed test left, by the cgroup they are in, and nobody else.
fn kill_all(agents: &Path) {
    let Ok(directories) = std::fs::read_dir(agents) else {
        return;
    };
    for directory in directories
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            let procs = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            let populated =
                std::fs::read_to_string(directory.join("cgroup.events")).unwrap_or_default();
            if procs.is_empty() && !populated.contains("populated 1") {
                break;
            }
            for pid in procs.lines().filter_map(|pid| pid.parse::<i32>().ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Accepts from whichever listener has a connection.
pub(crate) fn accept_any(listeners: &[TcpListener]) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        for listener in listeners {
            match listener.accept() {
                Ok((stream, _)) => return stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("accept: {error}"),
            }
        }
        assert!(Instant::now() < deadline, "no connection arrived");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Receives from whichever socket has a datagram: the text, its sender, and the socket's index.
pub(crate) fn receive_any(sockets: &[UdpSocket]) -> (String, SocketAddr, usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut bytes = [0; 512];
    loop {
        for (index, socket) in sockets.iter().enumerate() {
            if let Ok((count, from)) = socket.recv_from(&mut bytes) {
                return (
                    String::from_utf8_lossy(&bytes[..count]).into_owned(),
                    from,
                    index,
                );
            }
        }
        assert!(Instant::now() < deadline, "no datagram arrived");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// In a puppet: opens the listeners inside the proxy's cgroup and hands them over.
pub(crate) fn give_listeners(cgroup: &Path) -> io::Result<String> {
    let opened = listen::open(cgroup, &listen::Place::Here, listen::Want::default())
        .map_err(io::Error::other)?;
    let mut fds: Vec<BorrowedFd<'_>> = opened.tcp.iter().map(AsFd::as_fd).collect();
    fds.extend(opened.dns_tcp.iter().map(AsFd::as_fd));
    fds.extend(opened.dns_udp.iter().map(AsFd::as_fd));
    send_fds(rustix::stdio::stdin(), &fds)?;
    Ok(format!("{} {}", opened.ports.proxy, opened.ports.resolver))
}

/// In a puppet: takes two map descriptors and a connection, and says what it reads through them.
pub(crate) fn read_origins() -> io::Result<String> {
    say_ready()?;
    let [accepted, flows, stream] = receive_fds(rustix::stdio::stdin())?
        .try_into()
        .map_err(|_| io::ErrorKind::InvalidData)?;
    let origins = KernelOrigins::from_fds(accepted, flows)?;
    match origins.accepted(stream.as_fd()) {
        Some(origin) => Ok(format!("{} {}", origin.workload, origin.destination)),
        None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

/// In a puppet: the next bytes may carry descriptors now (a line reader would have thrown them away).
pub(crate) fn say_ready() -> io::Result<()> {
    rustix::io::write(rustix::stdio::stdin(), b"ok ready\n")?;
    Ok(())
}

/// Sends descriptors over a Unix socket.
pub(crate) fn send_fds(socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(b"\n")],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

/// Receives descriptors on a Unix socket.
pub(crate) fn receive_fds(socket: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // One byte: what follows on the stream is the next line.
    let mut byte = [0];
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(fds)
}

/// An address of the synthetic IPv6 pool.
pub(crate) fn pool6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd53, 0x6c75, 0x6963, 0x65, 0, 0, 0, last)
}
