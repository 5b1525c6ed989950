//! Why a command has no answer, and the exit code that says so to scripts.
//! The last step of every failing command.
//! INVARIANT: exit code 2 is a wrong command line or argument, everything else that fails is 1.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use policies::{Diagnostics, Tenant};

use super::output::Output;
use super::{Format, Global, render};
use crate::app::StartError;
use crate::control::{ClientError, ErrorReply};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The audit log cannot be read.
    #[error(transparent)]
    Audit(#[from] audit::AuditError),
    /// An exported log does not verify.
    #[error("{path}: {source}", path = path.display())]
    AuditVerify {
        /// The export.
        path: PathBuf,
        /// What is wrong with it.
        source: audit::VerifyError,
    },
    /// The daemon refused, or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Files of the operator are wrong.
    #[error("{0}")]
    Configuration(#[from] Diagnostics),
    /// The vault or log was used without a daemon and refused.
    #[error(transparent)]
    Offline(#[from] ErrorReply),
    /// An argument has the wrong content.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A part of the state cannot be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A tenant that has no log and no agents.
    #[error("there is no log of tenant `{tenant}`; there are {}", known.iter().map(Tenant::as_str).collect::<Vec<_>>().join(", "))]
    NoLog {
        /// What was given.
        tenant: Tenant,
        /// Whose logs there are.
        known: Vec<Tenant>,
    },
    /// A file or stream cannot be used.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The answer cannot be printed.
    #[error("cannot write the answer: {0}")]
    Output(io::Error),
    /// The daemon could not be started or kept, or a workload could not be run.
    #[error("{detail}")]
    Process {
        /// For a person.
        detail: String,
        /// The exit code.
        code: u8,
    },
}

/// What is wrong with an argument that the argument parser could not see.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// A header without a colon.
    #[error("`{header}` is not a header; write for example `content-type: application/json`")]
    Header {
        /// What was given.
        header: String,
    },
    /// No capability, agent, connector or the like of this name.
    #[error("there is no {what} `{name}`{}", hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Unknown {
        /// What it should have been.
        what: &'static str,
        /// What was given.
        name: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The secret on standard input cannot be used.
    #[error("{0}")]
    Secret(&'static str),
    /// A URL that no agent's call could have.
    #[error("`{url}` is not a URL such as https://api.example.com/v1/things?limit=1")]
    Url {
        /// What was given.
        url: String,
    },
    /// No log here has the key.
    #[error(
        "no log of this host has the key of this file; give --key KEY, as `sluice audit key` prints it where the log was made"
    )]
    NoVerifierKey,
    /// A key that is none.
    #[error("this is not an audit log's public key; `sluice audit key` prints it")]
    VerifierKey,
}

impl Failure {
    /// Prints the failure on stderr and gives its exit code.
    pub(super) fn report(self, global: &Global) -> ExitCode {
        match &self {
            // Whoever read the output has seen enough.
            Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Failure::Configuration(diagnostics) => {
                render::diagnostics_to_stderr(diagnostics, global)
            }
            failure if global.format == Format::Json => {
                let line = serde_json::json!({ "error": failure.to_string() });
                Output::complain(&line.to_string());
            }
            failure => Output::complain(&format!(
                "sluice: {}",
                super::output::clean(&failure.to_string())
            )),
        }
        match self {
            Failure::Argument(_) => ExitCode::from(2),
            Failure::Process { code, .. } => ExitCode::from(code),
            _ => ExitCode::from(1),
        }
    }
}
