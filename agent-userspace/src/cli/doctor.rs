//! `sluice doctor`: each enforcement layer, live, absent or degraded, and what is open without it.
//! From the running daemon; without one it says what that means.
//! INVARIANT: exit code 0 only if a daemon answered and every layer is live.

use std::process::ExitCode;

use super::output::{Tone, clean};
use super::{Failure, Global, Output};
use crate::config::reduced_by_environment;
use crate::control::{Client, DoctorReport, Request};
use crate::layers::{LayerReport, LayerState};

/// Nothing but the global flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(global: &Global, _: Args) -> Result<ExitCode, Failure> {
    let report = match Client::connect(&global.paths.control_socket())? {
        Some(client) => client.ask_one(&Request::Doctor {})?,
        None => without_daemon(global),
    };
    let output = Output::new(global);
    output.object(&report, |report| text(output, report))?;
    let well = report.daemon
        && report
            .layers
            .iter()
            .all(|layer| layer.state == LayerState::Live);
    Ok(if well {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// What can be said when nobody answers on the control socket.
fn without_daemon(global: &Global) -> DoctorReport {
    let daemon = LayerReport {
        name: "daemon".to_owned(),
        state: LayerState::Absent,
        leaves_open: vec![
            "nothing opens: the pinned programs of a former daemon refuse its agents' connections until the next one adopts them".to_owned(),
            "on a host where none ever ran, no process is governed".to_owned(),
        ],
    };
    let mut advice = vec![format!(
        "no daemon listens on {}",
        global.paths.control_socket().display()
    )];
    match super::check::load(global) {
        Ok(_) => {
            advice.push("the configuration is good; `sluice daemon` would start with it".to_owned())
        }
        Err(problems) => advice.push(format!(
            "the configuration has {} errors; run `sluice check`",
            problems.0.len()
        )),
    }
    if reduced_by_environment() {
        advice.push("SLUICE_REDUCED=1 is set: a daemon started here runs without the LSM programs where they do not load".to_owned());
    }
    DoctorReport {
        daemon: false,
        layers: vec![daemon],
        advice,
    }
}

fn text(output: Output, report: &DoctorReport) -> String {
    let width = report
        .layers
        .iter()
        .map(|layer| layer.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut lines = Vec::new();
    for layer in &report.layers {
        let tone = match layer.state {
            LayerState::Absent => Tone::Bad,
            LayerState::Degraded => Tone::Warning,
            LayerState::Live => Tone::Good,
        };
        let state = output.tone(tone, &format!("{:<8}", layer.state.as_str()));
        lines.push(
            format!("{state}  {:<width$}", clean(&layer.name))
                .trim_end()
                .to_owned(),
        );
        lines.extend(
            layer
                .leaves_open
                .iter()
                .map(|open| format!("            leaves open: {}", clean(open))),
        );
    }
    if !report.advice.is_empty() {
        lines.push(String::new());
        lines.extend(
            report
                .advice
                .iter()
                .map(|advice| format!("- {}", clean(advice))),
        );
    }
    lines.join("\n")
}
