//! Listeners inside the network namespaces of workloads that have their own: isolated ones and containers.
//! Kept by the enforcer like its own listeners, so that a restarted proxy process is given them again.
//! INVARIANT: they lie on the same ports as the host's; they are closed when their workload is retired.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use policies::WorkloadId;

use super::DaemonError;
use super::listeners::Sockets;
use super::protocol::ToWorker;
use super::supervise::Worker;
use crate::enforce::{NetNamespace, Ports};

/// Every namespace that is served.
#[derive(Debug)]
pub(super) struct Namespaces {
    proxy_cgroup: PathBuf,
    ports: Ports,
    host: NetNamespace,
    open: BTreeMap<WorkloadId, Vec<Served>>,
}

/// One namespace of one workload.
#[derive(Debug)]
struct Served {
    /// Held, so that its inode names no other namespace meanwhile, and listeners can be opened in it again.
    namespace: NetNamespace,
    sockets: Sockets,
}

impl Namespaces {
    /// None yet. `ports` are those of the host's listeners.
    pub(super) fn new(proxy_cgroup: &Path, ports: Ports) -> Result<Namespaces, DaemonError> {
        Ok(Namespaces {
            proxy_cgroup: proxy_cgroup.to_owned(),
            ports,
            host: NetNamespace::own().map_err(DaemonError::io("/proc/self/ns/net"))?,
            open: BTreeMap::new(),
        })
    }

    /// A new namespace with listeners for a workload that is about to start in it.
    pub(super) fn make(&mut self, id: WorkloadId) -> Result<OwnedFd, DaemonError> {
        let (sockets, namespace) = Sockets::open_in_new(&self.proxy_cgroup, self.ports)?;
        let failed = || DaemonError::io("the new network namespace");
        let held = namespace.try_clone().and_then(NetNamespace::from_fd);
        let served = Served {
            namespace: held.map_err(failed())?,
            sockets,
        };
        self.open.entry(id).or_default().push(served);
        Ok(namespace)
    }

    /// Listeners inside a namespace that exists, unless it is the host's or is served for this workload already.
    pub(super) fn serve(
        &mut self,
        id: WorkloadId,
        namespace: NetNamespace,
    ) -> Result<(), DaemonError> {
        let mut known = self.open.values().flatten();
        let same = |served: &Served| served.namespace.is(&namespace);
        if namespace.is(&self.host) || known.any(same) {
            return Ok(());
        }
        let sockets = Sockets::open_in(&self.proxy_cgroup, &namespace, self.ports)?;
        let served = Served { namespace, sockets };
        self.open.entry(id).or_default().push(served);
        Ok(())
    }

    /// Listeners in every namespace that the processes of a running workload live in.
    pub(super) fn find(&mut self, id: WorkloadId, cgroup: &Path) -> Result<(), DaemonError> {
        let found = NetNamespace::of_cgroup(cgroup, &self.host)
            .map_err(DaemonError::io(cgroup.display().to_string()))?;
        found
            .into_iter()
            .try_for_each(|namespace| self.serve(id, namespace))
    }

    /// The proxy's cgroup is another one: listeners in it, on these ports, instead of all there are. Where that fails the
    /// workload has none, and no way out; the others are served.
    pub(super) fn reopen(&mut self, ports: Ports) -> Vec<(WorkloadId, DaemonError)> {
        self.ports = ports;
        let mut failed = Vec::new();
        for (id, all) in &mut self.open {
            all.retain_mut(|served| {
                match Sockets::open_in(&self.proxy_cgroup, &served.namespace, ports) {
                    Ok(sockets) => served.sockets = sockets,
                    Err(error) => {
                        failed.push((*id, error));
                        return false;
                    }
                }
                true
            });
        }
        failed
    }

    /// The same, and how many of them are new.
    pub(super) fn find_more(
        &mut self,
        id: WorkloadId,
        cgroup: &Path,
    ) -> Result<usize, DaemonError> {
        let count = |open: &BTreeMap<WorkloadId, Vec<Served>>| open.get(&id).map_or(0, Vec::len);
        let before = count(&self.open);
        self.find(id, cgroup)?;
        Ok(count(&self.open).saturating_sub(before))
    }

    /// Closes those of a workload that is gone.
    pub(super) fn close(&mut self, id: WorkloadId) {
        self.open.remove(&id);
    }

    /// Hands those of one workload to the proxy process.
    pub(super) async fn tell_of(&self, id: WorkloadId, worker: &Worker) {
        for served in self.open.get(&id).into_iter().flatten() {
            tell(worker, id, &served.sockets).await;
        }
    }

    /// Hands the last ones of one workload to the proxy process, which has the others.
    pub(super) async fn tell_last(&self, id: WorkloadId, last: usize, worker: &Worker) {
        let all = self.open.get(&id).map(Vec::as_slice).unwrap_or_default();
        for served in all.iter().rev().take(last) {
            tell(worker, id, &served.sockets).await;
        }
    }

    /// Hands all of them to a proxy process that has just been started.
    pub(super) async fn tell_all(&self, worker: &Worker) {
        for (id, served) in &self.open {
            for served in served {
                tell(worker, *id, &served.sockets).await;
            }
        }
    }
}

async fn tell(worker: &Worker, id: WorkloadId, sockets: &Sockets) {
    let listening = sockets.listening;
    let fds: Vec<_> = sockets.descriptors().collect();
    worker.tell(&ToWorker::Listen { id, listening }, &fds).await;
}
