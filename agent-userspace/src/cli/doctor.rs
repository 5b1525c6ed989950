//! `sluice doctor`: each enforcement layer, each way out, and on request whether the clients trust the tenant's CA.
//! From the running daemon; without one it says what that means.
//! INVARIANT: exit code 0 only if a daemon answered, nothing is open that the mode does not allow, and no client distrusts.

mod probes;

use std::process::ExitCode;

use policies::AgentId;
use serde::Serialize;

use self::probes::{ProbeReport, Trust};
use super::output::{Tone, clean, counted};
use super::{Failure, Global, Output};
use crate::config::reduced_by_environment;
use crate::control::{Client, DoctorReport, Request};
use crate::escapes::{self, EscapeReport, EscapeState, optional};
use crate::layers::{LayerReport, LayerState};

/// Name each enforcement layer and each way out
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run each client that is installed as this agent, and say whether it trusts the tenant's certificate authority
    #[arg(long, value_name = "TENANT/NAME")]
    agent: Option<AgentId>,
    /// Run them as this user (a name or a uid) instead of the agent's own uid
    #[arg(long, value_name = "USER", requires = "agent")]
    user: Option<String>,
    /// Show the tenant's certificate in this bundle file, too (may be repeated)
    #[arg(long = "trust", value_name = "FILE", requires = "agent")]
    trust: Vec<String>,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Findings {
    #[serde(flatten)]
    report: DoctorReport,
    /// `full` if every layer is live, `reduced` if not, `none` without a daemon.
    mode: &'static str,
    /// Each way out.
    escapes: Vec<EscapeReport>,
    /// Each client, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    trust: Option<Vec<ProbeReport>>,
}

pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    let report = match Client::connect(&global.paths.control_socket())? {
        Some(client) => client.ask_one(&Request::Doctor {})?,
        None => without_daemon(global),
    };
    let mut options = Vec::new();
    for (option, value) in args
        .user
        .iter()
        .map(|user| ("--user", user))
        .chain(args.trust.iter().map(|file| ("--trust", file)))
    {
        options.extend([option.to_owned(), value.clone()]);
    }
    let trust = match args.agent {
        Some(agent) if report.daemon => Some(probes::all(global, &agent, &options)?),
        _ => None,
    };
    let findings = Findings {
        mode: mode(&report),
        escapes: escapes::classes(&report.layers),
        report,
        trust,
    };
    let output = Output::new(global);
    output.object(&findings, |findings| text(output, findings))?;
    Ok(if findings.well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn mode(report: &DoctorReport) -> &'static str {
    let live = |layer: &LayerReport| layer.state == LayerState::Live;
    // An older kernel's Landlock around the proxy is no way out of a workload.
    let full = |layer: &LayerReport| live(layer) || layer.name.starts_with("proxy_");
    match (report.daemon, report.layers.iter().all(full)) {
        (false, _) => "none",
        (true, true) => "full",
        (true, false) => "reduced",
    }
}

impl Findings {
    fn well(&self) -> bool {
        let shut = |escape: &EscapeReport| escape.state != EscapeState::Open || escape.allowed_open;
        let trusts = |probe: &ProbeReport| probe.trust != Trust::NotTrusted;
        well(&self.report)
            && self.escapes.iter().all(shut)
            && self.trust.iter().flatten().all(trusts)
    }
}

/// Every layer that the mode requires is live. A daemon that runs without the others was told to: it does not
/// start in reduced mode unless somebody opted in.
fn well(report: &DoctorReport) -> bool {
    let as_asked = |layer: &LayerReport| match layer.state {
        LayerState::Live => true,
        // An older kernel's Landlock knows fewer rules, and a container may not lock memory; none at all is no wall.
        LayerState::Degraded if layer.name.starts_with("proxy_") => true,
        LayerState::Absent | LayerState::Degraded => optional(&layer.name),
    };
    report.daemon && report.layers.iter().all(as_asked)
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

fn text(output: Output, findings: &Findings) -> String {
    let report = &findings.report;
    let mut lines = vec![format!("mode {}", findings.mode), String::new()];
    let width = |names: &mut dyn Iterator<Item = &str>| {
        names.map(|name| name.chars().count()).max().unwrap_or(0)
    };
    let mut names = report.layers.iter().map(|layer| layer.name.as_str());
    let wide = width(&mut names);
    for layer in &report.layers {
        let tone = match layer.state {
            LayerState::Absent => Tone::Bad,
            LayerState::Degraded => Tone::Warning,
            LayerState::Live => Tone::Good,
        };
        let state = output.tone(tone, &format!("{:<8}", layer.state.as_str()));
        let line = format!("{state}  {:<wide$}", clean(&layer.name));
        lines.push(line.trim_end().to_owned());
        let open = |open: &String| format!("            leaves open: {}", clean(open));
        lines.extend(layer.leaves_open.iter().map(open));
    }
    if report.daemon {
        lines.push(String::new());
        lines.extend(escape_lines(output, findings));
    }
    if let Some(probes) = &findings.trust {
        lines.push(String::new());
        lines.extend(probes.iter().flat_map(|probe| probe_lines(output, probe)));
    }
    if !report.advice.is_empty() {
        lines.push(String::new());
        let advice = |advice: &String| format!("- {}", clean(advice));
        lines.extend(report.advice.iter().map(advice));
    }
    lines.join("\n")
}

fn escape_lines(output: Output, findings: &Findings) -> Vec<String> {
    let names = findings.escapes.iter().map(|escape| escape.class.as_str());
    let wide = names.map(str::len).max().unwrap_or(0);
    let mut lines = Vec::new();
    for escape in &findings.escapes {
        let tone = match escape.state {
            EscapeState::Closed => Tone::Good,
            EscapeState::Degraded => Tone::Warning,
            EscapeState::Open => Tone::Bad,
        };
        let state = output.tone(tone, &format!("{:<8}", escape.state.as_str()));
        let name = escape.class.as_str();
        lines.push(format!("{state}  {name:<wide$}  {}", escape.class.title()));
        if escape.state != EscapeState::Closed {
            if !escape.missing.is_empty() {
                let missing = escape.missing.join(", ");
                lines.push(format!("            closed by: {}", clean(&missing)));
            }
            if let Some(launcher) = &escape.launcher {
                lines.push(format!("            `sluice run`: {}", clean(launcher)));
            }
        }
    }
    lines
}

fn probe_lines(output: Output, probe: &ProbeReport) -> Vec<String> {
    let tone = match probe.trust {
        Trust::Failed => Tone::Warning,
        Trust::NotInstalled => Tone::Weak,
        Trust::NotTrusted => Tone::Bad,
        Trust::Trusted => Tone::Good,
    };
    let state = output.tone(tone, &format!("{:<13}", probe.trust.as_str()));
    let mut lines = vec![format!("{state}  {}", probe.client)];
    let said = probe.said.iter().map(|said| clean(said));
    let advice = probe.advice.iter().map(|advice| (*advice).to_owned());
    lines.extend(
        said.chain(advice)
            .map(|line| format!("               {line}")),
    );
    lines
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
