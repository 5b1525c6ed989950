//! Cuts the sockets of a cgroup: every TCP and UDP socket that was born there, in whatever network namespace it lives.
//! Beside the path: the kill switch and `sluice panic`; the programs have stopped the packets before this ends the connections.
//! INVARIANT: a socket is destroyed only if the kernel says that it belongs to the cgroup, or that its other end does.

mod diag;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::freeze::{processes, subtree};
use diag::{Diag, Ends, Protocol, Socket};

/// What was cut, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Sockets that were destroyed, the proxy's ends not counted.
    pub sockets: usize,
    /// Network namespaces or protocols in which the kernel does not list or destroy sockets: there the programs alone stop them.
    pub refused: usize,
}

impl Cut {
    fn add(&mut self, other: Cut) {
        self.sockets += other.sockets;
        self.refused += other.refused;
    }
}

/// Cuts every socket that was born in one of the directories or below.
pub(super) fn cut(directories: &[PathBuf]) -> io::Result<Cut> {
    let mut cgroups = BTreeSet::new();
    let mut spaces = BTreeMap::new();
    for directory in directories {
        let found = match subtree(directory) {
            // It is gone, and its processes with it; the others are cut all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found?,
        };
        for each in found {
            if let Ok(id) = super::cgroup::id(&each) {
                cgroups.insert(id);
            }
            find_spaces(&each, &mut spaces);
        }
    }
    let own = std::fs::read_link("/proc/self/ns/net")?;
    let mut cut = cut_here(&cgroups);
    for (space, place) in spaces {
        if space != own {
            cut.add(cut_there(&place, &cgroups));
        }
    }
    Ok(cut)
}

/// The network namespaces of every thread in a cgroup, each with a place to open it at.
fn find_spaces(directory: &Path, spaces: &mut BTreeMap<PathBuf, PathBuf>) {
    for pid in processes(directory) {
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        for task in std::fs::read_dir(tasks).into_iter().flatten().flatten() {
            let place = task.path().join("ns/net");
            if let Ok(space) = std::fs::read_link(&place) {
                spaces.entry(space).or_insert(place);
            }
        }
    }
}

/// In another network namespace, which only the thread made for it enters.
fn cut_there(place: &Path, cgroups: &BTreeSet<u64>) -> Cut {
    // The namespace may be gone with its last process: then its sockets are, too.
    let Ok(space) = File::open(place) else {
        return Cut::default();
    };
    let refused = Cut {
        sockets: 0,
        refused: 1,
    };
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            let network = Some(LinkNameSpaceType::Network);
            match move_into_link_name_space(space.as_fd(), network) {
                Ok(()) => cut_here(cgroups),
                Err(_errno) => refused,
            }
        });
        entered.join().unwrap_or(refused)
    })
}

/// In this thread's network namespace.
fn cut_here(cgroups: &BTreeSet<u64>) -> Cut {
    let mut cut = Cut::default();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        match cut_protocol(protocol, cgroups) {
            Ok(sockets) => cut.sockets += sockets,
            Err(error) => {
                tracing::debug!(?protocol, %error, "sockets cannot be cut here");
                cut.refused += 1;
            }
        }
    }
    cut
}

fn cut_protocol(protocol: Protocol, cgroups: &BTreeSet<u64>) -> io::Result<usize> {
    let diag = Diag::open()?;
    let mut found = diag.list(libc::AF_INET as u8, protocol)?;
    found.extend(diag.list(libc::AF_INET6 as u8, protocol)?);
    let of_cgroup = |socket: &&Socket| socket.cgroup.is_some_and(|id| cgroups.contains(&id));
    let mut cut = 0;
    let mut others = BTreeSet::new();
    for socket in found.iter().filter(of_cgroup) {
        if diag.destroy(socket)? {
            cut += 1;
        }
        others.extend(socket.ends().and_then(Ends::turned));
    }
    // The reset that should tell the other end, where it is on this host, does not leave a workload that is switched off.
    // INVARIANT: it is destroyed as it was listed, by its cookie: looked up by its ends alone it could be the listener.
    for socket in &found {
        if socket.ends().is_some_and(|ends| others.contains(&ends)) {
            let _gone = diag.destroy(socket)?;
        }
    }
    Ok(cut)
}
