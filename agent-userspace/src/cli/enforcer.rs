//! What `sluice run`, `agents attach|adopt` and `oci-hook` say to the enforcer, and its one answer.
//! The client's end of `daemon::runs`.
//! INVARIANT: no answer, a late one or a strange one is a refusal; nothing is started on a guess.

use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::Global;
use crate::config::{UidRange, read_certificate};
use crate::daemon::protocol::{FromRun, ToRun};
use crate::daemon::{Channel, ChannelError, connect_to_enforcer};
use policies::{Reason, WorkloadId};

/// How long the daemon may take to admit the workload.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the enforcer of this runtime directory.
pub(super) struct Enforcer(Channel);

/// What the enforcer granted.
pub(super) struct Admitted {
    pub(super) workload: WorkloadId,
    /// The cgroup, as `/proc/PID/cgroup` shows it.
    pub(super) shown: String,
    pub(super) cgroup: OwnedFd,
    pub(super) netns: Option<OwnedFd>,
    pub(super) nameserver: IpAddr,
    pub(super) uids: UidRange,
    ca_pem: PathBuf,
}

impl Enforcer {
    /// Connects, as root.
    pub(super) fn connect(global: &Global) -> Result<Enforcer, String> {
        let connected = connect_to_enforcer(&global.paths);
        connected.map(Enforcer).map_err(|error| {
            let socket = global.paths.enforcer_socket();
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "; is `sluice daemon` running?"
                }
                _ => "",
            };
            format!("{}: {error}{hint}", socket.display())
        })
    }

    /// Asks for a workload and waits for the answer.
    pub(super) fn ask(
        &self,
        question: &FromRun,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Admitted, String> {
        let heard = self
            .0
            .send(question, fds)
            .and_then(|()| self.0.receive_within::<ToRun>(PATIENCE));
        let heard = heard.map_err(|error| match error {
            ChannelError::Late(_) => format!("{}: the daemon: {error}", Reason::AdmissionTimeout),
            error => format!("the daemon: {error}"),
        })?;
        match heard {
            Some((
                ToRun::Admitted {
                    workload,
                    cgroup: shown,
                    ca_pem,
                    nameserver,
                    uids,
                },
                fds,
            )) => {
                let mut fds = fds.into_iter();
                let cgroup = fds.next().ok_or("the daemon sent no cgroup")?;
                Ok(Admitted {
                    workload,
                    shown,
                    cgroup,
                    netns: fds.next(),
                    nameserver,
                    uids,
                    ca_pem,
                })
            }
            Some((ToRun::Refused { refusal }, _)) => Err(refusal.to_string()),
            Some((ToRun::Done {}, _)) | None => Err("the daemon hung up".to_owned()),
        }
    }

    /// Asks for something that has no more to say than that it is done.
    pub(super) fn tell(&self, question: &FromRun) -> Result<(), String> {
        let heard = self
            .0
            .send(question, &[])
            .and_then(|()| self.0.receive_within::<ToRun>(PATIENCE))
            .map_err(|error| format!("the daemon: {error}"))?;
        match heard {
            Some((ToRun::Done {}, _)) => Ok(()),
            Some((ToRun::Refused { refusal }, _)) => Err(refusal.to_string()),
            Some((ToRun::Admitted { .. }, _)) | None => Err("the daemon hung up".to_owned()),
        }
    }

    /// The first process, for the record. If the daemon is gone the workload is governed all the same.
    pub(super) fn tell_of(&self, pid: u32) -> Result<(), String> {
        self.0
            .send(&FromRun::Started { pid }, &[])
            .map_err(|error| format!("the daemon: {error}"))
    }
}

impl Admitted {
    /// The tenant's root certificate.
    pub(super) fn root_pem(&self) -> Result<String, String> {
        read_certificate(&self.ca_pem)
            .map_err(|error| format!("{}: {error}", self.ca_pem.display()))
    }
}
