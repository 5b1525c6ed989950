//! `cargo xtask`: everything one does with this repository besides writing code.
//! Stays quick to build: no async runtime, no TLS, none of our own crates; what needs those is a binary of `vm-tests`.
//! Invariant: each command is idempotent, says what it does before it does it, and exits non-zero if anything was not as told.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod clients;
mod conformance;
mod debian;
mod demo;
mod deny;
mod ebpf;
mod escape;
mod fuzz;
mod rounds;
mod setup;
mod shell;
mod soak;
mod suite;
mod tidy;
mod toolchain;
mod venv;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, builds, tests and benchmarks of Sluice.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure Sluice against a direct connection and against nginx, as ratios
    Bench(bench::Args),
    /// Lints: tidy, rustfmt, clippy, cargo-deny
    Check(check::Args),
    /// Run every client of the matrix, unmodified, as an agent
    Clients(clients::Args),
    /// Run public conformance suites (gRPC, WebSocket, HTTP/2) as an agent
    Conformance(conformance::Args),
    /// Run unmodified clients as an agent and check each line of what they are told
    Demo(demo::Args),
    /// Build the kernel side alone, and say where its object lies
    Ebpf,
    /// Try every known way around Sluice, with and without it
    Escape(escape::Args),
    /// Kill, restart and upgrade a daemon at random moments, under load
    Rounds(rounds::Args),
    /// Feed the parsers with what nobody would send, for as long as one likes
    Fuzz(fuzz::Args),
    /// Make this machine able to build, test and demonstrate Sluice
    Setup(setup::Args),
    /// Load with random faults on both sides, then count: no call lost, none sent twice, memory flat
    Soak(soak::Args),
    /// Build, then every test, the doctests, the demo and the virtual machine
    Test(suite::Args),
    /// The house rules that the compiler does not hold
    Tidy,
    /// Boot a Debian kernel and run the kernel tests inside it
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Clients(args) => clients::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Ebpf => setup::kernel_side().map(|object| println!("{}", object.display())),
        Command::Escape(args) => escape::run(&args),
        Command::Rounds(args) => rounds::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Setup(args) => setup::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Test(args) => suite::run(&args),
        Command::Tidy => tidy::run(),
        Command::Vm(args) => vm::run(&args).map(|_| ()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
