//! What the parts of the proxy process share: the path, the stores, and the configuration in force.
//! Read by the control socket and the metrics; written by start, reload and the enforcer's events.
//! INVARIANT: one writer at a time; a reader sees one whole configuration.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use audit::{HostEvent, Ledger, WorkloadFacts};
use mitm_proxy::{Proxy, Workload, Workloads};
use policies::{AgentId, Timestamp};
use tokio::sync::mpsc;
use vault::Vault;

use super::Command;
use crate::config::{Accounts, Config, Paths, write_disabled};
use crate::control::{FaultsReport, PeerRefused, ReloadReport};
use crate::layers::LayerReport;
use crate::metrics::Metrics;

/// The proxy process.
pub(crate) struct Shared {
    pub(crate) proxy: Proxy,
    pub(crate) ledger: Ledger,
    pub(crate) vault: Arc<Vault>,
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) started_at: Timestamp,
    pub(super) paths: Paths,
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

    /// The kill switch: stored first, then in force here, then in the kernel.
    pub(crate) async fn set_disabled(
        &self,
        agent: &AgentId,
        disabled: bool,
    ) -> Result<(), SwitchError> {
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
        self.workloads.set_disabled(agent, disabled);
        let command = Command::SetDisabled {
            agent: agent.clone(),
            disabled,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| SwitchError::NoEnforcer)
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
    /// The enforcer is gone.
    #[error("the enforcer does not listen; the agent is switched in the proxy only")]
    NoEnforcer,
    /// The switch cannot be stored.
    #[error("the switch cannot be stored: {0}")]
    Store(#[from] io::Error),
}
