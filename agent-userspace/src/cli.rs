//! The command line: global flags, the tree of commands, exit codes. One file per command.
//! A command prints its answer on stdout and why there is none on stderr.
//! INVARIANT: 0 is yes, 1 is no or failed, 2 is a wrong command line; `--format json` has a stable shape.

mod agents;
mod approval_text;
mod approvals;
mod audit;
mod audit_source;
mod audit_text;
mod ca;
mod check;
mod connector;
mod daemon;
mod doctor;
mod enforcer;
mod failure;
mod money;
mod oci_hook;
mod offline;
mod output;
mod panic;
mod policy;
mod render;
mod run;
mod secret;
mod status;
mod trust;
mod unit_hook;
mod vault;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use serde::de::DeserializeOwned;

use crate::config::Paths;
use crate::control::{Client, ClientError, Part, Request};

pub use failure::Failure;
pub use output::Output;

/// AI agents can ask; the host decides.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about,
    max_term_width = 100,
    propagate_version = true
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes, before or after its name.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Where this instance keeps its files.
    #[command(flatten)]
    pub paths: Paths,
    /// How to answer
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub format: Format,
}

/// How a command answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Switch agents off and on
    #[command(subcommand)]
    Agents(agents::Command),
    /// Look at held calls and answer them
    #[command(subcommand)]
    Approvals(approvals::Command),
    /// Read and verify the audit log
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show the certificate authority of a tenant
    #[command(subcommand)]
    Ca(ca::Command),
    /// Check the configuration: settings, agents, connectors, policies
    Check(check::Args),
    /// Look at connectors and run their examples
    #[command(subcommand)]
    Connector(connector::Command),
    /// Enforce: the process that agents cannot do without
    Daemon(daemon::Args),
    /// Name each enforcement layer, and what is open without it
    Doctor(doctor::Args),
    /// Govern a container that is being created: the createRuntime hook of an OCI runtime
    OciHook(oci_hook::Args),
    #[command(hide = true)]
    InternalListen(daemon::ListenArgs),
    #[command(hide = true)]
    InternalWorker(daemon::WorkerArgs),
    /// Stop every agent of every tenant at once, also when no daemon runs
    Panic(panic::Args),
    /// Check, test and explain policies
    #[command(subcommand)]
    Policy(policy::Command),
    /// Run a command as an agent
    Run(run::Args),
    /// Say what runs
    Status(status::Args),
    /// Find the CA bundles that programs bring along
    #[command(subcommand)]
    Trust(trust::Command),
    /// Govern a systemd service that is being started: the first command of its drop-in
    UnitHook(unit_hook::Args),
    /// Keep the credentials that agents never see
    #[command(subcommand)]
    Vault(vault::Command),
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match dispatch(&global, command) {
        Ok(code) => code,
        Err(failure) => failure.report(&global),
    }
}

fn dispatch(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Agents(command) => agents::run(global, command),
        Command::Approvals(command) => approvals::run(global, command),
        Command::Audit(command) => audit::run(global, command),
        Command::Ca(command) => ca::run(global, command),
        Command::Check(args) => check::run(global, args),
        Command::Connector(command) => connector::run(global, command),
        Command::Daemon(args) => daemon::run(global, args),
        Command::Doctor(args) => doctor::run(global, args),
        Command::OciHook(args) => oci_hook::run(global, args),
        Command::InternalListen(args) => daemon::run_listen(global, args),
        Command::InternalWorker(args) => daemon::run_worker(global, args),
        Command::Panic(args) => panic::run(global, args),
        Command::Policy(command) => policy::run(global, command),
        Command::Run(args) => run::run(global, args),
        Command::Status(args) => status::run(global, args),
        Command::Trust(command) => trust::run(global, command),
        Command::UnitHook(args) => unit_hook::run(global, args),
        Command::Vault(command) => vault::run(global, command),
    }
}

/// Asks the daemon for a list of objects.
fn ask_all<T: DeserializeOwned>(global: &Global, request: &Request) -> Result<Vec<T>, Failure> {
    let socket = global.paths.control_socket();
    let mut found = Vec::new();
    Client::require(&socket)?.ask(request, |part| {
        if let Part::Item(value) = part {
            let broken = |error: serde_json::Error| ClientError::Broken {
                path: socket.clone(),
                source: error.into(),
            };
            found.push(serde_json::from_value(value).map_err(broken)?);
        }
        Ok::<(), Failure>(())
    })?;
    Ok(found)
}
