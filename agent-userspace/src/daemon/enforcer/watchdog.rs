//! The watchdog: looks every second whether the kernel side is as this daemon put it, and puts it back.
//! Beside the path: what it finds is somebody's doing who has root's rights, or a tool's that cleans up too much.
//! INVARIANT: workloads stand still while a wall is missing; where it cannot be put back they end, and none starts.

use super::Enforcer;
use crate::daemon::error::in_full;
use crate::daemon::listeners::Sockets;
use crate::daemon::protocol::{Happening, ToWorker};
use crate::enforce::{EnforceError, Fault, Ports};

impl Enforcer {
    /// One look.
    pub(super) async fn watch(&mut self) {
        self.follow_panic().await;
        let faults = self.enforcement.faults();
        if !faults.is_empty() {
            self.found(&faults).await;
        } else if self.broken.is_some() {
            self.mended();
        }
        self.tell_happenings().await;
    }

    async fn found(&mut self, faults: &[Fault]) {
        for fault in faults {
            tracing::error!(%fault, "the kernel side is not as it was put");
        }
        if let Err(error) = self.enforcement.freeze() {
            tracing::error!(error = in_full(&error), "the workloads do not stand still");
        }
        let repaired = self.put_back().await;
        let outcome = match &repaired {
            Ok(()) => self.go_on(faults),
            Err(why) => self.give_up(why),
        };
        self.broken = repaired.err();
        self.happened(Happening::Fault {
            faults: faults
                .iter()
                .map(|fault| (fault.name().to_owned(), fault.subject().to_owned()))
                .collect(),
            repaired: self.broken.is_none(),
            outcome,
        });
        let layers = self.enforcement.layers();
        self.tell(&ToWorker::Layers { layers }, None).await;
    }

    /// What could not be put back is as it must be again: somebody else put it back.
    fn mended(&mut self) {
        if let Err(error) = self.enforcement.thaw() {
            return tracing::error!(error = in_full(&error), "workloads still stand");
        }
        self.broken = None;
        tracing::warn!("the kernel side is as it must be again");
        self.happened(Happening::Fault {
            faults: Vec::new(),
            repaired: true,
            outcome: "everything is as it must be again".to_owned(),
        });
    }

    /// Repairs, and looks again.
    async fn put_back(&mut self) -> Result<(), String> {
        let repaired = self.enforcement.repair().map_err(|error| in_full(&error))?;
        if repaired.listeners_lost {
            self.reopen().await?;
        }
        match self.enforcement.faults().as_slice() {
            [] => Ok(()),
            left => {
                let left: Vec<String> = left.iter().map(ToString::to_string).collect();
                Err(format!("still so after a repair: {}", left.join(", ")))
            }
        }
    }

    /// Listeners in the proxy's new cgroup; the proxy process starts again with them.
    async fn reopen(&mut self) -> Result<(), String> {
        let before = self.given.sockets.listening;
        // Other ports, since the proxy process still has these.
        let preferred = Ports {
            proxy: before.proxy_port,
            resolver: before.resolver_port,
        };
        let proxy = self.enforcement.proxy_cgroup();
        self.given.sockets = Sockets::open(proxy, preferred).map_err(|error| error.to_string())?;
        let listening = self.given.sockets.listening;
        let ports = Ports {
            proxy: listening.proxy_port,
            resolver: listening.resolver_port,
        };
        for (id, error) in self.namespaces.reopen(ports) {
            tracing::error!(workload = id.0, %error, "its network namespace cannot be served; it is cut off");
        }
        if self.published {
            self.publish().map_err(|error| in_full(&error))?;
        }
        if let Some(worker) = &self.worker {
            worker.kill();
        }
        Ok(())
    }

    /// What a workload opened while a wall was missing does not outlive that.
    fn go_on(&mut self, faults: &[Fault]) -> String {
        let was_open = faults
            .iter()
            .any(|fault| !matches!(fault, Fault::LinkUnpinned(_) | Fault::MapUnpinned(_)));
        let cut = if was_open {
            self.enforcement.cut_all()
        } else {
            Ok(Default::default())
        };
        let thawed = self.enforcement.thaw();
        let told = |error: EnforceError| in_full(&error);
        let mut outcome = "put back".to_owned();
        match cut {
            Ok(cut) if was_open => outcome.push_str(&format!(", {} sockets cut", cut.sockets)),
            Ok(_) => {}
            Err(error) => outcome.push_str(&format!(", sockets not cut: {}", told(error))),
        }
        if let Err(error) = thawed {
            outcome.push_str(&format!(", workloads still stand: {}", told(error)));
        }
        tracing::warn!(outcome, "the kernel side is as it must be again");
        outcome
    }

    fn give_up(&mut self, why: &str) -> String {
        tracing::error!(
            why,
            "the kernel side cannot be put back; every workload is killed"
        );
        let killed = match self.enforcement.kill_workloads() {
            Ok(()) => "every workload is killed".to_owned(),
            Err(error) => format!("workloads could not be killed: {}", in_full(&error)),
        };
        format!("not put back ({why}); {killed}")
    }
}
