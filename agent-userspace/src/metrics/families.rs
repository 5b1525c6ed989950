//! The metric families with their names, units and help texts.
//! Registered once at start; names follow the words of the design and the OpenMetrics suffix rules.
//! INVARIANT: a name here is an interface; it is not changed.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{
    AnswerLabels, BundleLabels, CallLabels, EscapeLabels, FaultLabels, KindLabels, LayerLabels,
    RefusalLabels,
};

/// Handles to every family. Cloning a handle shares its values with the registry.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) addresses_refused: Family<KindLabels, Counter>,
    pub(super) approval_wait: Histogram,
    pub(super) approvals_pending: Gauge,
    pub(super) audit_commit: Histogram,
    pub(super) audit_records: Counter,
    pub(super) bundle: Family<BundleLabels, Gauge>,
    pub(super) call: Histogram,
    pub(super) calls: Family<CallLabels, Counter>,
    pub(super) connections: Gauge,
    pub(super) control_refusals: Counter,
    pub(super) decision: Histogram,
    pub(super) enforcement_faults: Family<FaultLabels, Counter>,
    pub(super) escape: Family<EscapeLabels, Gauge>,
    pub(super) kernel_refusals: Family<KindLabels, Counter>,
    pub(super) layer: Family<LayerLabels, Gauge>,
    pub(super) names: Family<AnswerLabels, Counter>,
    pub(super) panic: Gauge,
    pub(super) refusals: Family<RefusalLabels, Counter>,
    pub(super) reload_at: Gauge,
    pub(super) reload_ok: Gauge,
    pub(super) upstream: Histogram,
    pub(super) upstream_retries: Counter,
}

/// Bounds for what this host does itself: 10 us to 1 s.
const OWN: [f64; 11] = [
    0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0,
];
/// Bounds for what goes over the network: 1 ms to 10 min, since model APIs think for minutes.
const FAR: [f64; 13] = [
    0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0,
];
/// Bounds for what people do: 1 s to 1 h.
const PEOPLE: [f64; 9] = [1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1_800.0, 3_600.0];

impl Families {
    pub(super) fn register(registry: &mut Registry) -> Families {
        let families = Families {
            addresses_refused: Family::default(),
            approval_wait: Histogram::new(PEOPLE),
            approvals_pending: Gauge::default(),
            audit_commit: Histogram::new(OWN),
            audit_records: Counter::default(),
            bundle: Family::default(),
            call: Histogram::new(FAR),
            calls: Family::default(),
            connections: Gauge::default(),
            control_refusals: Counter::default(),
            decision: Histogram::new(OWN),
            enforcement_faults: Family::default(),
            escape: Family::default(),
            kernel_refusals: Family::default(),
            layer: Family::default(),
            names: Family::default(),
            panic: Gauge::default(),
            refusals: Family::default(),
            reload_at: Gauge::default(),
            reload_ok: Gauge::default(),
            upstream: Histogram::new(FAR),
            upstream_retries: Counter::default(),
        };
        families.register_calls(registry);
        families.register_host(registry);
        families
    }

    /// What the path of a request does.
    fn register_calls(&self, registry: &mut Registry) {
        registry.register(
            "calls",
            "Calls that were decided, by decision",
            self.calls.clone(),
        );
        registry.register("refusals", "Refusals, by their name", self.refusals.clone());
        registry.register(
            "connections",
            "Open connections of agents",
            self.connections.clone(),
        );
        registry.register(
            "upstream_retries",
            "Calls sent once more because the kept connection had closed before anything was sent",
            self.upstream_retries.clone(),
        );
        registry.register("names", "Names that agents asked for", self.names.clone());
        registry.register(
            "addresses_refused",
            "Addresses that names led to and that are never dialled, by kind",
            self.addresses_refused.clone(),
        );
        registry.register(
            "approvals_pending",
            "Held calls that wait for a person",
            self.approvals_pending.clone(),
        );
        let seconds = |registry: &mut Registry, name: &str, help: &str, histogram: &Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        };
        seconds(
            registry,
            "decision",
            "Time to map and decide a call",
            &self.decision,
        );
        seconds(
            registry,
            "approval_wait",
            "Time a held call waited for a person",
            &self.approval_wait,
        );
        seconds(
            registry,
            "upstream",
            "Time from a call's departure to the head of its answer",
            &self.upstream,
        );
        seconds(
            registry,
            "call",
            "Time from a request's head to the end of its answer",
            &self.call,
        );
        seconds(
            registry,
            "audit_commit",
            "Time of one durable commit of an audit log",
            &self.audit_commit,
        );
        registry.register(
            "audit_records",
            "Records committed to audit logs",
            self.audit_records.clone(),
        );
    }

    /// What this host and its configuration are like.
    fn register_host(&self, registry: &mut Registry) {
        registry.register(
            "enforcement_faults",
            "What the watchdog found not to be as the daemon put it, and whether it was put back",
            self.enforcement_faults.clone(),
        );
        registry.register(
            "panic",
            "1 while every agent of this host is stopped",
            self.panic.clone(),
        );
        registry.register(
            "kernel_refusals",
            "Refusals by the kernel side, by kind",
            self.kernel_refusals.clone(),
        );
        registry.register(
            "control_refusals",
            "Peers refused on the control socket",
            self.control_refusals.clone(),
        );
        registry.register(
            "escape",
            "1 for the state that a way out of a workload is in",
            self.escape.clone(),
        );
        registry.register(
            "layer",
            "1 for the state that an enforcement layer is in",
            self.layer.clone(),
        );
        registry.register(
            "bundle_info",
            "1 for the version of the bundle in force",
            self.bundle.clone(),
        );
        registry.register(
            "reload_success",
            "1 if the last load of the configuration took effect",
            self.reload_ok.clone(),
        );
        registry.register(
            "reload_success_timestamp_seconds",
            "When a configuration last took effect, as Unix time",
            self.reload_at.clone(),
        );
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The program", build);
    }
}
