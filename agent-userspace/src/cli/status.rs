//! `sluice status`: what runs.
//! Asks the running daemon.
//! INVARIANT: exit code 1 says that no daemon answered.

use std::process::ExitCode;

use super::output::{Tone, clean_line, counted};
use super::{Failure, Global, Output};
use crate::control::{Client, Request, StatusReport};
use crate::layers::LayerState;

/// Nothing but the global flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(global: &Global, _: Args) -> Result<ExitCode, Failure> {
    let client = Client::require(&global.paths.control_socket())?;
    let report: StatusReport = client.ask_one(&Request::Status {})?;
    let output = Output::new(global);
    output.object(&report, |report| text(output, report))?;
    Ok(ExitCode::SUCCESS)
}

fn text(output: Output, report: &StatusReport) -> String {
    let live = report
        .layers
        .iter()
        .filter(|layer| layer.state == LayerState::Live)
        .count();
    let layers = format!("{live} of {} live", report.layers.len());
    let layers = if live == report.layers.len() {
        output.tone(Tone::Good, &layers)
    } else {
        output.tone(Tone::Warning, &format!("{layers}; see `sluice doctor`"))
    };
    let pending = match report.approvals_pending {
        0 => "none wait".to_owned(),
        count => output.tone(
            Tone::Warning,
            &format!(
                "{count} {}; see `sluice approvals list`",
                if count == 1 { "waits" } else { "wait" }
            ),
        ),
    };
    let reload = if report.reload.ok {
        format!("in force since {}", report.reload.at)
    } else {
        let first = report
            .reload
            .errors
            .first()
            .map(|error| clean_line(error.lines().next().unwrap_or(error)))
            .unwrap_or_default();
        output.tone(
            Tone::Bad,
            &format!(
                "refused at {}, the one before is in force: {first}",
                report.reload.at
            ),
        )
    };
    let mut lines = vec![
        format!("sluice {}, up since {}", report.version, report.started_at),
        format!(
            "policy      {}, {}, {}",
            report.policy_version,
            counted(report.agents, "agent"),
            counted(report.connectors, "connector")
        ),
        format!("config      {reload}"),
        format!("layers      {layers}"),
        format!("approvals   {pending}"),
        format!(
            "metrics     {}",
            report.metrics.as_ref().map_or_else(
                || "not served".to_owned(),
                |address| format!("http://{address}/metrics")
            )
        ),
    ];
    if let Some(panic) = &report.panic {
        let words = format!("every agent is stopped ({panic}); see `sluice panic --lift`");
        lines.insert(
            1,
            format!(
                "panic       {}",
                output.tone(Tone::Bad, &clean_line(&words))
            ),
        );
    }
    if report.faults.found > 0 {
        let words = format!(
            "{} found by the watchdog; see `sluice doctor`",
            report.faults.found
        );
        let tone = if report.faults.broken {
            Tone::Bad
        } else {
            Tone::Warning
        };
        lines.push(format!("faults      {}", output.tone(tone, &words)));
    }
    if report.workloads.is_empty() {
        lines.push("workloads   none".to_owned());
        return lines.join("\n");
    }
    let rows: Vec<Vec<String>> = report
        .workloads
        .iter()
        .map(|workload| {
            let pid = workload.pid.map(|pid| pid.to_string()).unwrap_or_default();
            vec![
                workload.agent.to_string(),
                pid,
                workload.exe.clone().unwrap_or_default(),
                workload.cgroup.clone(),
            ]
        })
        .collect();
    lines.push(String::new());
    lines.push(output.align(&["WORKLOAD", "PID", "PROGRAM", "CGROUP"], &rows));
    lines.join("\n")
}
