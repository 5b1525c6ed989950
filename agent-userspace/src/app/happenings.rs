//! What the enforcer reports of the host: faults that its watchdog found, a panic, layers that changed, workloads that may not start.
//! Beside the path: written into the host's log, counted, and shown by `status` and `doctor`.
//! INVARIANT: a panic cuts every connection before it is written down.

use audit::{HostEvent, Ledger, RefusalFacts};
use mitm_proxy::Workload;
use mitm_proxy::meter::Meter as _;
use policies::AgentId;

use super::state::{Shared, facts, now};
use crate::daemon::protocol::{Happening, Refusal};
use crate::layers::LayerReport;

/// Acts on it, shows it, records it.
pub(super) async fn take(shared: &Shared, happening: Happening) {
    match happening {
        Happening::Fault {
            faults,
            repaired,
            outcome,
        } => {
            let names: Vec<String> = faults
                .iter()
                .map(|(name, subject)| format!("{name} {subject}"))
                .collect();
            let names = names.join(", ");
            for (name, _) in &faults {
                shared.metrics.enforcement_fault(name, repaired);
            }
            shared.write(|live| {
                live.faults.found = live.faults.found.saturating_add(faults.len() as u64);
                live.faults.last = Some(format!("{}: {names}: {outcome}", now()));
                live.faults.broken = !repaired;
            });
            let event = HostEvent::EnforcementFault {
                faults: names,
                outcome,
            };
            shared.record(None, event).await;
        }
        Happening::Refused {
            agent,
            refusal,
            times,
        } => refused(shared, agent.as_ref(), None, &refusal, times).await,
        Happening::Panic {
            engaged,
            by,
            detail,
            record,
        } => {
            shared.workloads.set_panic(engaged);
            shared.metrics.panic(engaged);
            shared.write(|live| live.panic = engaged.then(|| format!("{detail}, by {by}")));
            if record {
                let event = if engaged {
                    HostEvent::PanicEngaged { by, detail }
                } else {
                    HostEvent::PanicLifted { by, detail }
                };
                shared.record(None, event).await;
            }
        }
    }
}

/// Counts that a workload may not start, or a bundle does not fit, and writes it down under the same name: in the tenant's
/// log where an agent of that tenant is configured, else in the host's.
pub(super) async fn refused(
    shared: &Shared,
    agent: Option<&AgentId>,
    workload: Option<&Workload>,
    refusal: &Refusal,
    times: u64,
) {
    let bundle = shared.proxy.bundle();
    // Labels and logs are of what is configured, not of what somebody mistyped.
    let known = agent.filter(|agent| bundle.agent(agent).is_some());
    let tenant = known.map(|agent| &agent.tenant);
    for _ in 0..times {
        shared.metrics.refused(tenant, known, refusal.reason);
    }
    let log = tenant.cloned().unwrap_or_else(Ledger::host_tenant);
    let mut record = RefusalFacts::new(log, refusal.reason, now());
    record.agent = agent.cloned();
    record.workload = workload.map(facts);
    record.policy_version = Some(bundle.version());
    record.detail.clone_from(&refusal.detail);
    if times > 1 {
        record.detail.push_str(&format!(" ({times} times)"));
    }
    if let Err(error) = shared.ledger.refused(record).await {
        tracing::error!(%error, "a refusal cannot be recorded");
    }
}

/// The enforcer's layers, anew; those that this process found out about itself stay.
pub(super) fn layers(shared: &Shared, mut layers: Vec<LayerReport>) {
    shared.write(|live| {
        let own = live.layers.drain(..);
        let own: Vec<LayerReport> = own
            .filter(|layer| layers.iter().all(|new| new.name != layer.name))
            .collect();
        layers.extend(own);
        live.layers.clone_from(&layers);
    });
    shared.metrics.layers(&layers);
}
