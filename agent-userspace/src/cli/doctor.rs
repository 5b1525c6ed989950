//! `sluice doctor`: each enforcement layer, live, absent or degraded, and what is open without it.
//! From the running daemon; without one it says what that means.
//! INVARIANT: exit code 0 only if a daemon answered and every layer is live, but for those that reduced mode is about.

use std::process::ExitCode;

use super::output::{Tone, clean, counted};
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
    Ok(if well(&report) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Every layer that the mode requires is live. A daemon that runs without the others was told to: it does not
/// start in reduced mode unless somebody opted in.
fn well(report: &DoctorReport) -> bool {
    let as_asked = |layer: &LayerReport| match layer.state {
        LayerState::Live => true,
        // An older kernel's Landlock knows fewer rules; none at all is no wall.
        LayerState::Degraded if layer.name == "proxy_landlock" => true,
        LayerState::Absent | LayerState::Degraded => optional(&layer.name),
    };
    report.daemon && report.layers.iter().all(as_asked)
}

/// The layers that kernels may lack and that the opt-in to reduced mode is about: second walls, and what the
/// programs of the cgroups cannot see. Any other name is required.
fn optional(layer: &str) -> bool {
    matches!(
        layer,
        "foreign_socket"
            | "label"
            | "lsm"
            | "lsm_bpf"
            | "lsm_capable"
            | "lsm_ptrace"
            | "lsm_socket"
            | "lsm_unix"
            | "lsm_uring"
            | "lsm_uring_cmd"
            | "multicast"
    )
}

/// What can be said when nobody answers on the control socket.
fn without_daemon(global: &Global) -> DoctorReport {
    let daemon = LayerReport {
        name: "daemon".to_owned(),
        state: LayerState::Absent,
        leaves_open: vec!["on a host where none ever ran, no process is governed".to_owned()],
    };
    let mut advice = vec![
        format!(
            "no daemon listens on {}",
            global.paths.control_socket().display()
        ),
        "where one ran before, its pinned programs refuse its agents' connections until the next one adopts them".to_owned(),
    ];
    match super::check::load(global) {
        Ok(_) => {
            advice.push("the configuration is good; `sluice daemon` would start with it".to_owned())
        }
        Err(problems) => advice.push(format!(
            "the configuration has {}; run `sluice check`",
            counted(problems.0.len(), "error")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(daemon: bool, layers: &[(&str, LayerState)]) -> DoctorReport {
        let layer = |(name, state): &(&str, LayerState)| LayerReport {
            name: (*name).to_owned(),
            state: *state,
            leaves_open: Vec::new(),
        };
        DoctorReport {
            daemon,
            layers: layers.iter().map(layer).collect(),
            advice: Vec::new(),
        }
    }

    #[test]
    fn only_the_layers_of_the_opt_in_may_be_missing() {
        use LayerState::{Absent, Degraded, Live};
        assert!(well(&report(true, &[("connect", Live), ("lsm", Live)])));
        let reduced = [("egress", Live), ("lsm", Absent), ("multicast", Degraded)];
        assert!(well(&report(true, &reduced)));
        let older = [("connect", Live), ("proxy_landlock", Degraded)];
        assert!(well(&report(true, &older)));
        for (daemon, layers) in [
            (false, [("connect", Live), ("lsm", Live)]),
            (true, [("connect", Degraded), ("lsm", Live)]),
            (true, [("egress", Absent), ("lsm", Absent)]),
            (true, [("proxy_landlock", Absent), ("lsm", Live)]),
            (true, [("lsm", Live), ("a_layer_of_tomorrow", Absent)]),
        ] {
            assert!(!well(&report(daemon, &layers)), "{daemon} {layers:?}");
        }
    }
}
