//! Admissions as the enforcer's main loop handles them: a cgroup, the proxy process's answer, the first process, the end.
//! Beside the path: `runs` brings the questions here, `admission` keeps the book.
//! INVARIANT: a command starts only in a cgroup that the kernel side knows and that the proxy process said yes to.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use policies::{AgentId, WorkloadId};
use tokio::sync::oneshot;

use super::Enforcer;
use crate::config::ProcessFacts;
use crate::daemon::admission::{TIME_TO_ADMIT, Waiting};
use crate::daemon::error::in_full;
use crate::daemon::protocol::{Refusal, Ticket, ToRun, ToWorker, WorkloadFacts};
use crate::daemon::runs::Admission;
use crate::enforce::EnforceError;

impl Enforcer {
    /// Makes the cgroup, then asks the proxy process whether the agent may run.
    pub(super) async fn admit(
        &mut self,
        agent: AgentId,
        reply: oneshot::Sender<Result<Admission, Refusal>>,
    ) {
        if self.worker.is_none() || self.restart.ready_since.is_none() {
            let detail = "the proxy process is being restarted; try again".to_owned();
            drop(reply.send(Err(Refusal {
                reason: None,
                detail,
            })));
            return;
        }
        let admitted = match self.enforcement.admit(&agent) {
            Ok(admitted) => admitted,
            Err(error) => {
                drop(reply.send(Err(Refusal {
                    reason: None,
                    detail: in_full(&error),
                })));
                return;
            }
        };
        let cgroup = format!("{}/{}", self.given.governed, admitted.name);
        let workload = WorkloadFacts {
            id: admitted.id,
            agent,
            pid: None,
            exe: None,
            cgroup,
        };
        let ticket = self.book.ticket();
        self.book.enter(workload.clone(), false);
        self.book.wait(
            ticket,
            Waiting {
                workload: admitted.id,
                cgroup: admitted.cgroup,
                reply,
                since: Instant::now(),
            },
        );
        self.tell(&ToWorker::Admit { ticket, workload }, None).await;
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
                };
                Ok(Admission {
                    workload: id,
                    message,
                    cgroup: waiting.cgroup,
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

    pub(super) async fn started(&mut self, id: WorkloadId, pid: u32) {
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
}

/// The first address of the pool: every question to port 53 is led to the resolver, whatever address it names.
fn nameserver((network, _): (Ipv4Addr, u8)) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | 1))
}
