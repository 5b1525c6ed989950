//! `sluice panic`: stops every agent of every tenant on this host, and lifts that again.
//! Writes the markers, then the pinned maps, then cuts sockets, all by itself; a daemon, where one runs, follows.
//! INVARIANT: it works as long as the kernel and root do; a step that fails stops none of the others, and is told.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::output::Tone;
use super::{Failure, Global, Output};
use crate::app::now;
use crate::config::{PanicNote, engage_panic, lift_panic};
use crate::daemon::connect_to_enforcer;
use crate::daemon::protocol::{FromRun, ToRun};
use crate::enforce::{Instance, panic};

/// How long a daemon may take to follow; everything is stopped by then without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stop every agent of every tenant at once, also when no daemon runs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Let the agents work again
    #[arg(long)]
    lift: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    engaged: bool,
    /// Sockets that were cut.
    cut: usize,
    /// Whether a daemon followed and has it in its log; otherwise the next one will.
    daemon: bool,
    /// What could not be done.
    failed: Vec<String>,
}

pub(super) fn run(global: &Global, args: Args) -> Result<ExitCode, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::Process {
            detail: "only root may stop every agent, or let them work again".to_owned(),
            code: 1,
        });
    }
    let report = if args.lift {
        lift(global)
    } else {
        engage(global)
    };
    let output = Output::new(global);
    output.object(&report, |report| text(output, report))?;
    Ok(if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn engage(global: &Global) -> Report {
    let mut failed = Vec::new();
    // The marker first: a daemon that starts at this moment must see it.
    if let Err(error) = engage_panic(&global.paths, &note(true)) {
        failed.push(format!(
            "the marker: {error}; a daemon that starts would not know"
        ));
    }
    let cut = match panic::engage(&instance(global)) {
        Ok(panicked) => panicked.cut.sockets,
        Err(error) => {
            failed.push(format!("the kernel side: {error}"));
            0
        }
    };
    Report {
        engaged: true,
        cut,
        daemon: tell_daemon(global),
        failed,
    }
}

fn lift(global: &Global) -> Report {
    let mut failed = Vec::new();
    // The marker last: whatever fails before leaves the panic in force.
    if let Err(error) = panic::lift(&instance(global)) {
        failed.push(format!("the kernel side: {error}"));
    } else if let Err(error) = lift_panic(&global.paths, &note(false)) {
        failed.push(format!("the marker: {error}"));
    }
    Report {
        engaged: !failed.is_empty(),
        cut: 0,
        daemon: tell_daemon(global),
        failed,
    }
}

fn instance(global: &Global) -> Instance {
    let runtime = &global.paths.runtime;
    Instance::of(&std::fs::canonicalize(runtime).unwrap_or_else(|_| runtime.clone()))
}

fn note(engaged: bool) -> PanicNote {
    let uid = rustix::process::getuid().as_raw();
    PanicNote {
        engaged,
        by: if uid == 0 {
            "root".to_owned()
        } else {
            format!("uid {uid}")
        },
        detail: format!("at {}", now()),
    }
}

/// False where none runs, or it does not answer.
fn tell_daemon(global: &Global) -> bool {
    let asked = connect_to_enforcer(&global.paths)
        .map_err(Into::into)
        .and_then(|daemon| {
            daemon.send(&FromRun::Panic {}, &[])?;
            daemon.receive_within::<ToRun>(PATIENCE)
        });
    matches!(asked, Ok(Some((ToRun::Done {}, _))))
}

fn text(output: Output, report: &Report) -> String {
    let (tone, words) = match (report.engaged, report.failed.is_empty()) {
        (true, true) => (Tone::Bad, "every agent is stopped"),
        (true, false) => (Tone::Bad, "not everything could be done"),
        (false, _) => (Tone::Good, "the agents may work again"),
    };
    let mut lines = vec![output.tone(tone, words)];
    if report.engaged && report.failed.is_empty() {
        lines.push(format!(
            "{} sockets cut; `sluice panic --lift` ends it",
            report.cut
        ));
    }
    if !report.daemon {
        lines.push(
            "no daemon answered: the next one follows, and writes it into the host's log"
                .to_owned(),
        );
    }
    lines.extend(report.failed.iter().map(|failed| format!("- {failed}")));
    lines.join("\n")
}
