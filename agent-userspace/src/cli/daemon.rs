//! `sluice daemon`, and the two roles in which it starts itself again.
//! Sets up the log and hands over to `daemon`.
//! INVARIANT: no thread is started here: the proxy process must give up root while it has one.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Failure, Global};
use crate::daemon::{self, ChannelError, DaemonError};

/// Run the daemon (as root)
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {}

/// The proxy process
#[derive(Clone, Debug, clap::Args)]
pub(super) struct WorkerArgs {}

/// The process that opens the listeners
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ListenArgs {
    /// The cgroup to open them in
    #[arg(long, value_name = "DIR")]
    cgroup: PathBuf,
}

/// Runs the enforcer process until it is told to stop.
///
/// # Errors
/// The daemon cannot start.
pub(super) fn run(global: &Global, _args: Args) -> Result<ExitCode, Failure> {
    crate::config::log_to_stderr();
    daemon::run(&global.paths)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| match error {
            DaemonError::Configuration(diagnostics) => Failure::Configuration(diagnostics),
            error => Failure::Process {
                detail: error.to_string(),
                code: 1,
            },
        })
}

/// Runs the proxy process.
///
/// # Errors
/// It cannot start; the enforcer has been told and tells the operator.
pub(super) fn run_worker(global: &Global, _args: WorkerArgs) -> Result<ExitCode, Failure> {
    crate::config::log_to_stderr();
    match daemon::run_worker(&global.paths) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The enforcer prints it; twice would be once too often.
        Err(DaemonError::Worker(_)) => Ok(ExitCode::FAILURE),
        Err(DaemonError::Channel(ChannelError::HungUp)) => Ok(ExitCode::FAILURE),
        Err(error) => Err(Failure::Process {
            detail: error.to_string(),
            code: 1,
        }),
    }
}

/// Opens the listeners for the enforcer.
///
/// # Errors
/// The enforcer is gone.
pub(super) fn run_listen(_global: &Global, args: ListenArgs) -> Result<ExitCode, Failure> {
    daemon::open_for_parent(&args.cgroup)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| Failure::Process {
            detail: error.to_string(),
            code: 1,
        })
}
