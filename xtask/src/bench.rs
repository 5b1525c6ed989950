//! `cargo xtask bench`: what Sluice costs, side by side with a direct connection, a TCP relay, nginx, haproxy and squid, as ratios.
//! The load generator is a binary of `vm-tests`; here is only what must be there before it runs.
//! Invariant: release build, one run, interleaved rounds; the numbers name the machine and the method.

use anyhow::Result;

use crate::{setup, shell};

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Short rounds: about three minutes after the build
    #[arg(long)]
    quick: bool,
    /// Only these measurements: requests, requests-h2, connections, latency, download, upload, events, idle, idle-many, disable, growth, kernel
    #[arg(long)]
    only: Vec<String>,
    /// Only these systems, and the direct connection: relay, nginx, haproxy, squid, sluice, grouped, large
    #[arg(long)]
    systems: Vec<String>,
    /// To how many records `growth` lets a log grow: 100,000 in a quick run and a million in a long one, where none is given
    #[arg(long)]
    records: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::quiet()?;
    setup::peers()?;
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
    if let Some(records) = args.records {
        command.args(["--records", &records.to_string()]);
    }
    for mode in &args.only {
        command.args(["--only", mode]);
    }
    for system in &args.systems {
        command.args(["--systems", system]);
    }
    shell::run(
        command
            .arg("--out")
            .arg(shell::target_dir().join("bench.json")),
    )
}
