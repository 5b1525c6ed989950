//! `cargo xtask escape`: every known way around Sluice, tried here, each first shown to work without it.
//! The suite is a program of `vm-tests`; here is the build and the choice of machine.
//! Invariant: the exit code is the suite's own, and it is non-zero if one case leaked.

use anyhow::{Result, bail};

use crate::{demo, setup, shell};

/// Arguments of `cargo xtask escape`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Only cases whose number, name or class contains this
    #[arg(long)]
    filter: Option<String>,
    /// What to print: a table for people, or one JSON object per line
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::quiet()?;
    let json = args.format == "json";
    let mut build = shell::cargo();
    build.args(["build", "--package=agent-userspace", "--package=vm-tests"]);
    if json {
        // Nothing but JSON on standard output.
        shell::capture(&mut build)?;
    } else {
        shell::run(&mut build)?;
        demo::remove_leftovers()?;
    }
    let mut suite = shell::as_root(shell::target_dir().join("debug/escape"));
    suite.args(["--format", &args.format]);
    if let Some(filter) = &args.filter {
        suite.args(["--filter", filter]);
    }
    if !suite.status()?.success() {
        bail!("escape: not all is closed");
    }
    Ok(())
}
