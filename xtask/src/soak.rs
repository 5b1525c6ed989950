//! `cargo xtask soak`: the real proxy under load for as long as one likes, with clients and an upstream that misbehave at random.
//! The load is the test `soak` of mitm-proxy, which `cargo xtask test` runs for seconds; here is how long, and the report.
//! Invariant: the exit code is non-zero if a call has no outcome, was sent twice, or if memory grew.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Arguments of `cargo xtask soak`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Where the faults come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Calls a second, of all clients together; as many as there is room for, where none is given
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// What to print: lines for people, or one JSON object
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Also write the JSON object to this file
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let report = directory.path().join("soak.json");
    let mut command = shell::cargo();
    command
        .args(["test", "--release", "--package=mitm-proxy", "--test=soak"])
        .args(["--", "--exact", "--nocapture"])
        .arg("every_call_has_an_outcome_none_is_sent_twice_and_memory_is_flat")
        .env("SOAK_SECONDS", (args.minutes * 60).to_string())
        .env("SOAK_RATE", args.rate.to_string())
        .env("SOAK_SEED", args.seed.to_string())
        .env("SOAK_REPORT", &report);
    let held = if args.format == "json" {
        // Nothing but JSON on standard output.
        shell::capture(&mut command).is_ok()
    } else {
        command.status()?.success()
    };
    let text = std::fs::read_to_string(&report).context("the soak ended without a report")?;
    if args.format == "json" {
        println!("{text}");
    }
    if let Some(path) = &args.report {
        std::fs::write(path, &text).with_context(|| format!("{}", path.display()))?;
    }
    if !held {
        bail!("soak: not everything held");
    }
    Ok(())
}
