//! What the parts of the proxy process share: the path, the stores, and the configuration in force.
//! Read by the control socket and the metrics; written by start, reload and the enforcer's events.
//! INVARIANT: one writer at a time; a reader sees one whole configuration.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use audit::{HostEvent, Ledger, WorkloadFacts};
use mitm_proxy::{Proxy, Workload, Workloads};
use policies::{AgentId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use vault::Vault;

use super::Command;
use crate::config::{Accounts, Config, Paths, write_disabled};
use crate::control::{FaultsReport, PeerRefused, ReloadReport};
use crate::daemon::protocol::Switched;
use crate::layers::LayerReport;
use crate::metrics::Metrics;

/// How long the enforcer may take to confirm a switch. It is a few milliseconds' work.
const TIME_TO_SWITCH: Duration = Duration::from_secs(10);

/// The proxy process.
pub(crate) struct Shared {
    pub(crate) proxy: Proxy,
    pub(crate) ledger: Ledger,
    pub(crate) vault: Arc<Vault>,
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started_at: Timestamp,
    pub(crate) paths: Paths,
    pub(super) governed: String,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) reloading: tokio::sync::Mutex<()>,
    pub(super) live: RwLock<Live>,
}

/// What can change while it runs.
pub(crate) struct Live {
    pub(crate) config: Arc<Config>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) disabled: BTreeSet<AgentId>,
    pub(crate) layers: Vec<LayerReport>,
    pub(crate) reload: ReloadReport,
    /// Who stopped every agent, and when, where somebody did.
    pub(crate) panic: Option<String>,
    /// What the watchdog has found.
    pub(crate) faults: FaultsReport,
    /// When a refusal on the control socket was last recorded.
    pub(crate) refusal_recorded: Option<Instant>,
}

impl Shared {
    /// The settings in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.read(|live| Arc::clone(&live.config))
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&Live) -> T) -> T {
        look(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut Live) -> T) -> T {
        change(&mut self.live.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `identify` with what this instance knows: the governed cgroups, the control group and the accounts.
    pub(crate) fn identify<T>(
        &self,
        identify: impl FnOnce(&[String], Option<&str>, &Accounts) -> T,
    ) -> T {
        let (config, accounts) =
            self.read(|live| (Arc::clone(&live.config), Arc::clone(&live.accounts)));
        // Workloads lie elsewhere, too: units and containers that were attached.
        let workloads = self.workloads.list();
        let elsewhere = workloads.into_iter().map(|workload| workload.cgroup);
        let governed: Vec<String> = std::iter::once(self.governed.clone())
            .chain(elsewhere)
            .collect();
        identify(&governed, config.control.group.as_deref(), &accounts)
    }

    /// The kill switch: in force here, in the kernel, which confirms it, and stored for the next daemon.
    ///
    /// Storing waits for a disk, and an agent that is switched off must not: it is cut meanwhile. A crash before it is stored
    /// leaves an agent that the next daemon switches on again, and a command that has not said that it is off.
    pub(crate) async fn set_disabled(
        &self,
        agent: &AgentId,
        disabled: bool,
    ) -> Result<Switched, SwitchError> {
        let (reply, confirmed) = oneshot::channel();
        let command = Command::SetDisabled {
            agent: agent.clone(),
            disabled,
            reply,
        };
        if disabled {
            self.workloads.set_disabled(agent, true);
            // Whether it was taken, the answer tells.
            let _ = self.commands.send(command).await;
            self.store_switch(agent, true)?;
        } else {
            self.store_switch(agent, false)?;
            self.workloads.set_disabled(agent, false);
            let _ = self.commands.send(command).await;
        }
        let switched = match tokio::time::timeout(TIME_TO_SWITCH, confirmed).await {
            Ok(Ok(switched)) => switched,
            Ok(Err(_)) => return Err(SwitchError::NoEnforcer),
            Err(_) => return Err(SwitchError::Late),
        };
        match switched.failed.as_slice() {
            [] => Ok(switched),
            failed => Err(SwitchError::Kernel(failed.join("; "))),
        }
    }

    fn store_switch(&self, agent: &AgentId, disabled: bool) -> Result<(), SwitchError> {
        self.write(|live| {
            let mut wanted = live.disabled.clone();
            let changed = if disabled {
                wanted.insert(agent.clone())
            } else {
                wanted.remove(agent)
            };
            if changed {
                // A crash after this line leaves the agent switched as asked.
                write_disabled(&self.paths, &wanted)?;
                live.disabled = wanted;
            }
            Ok::<_, io::Error>(())
        })?;
        Ok(())
    }

    /// Counts a peer that was refused on the control socket, and records it: at most once a second, so that
    /// an agent cannot fill the log by knocking.
    pub(crate) async fn control_refused(&self, refused: &PeerRefused) {
        self.metrics.control_refused();
        tracing::warn!(%refused, "refused on the control socket");
        let due = self.write(|live| {
            let due = live
                .refusal_recorded
                .is_none_or(|at| at.elapsed().as_secs() >= 1);
            if due {
                live.refusal_recorded = Some(Instant::now());
            }
            due
        });
        if !due {
            return;
        }
        let workload = match refused {
            PeerRefused::Governed { cgroup, .. } => self
                .workloads
                .list()
                .into_iter()
                .find(|found| found.cgroup == *cgroup),
            PeerRefused::NotAMember { .. } | PeerRefused::Unknown(_) => None,
        };
        let tenant = workload
            .as_ref()
            .map(|workload| workload.agent.tenant.clone());
        let event = HostEvent::ControlRefused {
            workload: workload.as_ref().map(facts),
            by: refused.user().to_owned(),
            detail: refused.to_string(),
        };
        self.record(tenant.as_ref(), event).await;
    }

    /// Records an event for which nobody waits; a log that cannot be written is loud.
    pub(crate) async fn record(&self, tenant: Option<&policies::Tenant>, event: HostEvent) {
        if let Err(error) = self.ledger.event(tenant, event).await {
            tracing::error!(%error, "an event cannot be recorded");
        }
    }
}

/// A workload as records describe it.
pub(crate) fn facts(workload: &Workload) -> WorkloadFacts {
    WorkloadFacts {
        id: workload.id,
        pid: workload.pid,
        exe: workload.exe.clone(),
        cgroup: Some(workload.cgroup.clone()),
    }
}

/// The time of this moment.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Why the kill switch did not take effect everywhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    /// The kernel side is not as it was asked for.
    #[error("the agent is switched in the proxy; {0}")]
    Kernel(String),
    /// The enforcer did not answer.
    #[error(
        "the enforcer did not confirm it within {} s; the agent is switched in the proxy",
        TIME_TO_SWITCH.as_secs()
    )]
    Late,
    /// The enforcer is gone.
    #[error("the enforcer does not listen; the agent is switched in the proxy only")]
    NoEnforcer,
    /// The switch cannot be stored.
    #[error("the switch cannot be stored: {0}")]
    Store(#[from] io::Error),
}
