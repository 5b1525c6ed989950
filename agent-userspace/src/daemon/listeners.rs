//! The listeners that agents are redirected to, opened by a child of the enforcer inside the proxy's cgroup.
//! An accepted socket belongs to its listener's cgroup, and only there the kernel notes where it wanted to go.
//! INVARIANT: the enforcer itself never enters the proxy's cgroup; the child ends as soon as the sockets are handed over.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use mitm_proxy::Listeners;

use super::error::in_full;
use super::protocol::{FromListener, Listening};
use super::supervise::own_binary;
use super::{Channel, ChannelError, DaemonError};
use crate::config::ProcessFacts;
use crate::enforce::listen::{self, Want};

/// The listeners, and where they listen.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) listening: Listening,
    /// The cgroup that they belong to, as `/proc/PID/cgroup` shows it.
    pub(super) cgroup: String,
    sockets: Vec<OwnedFd>,
}

impl Sockets {
    /// Has a child open them inside `proxy_cgroup`.
    pub(super) fn open(proxy_cgroup: &Path) -> Result<Sockets, DaemonError> {
        let (ours, theirs) = Channel::pair().map_err(DaemonError::io("socketpair"))?;
        let mut child = own_binary("internal-listen")
            .arg("--cgroup")
            .arg(proxy_cgroup)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .map_err(DaemonError::io("cannot start the listener helper"))?;
        let heard = ours.receive::<FromListener>();
        child
            .wait()
            .map_err(DaemonError::io("the listener helper"))?;
        match heard? {
            Some((FromListener::Listening { listening, cgroup }, sockets))
                if sockets.len() == listening.sockets() =>
            {
                Ok(Sockets {
                    listening,
                    cgroup,
                    sockets,
                })
            }
            Some((FromListener::Listening { listening, .. }, sockets)) => {
                Err(ChannelError::WrongDescriptors {
                    expected: listening.sockets(),
                    found: sockets.len(),
                }
                .into())
            }
            Some((FromListener::Failed { detail }, _)) => Err(DaemonError::Listeners(detail)),
            None => Err(DaemonError::Listeners(
                "the listener helper ended without a word".to_owned(),
            )),
        }
    }

    /// The descriptors, in the order that [`Listening`] counts them.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|socket| socket.as_fd())
    }
}

/// Sorts received descriptors into listeners.
pub(super) fn sort(listening: Listening, sockets: Vec<OwnedFd>) -> Listeners {
    let mut sockets = sockets.into_iter();
    let tcp = sockets
        .by_ref()
        .take(listening.tcp)
        .map(TcpListener::from)
        .collect();
    let dns_tcp = sockets
        .by_ref()
        .take(listening.dns_tcp)
        .map(TcpListener::from)
        .collect();
    let dns_udp = sockets
        .take(listening.dns_udp)
        .map(UdpSocket::from)
        .collect();
    Listeners {
        tcp,
        dns_tcp,
        dns_udp,
    }
}

/// The child's whole life: enters the cgroup, opens the listeners, hands them to its parent on standard input.
///
/// # Errors
/// The parent is gone. That the listeners cannot be opened is told to the parent.
pub fn open_for_parent(proxy_cgroup: &Path) -> Result<(), ChannelError> {
    let parent = Channel::from_stdin()?;
    let opened = match listen::open(
        proxy_cgroup,
        Want {
            proxy: 0,
            resolver: 0,
        },
    ) {
        Ok(opened) => opened,
        Err(error) => {
            return parent.send(
                &FromListener::Failed {
                    detail: in_full(&error),
                },
                &[],
            );
        }
    };
    let cgroup = match ProcessFacts::read(std::process::id()) {
        Ok(facts) => facts.cgroup,
        Err(error) => {
            return parent.send(
                &FromListener::Failed {
                    detail: error.to_string(),
                },
                &[],
            );
        }
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
    let sockets: Vec<BorrowedFd<'_>> = tcp
        .chain(opened.dns_udp.iter().map(|socket| socket.as_fd()))
        .collect();
    parent.send(&FromListener::Listening { listening, cgroup }, &sockets)
}
