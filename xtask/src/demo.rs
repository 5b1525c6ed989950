//! `cargo xtask demo`: set-up, build, then the demonstration, which is a binary of `vm-tests` (it needs TLS and HTTP; xtask does not).
//! Invariant: the exit code is the demonstration's own, and it is non-zero if one line was not as told.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{setup, shell, venv};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct Args {
    /// Leave the instance's files in place at the end, and say where they are
    #[arg(long)]
    keep: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::quiet()?;
    println!("demo: building (the dev profile: a demonstration, not a measurement)");
    shell::run(shell::cargo().args([
        "build",
        "--package",
        "agent-userspace",
        "--package",
        "vm-tests",
    ]))?;
    let started = Instant::now();
    let mut command = harness("demo");
    if args.keep {
        command.arg("--keep");
    }
    shell::run(command.arg("--venv").arg(venv::dir()))?;
    println!("demo: {:.0} s", started.elapsed().as_secs_f32());
    Ok(())
}

/// The same for `cargo xtask test`, which has built everything: passed, failed, skipped.
pub(crate) fn counted() -> Result<(u32, u32, u32)> {
    let told = shell::tee(harness("demo").arg("--venv").arg(venv::dir()))?;
    let line = told
        .text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("demo: "))
        .context("the demo ended without its last line")?;
    let mut numbers = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok());
    let (Some(passed), Some(failed)) = (numbers.next(), numbers.next()) else {
        bail!("the demo's last line has no numbers: {line}");
    };
    if !told.success && failed == 0 {
        bail!("the demo failed outside of its checks");
    }
    Ok((passed, failed, 0))
}

/// Removes cgroups, pins, mounts and processes of test instances whose owner is dead.
pub(crate) fn remove_leftovers() -> Result<()> {
    shell::run(&mut harness("clean"))
}

fn harness(command: &str) -> Command {
    let mut harness = shell::as_root(shell::target_dir().join("debug/harness"));
    harness.arg(command);
    harness
}
