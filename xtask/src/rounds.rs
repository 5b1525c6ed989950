//! `cargo xtask rounds`: kill -9, restart and upgrade at random moments, while an agent dials.
//! The rounds are a program of `vm-tests`; here is the build.
//! Invariant: the exit code is the program's own, non-zero if anything leaked, was lost or was disturbed.

use anyhow::{Result, bail};

use crate::{setup, shell};

/// Arguments of `cargo xtask rounds`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// How many
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
    /// Where the random moments come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to print: lines for people, or one JSON object
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::quiet()?;
    let mut build = shell::cargo();
    build.args(["build", "--package=agent-userspace", "--package=vm-tests"]);
    if args.format == "json" {
        // Nothing but JSON on standard output.
        shell::capture(&mut build)?;
    } else {
        shell::run(&mut build)?;
    }
    let mut rounds = shell::as_root(shell::target_dir().join("debug/harness"));
    rounds
        .args(["rounds", "--format", &args.format])
        .args(["--rounds", &args.rounds.to_string()])
        .args(["--seed", &args.seed.to_string()]);
    if !rounds.status()?.success() {
        bail!("rounds: not everything held");
    }
    Ok(())
}
