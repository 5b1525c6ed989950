//! Admissions as the enforcer's main loop handles them: a cgroup, the proxy process's answer, the first process, the end.
//! Beside the path: `runs` brings the questions here, `admission` keeps the book.
//! INVARIANT: a command starts only in a cgroup that the kernel side knows and that the proxy process said yes to.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use mitm_proxy::Way;
use policies::{AgentId, Reason, WorkloadId};
use tokio::sync::oneshot;

use super::Enforcer;
use super::attachments::Attach;
use crate::config::ProcessFacts;
use crate::daemon::admission::{TIME_TO_ADMIT, Waiting, Waits};
use crate::daemon::error::in_full;
use crate::daemon::protocol::{Refusal, Ticket, ToRun, ToWorker, WorkloadFacts};
use crate::daemon::runs::{Admission, Ask, is_governed};
use crate::daemon::ways;
use crate::enforce::EnforceError;

/// A workload that the proxy process does not know yet.
pub(super) struct Made {
    pub(super) facts: WorkloadFacts,
    pub(super) place: Waits,
    pub(super) netns: Option<OwnedFd>,
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
            let unwritten = if found.outside {
                Way::Attached
            } else {
                Way::Run
            };
            let (pid, exe) = first_process(&found.path);
            self.book.enter(
                WorkloadFacts {
                    id: found.id,
                    agent,
                    pid,
                    exe,
                    cgroup: found.in_hierarchy,
                    way: ways::recall(&found.path).unwrap_or(unwritten),
                },
                true,
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
            let agent = self.agent_of(waiting.workload);
            self.book.leave(waiting.workload);
            if let Some(place) = waiting.place.theirs() {
                self.discard(waiting.workload, &place);
            }
            let refusal = Refusal {
                reason: Reason::AdmissionTimeout,
                detail: format!(
                    "the proxy process did not answer within {} s",
                    TIME_TO_ADMIT.as_secs()
                ),
            };
            self.refused_waiting(agent, waiting.place.of_rule(), &refusal);
            drop(waiting.reply.send(Err(refusal)));
        }
    }

    fn agent_of(&self, id: WorkloadId) -> Option<AgentId> {
        self.book.facts(id).map(|facts| facts.agent.clone())
    }

    /// Has it written down and counted that somebody waited in vain, who may be a rule and try again.
    fn refused_waiting(
        &mut self,
        agent: Option<AgentId>,
        of_rule: Option<&Path>,
        refusal: &Refusal,
    ) {
        match of_rule {
            Some(cgroup) => self.refused_of_rule(agent, cgroup, refusal),
            None => self.refused(agent, refusal),
        }
    }

    /// Removes the workloads that nobody waits for and that are empty, but for those whose cgroup is somebody else's.
    pub(super) fn retire_left(&mut self) -> Vec<WorkloadId> {
        let mut retired = Vec::new();
        for id in self.book.left() {
            // Who starts there next is governed from the first instruction; `sweep` sees it go.
            if self.enforcement.lies_elsewhere(id) && !self.enforcement.is_gathered(id) {
                continue;
            }
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
            Ask::Adopt { agent, what, reply } => {
                tracing::info!(%agent, ?what, "a running tree is to be governed");
                match self.adopt_running(agent.clone(), &what, false) {
                    Ok(made) => self.admit(made, reply).await,
                    Err(refusal) => self.refuse(agent, refusal, reply).await,
                }
            }
            Ask::Attach {
                agent,
                cgroup,
                pid,
                netns,
                reply,
            } => {
                tracing::info!(%agent, ?cgroup, "governance of a cgroup is asked for");
                match self.attach(agent.clone(), &cgroup, pid, netns) {
                    Ok(Attach::New(made)) => self.admit(made, reply).await,
                    Ok(Attach::Known(admission)) => drop(reply.send(Ok(admission))),
                    Err(refusal) => self.refuse(agent, refusal, reply).await,
                }
            }
            Ask::Detach {
                cgroup,
                kill,
                reply,
            } => {
                tracing::info!(?cgroup, kill, "a cgroup is asked back");
                // Whoever asked may be gone; it is done all the same.
                let _ = reply.send(self.detach(&cgroup, kill).await);
            }
            Ask::IsGoverned { cgroup, reply } => {
                // A unit that starts again has a cgroup of the same name and none of the same kind.
                self.sweep_later();
                // Who asked may be gone: then nobody was let in.
                let _ = reply.send(self.book.governs(&cgroup));
            }
            Ask::Run {
                agent,
                argv0,
                cwd,
                way,
                reply,
            } => {
                tracing::info!(%agent, argv0, cwd = %cwd.display(), way = way.as_str(), "a workload is asked for");
                match self.make(agent.clone(), way) {
                    Ok(made) => self.admit(made, reply).await,
                    Err(refusal) => self.refuse(agent, refusal, reply).await,
                }
            }
            Ask::Panic { reply } => {
                self.follow_panic().await;
                self.tell_happenings().await;
                // Whoever asked may be gone; it is done all the same.
                let _ = reply.send(());
            }
            Ask::Refused(refusal) => self.refused_unheard(&refusal).await,
            Ask::Started { workload, pid } => self.started(workload, pid).await,
            Ask::Ended(workload) => self.book.leave(workload),
        }
    }

    /// Says no, and has it written down and counted.
    async fn refuse(
        &mut self,
        agent: AgentId,
        refusal: Refusal,
        reply: oneshot::Sender<Result<Admission, Refusal>>,
    ) {
        self.refused(Some(agent), &refusal);
        drop(reply.send(Err(refusal)));
        self.tell_happenings().await;
    }

    /// Makes the cgroup, and a network namespace with listeners in it where one is wanted.
    fn make(&mut self, agent: AgentId, way: Way) -> Result<Made, Refusal> {
        self.refuse_by_host()?;
        let admitted = self
            .enforcement
            .admit(&agent)
            .map_err(|error| unenforced(&error))?;
        let facts = WorkloadFacts {
            id: admitted.id,
            agent,
            pid: None,
            exe: None,
            cgroup: admitted.in_hierarchy,
            way,
        };
        ways::remember(&admitted.path, way);
        self.book.enter(facts.clone(), false);
        let netns = match way {
            Way::Isolated => Some(self.namespaces.make(facts.id)),
            Way::Adopted | Way::Attached | Way::Run => None,
        };
        let netns = netns.transpose().map_err(|error| {
            // Nothing runs in it: the next tick removes it.
            self.book.leave(facts.id);
            ours(&error)
        })?;
        Ok(Made {
            facts,
            place: Waits::Made(admitted.cgroup),
            netns,
        })
    }

    /// Why nothing may start on this host, whoever asks.
    pub(super) fn refuse_by_host(&self) -> Result<(), Refusal> {
        if self.panic {
            return Err(Refusal {
                reason: Reason::Panic,
                detail: "every agent is stopped; `sluice panic --lift` ends it".to_owned(),
            });
        }
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Refusal {
                reason: Reason::EnforcementBroken,
                detail: format!("the kernel side could not be put back: {why}"),
            }),
        }
    }

    /// Asks the proxy process whether the agent may run; it has the workload's listeners by then.
    pub(super) async fn admit(
        &mut self,
        made: Made,
        reply: oneshot::Sender<Result<Admission, Refusal>>,
    ) {
        let Made {
            facts: workload,
            place,
            netns,
        } = made;
        if let Some(worker) = &self.worker {
            self.namespaces.tell_of(workload.id, worker).await;
        }
        let ticket = self.book.ticket();
        let waiting = Waiting {
            workload: workload.id,
            place,
            netns,
            reply,
            since: Instant::now(),
        };
        let question = self.question(ticket, workload, &waiting);
        self.book.wait(ticket, waiting);
        // While there is none, the next proxy process is asked; whoever waits too long for it is refused then.
        if self.restart.ready_since.is_some() {
            self.tell(&question, None).await;
        }
    }

    fn question(&self, ticket: Ticket, workload: WorkloadFacts, waiting: &Waiting) -> ToWorker {
        let of_rule = waiting.place.of_rule();
        ToWorker::Admit {
            ticket,
            workload,
            recorded: of_rule.map_or_else(Vec::new, |cgroup| self.patterns.recorded(cgroup)),
        }
    }

    /// Asks a new proxy process what the one before did not answer. A start that was recorded already is recorded twice.
    pub(super) async fn ask_again(&mut self) {
        for (ticket, waiting) in self.book.waiting() {
            if let Some(workload) = self.book.facts(waiting.workload).cloned() {
                let question = self.question(ticket, workload, waiting);
                self.tell(&question, None).await;
            }
        }
    }

    /// The proxy process's answer, to the session that asked.
    pub(super) async fn admitted(&mut self, ticket: Ticket, refused: Option<Refusal>) {
        let Some(waiting) = self.book.answered(ticket) else {
            return tracing::warn!(?ticket, "the proxy process answers what nobody asked");
        };
        let id = waiting.workload;
        let agent = self.agent_of(id);
        let place = waiting.place.theirs();
        let of_rule = waiting.place.of_rule().map(Path::to_owned);
        let answer = match refused {
            None => {
                let settled = self.settle(id, waiting.place, waiting.netns).await;
                if let Err(refusal) = &settled {
                    self.refused_waiting(agent, of_rule.as_deref(), refusal);
                    self.tell_happenings().await;
                }
                settled
            }
            // It has written that down itself.
            Some(refusal) => {
                if let Some(cgroup) = &of_rule {
                    self.patterns.is_recorded(cgroup, &refusal);
                }
                Err(refusal)
            }
        };
        let refused = answer.is_err();
        if let (true, Some(place)) = (refused, place) {
            self.forget_ungoverned(id);
            self.discard(id, &place);
        }
        // If the session is gone, too, nobody will say that it ended.
        if waiting.reply.send(answer).is_err() || refused {
            self.book.leave(id);
        }
    }

    /// What is left to do once the proxy process has said yes, and what the one who asked is told.
    async fn settle(
        &mut self,
        id: WorkloadId,
        place: Waits,
        netns: Option<OwnedFd>,
    ) -> Result<Admission, Refusal> {
        let cgroup = match place {
            Waits::Made(cgroup) => return self.admission(id, cgroup, netns),
            Waits::Elsewhere(path) => self.govern(id, &path, netns)?,
            Waits::Running(running) => self.take_running(id, &running)?,
        };
        if let Some(worker) = &self.worker {
            self.namespaces.tell_of(id, worker).await;
        }
        self.admission(id, cgroup, None)
    }

    pub(super) fn admission(
        &self,
        id: WorkloadId,
        cgroup: OwnedFd,
        netns: Option<OwnedFd>,
    ) -> Result<Admission, Refusal> {
        let facts = self.book.facts(id).ok_or_else(|| Refusal {
            reason: Reason::CgroupGone,
            detail: "the workload is gone".to_owned(),
        })?;
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
            cgroup,
            netns,
        })
    }

    async fn started(&mut self, id: WorkloadId, pid: u32) {
        let Some(cgroup) = self.book.facts(id).map(|facts| facts.cgroup.clone()) else {
            return;
        };
        // The number came in a message: it counts only if that process is in the workload's cgroup.
        if !ProcessFacts::read(pid).is_ok_and(|facts| is_governed(&facts.cgroup, &cgroup)) {
            return tracing::debug!(
                pid,
                cgroup,
                "a first process is gone already, or is not in its cgroup"
            );
        }
        let exe = executed(pid);
        self.book.started(id, pid, exe.clone());
        self.tell(&ToWorker::Started { id, pid, exe }, None).await;
    }
}

/// What a process executes.
pub(super) fn executed(pid: u32) -> Option<String> {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(exe.to_string_lossy().into_owned())
}

/// The first process that a cgroup shows, and what it executes. For people only: it may be another by the time they read it.
pub(super) fn first_process(cgroup: &Path) -> (Option<u32>, Option<String>) {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pid = pids.lines().next().and_then(|line| line.parse().ok());
    (pid, pid.and_then(executed))
}

/// A refusal because something of the host failed.
pub(super) fn ours(error: &dyn std::error::Error) -> Refusal {
    Refusal {
        reason: Reason::EnforcementFailed,
        detail: in_full(error),
    }
}

/// A refusal by the kernel side, under its own name where it has one.
pub(super) fn unenforced(error: &EnforceError) -> Refusal {
    named(reason(error), in_full(error))
}

/// A refusal whose text may begin with its name already.
pub(super) fn named(reason: Reason, detail: String) -> Refusal {
    let rest = detail.strip_prefix(reason.as_str());
    let detail = rest
        .and_then(|rest| rest.strip_prefix(": "))
        .map_or_else(|| detail.clone(), str::to_owned);
    Refusal { reason, detail }
}

/// The name of a refusal by the kernel side.
pub(super) fn reason(error: &EnforceError) -> Reason {
    match error {
        EnforceError::CgroupUnfit { .. } => Reason::CgroupUnfit,
        EnforceError::LiteralsFull => Reason::LiteralsFull,
        EnforceError::WorkloadUnknown(_) => Reason::CgroupGone,
        EnforceError::WorkloadsFull => Reason::WorkloadsFull,
        EnforceError::Attach { .. }
        | EnforceError::Bpf { .. }
        | EnforceError::CgroupMissing
        | EnforceError::InUse(_)
        | EnforceError::Io { .. }
        | EnforceError::Load { .. }
        | EnforceError::Map { .. }
        | EnforceError::OtherVersion { .. }
        | EnforceError::PinForeign { .. }
        | EnforceError::WorkloadAlive(_) => Reason::EnforcementFailed,
    }
}

/// The first address of the pool: every question to port 53 is led to the resolver, whatever address it names.
fn nameserver((network, _): (Ipv4Addr, u8)) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | 1))
}
