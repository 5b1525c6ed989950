//! What `cargo xtask` starts: the demonstration, the benchmark, and the removal of what dead runs left.
//! Here is only the choice; the work is in the library.
//! Invariant: exits with 0 only if everything was as told.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vm_tests::bench::{self, load, probe, relay};
use vm_tests::clients;
use vm_tests::conformance;
use vm_tests::rounds::{self, dial};
use vm_tests::{demo, leftovers};

#[derive(Parser)]
#[command(name = "harness")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure Sluice beside a direct connection and other proxies
    Bench(bench::Bench),
    /// Remove what test instances of dead owners have left
    Clean,
    /// Run unmodified clients against servers of ours
    Clients(clients::Clients),
    /// Run public conformance suites, directly and as an agent
    Conformance(conformance::Conformance),
    /// Run the demonstration
    Demo {
        /// The Python environment with `requests` and `stripe`
        #[arg(long)]
        venv: PathBuf,
        /// Leave the instance's files in place
        #[arg(long)]
        keep: bool,
    },
    /// Dial an address until standard input ends
    Dial(dial::Dial),
    /// Generate load, and print what came of it
    Load(load::Load),
    /// Connect as somebody whose system calls are timed
    Probe(probe::Probe),
    /// Pass TCP connections on: the least that a proxy can do
    Relay(relay::Relay),
    /// Kill, restart and upgrade a daemon under load
    Rounds(rounds::Rounds),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Bench(bench) => bench::run(&bench).map(|()| true),
        Command::Clean => {
            let removed = leftovers::clean();
            if removed > 0 {
                println!("removed {removed} instances of runs that died");
            }
            Ok(true)
        }
        Command::Clients(clients) => clients::run(&clients),
        Command::Conformance(conformance) => conformance::run(&conformance),
        Command::Demo { venv, keep } => demo::run(&venv, keep),
        Command::Dial(dial) => dial::run(&dial).map(|()| true),
        Command::Load(load) => load::run(&load).map(|()| true),
        Command::Probe(probe) => probe::run(&probe).map(|()| true),
        Command::Relay(relay) => relay::run(&relay).map(|()| true),
        Command::Rounds(rounds) => rounds::run(&rounds),
    }
}
