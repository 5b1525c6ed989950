//! `cargo xtask check`: everything that reads the code without running it. CI runs it before the tests.
//! Invariant: stops at the first complaint, and a complaint is an exit code, never only a line of text.

use anyhow::Result;

use crate::{deny, shell, tidy};

/// Arguments of `cargo xtask check`.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct Args {
    /// Leave out clippy, the only slow step
    #[arg(long)]
    quick: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    tidy::run()?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    deny::check()?;
    if !args.quick {
        shell::run(shell::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    }
    println!("check: nothing to complain about");
    Ok(())
}
