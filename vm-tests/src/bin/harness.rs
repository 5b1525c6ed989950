//! What `cargo xtask` starts: the demonstration, the benchmark, and the removal of what dead runs left.
//! Here is only the choice; the work is in the library.
//! Invariant: exits with 0 only if everything was as told.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vm_tests::leftovers;

#[derive(Parser)]
#[command(name = "harness")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Remove what test instances of dead owners have left
    Clean,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Clean => {
            let removed = leftovers::clean();
            if removed > 0 {
                println!("removed {removed} instances of runs that died");
            }
            ExitCode::SUCCESS
        }
    }
}
