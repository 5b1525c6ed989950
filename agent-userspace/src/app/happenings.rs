//! What the enforcer reports of the host: faults that its watchdog found, a panic, layers that changed.
//! Beside the path: written into the host's log, counted, and shown by `status` and `doctor`.
//! INVARIANT: a panic cuts every connection before it is written down.

use audit::HostEvent;

use super::state::{Shared, now};
use crate::daemon::protocol::Happening;
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
