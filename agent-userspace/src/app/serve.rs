//! The proxy process's main function: start every part, say ready, carry out the enforcer's events, drain.
//! Called by `daemon::worker` once privileges are dropped.
//! INVARIANT: a reload takes effect whole or not at all, and either way it is recorded.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use audit::HostEvent;
use mitm_proxy::{Further, Proxy, Workload, Workloads};
use policies::{Bundle, Diagnostic, Diagnostics, Reason, Tenant, WorkloadId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::happenings;
use super::refusals::Refusals;
use super::start::{Prepared, open_ledger, open_vault, ready, settings};
use super::state::{Live, Shared, facts, now};
use super::{AdmitRefused, Command, Event, Ready, StartError, WorkerParts};
use crate::config::{Paths, Snapshot, public_directory, read_disabled, replace};
use crate::control::{self, FaultsReport, ReloadReport};
use crate::daemon::protocol::Refusal;
use crate::metrics::{self, Metrics};

/// How many listeners of network namespaces may wait to be served.
const FURTHER: usize = 64;
/// How often it is looked whether a summary of the kernel's refusals is due.
const SUMMARY: Duration = Duration::from_secs(5);

/// Serves until [`Event::Stop`], or until the enforcer is gone.
///
/// # Errors
/// Something that is needed to serve cannot be opened. Nothing was served then.
pub async fn serve(parts: WorkerParts) -> Result<(), StartError> {
    let WorkerParts {
        prepared,
        paths,
        listeners,
        control,
        origins,
        workloads,
        layers,
        governed,
        mut events,
        commands,
    } = parts;
    let Prepared {
        snapshot,
        config,
        master,
    } = prepared;
    let metrics = Arc::new(Metrics::new());
    metrics.layers(&layers);

    let settings = settings(&config, &snapshot)?;
    let bundle = Bundle::load(&snapshot.sources())?;
    let vault = Arc::new(open_vault(&paths, master)?);
    let ledger = open_ledger(&paths, Some(Arc::clone(&metrics)))?;
    ledger.set_reads(config.audit.reads);
    let disabled = read_disabled(&paths).map_err(|source| StartError::Disabled {
        path: paths.disabled_file(),
        source,
    })?;
    let registry = registry(workloads, &disabled);
    let first = ready(&bundle, disabled.iter().cloned());
    let proxy = Proxy::new(
        bundle,
        ledger.clone(),
        Arc::clone(&vault),
        origins,
        Arc::clone(&registry),
        Arc::clone(&metrics) as Arc<dyn mitm_proxy::Meter>,
        settings,
    )?;
    write_roots(&paths, &proxy)?;

    let stop = CancellationToken::new();
    let metrics_address = config.metrics.listen;
    let reload = ReloadReport {
        at: now(),
        ok: true,
        errors: Vec::new(),
    };
    let live = Live {
        config: Arc::new(config),
        accounts: Arc::new(snapshot.accounts().clone()),
        disabled,
        layers,
        reload,
        refusal_recorded: None,
        panic: None,
        faults: FaultsReport::default(),
    };
    let shared = Arc::new(Shared {
        proxy: proxy.clone(),
        ledger,
        vault,
        workloads: registry,
        metrics,
        started_at: now(),
        paths,
        governed,
        commands: commands.clone(),
        reloading: tokio::sync::Mutex::new(()),
        live: RwLock::new(live),
    });
    shared
        .metrics
        .loaded(&first.version.to_string(), true, now());
    serve_metrics(&shared, metrics_address, &stop).await?;
    shared
        .ledger
        .event(
            None,
            HostEvent::DaemonStarted {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
        )
        .await?;
    shared
        .ledger
        .event(
            None,
            HostEvent::BundleLoaded {
                version: first.version,
            },
        )
        .await?;
    let (further, more) = mpsc::channel(FURTHER);
    let path = tokio::spawn(proxy.run(listeners, more, stop.clone()));
    let control = tokio::spawn(control::serve(control, Arc::clone(&shared), stop.clone()));
    // The enforcer publishes the ports only now, so that no agent reaches a half-started proxy.
    let _ = commands.send(Command::Ready(first)).await;

    let told = follow(&shared, &mut events, &further).await;
    stop.cancel();
    if told {
        let _ = path.await;
        shared.record(None, HostEvent::DaemonStopped).await;
    }
    control.abort();
    Ok(())
}

/// Carries out events until told to stop (true) or until the enforcer is gone (false).
async fn follow(
    shared: &Arc<Shared>,
    events: &mut mpsc::Receiver<Event>,
    further: &mpsc::Sender<Further>,
) -> bool {
    let mut namespaces: HashMap<WorkloadId, CancellationToken> = HashMap::new();
    let mut refusals = Refusals::default();
    let mut summary = tokio::time::interval(SUMMARY);
    summary.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let told = loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = summary.tick() => {
                refusals.summarise(shared).await;
                continue;
            }
        };
        let Some(event) = event else {
            break false;
        };
        match event {
            Event::Admit {
                workload,
                recorded,
                reply,
            } => {
                let admitted = admit(shared, workload.clone()).await;
                if let Err(AdmitRefused { reason, detail }) = admitted.clone()
                    && !recorded.contains(&reason)
                {
                    let (agent, refusal) = (&workload.agent, Refusal { reason, detail });
                    happenings::refused(shared, Some(agent), Some(&workload), &refusal, 1).await;
                }
                drop(reply.send(admitted));
            }
            Event::KernelRefusals(counts) => shared.metrics.kernel_refusals(&counts),
            Event::KernelRefused(refusal) => refusals.record(shared, refusal).await,
            Event::Happened(happening) => happenings::take(shared, happening).await,
            Event::Layers(layers) => happenings::layers(shared, layers),
            Event::Listen { id, listeners } => {
                let until = namespaces.entry(id).or_default().clone();
                let _stopping = further.send(Further { listeners, until }).await;
            }
            Event::Reload { snapshot, reply } => {
                // Loading a bundle takes its time, and workloads must not wait for it.
                let shared = Arc::clone(shared);
                tokio::spawn(async move { reply.send(reload(&shared, snapshot).await) });
            }
            Event::Retire(id) => {
                if let Some(until) = namespaces.remove(&id) {
                    until.cancel();
                }
                if let Some(workload) = shared.workloads.remove(id) {
                    refusals.ended(&workload);
                    let event = HostEvent::WorkloadEnded {
                        agent: workload.agent.clone(),
                        workload: facts(&workload),
                    };
                    shared.record(Some(&workload.agent.tenant), event).await;
                }
            }
            Event::Started { id, pid, exe } => {
                if let Some(workload) = shared.workloads.get(id) {
                    shared.workloads.insert(Workload {
                        pid: Some(pid),
                        exe,
                        ..workload
                    });
                }
            }
            Event::Stop => break true,
        }
    };
    refusals.finish(shared).await;
    told
}

/// The live workloads that a former daemon admitted, and the agents that are switched off.
fn registry<'a>(
    workloads: Vec<Workload>,
    disabled: impl IntoIterator<Item = &'a policies::AgentId>,
) -> Arc<Workloads> {
    let registry = Workloads::new();
    for workload in workloads {
        registry.insert(workload);
    }
    for agent in disabled {
        registry.set_disabled(agent, true);
    }
    Arc::new(registry)
}

/// A workload may start if its agent is configured and switched on, and its start is on record.
async fn admit(shared: &Shared, workload: Workload) -> Result<(), AdmitRefused> {
    let agent = workload.agent.clone();
    let refused = |reason, detail| Err(AdmitRefused { reason, detail });
    if shared.proxy.bundle().agent(&agent).is_none() {
        return refused(
            Reason::AgentUnknown,
            format!("there is no agent {agent}; agents are configured in agents.d/*.toml"),
        );
    }
    if shared.workloads.is_disabled(&agent) {
        return refused(
            Reason::AgentDisabled,
            format!("{agent} is switched off; `sluice agents enable {agent}` switches it on"),
        );
    }
    let event = HostEvent::WorkloadStarted {
        agent: agent.clone(),
        workload: facts(&workload),
    };
    if let Err(error) = shared.ledger.event(Some(&agent.tenant), event).await {
        return refused(
            Reason::AuditUnavailable,
            format!("the start cannot be recorded: {error}"),
        );
    }
    shared.workloads.insert(workload);
    Ok(())
}

/// Puts a new configuration in force, or says why the old one stays.
async fn reload(shared: &Arc<Shared>, snapshot: Snapshot) -> Result<Ready, Diagnostics> {
    // One at a time, in the order in which they came.
    let _reloading = shared.reloading.lock().await;
    let taking = Arc::clone(shared);
    let taken = tokio::task::spawn_blocking(move || take(&taking, &snapshot)).await;
    match taken.unwrap_or_else(|_| Err(whole(shared, "loading it failed unexpectedly".to_owned())))
    {
        Ok(ready) => {
            let version = ready.version;
            shared.metrics.loaded(&version.to_string(), true, now());
            shared
                .record(None, HostEvent::BundleLoaded { version })
                .await;
            Ok(ready)
        }
        Err(diagnostics) => {
            tracing::error!(%diagnostics, "the new configuration is refused, the old one stays");
            shared
                .metrics
                .loaded(&shared.proxy.bundle().version().to_string(), false, now());
            let errors = diagnostics.0.iter().map(ToString::to_string).collect();
            shared.write(|live| {
                live.reload = ReloadReport {
                    at: now(),
                    ok: false,
                    errors,
                }
            });
            shared
                .record(
                    None,
                    HostEvent::BundleRejected {
                        detail: diagnostics.to_string(),
                    },
                )
                .await;
            Err(diagnostics)
        }
    }
}

/// Everything that can fail comes before the first change.
fn take(shared: &Shared, snapshot: &Snapshot) -> Result<Ready, Diagnostics> {
    let config = snapshot.config()?;
    let settings = settings(&config, snapshot)?;
    let bundle = Bundle::load(&snapshot.sources())?;
    let ready = ready(&bundle, shared.read(|live| live.disabled.clone()));
    shared
        .proxy
        .replace_settings(settings)
        .map_err(|error| whole(shared, error.to_string()))?;
    shared.proxy.replace_bundle(bundle);
    shared.ledger.set_reads(config.audit.reads);
    shared.write(|live| {
        live.config = Arc::new(config);
        live.accounts = Arc::new(snapshot.accounts().clone());
        live.reload = ReloadReport {
            at: now(),
            ok: true,
            errors: Vec::new(),
        };
    });
    // A tenant without a certificate file can still be served; only new workloads of it would miss the root.
    if let Err(error) = write_roots(&shared.paths, &shared.proxy) {
        tracing::error!(%error, "a tenant's certificate cannot be written");
    }
    Ok(ready)
}

/// What is wrong with the configuration as a whole.
fn whole(shared: &Shared, message: String) -> Diagnostics {
    let file = shared.paths.config.join("config.toml");
    Diagnostics(vec![Diagnostic {
        file,
        line: 1,
        column: 1,
        message,
        hint: None,
    }])
}

/// Writes every tenant's root certificate for the launcher, and for people.
fn write_roots(paths: &Paths, proxy: &Proxy) -> Result<(), StartError> {
    let directory = paths.ca_dir();
    public_directory(&directory).map_err(|source| StartError::Directory {
        path: directory,
        source,
    })?;
    let bundle = proxy.bundle();
    let mut tenants: Vec<&Tenant> = bundle.agents().map(|agent| &agent.id().tenant).collect();
    tenants.sort();
    tenants.dedup();
    for tenant in tenants {
        let pem = proxy.ca_pem(tenant)?;
        let path = paths.ca_pem(tenant);
        replace(&path, pem.as_bytes(), 0o644)
            .map_err(|source| StartError::Root { path, source })?;
    }
    Ok(())
}

async fn serve_metrics(
    shared: &Arc<Shared>,
    address: Option<std::net::SocketAddr>,
    stop: &CancellationToken,
) -> Result<(), StartError> {
    let Some(address) = address else {
        return Ok(());
    };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Metrics { address, source })?;
    let shared = Arc::clone(shared);
    let render = move || shared.metrics.render(shared.proxy.approvals().pending());
    tokio::spawn(metrics::serve(listener, render, stop.clone()));
    Ok(())
}
