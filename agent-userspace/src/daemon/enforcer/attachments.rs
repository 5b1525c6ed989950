//! Workloads whose cgroup somebody else made: a unit's, a container's.
//! Beside `admissions`: the proxy process is asked first here, since processes may live in the cgroup already.
//! INVARIANT: who asked hears yes only when the programs are attached and the network namespace has its listeners.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mitm_proxy::Way;
use policies::{AgentId, Reason, WorkloadId};

use super::Enforcer;
use super::admissions::{Made, executed, first_process, ours, unenforced};
use crate::daemon::admission::Waits;
use crate::daemon::error::in_full;
use crate::daemon::protocol::{CgroupRef, Refusal, ToWorker, WorkloadFacts};
use crate::daemon::runs::Admission;
use crate::daemon::ways;
use crate::enforce::{EnforceError, Found, NetNamespace};

/// How long killed processes may take to be gone.
const TIME_TO_DIE: Duration = Duration::from_secs(2);

/// What asking for a cgroup comes to.
pub(super) enum Attach {
    /// It runs as that agent already: the answer.
    Known(Admission),
    /// The proxy process is to be asked.
    New(Made),
}

impl Enforcer {
    /// Finds the cgroup that is meant, and what is to be done.
    pub(super) fn attach(
        &mut self,
        agent: AgentId,
        cgroup: &CgroupRef,
        pid: Option<u32>,
        netns: Option<OwnedFd>,
    ) -> Result<Attach, Refusal> {
        self.refuse_by_host()?;
        let (shown, path) = self.directory(cgroup)?;
        // One that was removed and made anew in the meantime is another.
        self.sweep_later();
        let workloads = self
            .enforcement
            .workloads_found()
            .map_err(|error| unenforced(&error))?;
        if let Some(known) = workloads.into_iter().find(|found| found.path == path) {
            return self.known(known, &agent).map(Attach::Known);
        }
        // Before the proxy process hears of it, and takes who lives in it for the workload's: of the root, that is everybody.
        self.enforcement
            .fit(&agent, &path)
            .map_err(|error| unenforced(&error))?;
        let id = fs::metadata(&path).map_err(|error| ours(&error))?.ino();
        let (pid, exe) = match pid {
            Some(pid) => (Some(pid), executed(pid)),
            None => first_process(&path),
        };
        let facts = WorkloadFacts {
            id: WorkloadId(id),
            agent,
            pid,
            exe,
            cgroup: shown,
            way: Way::Attached,
        };
        if self.book.facts(facts.id).is_some() {
            let detail = "somebody is attaching this cgroup at this moment".to_owned();
            return refused(Reason::AlreadyGoverned, detail);
        }
        self.book.enter(facts.clone(), false);
        Ok(Attach::New(Made {
            facts,
            place: Waits::Elsewhere(path),
            netns,
        }))
    }

    /// The cgroup that is meant, as `/proc/PID/cgroup` shows it, and its directory.
    pub(super) fn directory(&self, cgroup: &CgroupRef) -> Result<(String, PathBuf), Refusal> {
        let named = match cgroup {
            CgroupRef::Directory(path) => Some(path.clone()),
            CgroupRef::Shown(shown) => self.enforcement.directory_of(shown),
        };
        let path = named.and_then(|path| fs::canonicalize(path).ok());
        let found = path.and_then(|path| Some((self.enforcement.shown(&path)?, path)));
        found.map_or_else(
            || {
                let detail = format!(
                    "{} is not a directory of the cgroup v2 hierarchy that the daemon uses",
                    show(cgroup)
                );
                refused(Reason::CgroupUnknown, detail)
            },
            Ok,
        )
    }

    /// Gives a cgroup back, or has it written down and counted why not. A live process is never set free by it.
    pub(super) async fn detach(&mut self, cgroup: &CgroupRef, kill: bool) -> Result<(), Refusal> {
        let (agent, detached) = match self.attached(cgroup) {
            Ok(found) => {
                let agent = found.name.agent.clone();
                (Some(agent), self.give_back(found, kill).await)
            }
            Err(refusal) => (None, Err(refusal)),
        };
        if let Err(refusal) = &detached {
            self.refused(agent, refusal);
            self.tell_happenings().await;
        }
        detached
    }

    fn attached(&mut self, cgroup: &CgroupRef) -> Result<Found, Refusal> {
        let (shown, path) = self.directory(cgroup)?;
        self.sweep_later();
        let mut workloads = self
            .enforcement
            .workloads_found()
            .map_err(|error| unenforced(&error))?
            .into_iter();
        let found = workloads.find(|found| found.path == path && found.outside);
        found.map_or_else(
            || {
                let detail = format!("{shown} is no attached workload");
                refused(Reason::NotAttached, detail)
            },
            Ok,
        )
    }

    async fn give_back(&mut self, found: Found, kill: bool) -> Result<(), Refusal> {
        let (id, shown) = (found.id, &found.in_hierarchy);
        if kill {
            self.enforcement
                .kill(id)
                .map_err(|error| unenforced(&error))?;
        }
        let deadline = Instant::now() + if kill { TIME_TO_DIE } else { Duration::ZERO };
        loop {
            match self.enforcement.release(id) {
                Ok(()) => break,
                Err(EnforceError::WorkloadAlive(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(EnforceError::WorkloadAlive(_)) => {
                    let detail = format!(
                        "processes live in {shown}, and a live process is not set free; end them, or say --kill"
                    );
                    return refused(Reason::WorkloadAlive, detail);
                }
                Err(error) => return Err(unenforced(&error)),
            }
        }
        tracing::warn!(workload = %found.name, cgroup = shown, "given back");
        ways::forget(&found.path);
        self.book.strike(id);
        self.namespaces.close(id);
        self.tell(&ToWorker::Retire { id }, None).await;
        Ok(())
    }

    /// Asked for twice, as a unit does that is started again in the same cgroup.
    fn known(&self, found: Found, agent: &AgentId) -> Result<Admission, Refusal> {
        if found.name.agent != *agent || !found.outside {
            let detail = format!(
                "{} is a workload of {}",
                found.in_hierarchy, found.name.agent
            );
            return refused(Reason::AlreadyGoverned, detail);
        }
        let cgroup = fs::File::open(&found.path).map_err(|error| ours(&error))?;
        self.admission(found.id, cgroup.into(), None)
    }

    /// Attaches the programs, then opens the listeners where its processes live or will live.
    pub(super) fn govern(
        &mut self,
        id: WorkloadId,
        path: &Path,
        netns: Option<OwnedFd>,
    ) -> Result<OwnedFd, Refusal> {
        let agent = self.book.facts(id).map(|facts| facts.agent.clone());
        let Some(agent) = agent else {
            return refused(Reason::CgroupGone, "the workload is gone".to_owned());
        };
        let governed = self
            .enforcement
            .govern(&agent, path)
            .map_err(|error| unenforced(&error))?;
        if governed.id != id {
            // The directory was made anew in between; the proxy process said yes to another one.
            self.book.leave(id);
            let detail = "the cgroup was removed and made anew meanwhile".to_owned();
            return refused(Reason::CgroupGone, detail);
        }
        ways::remember(path, Way::Attached);
        let given = netns.map(|fd| {
            let namespace = NetNamespace::from_fd(fd).map_err(|error| ours(&error))?;
            self.namespaces
                .serve(id, namespace)
                .map_err(|error| ours(&error))
        });
        given.unwrap_or(Ok(()))?;
        self.namespaces
            .find(id, path)
            .map_err(|error| ours(&error))?;
        // Nobody waits for it: it ends with its cgroup.
        self.book.leave(id);
        Ok(governed.cgroup)
    }

    /// A cgroup that did not become a workload is no longer waited for: it may be asked for again at once.
    pub(super) fn forget_ungoverned(&mut self, id: WorkloadId) {
        let known = self.enforcement.workloads_found();
        // In doubt it stays in the book, and goes when it is empty.
        if known.is_ok_and(|known| known.iter().all(|found| found.id != id)) {
            self.book.strike(id);
            self.namespaces.close(id);
            self.swept.push(id);
        }
    }

    /// Strikes the workloads whose cgroup is gone, and says which.
    pub(super) fn sweep(&mut self) -> Vec<WorkloadId> {
        self.sweep_later();
        std::mem::take(&mut self.swept)
    }

    /// The same, for when the proxy process is told with the next tick.
    pub(super) fn sweep_later(&mut self) {
        match self.enforcement.sweep() {
            Ok(gone) => {
                for gone in gone {
                    tracing::info!(workload = %gone.name, cgroup = %gone.path.display(), "its cgroup is gone");
                    self.book.strike(gone.id);
                    self.namespaces.close(gone.id);
                    self.swept.push(gone.id);
                }
            }
            Err(error) => tracing::error!(
                error = in_full(&error),
                "the cgroups elsewhere cannot be looked at"
            ),
        }
    }

    /// What an attached workload executes changes after the hook: from the runtime to the program.
    pub(super) async fn look_again(&mut self) {
        for (id, pid, known) in self.book.attached() {
            let exe = executed(pid);
            if exe.is_some() && exe != known {
                self.book.started(id, pid, exe.clone());
                self.tell(&ToWorker::Started { id, pid, exe }, None).await;
            }
        }
    }
}

fn show(cgroup: &CgroupRef) -> String {
    match cgroup {
        CgroupRef::Directory(path) => path.display().to_string(),
        CgroupRef::Shown(shown) => shown.clone(),
    }
}

pub(super) fn refused<T>(reason: Reason, detail: String) -> Result<T, Refusal> {
    Err(Refusal { reason, detail })
}
