//! The names of the metrics are an interface: dashboards and alerts are written against them.

use super::*;

#[test]
fn every_metric_has_its_documented_name() {
    let metrics = Metrics::new();
    let agent: AgentId = "acme/support".parse().unwrap();
    let capability: policies::CapabilityId = "stripe/refunds.create".parse().unwrap();
    metrics.call(&CallMeasure {
        agent: &agent,
        connector: &capability.connector,
        capability: &capability,
        decision: Decided::Hold,
    });
    metrics.refused(Some(&agent.tenant), Some(&agent), Reason::Unmapped);
    metrics.refused(None, None, Reason::OriginUnknown);
    metrics.stage(Stage::Decision, Duration::from_micros(20));
    metrics.stage(Stage::ApprovalWait, Duration::from_secs(4));
    metrics.stage(Stage::Upstream, Duration::from_millis(20));
    metrics.stage(Stage::Whole, Duration::from_millis(25));
    metrics.name(true);
    metrics.name(false);
    metrics.connections(1);
    metrics.audit_commit(Duration::from_micros(180), 3);
    metrics.kernel_refusals(&[("datagram".to_owned(), 7)]);
    metrics.kernel_refusals(&[("datagram".to_owned(), 9)]);
    metrics.control_refused();
    metrics.enforcement_fault("link_detached", true);
    metrics.panic(true);
    metrics.loaded(
        "0123456789abcdef",
        true,
        Timestamp::from_millis(1_800_000_000_123),
    );
    metrics.layers(&[LayerReport {
        name: "lsm".to_owned(),
        state: LayerState::Absent,
        leaves_open: vec!["x".to_owned()],
    }]);
    // A family's series come in no order.
    let text = metrics.render(2).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_label_value_cannot_break_out_of_its_quotes() {
    let metrics = Metrics::new();
    metrics.kernel_refusals(&[("a\"} 1\nsluice_fake 1".to_owned(), 1)]);
    let text = metrics.render(0).unwrap();
    assert!(
        !text.lines().any(|line| line.starts_with("sluice_fake")),
        "{text}"
    );
}
