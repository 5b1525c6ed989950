//! The proxy as a whole: what the stages share, starting, reloading and stopping.
//! Place on the path: around it; `serve` is the path itself.
//! INVARIANT: bundle and settings are replaced as a whole, so that a request sees one version of each at a time.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use audit::{AuditError, Ledger, RefusalFacts};
use policies::{AgentId, Bundle, Reason, Tenant};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vault::Vault;

use crate::approvals::Approvals;
use crate::meter::Meter;
use crate::names::damper::Damper;
use crate::names::pool::{NamePool, PoolError};
use crate::names::rate::Rate;
use crate::names::resolver;
use crate::origin::Origins;
use crate::serve::workload_facts;
use crate::settings::Settings;
use crate::share::Shares;
use crate::tls::ca::CaError;
use crate::tls::leaf::Leaves;
use crate::tls::roots::Root;
use crate::tls::verify::{RootsError, verification};
use crate::upstream::Upstream;
use crate::workload::{Workload, Workloads};
use crate::{accept, clock};

/// How long a secret that was opened for a call stays open for the next ones: for this, and at most twice this.
const OPEN_SECRETS: Duration = Duration::from_secs(60);

/// Why the proxy cannot start, or cannot take new settings.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The approvals that were open before the last stop cannot be read.
    #[error("open approvals cannot be read: {0}")]
    Approvals(#[from] AuditError),
    /// The pools of synthetic addresses do not serve.
    #[error("the address pools do not serve: {0}")]
    Names(#[from] PoolError),
    /// The pools cannot change while addresses of the old ones are in use.
    #[error("the address pools cannot change while the proxy runs; restart it")]
    NamesChanged,
    /// Upstream could not be verified.
    #[error("upstream roots do not serve: {0}")]
    Roots(#[from] RootsError),
}

/// The sockets that the proxy serves; the kernel side sends agents to them. Non-blocking mode is set by [`Proxy::run`].
#[derive(Debug, Default)]
pub struct Listeners {
    /// Where redirected TCP connections arrive.
    pub tcp: Vec<std::net::TcpListener>,
    /// Where DNS over TCP arrives.
    pub dns_tcp: Vec<std::net::TcpListener>,
    /// Where DNS datagrams arrive.
    pub dns_udp: Vec<std::net::UdpSocket>,
}

/// More sockets, while the proxy runs: those inside a workload's own network namespace.
#[derive(Debug)]
pub struct Further {
    /// The sockets.
    pub listeners: Listeners,
    /// Cancelled when they are no longer served; connections end as at a stop.
    pub until: CancellationToken,
}

/// The path of a request, ready to serve. Cheap to clone.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

struct Shared {
    approvals: Approvals,
    bundle: RwLock<Arc<Bundle>>,
    damper: Damper<(Option<AgentId>, Reason, String)>,
    leaves: Leaves,
    ledger: Ledger,
    meter: Arc<dyn Meter>,
    names: NamePool,
    origins: Arc<dyn Origins>,
    questions: Rate,
    settings: RwLock<Arc<Settings>>,
    shares: Shares,
    upstream: Upstream,
    vault: Arc<Vault>,
    workloads: Arc<Workloads>,
}

impl Proxy {
    /// Prepares the path; nothing is served before [`Proxy::run`].
    ///
    /// # Errors
    /// Unusable pools or roots, or a ledger whose open approvals cannot be read.
    pub fn new(
        bundle: Bundle,
        ledger: Ledger,
        vault: Arc<Vault>,
        origins: Arc<dyn Origins>,
        workloads: Arc<Workloads>,
        meter: Arc<dyn Meter>,
        settings: Settings,
    ) -> Result<Self, StartError> {
        let names = NamePool::new(settings.names, &settings.limits)?;
        names.preassign(&bundle, Instant::now());
        let tls = verification(&settings.extra_roots)?;
        Ok(Self(Arc::new(Shared {
            approvals: Approvals::open(ledger.clone())?,
            bundle: RwLock::new(Arc::new(bundle)),
            damper: Damper::default(),
            leaves: Leaves::new(Arc::clone(&vault)),
            upstream: Upstream::new(tls, ledger.clone(), Arc::clone(&meter)),
            ledger,
            meter,
            names,
            origins,
            questions: Rate::default(),
            settings: RwLock::new(Arc::new(settings)),
            shares: Shares::default(),
            vault,
            workloads,
        })))
    }

    /// Serves until `stop`, then lets open calls finish for `limits.drain` and cuts the rest.
    /// A listener that cannot be served is left out, loudly: the kernel side then has nowhere to send to, and agents are refused.
    pub async fn run(
        self,
        listeners: Listeners,
        mut further: mpsc::Receiver<Further>,
        stop: CancellationToken,
    ) {
        let tasks = TaskTracker::new();
        let cut = self.0.upstream.cut.clone();
        let settings = self.settings();
        // Whose a connection is comes out after accept; the shares hold all of them below twice the bound.
        let room = settings.limits.connections.saturating_mul(2);
        let room = Arc::new(Semaphore::new(room.min(Semaphore::MAX_PERMITS)));
        let helpers = CancellationToken::new();
        self.spawn(listeners, &room, &tasks, &stop, &cut);
        let sweeping = {
            let (this, ended, idle) = (self.clone(), helpers.clone(), settings.limits.idle);
            tokio::spawn(async move {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = this.0.approvals.sweep() => {}
                    () = this.0.upstream.sweep(idle) => {}
                    () = forget_secrets(&this.0.vault) => {}
                }
            })
        };
        loop {
            let Further { listeners, until } = tokio::select! {
                () = stop.cancelled() => break,
                Some(further) = further.recv() => further,
            };
            // Ends with the proxy, or before it.
            let ended = stop.child_token();
            self.spawn(listeners, &room, &tasks, &ended, &cut);
            tasks.spawn(async move {
                tokio::select! {
                    () = until.cancelled() => ended.cancel(),
                    () = ended.cancelled() => {}
                }
            });
        }
        tasks.close();
        if tokio::time::timeout(settings.limits.drain, tasks.wait())
            .await
            .is_err()
        {
            tracing::info!(
                open = tasks.len(),
                "cutting the connections that did not end in time"
            );
            cut.cancel();
            tasks.wait().await;
        }
        helpers.cancel();
        // What it holds (the ledger among it) is let go before this returns.
        if let Err(error) = sweeping.await {
            tracing::error!(%error, "the sweeper failed");
        }
    }

    fn spawn(
        &self,
        listeners: Listeners,
        room: &Arc<Semaphore>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        cut: &CancellationToken,
    ) {
        for listener in listeners.tcp.into_iter().filter_map(tcp_listener) {
            let serving = accept::accept(
                self.clone(),
                listener,
                Arc::clone(room),
                tasks.clone(),
                stop.clone(),
                cut.clone(),
            );
            tasks.spawn(serving);
        }
        for listener in listeners.dns_tcp.into_iter().filter_map(tcp_listener) {
            let serving = resolver::tcp(self.clone(), listener, tasks.clone(), stop.clone());
            tasks.spawn(serving);
        }
        for socket in listeners.dns_udp.into_iter().filter_map(udp_socket) {
            tasks.spawn(resolver::udp(self.clone(), socket, stop.clone()));
        }
    }

    /// Puts another bundle in force; requests that are being decided finish under the one they began with.
    pub fn replace_bundle(&self, bundle: Bundle) {
        self.0.names.preassign(&bundle, Instant::now());
        *self
            .0
            .bundle
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(bundle);
    }

    /// The bundle in force.
    #[must_use]
    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(&self.0.bundle.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts other settings in force for the connections and calls from now on. Idle upstream connections are closed.
    ///
    /// # Errors
    /// Unusable roots, or other pools than at the start. The settings in force stay in force then.
    pub fn replace_settings(&self, settings: Settings) -> Result<(), StartError> {
        let tls = verification(&settings.extra_roots)?;
        let mut current = self
            .0
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if current.names != settings.names {
            return Err(StartError::NamesChanged);
        }
        *current = Arc::new(settings);
        self.0.upstream.replace(tls);
        Ok(())
    }

    /// The approvals that wait, and those that were answered lately.
    #[must_use]
    pub fn approvals(&self) -> &Approvals {
        &self.0.approvals
    }

    /// The root certificates of a tenant as PEM, for the trust stores of its agents: one, or two while a rotation is not
    /// finished. Made the first time they are asked for.
    ///
    /// # Errors
    /// The vault cannot be read or written, or holds something else than a CA.
    pub fn ca_pem(&self, tenant: &Tenant) -> Result<String, CaError> {
        Ok(self.0.leaves.roots(tenant)?.pem())
    }

    /// The same, one by one, the current root last.
    ///
    /// # Errors
    /// As `ca_pem`.
    pub fn ca_roots(&self, tenant: &Tenant) -> Result<Vec<Root>, CaError> {
        Ok(self.0.leaves.roots(tenant)?.shown(&self.live(tenant)))
    }

    /// A new root for a tenant. `publish` is given both, and puts them where workloads find them; workloads that live then are
    /// shown leaves of the former root until they end. Blocks.
    ///
    /// # Errors
    /// A rotation is not finished, or the vault or `publish` fails: the former root alone stays in force.
    pub fn rotate_ca(
        &self,
        tenant: &Tenant,
        publish: impl FnOnce(&str) -> std::io::Result<()>,
    ) -> Result<Vec<Root>, CaError> {
        let rotated = self.0.leaves.change(tenant, |roots, vault| {
            roots.rotate(vault, tenant, publish, || self.live(tenant))
        })?;
        Ok(rotated.shown(&self.live(tenant)))
    }

    /// Ends the time of a former root. Blocks.
    ///
    /// # Errors
    /// There is none; a workload trusts nothing else and `force` is not given; the vault or `publish` fails.
    pub fn finish_ca(
        &self,
        tenant: &Tenant,
        publish: impl FnOnce(&str) -> std::io::Result<()>,
        force: bool,
    ) -> Result<Vec<Root>, CaError> {
        let finished = self.0.leaves.change(tenant, |roots, vault| {
            roots.finish(vault, tenant, publish, &self.live(tenant), force)
        })?;
        Ok(finished.shown(&self.live(tenant)))
    }

    fn live(&self, tenant: &Tenant) -> std::collections::BTreeSet<policies::WorkloadId> {
        let all = self.workloads().list().into_iter();
        all.filter(|workload| workload.agent.tenant == *tenant)
            .map(|workload| workload.id)
            .collect()
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(
            &self
                .0
                .settings
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    pub(crate) fn damper(&self) -> &Damper<(Option<AgentId>, Reason, String)> {
        &self.0.damper
    }

    pub(crate) fn leaves(&self) -> &Leaves {
        &self.0.leaves
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    pub(crate) fn meter(&self) -> &dyn Meter {
        &*self.0.meter
    }

    pub(crate) fn names(&self) -> &NamePool {
        &self.0.names
    }

    pub(crate) fn origins(&self) -> &dyn Origins {
        &*self.0.origins
    }

    pub(crate) fn questions(&self) -> &Rate {
        &self.0.questions
    }

    pub(crate) fn shares(&self) -> &Shares {
        &self.0.shares
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.0.upstream
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.0.vault
    }

    pub(crate) fn workloads(&self) -> &Workloads {
        &self.0.workloads
    }

    /// Records a refusal that no request carries.
    pub(crate) async fn record_refusal(
        &self,
        workload: Option<&Workload>,
        reason: Reason,
        host: String,
        detail: String,
        left_out: u64,
    ) {
        let tenant = workload.map_or_else(Ledger::host_tenant, |workload| {
            workload.agent.tenant.clone()
        });
        let detail = if left_out == 0 {
            detail
        } else {
            format!("{detail} {left_out} more before it were not recorded.")
        };
        let facts = RefusalFacts {
            agent: workload.map(|workload| workload.agent.clone()),
            workload: workload.map(workload_facts),
            host: Some(host),
            detail,
            ..RefusalFacts::new(tenant, reason, clock::now())
        };
        if let Err(error) = self.0.ledger.refused(facts).await {
            tracing::error!(%error, %reason, "a refusal could not be recorded");
        }
    }
}

/// Wipes open secrets that no call may need any more, for as long as the proxy runs.
async fn forget_secrets(vault: &Vault) {
    loop {
        tokio::time::sleep(OPEN_SECRETS).await;
        vault.forget_older(OPEN_SECRETS);
    }
}

fn tcp_listener(listener: std::net::TcpListener) -> Option<TcpListener> {
    let served = listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener));
    served
        .inspect_err(|error| tracing::error!(%error, "a listener cannot be served"))
        .ok()
}

fn udp_socket(socket: std::net::UdpSocket) -> Option<UdpSocket> {
    let served = socket
        .set_nonblocking(true)
        .and_then(|()| UdpSocket::from_std(socket));
    served
        .inspect_err(|error| tracing::error!(%error, "a DNS socket cannot be served"))
        .ok()
}
