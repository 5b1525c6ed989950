//! What the proxy process counts and times, and where it is scraped.
//! Fed at the same points where records are written, with the same reasons; read by nobody inside.
//! INVARIANT: labels are names of the configuration or of closed enums, so the number of series is bounded by what is configured.

mod families;
mod labels;
mod scrape;

use std::time::Duration;

use mitm_proxy::meter::{AddressKind, CallMeasure, Decided, Meter, Stage};
use policies::{AgentId, Reason, Tenant, Timestamp};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::escapes::{self, EscapeState};
use crate::layers::{LayerReport, LayerState};
use families::Families;
use labels::{
    AnswerLabels, BundleLabels, CallLabels, EscapeLabels, FaultLabels, KindLabels, LayerLabels,
    Name, RefusalLabels,
};

pub(crate) use scrape::serve;

/// All metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    families: Families,
}

impl Metrics {
    /// Fresh metrics, all at zero.
    #[must_use]
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("sluice");
        let families = Families::register(&mut registry);
        Metrics { registry, families }
    }

    /// The enforcement layers as they stand now.
    pub fn layers(&self, layers: &[LayerReport]) {
        self.families.layer.clear();
        for layer in layers {
            for state in LayerState::ALL {
                let labels = LayerLabels {
                    layer: layer.name.clone(),
                    state: state.as_str(),
                };
                self.families
                    .layer
                    .get_or_create(&labels)
                    .set(i64::from(state == layer.state));
            }
        }
        for escape in escapes::classes(layers) {
            for state in EscapeState::ALL {
                let labels = EscapeLabels {
                    class: escape.class.as_str(),
                    state: state.as_str(),
                };
                self.families
                    .escape
                    .get_or_create(&labels)
                    .set(i64::from(state == escape.state));
            }
        }
    }

    /// How often the kernel refused since its maps were made, by kind. Totals, not increments.
    pub fn kernel_refusals(&self, counts: &[(String, u64)]) {
        use std::sync::atomic::Ordering::Relaxed;
        for (kind, count) in counts {
            self.families
                .kernel_refusals
                .get_or_create(&KindLabels { kind: kind.clone() })
                .inner()
                .store(*count, Relaxed);
        }
    }

    /// A configuration was loaded, or rejected.
    pub fn loaded(&self, version: &str, ok: bool, at: Timestamp) {
        let families = &self.families;
        families.bundle.clear();
        families
            .bundle
            .get_or_create(&BundleLabels {
                version: version.to_owned(),
            })
            .set(1);
        families.reload_ok.set(i64::from(ok));
        if ok {
            families.reload_at.set(at.as_millis() / 1_000);
        }
    }

    /// Records were committed to an audit log.
    pub fn audit_commit(&self, took: Duration, records: usize) {
        self.families.audit_commit.observe(took.as_secs_f64());
        self.families.audit_records.inc_by(records as u64);
    }

    /// The watchdog found a fault, and put it back or could not.
    pub fn enforcement_fault(&self, fault: &str, repaired: bool) {
        let labels = FaultLabels {
            fault: fault.to_owned(),
            outcome: if repaired { "repaired" } else { "broken" },
        };
        self.families
            .enforcement_faults
            .get_or_create(&labels)
            .inc();
    }

    /// Whether every agent is stopped.
    pub fn panic(&self, engaged: bool) {
        self.families.panic.set(i64::from(engaged));
    }

    /// Somebody was refused on the control socket.
    pub fn control_refused(&self) {
        self.families.control_refusals.inc();
    }

    /// Everything, in the OpenMetrics text format.
    ///
    /// # Errors
    /// Formatting failed.
    pub fn render(&self, approvals_pending: usize) -> Result<String, std::fmt::Error> {
        self.families
            .approvals_pending
            .set(i64::try_from(approvals_pending).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Meter for Metrics {
    fn call(&self, measure: &CallMeasure<'_>) {
        let labels = CallLabels {
            tenant: Name(measure.agent.tenant.clone()),
            agent: Name(measure.agent.name.clone()),
            connector: Name(measure.connector.clone()),
            capability: Name(measure.capability.name.clone()),
            decision: match measure.decision {
                Decided::Allow => "allow",
                Decided::Deny => "deny",
                Decided::Hold => "hold",
            },
        };
        self.families.calls.get_or_create(&labels).inc();
    }

    fn refused(&self, tenant: Option<&Tenant>, agent: Option<&AgentId>, reason: Reason) {
        let labels = RefusalLabels {
            tenant: tenant.map(ToString::to_string).unwrap_or_default(),
            agent: agent
                .map(|agent| agent.name.to_string())
                .unwrap_or_default(),
            reason: reason.as_str(),
        };
        self.families.refusals.get_or_create(&labels).inc();
    }

    fn stage(&self, stage: Stage, took: Duration) {
        let histogram = match stage {
            Stage::ApprovalWait => &self.families.approval_wait,
            Stage::Decision => &self.families.decision,
            Stage::Upstream => &self.families.upstream,
            Stage::Whole => &self.families.call,
        };
        histogram.observe(took.as_secs_f64());
    }

    fn name(&self, answered: bool) {
        let answer = if answered { "answered" } else { "refused" };
        self.families
            .names
            .get_or_create(&AnswerLabels { answer })
            .inc();
    }

    fn address_refused(&self, kind: AddressKind) {
        let kind = kind.as_str().to_owned();
        self.families
            .addresses_refused
            .get_or_create(&KindLabels { kind })
            .inc();
    }

    fn retried(&self) {
        self.families.upstream_retries.inc();
    }

    fn connections(&self, delta: i64) {
        self.families.connections.inc_by(delta);
    }
}

#[cfg(test)]
mod tests;
