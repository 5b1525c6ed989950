//! The demonstration: unmodified clients run as an agent, and each line of the transcript is told first and then checked.
//! Started by `cargo xtask demo`; its scenery also serves the end-to-end tests.
//! Invariant: no line is printed as true that was not seen to be true in this run.

mod calls;
mod escapes;
mod ledger;
mod refund;
mod restart;
pub mod stage;
mod transcript;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::leftovers;
use crate::output::Output;

pub use stage::Stage;
pub use transcript::Transcript;

/// Runs the demonstration; true if everything was as told.
///
/// # Errors
/// If the scenery cannot be set up at all.
pub fn run(venv: &Path, keep: bool) -> Result<bool> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demonstration starts a daemon that loads eBPF programs: it must be root");
    }
    let venv = &venv
        .canonicalize()
        .with_context(|| format!("{} is not there", venv.display()))?;
    let removed = leftovers::clean();
    let mut stage = Stage::set("4s")?;
    if keep {
        stage.instance.keep();
    }
    let mut told = Transcript::new();
    if removed > 0 {
        told.note(&format!(
            "(removed what {removed} instances of dead runs had left)"
        ));
    }

    told.chapter("Start");
    start(&mut stage, &mut told)?;
    told.chapter("Calls that policy allows: unmodified clients, borrowed credentials");
    calls::run(&stage, &mut told, venv);
    told.chapter("A refund of 120.00");
    refund::run(&stage, &mut told, venv);
    told.chapter("What is refused");
    escapes::run(&stage, &mut told, venv);
    ledger::numbers(&stage, &mut told);
    told.chapter("kill -9");
    restart::run(&mut stage, &mut told, venv);
    told.chapter("The log and the numbers");
    ledger::run(&stage, &mut told);

    let root = stage.instance.root().to_path_buf();
    told.chapter("Stop");
    told.line("the daemon stops cleanly when asked to", || {
        stage.instance.stop().map(|()| String::new())
    });
    drop(stage);
    told.line(
        "and nothing of this run is left: no cgroup, no pin, no file",
        || nothing_left(&root, keep),
    );
    Ok(told.end())
}

/// The daemon comes up; where the kernel refuses BPF LSM, in reduced mode and loudly.
fn start(stage: &mut Stage, told: &mut Transcript) -> Result<()> {
    stage.open()?;
    if !stage.instance.is_reduced() {
        told.line("full mode: every layer is live on this kernel", || {
            Ok(stage.instance.ask(&["doctor"])?.ok()?.stdout)
        });
        return Ok(());
    }
    told.line("not every layer is live on this kernel: the daemon refused to start, and runs in reduced mode because the demo opted in", || {
        let doctor = stage.instance.ask(&["doctor", "--format", "json"])?.json()?;
        let mut lines = vec!["what that leaves open, by `sluice doctor`:".to_owned()];
        for layer in doctor.pointer("/layers").and_then(|layers| layers.as_array()).into_iter().flatten() {
            let name = layer.pointer("/name").and_then(|name| name.as_str()).unwrap_or_default();
            let open = layer.pointer("/leaves_open").and_then(|open| open.as_array());
            for escape in open.into_iter().flatten().filter_map(|escape| escape.as_str()) {
                lines.push(format!("{name}: {escape}"));
            }
        }
        if lines.len() == 1 {
            bail!("the doctor names no open escape: {doctor}");
        }
        Ok(lines.join("\n"))
    });
    Ok(())
}

fn nothing_left(root: &Path, keep: bool) -> Result<String> {
    let name = leftovers::instance_name(&root.join("run"));
    let cgroup = leftovers::cgroup2().map(|mount| mount.join(&name));
    let places = [
        cgroup,
        Some(Path::new("/sys/fs/bpf").join(&name)),
        (!keep).then(|| root.to_owned()),
    ];
    for place in places.into_iter().flatten() {
        if place.exists() {
            bail!("{} is still there", place.display());
        }
    }
    Ok(if keep {
        format!("(kept as asked: {})", root.display())
    } else {
        String::new()
    })
}

/// The output must contain this.
fn wants(output: Output, wanted: &str) -> Result<Output> {
    if !output.text().contains(wanted) {
        bail!("no {wanted:?} in what {output}");
    }
    Ok(output)
}
