//! `sluice run` as the enforcer sees it: one connection for each workload, from its admission to its end.
//! Accepts on enforcer.sock and turns what comes into questions to the enforcer's main loop.
//! INVARIANT: only an ungoverned root process is listened to; hanging up ends the workload once it is empty.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use mitm_proxy::Way;
use policies::{AgentId, Reason, WorkloadId};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::channel::{AsyncChannel, Channel};
use super::protocol::{CgroupRef, FromRun, Refusal, Running, ToRun};
use super::{ChannelError, DaemonError};
use crate::config::ProcessFacts;

/// How long a peer may take to say what it wants.
const TIME_TO_ASK: Duration = Duration::from_secs(10);

/// A question to the enforcer's main loop.
#[derive(Debug)]
pub(super) enum Ask {
    /// Take over what runs already.
    Adopt {
        /// For which agent.
        agent: AgentId,
        /// What.
        what: Running,
        /// Done, or why not.
        reply: oneshot::Sender<Result<Admission, Refusal>>,
    },
    /// Govern a cgroup that is there.
    Attach {
        /// For which agent.
        agent: AgentId,
        /// Which.
        cgroup: CgroupRef,
        /// Its first process, for the record.
        pid: Option<u32>,
        /// The network namespace of its processes, where they may not be in it yet.
        netns: Option<OwnedFd>,
        /// Done, or why not.
        reply: oneshot::Sender<Result<Admission, Refusal>>,
    },
    /// Give a cgroup back that was attached.
    Detach {
        /// Which.
        cgroup: CgroupRef,
        /// Whether its processes are to be ended.
        kill: bool,
        /// Done, or why not.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// Is this cgroup a workload's, or below one? Not all lie where Sluice makes them.
    IsGoverned {
        /// Which cgroup.
        cgroup: String,
        /// The answer.
        reply: oneshot::Sender<bool>,
    },
    /// Make a workload.
    Run {
        /// Of which agent.
        agent: AgentId,
        /// The command's name, for the log.
        argv0: String,
        /// Where it runs, for the log.
        cwd: PathBuf,
        /// How: in a network namespace of its own, or for a tree that runs already.
        way: Way,
        /// Its cgroup, or why not.
        reply: oneshot::Sender<Result<Admission, Refusal>>,
    },
    /// `sluice panic` was called: follow it.
    Panic {
        /// It is done.
        reply: oneshot::Sender<()>,
    },
    /// Somebody was refused before the main loop was asked anything.
    Refused(Refusal),
    /// The first process runs.
    Started {
        /// In which workload.
        workload: WorkloadId,
        /// Which.
        pid: u32,
    },
    /// Whoever asked for the workload hung up.
    Ended(WorkloadId),
}

/// A workload that may start.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) workload: WorkloadId,
    pub(super) message: ToRun,
    pub(super) cgroup: OwnedFd,
    /// Its network namespace, where it is its own.
    pub(super) netns: Option<OwnedFd>,
}

/// Accepts until the main loop is gone.
pub(super) async fn accept(
    socket: OwnedFd,
    governed: String,
    asks: mpsc::Sender<Ask>,
) -> Result<(), DaemonError> {
    // The reactor only waits for it; that packets keep their borders is the sockets' own business.
    let socket = UnixListener::from_std(socket.into()).map_err(DaemonError::io("enforcer.sock"))?;
    while !asks.is_closed() {
        let peer = socket
            .accept()
            .await
            .and_then(|(peer, _)| Channel::from_accepted(peer));
        match peer {
            Ok(peer) => {
                tokio::spawn(converse(peer, governed.clone(), asks.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to enforcer.sock could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Ok(())
}

async fn converse(peer: Channel, governed: String, asks: mpsc::Sender<Ask>) {
    let checked = match check_peer(&peer, &governed) {
        Ok(cgroup) => check_elsewhere(cgroup, &asks).await,
        Err(refusal) => Err(refusal),
    };
    if let Err(refusal) = checked {
        tracing::warn!(
            detail = refusal.detail,
            "a peer of enforcer.sock is refused"
        );
        let _ = asks.send(Ask::Refused(refusal.clone())).await;
        let _ = peer.send(&ToRun::Refused { refusal }, &[]);
        return;
    }
    let served = match peer.into_async() {
        Ok(peer) => session(&peer, &asks).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = served {
        tracing::warn!(%error, "a `sluice run` was hung up on");
    }
}

fn refused<T>(detail: String) -> Result<T, Refusal> {
    Err(Refusal {
        reason: Reason::PeerRefused,
        detail,
    })
}

/// Nor in a workload whose cgroup somebody else made.
async fn check_elsewhere(cgroup: String, asks: &mpsc::Sender<Ask>) -> Result<(), Refusal> {
    let (reply, answer) = oneshot::channel();
    let asked = asks.send(Ask::IsGoverned { cgroup, reply }).await;
    // No answer is no permission.
    let governed = match asked {
        Ok(()) => answer.await.unwrap_or(true),
        Err(_) => true,
    };
    match governed {
        true => refused("a workload may not start workloads".to_owned()),
        false => Ok(()),
    }
}

/// Root, and outside every workload: a governed process must not make workloads, whatever its uid. Gives its cgroup.
fn check_peer(peer: &Channel, governed: &str) -> Result<String, Refusal> {
    let credentials = match rustix::net::sockopt::socket_peercred(peer) {
        Ok(credentials) => credentials,
        Err(errno) => return refused(format!("the peer is unknown: {errno}")),
    };
    if !credentials.uid.is_root() {
        return refused("only root may start workloads".to_owned());
    }
    let pid = credentials.pid.as_raw_nonzero().get().unsigned_abs();
    match ProcessFacts::read(pid) {
        Ok(facts) if is_governed(&facts.cgroup, governed) => {
            refused("a workload may not start workloads".to_owned())
        }
        Ok(facts) => Ok(facts.cgroup),
        Err(error) => refused(format!("the peer's cgroup cannot be read: {error}")),
    }
}

/// True if the cgroup path is that of the workloads or below it.
pub(in crate::daemon) fn is_governed(cgroup: &str, governed: &str) -> bool {
    cgroup
        .strip_prefix(governed)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

async fn session(peer: &AsyncChannel, asks: &mpsc::Sender<Ask>) -> Result<(), ChannelError> {
    let asked = tokio::time::timeout(TIME_TO_ASK, peer.receive::<FromRun>()).await;
    let Some((asked, fds)) = asked.unwrap_or(Ok(None))? else {
        return Err(ChannelError::HungUp);
    };
    if matches!(asked, FromRun::Panic {}) {
        let (reply, done) = oneshot::channel();
        let asked = asks.send(Ask::Panic { reply }).await;
        if asked.is_err() || done.await.is_err() {
            return Err(ChannelError::HungUp);
        }
        return peer.send(&ToRun::Done {}, &[]).await;
    }
    if let FromRun::Detach { cgroup, kill } = asked {
        let (reply, done) = oneshot::channel();
        let question = Ask::Detach {
            cgroup,
            kill,
            reply,
        };
        let asked = asks.send(question).await;
        return match (asked, done.await) {
            (Ok(()), Ok(Ok(()))) => peer.send(&ToRun::Done {}, &[]).await,
            (Ok(()), Ok(Err(refusal))) => peer.send(&ToRun::Refused { refusal }, &[]).await,
            _ => Err(ChannelError::HungUp),
        };
    }
    let (reply, answer) = oneshot::channel();
    let question = question(asked, fds, reply).ok_or(ChannelError::HungUp)?;
    let admitted = match asks.send(question).await {
        Ok(()) => answer.await,
        Err(_) => return Err(ChannelError::HungUp),
    };
    let admission = match admitted {
        Ok(Ok(admission)) => admission,
        Ok(Err(refusal)) => return peer.send(&ToRun::Refused { refusal }, &[]).await,
        // The main loop dropped the question: the proxy process went away, or the daemon stops.
        Err(_) => {
            let refusal = Refusal {
                reason: Reason::AdmissionUnavailable,
                detail: "the daemon cannot admit workloads right now".to_owned(),
            };
            // Where the main loop is gone, nobody is left to write it down.
            let _ = asks.send(Ask::Refused(refusal.clone())).await;
            return peer.send(&ToRun::Refused { refusal }, &[]).await;
        }
    };
    let Admission {
        workload,
        message,
        cgroup,
        netns,
    } = admission;
    let lived = live(peer, workload, &message, [Some(cgroup), netns], asks).await;
    let _ = asks.send(Ask::Ended(workload)).await;
    lived
}

/// What the first message asks for; nothing if it is none that can come first.
fn question(
    asked: FromRun,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Result<Admission, Refusal>>,
) -> Option<Ask> {
    match asked {
        FromRun::Adopt { agent, what } => Some(Ask::Adopt { agent, what, reply }),
        FromRun::Attach { agent, cgroup, pid } => Some(Ask::Attach {
            agent,
            cgroup,
            pid,
            netns: fds.into_iter().next(),
            reply,
        }),
        FromRun::Run {
            agent,
            argv0,
            cwd,
            isolate,
        } => Some(Ask::Run {
            agent,
            argv0,
            cwd,
            way: if isolate { Way::Isolated } else { Way::Run },
            reply,
        }),
        FromRun::Detach { .. } | FromRun::Panic {} | FromRun::Started { .. } => None,
    }
}

/// From the admission until the peer hangs up.
async fn live(
    peer: &AsyncChannel,
    workload: WorkloadId,
    message: &ToRun,
    handed: [Option<OwnedFd>; 2],
    asks: &mpsc::Sender<Ask>,
) -> Result<(), ChannelError> {
    use std::os::fd::AsFd as _;
    let fds: Vec<_> = handed.iter().flatten().map(|fd| fd.as_fd()).collect();
    peer.send(message, &fds).await?;
    drop(handed);
    while let Some((said, _)) = peer.receive::<FromRun>().await? {
        match said {
            FromRun::Started { pid } => drop(asks.send(Ask::Started { workload, pid }).await),
            FromRun::Adopt { .. }
            | FromRun::Attach { .. }
            | FromRun::Detach { .. }
            | FromRun::Panic {}
            | FromRun::Run { .. } => return Err(ChannelError::HungUp),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn governed_is_the_subtree_and_nothing_beside_it() {
        assert!(is_governed("/sluice/agents", "/sluice/agents"));
        assert!(is_governed(
            "/sluice/agents/acme.support.1",
            "/sluice/agents"
        ));
        assert!(!is_governed("/sluice/agents2", "/sluice/agents"));
        assert!(!is_governed("/", "/sluice/agents"));
    }

    #[tokio::test]
    async fn a_session_is_admitted_told_of_its_process_and_ended_by_hanging_up() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (asks, mut asked) = mpsc::channel(4);
        tokio::spawn(async move { session(&theirs.into_async().unwrap(), &asks).await });
        let agent: AgentId = "acme/support".parse().unwrap();
        ours.send(
            &FromRun::Run {
                agent: agent.clone(),
                argv0: "curl".into(),
                cwd: "/".into(),
                isolate: false,
            },
            &[],
        )
        .unwrap();
        let Some(Ask::Run {
            agent: asked_for,
            reply,
            ..
        }) = asked.recv().await
        else {
            panic!()
        };
        assert_eq!(asked_for, agent);
        let message = ToRun::Admitted {
            workload: WorkloadId(5),
            cgroup: "/sluice/agents/acme.support.1".into(),
            ca_pem: "/run/sluice/ca/acme.pem".into(),
            nameserver: "198.18.0.1".parse().unwrap(),
            uids: crate::config::UidRange::default(),
        };
        let cgroup = std::fs::File::open("/").unwrap().into();
        reply
            .send(Ok(Admission {
                workload: WorkloadId(5),
                message,
                cgroup,
                netns: None,
            }))
            .unwrap();
        let ours = ours.into_async().unwrap();
        let (answer, fds) = ours.receive::<ToRun>().await.unwrap().unwrap();
        assert!(matches!(
            answer,
            ToRun::Admitted {
                workload: WorkloadId(5),
                ..
            }
        ));
        assert_eq!(fds.len(), 1);
        ours.send(&FromRun::Started { pid: 42 }, &[]).await.unwrap();
        let Some(Ask::Started {
            workload: WorkloadId(5),
            pid: 42,
        }) = asked.recv().await
        else {
            panic!()
        };
        drop(ours);
        let Some(Ask::Ended(WorkloadId(5))) = asked.recv().await else {
            panic!()
        };
    }

    #[tokio::test]
    async fn a_refusal_reaches_the_one_who_asked() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (asks, mut asked) = mpsc::channel(4);
        tokio::spawn(async move { session(&theirs.into_async().unwrap(), &asks).await });
        let agent = "acme/nobody".parse().unwrap();
        ours.send(
            &FromRun::Run {
                agent,
                argv0: "curl".into(),
                cwd: "/".into(),
                isolate: false,
            },
            &[],
        )
        .unwrap();
        let Some(Ask::Run { reply, .. }) = asked.recv().await else {
            panic!()
        };
        let refusal = Refusal {
            reason: Reason::AgentUnknown,
            detail: "no".into(),
        };
        reply.send(Err(refusal.clone())).unwrap();
        let ours = ours.into_async().unwrap();
        let (answer, fds) = ours.receive::<ToRun>().await.unwrap().unwrap();
        assert!(matches!(answer, ToRun::Refused { refusal: found } if found == refusal));
        assert!(fds.is_empty());
    }
}
