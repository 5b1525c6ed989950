//! The listeners that agents are redirected to, opened by a child of the enforcer inside the proxy's cgroup.
//! An accepted socket belongs to its listener's cgroup, and only there the kernel notes where it wanted to go.
//! INVARIANT: the enforcer itself never enters the proxy's cgroup or another network namespace; the child ends as soon as the sockets are handed over.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use mitm_proxy::Listeners;
use rustix::net::{AddressFamily, SocketType};

use super::error::in_full;
use super::protocol::{FromListener, Listening, Netns, ToListener};
use super::supervise::own_binary;
use super::{Channel, ChannelError, DaemonError};
use crate::config::ProcessFacts;
use crate::enforce::listen::{self, Opened, Place, Want};
use crate::enforce::{NetNamespace, Ports};

/// How long the helper may take; it only makes system calls that do not wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// The listeners, and where they listen.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listening: Listening,
    /// The cgroup that they belong to, as `/proc/PID/cgroup` shows it.
    pub(super) cgroup: String,
    sockets: Vec<OwnedFd>,
}

impl Sockets {
    /// Has a child open them inside `proxy_cgroup`, on these ports if they are free, else on any.
    pub(super) fn open(proxy_cgroup: &Path, preferred: Ports) -> Result<Sockets, DaemonError> {
        let any = Ports {
            proxy: 0,
            resolver: 0,
        };
        let opened = ask(proxy_cgroup, Netns::Host, None, preferred);
        let (sockets, _) = match opened {
            Err(DaemonError::Listeners(_)) if preferred != any => {
                ask(proxy_cgroup, Netns::Host, None, any)?
            }
            opened => opened?,
        };
        Ok(sockets)
    }

    /// Has a child open them inside a namespace that lives already.
    pub(super) fn open_in(
        proxy_cgroup: &Path,
        namespace: &NetNamespace,
        ports: Ports,
    ) -> Result<Sockets, DaemonError> {
        let (sockets, _) = ask(proxy_cgroup, Netns::Given, Some(namespace.as_fd()), ports)?;
        Ok(sockets)
    }

    /// Has a child open them inside a new namespace, which lives as long as somebody holds it or its sockets.
    pub(super) fn open_in_new(
        proxy_cgroup: &Path,
        ports: Ports,
    ) -> Result<(Sockets, OwnedFd), DaemonError> {
        let (sockets, namespace) = ask(proxy_cgroup, Netns::New, None, ports)?;
        let namespace = namespace.ok_or(ChannelError::WrongDescriptors {
            expected: sockets.listening.sockets().saturating_add(1),
            found: sockets.listening.sockets(),
        })?;
        Ok((sockets, namespace))
    }

    /// The descriptors, in the order that [`Listening`] counts them.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.as_fd())
    }
}

fn ask(
    proxy_cgroup: &Path,
    netns: Netns,
    given: Option<BorrowedFd<'_>>,
    ports: Ports,
) -> Result<(Sockets, Option<OwnedFd>), DaemonError> {
    let (ours, theirs) = Channel::pair().map_err(DaemonError::io("socketpair"))?;
    let mut child = own_binary("internal-listen")
        .arg("--cgroup")
        .arg(proxy_cgroup)
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .map_err(DaemonError::io("cannot start the listener helper"))?;
    let wanted = ToListener {
        netns,
        proxy_port: ports.proxy,
        resolver_port: ports.resolver,
    };
    let heard = ours
        .send(&wanted, given.as_slice())
        .and_then(|()| ours.receive_within::<FromListener>(PATIENCE));
    if heard.is_err() {
        // It may hang; one that ended already is not hit.
        let _ = child.kill();
    }
    child
        .wait()
        .map_err(DaemonError::io("the listener helper"))?;
    match heard? {
        Some((FromListener::Listening { listening, cgroup }, mut sockets)) => {
            let new = usize::from(netns == Netns::New);
            let (expected, found) = (listening.sockets().saturating_add(new), sockets.len());
            if expected != found {
                return Err(ChannelError::WrongDescriptors { expected, found }.into());
            }
            let namespace = if netns == Netns::New {
                sockets.pop()
            } else {
                None
            };
            let sockets = Sockets {
                listening,
                cgroup,
                sockets,
            };
            Ok((sockets, namespace))
        }
        Some((FromListener::Failed { detail }, _)) => Err(DaemonError::Listeners(detail)),
        None => Err(DaemonError::Listeners(
            "the listener helper ended without a word".to_owned(),
        )),
    }
}

/// Sorts received descriptors into listeners. Each must be what it is to serve as: what is not would be a listener that
/// never accepts, found out only by the agents.
pub(super) fn sort(listening: Listening, sockets: Vec<OwnedFd>) -> Result<Listeners, ChannelError> {
    let (expected, found) = (listening.sockets(), sockets.len());
    if expected != found {
        return Err(ChannelError::WrongDescriptors { expected, found });
    }
    let listens = |socket: &OwnedFd| {
        rustix::net::sockopt::socket_type(socket) == Ok(SocketType::STREAM)
            && rustix::net::sockopt::socket_acceptconn(socket) == Ok(true)
            && is_ip(socket)
    };
    let receives = |socket: &OwnedFd| {
        rustix::net::sockopt::socket_type(socket) == Ok(SocketType::DGRAM) && is_ip(socket)
    };
    let streams = listening.tcp.saturating_add(listening.dns_tcp);
    for (at, socket) in sockets.iter().enumerate() {
        if at < streams && !listens(socket) {
            return Err(ChannelError::WrongKind("TCP listener"));
        }
        if at >= streams && !receives(socket) {
            return Err(ChannelError::WrongKind("UDP socket"));
        }
    }
    let mut sockets = sockets.into_iter();
    let mut tcp = |count| {
        let taken = sockets.by_ref().take(count);
        taken.map(TcpListener::from).collect()
    };
    Ok(Listeners {
        tcp: tcp(listening.tcp),
        dns_tcp: tcp(listening.dns_tcp),
        dns_udp: sockets.map(UdpSocket::from).collect(),
    })
}

fn is_ip(socket: &OwnedFd) -> bool {
    let domain = rustix::net::sockopt::socket_domain(socket);
    matches!(domain, Ok(AddressFamily::INET | AddressFamily::INET6))
}

/// The child's whole life: hears what to open, enters the cgroup, opens, hands over on standard input.
///
/// # Errors
/// The parent is gone. That the listeners cannot be opened is told to the parent.
pub fn open_for_parent(proxy_cgroup: &Path) -> Result<(), ChannelError> {
    let parent = Channel::from_stdin()?;
    let (wanted, given) = parent
        .receive::<ToListener>()?
        .ok_or(ChannelError::HungUp)?;
    let done = opened(proxy_cgroup, wanted, given).and_then(|(opened, namespace)| {
        let facts = ProcessFacts::read(std::process::id()).map_err(|error| error.to_string())?;
        Ok((opened, namespace, facts.cgroup))
    });
    let (opened, namespace, cgroup) = match done {
        Ok(done) => done,
        Err(detail) => return parent.send(&FromListener::Failed { detail }, &[]),
    };
    let listening = Listening {
        tcp: opened.tcp.len(),
        dns_tcp: opened.dns_tcp.len(),
        dns_udp: opened.dns_udp.len(),
        proxy_port: opened.ports.proxy,
        resolver_port: opened.ports.resolver,
    };
    let tcp = opened
        .tcp
        .iter()
        .chain(&opened.dns_tcp)
        .map(|socket| socket.as_fd());
    let udp = opened.dns_udp.iter().map(|socket| socket.as_fd());
    let namespace = namespace.as_ref().map(|namespace| namespace.as_fd());
    let fds: Vec<BorrowedFd<'_>> = tcp.chain(udp).chain(namespace).collect();
    parent.send(&FromListener::Listening { listening, cgroup }, &fds)
}

/// Opens what is wanted, and the descriptor of a namespace that was made for it.
fn opened(
    proxy_cgroup: &Path,
    wanted: ToListener,
    given: Vec<OwnedFd>,
) -> Result<(Opened, Option<NetNamespace>), String> {
    let place = match (wanted.netns, given.into_iter().next()) {
        (Netns::Given, Some(fd)) => {
            Place::In(NetNamespace::from_fd(fd).map_err(|error| error.to_string())?)
        }
        (Netns::Given, None) => return Err("no network namespace came along".to_owned()),
        (Netns::Host, _) => Place::Here,
        (Netns::New, _) => Place::New,
    };
    let want = Want {
        proxy: wanted.proxy_port,
        resolver: wanted.resolver_port,
    };
    let opened = listen::open(proxy_cgroup, &place, want).map_err(|error| in_full(&error))?;
    let namespace = match place {
        Place::New => Some(NetNamespace::own().map_err(|error| error.to_string())?),
        Place::In(_) | Place::Here => None,
    };
    Ok((opened, namespace))
}
