//! `sluice check`: is the configuration good? All of it, with every error at once.
//! Reads what the daemon would read, and loads it as the daemon would.
//! INVARIANT: what `check` accepts, a reload accepts.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use miette::Severity;
use policies::{Bundle, Diagnostic, Diagnostics};
use serde::Serialize;
use serde_json::json;

use super::output::{Tone, counted};
use super::render::render;
use super::{Failure, Global, Output};
use crate::config::Snapshot;

/// Nothing but the global flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(global: &Global, _: Args) -> Result<ExitCode, Failure> {
    let output = Output::new(global);
    let terminal = std::io::stdout().is_terminal();
    match load(global) {
        Ok((_, bundle)) => {
            for notice in bundle.notices() {
                output.object(
                    &Line {
                        severity: "notice",
                        diagnostic: notice,
                    },
                    |line| {
                        render(line.diagnostic, Severity::Advice, terminal)
                            .trim_end()
                            .to_owned()
                    },
                )?;
            }
            let summary = json!({
                "severity": "ok",
                "agents": bundle.agents().count(),
                "connectors": bundle.connectors().count(),
                "policy_version": bundle.version().to_string(),
            });
            output.object(&summary, |_| {
                let good = output.tone(Tone::Good, "ok");
                format!(
                    "{good}: {}, {}, policy version {}",
                    counted(bundle.agents().count(), "agent"),
                    counted(bundle.connectors().count(), "connector"),
                    bundle.version()
                )
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(diagnostics) => {
            for diagnostic in &diagnostics.0 {
                output.object(
                    &Line {
                        severity: "error",
                        diagnostic,
                    },
                    |line| {
                        render(line.diagnostic, Severity::Error, terminal)
                            .trim_end()
                            .to_owned()
                    },
                )?;
            }
            if !output.is_json() {
                output.line(&output.tone(Tone::Bad, &counted(diagnostics.0.len(), "error")))?;
            }
            Ok(ExitCode::from(1))
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    severity: &'static str,
    #[serde(flatten)]
    diagnostic: &'a Diagnostic,
}

/// The configuration as the daemon would load it; also for the other commands that need a bundle.
pub(super) fn load(global: &Global) -> Result<(Snapshot, Bundle), Diagnostics> {
    let snapshot = Snapshot::read(&global.paths)?;
    // Everything that is wrong is worth one look: trust anchors and bundle are both tried.
    let mut problems = Diagnostics::default();
    problems.keep(snapshot.trust_anchors());
    let bundle = problems.keep(Bundle::load(&snapshot.sources()));
    match bundle {
        Some(bundle) if problems.0.is_empty() => Ok((snapshot, bundle)),
        _ => Err(problems),
    }
}
