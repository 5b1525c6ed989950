//! Who is on the other end of the control socket, by the kernel's word: uid, groups and cgroup.
//! First step of every request; nothing is read from the connection before it.
//! INVARIANT: a peer that cannot be identified is refused; a peer inside a governed cgroup is refused whatever its uid.

use std::io;
use std::os::fd::AsFd;

use policies::Approver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::config::{Accounts, ProcessFacts};
use crate::origin::peer_pidfd;

/// A local user who asked for something.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The user's name, as approvals and the audit log record it.
    pub(crate) user: Approver,
    /// What this user may do.
    pub(crate) access: Access,
}

/// What a peer may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    /// Look, and answer approvals of its own groups.
    Member,
    /// Everything.
    Root,
}

/// Why a peer is refused before it is heard.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum PeerRefused {
    /// A process of an agent.
    #[error("a process inside the governed cgroup {cgroup} may not use the control socket")]
    Governed {
        /// Where it runs.
        cgroup: String,
        /// The user it runs as.
        user: String,
    },
    /// Neither root nor a member of the control group.
    #[error(
        "user {user} may not use the control socket; only root and the members of `[control] group` may"
    )]
    NotAMember {
        /// The user.
        user: String,
    },
    /// The kernel's facts do not add up, or the process is gone.
    #[error("the peer's process could not be identified: {0}")]
    Unknown(String),
}

impl PeerRefused {
    /// The refused user, as far as it is known.
    pub(crate) fn user(&self) -> &str {
        match self {
            PeerRefused::Governed { user, .. } | PeerRefused::NotAMember { user } => user,
            PeerRefused::Unknown(_) => "unknown",
        }
    }
}

/// Identifies the peer of a connected socket.
pub(crate) fn identify(
    socket: impl AsFd,
    governed: &[String],
    group: Option<&str>,
    accounts: &Accounts,
) -> Result<Peer, PeerRefused> {
    let (uid, facts) = facts(socket).map_err(|error| PeerRefused::Unknown(error.to_string()))?;
    let user = accounts.user_name(uid);
    if governed
        .iter()
        .any(|governed| is_below(&facts.cgroup, governed))
    {
        return Err(PeerRefused::Governed {
            cgroup: facts.cgroup,
            user,
        });
    }
    let access = if uid == 0 {
        Access::Root
    } else if group
        .and_then(|group| accounts.group_id(group))
        .is_some_and(|gid| facts.groups.contains(&gid))
    {
        Access::Member
    } else {
        return Err(PeerRefused::NotAMember { user });
    };
    let user = user
        .parse()
        .map_err(|_| PeerRefused::Unknown(format!("uid {uid} has no usable name")))?;
    Ok(Peer { user, access })
}

/// The peer's uid at the time it connected, and what `/proc` says of its process.
fn facts(socket: impl AsFd) -> io::Result<(u32, ProcessFacts)> {
    let peer = socket_peercred(&socket)?;
    // The pidfd pins the process: as long as it lives, its number is not given to another, so that what
    // /proc says under this number before the check below is about this process and no other.
    let pidfd = match peer_pidfd(socket.as_fd()) {
        Ok(pidfd) => pidfd,
        // Before Linux 6.5 the number may have been given away between connect() and here; such a process is
        // another user's or outside, and the checks below see to the former.
        Err(error) if error.raw_os_error() == Some(Errno::NOPROTOOPT.raw_os_error()) => {
            pidfd_open(peer.pid, PidfdFlags::empty())?
        }
        Err(error) => return Err(error),
    };
    let facts = ProcessFacts::read(number(peer.pid))?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    if poll(
        &mut ended,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )? != 0
    {
        return Err(io::Error::other("the process has ended"));
    }
    let uid = peer.uid.as_raw();
    if facts.uid != uid {
        return Err(io::Error::other(
            "the process runs as another user than the one that connected",
        ));
    }
    Ok((uid, facts))
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

/// True if `path` is `parent` or lies below it.
fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n",
            "root:x:0:\nops:x:27:alice\n",
        )
    }

    fn own_cgroup() -> String {
        ProcessFacts::read(std::process::id()).unwrap().cgroup
    }

    #[test]
    fn a_peer_inside_a_governed_cgroup_is_refused() {
        let (near, _far) = UnixStream::pair().unwrap();
        // Positive control: the same peer is served when its cgroup is not governed.
        assert!(identify(&near, &["/not/this/one".to_owned()], None, &accounts()).is_ok());
        let refused =
            identify(&near, &["/not".to_owned(), own_cgroup()], None, &accounts()).unwrap_err();
        assert!(matches!(refused, PeerRefused::Governed { .. }), "{refused}");
    }

    #[test]
    fn below_means_a_path_component() {
        assert!(is_below("/sluice/agents/acme.bot.1", "/sluice/agents"));
        assert!(is_below("/sluice/agents", "/sluice/agents"));
        assert!(!is_below("/sluice/agents-of-others/x", "/sluice/agents"));
        assert!(!is_below("/user.slice", "/sluice/agents"));
    }
}
