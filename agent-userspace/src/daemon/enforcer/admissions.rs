//! Admissions as the enforcer's main loop handles them: a cgroup, the proxy process's answer, the first process, the end.
//! Beside the path: `runs` brings the questions here, `admission` keeps the book.
//! INVARIANT: a command starts only in a cgroup that the kernel side knows and that the proxy process said yes to.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use policies::{AgentId, Reason, WorkloadId};
use tokio::sync::oneshot;

use super::Enforcer;
use crate::config::ProcessFacts;
use crate::daemon::admission::{TIME_TO_ADMIT, Waiting};
use crate::daemon::error::in_full;
use crate::daemon::protocol::{Refusal, Ticket, ToRun, ToWorker, WorkloadFacts};
use crate::daemon::runs::{Admission, Ask};
use crate::enforce::EnforceError;

/// A workload that the kernel side knows and the proxy process does not yet.
struct Made {
    facts: WorkloadFacts,
    cgroup: OwnedFd,
    netns: Option<OwnedFd>,
}

impl Enforcer {
    /// Workloads that a former daemon left running, and their network namespaces.
    pub(super) fn adopt(&mut self) -> Result<(), EnforceError> {
        for found in self.enforcement.workloads_found()? {
            let agent = found.name.agent.clone();
            tracing::info!(workload = %found.name, populated = found.populated, "adopted");
            // One that stays without listeners has no way out; that is no reason to leave the others without a daemon.
            if let Err(error) = self.namespaces.find(found.id, &found.path) {
                tracing::error!(%error, workload = %found.name, "its network namespace cannot be served; it is cut off");
            }
            self.book.enter(
                WorkloadFacts {
                    id: found.id,
                    agent,
                    pid: None,
                    exe: None,
                    cgroup: found.in_hierarchy,
                },
                // An empty cgroup elsewhere is not ours to give up: its unit or container may be about to start.
                !found.outside,
            );
        }
        self.retire_left();
        Ok(())
    }

    /// Whoever has waited too long for the proxy process's answer is refused; the workload goes as if it were left.
    pub(super) fn refuse_overdue(&mut self) {
        for waiting in self.book.overdue(Instant::now()) {
            tracing::error!(
                workload = waiting.workload.0,
                "the proxy process does not answer; the workload is refused"
            );
            self.book.leave(waiting.workload);
            let detail = format!(
                "admission_timeout: the proxy process did not answer within {} s",
                TIME_TO_ADMIT.as_secs()
            );
            drop(waiting.reply.send(Err(Refusal {
                reason: None,
                detail,
            })));
        }
    }

    /// Removes the workloads that nobody waits for and that are empty.
    pub(super) fn retire_left(&mut self) -> Vec<WorkloadId> {
        let mut retired = Vec::new();
        for id in self.book.left() {
            match self.enforcement.retire(id) {
                Ok(()) | Err(EnforceError::WorkloadUnknown(_)) => {
                    self.book.strike(id);
                    self.namespaces.close(id);
                    retired.push(id);
                }
                Err(EnforceError::WorkloadAlive(_)) => {}
                Err(error) => tracing::error!(
                    workload = id.0,
                    error = in_full(&error),
                    "a workload cannot be retired"
                ),
            }
        }
        retired
    }

    pub(super) async fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Run {
                agent,
                argv0,
                cwd,
                isolate,
                reply,
            } => {
                tracing::info!(%agent, argv0, cwd = %cwd.display(), isolate, "a workload is asked for");
                match self.make(agent, isolate) {
                    Ok(made) => self.admit(made, reply).await,
                    Err(refusal) => drop(reply.send(Err(refusal))),
                }
            }
            Ask::Panic { reply } => {
                self.follow_panic().await;
                self.tell_happenings().await;
                // Whoever asked may be gone; it is done all the same.
                let _ = reply.send(());
            }
            Ask::Started { workload, pid } => self.started(workload, pid).await,
            Ask::Ended(workload) => self.book.leave(workload),
        }
    }

    /// Makes the cgroup, and a network namespace with listeners in it where one is wanted.
    fn make(&mut self, agent: AgentId, isolate: bool) -> Result<Made, Refusal> {
        self.refuse_by_host()?;
        let admitted = self
            .enforcement
            .admit(&agent)
            .map_err(|error| ours(&error))?;
        let facts = WorkloadFacts {
            id: admitted.id,
            agent,
            pid: None,
            exe: None,
            cgroup: admitted.in_hierarchy,
        };
        self.book.enter(facts.clone(), false);
        let netns = match isolate {
            true => Some(self.namespaces.make(facts.id)),
            false => None,
        };
        let netns = netns.transpose().map_err(|error| {
            // Nothing runs in it: the next tick removes it.
            self.book.leave(facts.id);
            ours(&error)
        })?;
        Ok(Made {
            facts,
            cgroup: admitted.cgroup,
            netns,
        })
    }

    /// Why nothing may start on this host, whoever asks.
    fn refuse_by_host(&self) -> Result<(), Refusal> {
        if self.panic {
            return Err(Refusal {
                reason: Some(Reason::Panic),
                detail: "every agent is stopped; `sluice panic --lift` ends it".to_owned(),
            });
        }
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Refusal {
                reason: Some(Reason::EnforcementBroken),
                detail: format!("the kernel side could not be put back: {why}"),
            }),
        }
    }

    /// Asks the proxy process whether the agent may run; it has the workload's listeners by then.
    async fn admit(&mut self, made: Made, reply: oneshot::Sender<Result<Admission, Refusal>>) {
        let Made {
            facts: workload,
            cgroup,
            netns,
        } = made;
        if let Some(worker) = &self.worker {
            self.namespaces.tell_of(workload.id, worker).await;
        }
        let ticket = self.book.ticket();
        let waiting = Waiting {
            workload: workload.id,
            cgroup,
            netns,
            reply,
            since: Instant::now(),
        };
        self.book.wait(ticket, waiting);
        // While there is none, the next proxy process is asked; whoever waits too long for it is refused then.
        if self.restart.ready_since.is_some() {
            self.tell(&ToWorker::Admit { ticket, workload }, None).await;
        }
    }

    /// Asks a new proxy process what the one before did not answer. A start that was recorded already is recorded twice.
    pub(super) async fn ask_again(&mut self) {
        for (ticket, id) in self.book.waiting() {
            if let Some(workload) = self.book.facts(id).cloned() {
                self.tell(&ToWorker::Admit { ticket, workload }, None).await;
            }
        }
    }

    /// The proxy process's answer, to the session that asked.
    pub(super) async fn admitted(&mut self, ticket: Ticket, refused: Option<Refusal>) {
        let Some(waiting) = self.book.answered(ticket) else {
            return tracing::warn!(?ticket, "the proxy process answers what nobody asked");
        };
        let id = waiting.workload;
        let answer = match (refused, self.book.facts(id)) {
            (None, Some(facts)) => {
                let message = ToRun::Admitted {
                    workload: id,
                    cgroup: facts.cgroup.clone(),
                    ca_pem: self.given.paths.ca_pem(&facts.agent.tenant),
                    nameserver: nameserver(self.given.config.names.pool4),
                    uids: self.given.config.launch.uids,
                };
                Ok(Admission {
                    workload: id,
                    message,
                    cgroup: waiting.cgroup,
                    netns: waiting.netns,
                })
            }
            (Some(refusal), _) => Err(refusal),
            (None, None) => Err(Refusal {
                reason: None,
                detail: "the workload is gone".to_owned(),
            }),
        };
        let refused = answer.is_err();
        // If the session is gone, too, nobody will say that it ended.
        if waiting.reply.send(answer).is_err() || refused {
            self.book.leave(id);
        }
    }

    async fn started(&mut self, id: WorkloadId, pid: u32) {
        let Some(cgroup) = self.book.facts(id).map(|facts| facts.cgroup.clone()) else {
            return;
        };
        // The number came in a message: it counts only if that process is in the workload's cgroup.
        if !ProcessFacts::read(pid).is_ok_and(|facts| facts.cgroup == cgroup) {
            return tracing::debug!(
                pid,
                cgroup,
                "a first process is gone already, or is not in its cgroup"
            );
        }
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"))
            .ok()
            .map(|exe| exe.to_string_lossy().into_owned());
        self.book.started(id, pid, exe.clone());
        self.tell(&ToWorker::Started { id, pid, exe }, None).await;
    }
}

/// A refusal that no policy made.
fn ours(error: &dyn std::error::Error) -> Refusal {
    Refusal {
        reason: None,
        detail: in_full(error),
    }
}

/// The first address of the pool: every question to port 53 is led to the resolver, whatever address it names.
fn nameserver((network, _): (Ipv4Addr, u8)) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | 1))
}
