//! `cargo xtask bench`: requests over kept connections and new connections, direct, through Sluice and through nginx, as ratios.
//! The load generator is a binary of `vm-tests`; here is only the build.
//! Invariant: release build, one run, interleaved rounds; the numbers name the machine and the method.

use anyhow::Result;

use crate::{setup, shell};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct Args {
    /// Short rounds: a minute instead of several
    #[arg(long)]
    quick: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::quiet()?;
    println!("bench: building (release)");
    shell::run(shell::cargo().args([
        "build",
        "--release",
        "--package=agent-userspace",
        "--package=vm-tests",
    ]))?;
    let mut command = shell::as_root(shell::target_dir().join("release/harness"));
    command.arg("bench");
    if args.quick {
        command.arg("--quick");
    }
    shell::run(
        command
            .arg("--out")
            .arg(shell::target_dir().join("bench.json")),
    )
}
