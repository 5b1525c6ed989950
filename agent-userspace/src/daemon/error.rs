//! Why the daemon does not start, or stops.
//! Returned by the enforcer's main function and printed by `sluice daemon`.
//! INVARIANT: nothing is published and no agent served when one of these is returned.

use std::io;
use std::path::PathBuf;

use policies::Diagnostics;

use super::ChannelError;
use crate::enforce::EnforceError;
use crate::enforce::launch::{AccountError, ConfineError};

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The account of `[proxy] user`.
    #[error("[proxy] user: {0}")]
    Account(#[from] AccountError),
    /// Another daemon has this runtime directory.
    #[error("another daemon already runs on {}", .0.display())]
    AlreadyRunning(PathBuf),
    /// The processes of the daemon did not understand each other.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The proxy process cannot be shut in, and must not serve.
    #[error("the proxy process cannot be confined: {0}")]
    Confine(#[from] ConfineError),
    /// The configuration is broken.
    #[error("{0}")]
    Configuration(#[from] Diagnostics),
    /// The kernel side cannot be set up.
    #[error("{}", in_full(.0))]
    Enforce(#[from] EnforceError),
    /// The system refused something.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The kernel lacks what the walls are made of.
    #[error(
        "kernel_too_old: this kernel is {0}; Sluice enforces on Linux 6.1 and newer, and on older ones nothing is governed"
    )]
    KernelTooOld(String),
    /// The listeners cannot be opened.
    #[error("the listeners cannot be opened: {0}")]
    Listeners(String),
    /// The daemon needs root.
    #[error("the daemon starts as root; its proxy process gives root up")]
    NotRoot,
    /// Not every layer is live, and nobody opted in.
    #[error(
        "this kernel does not enforce every layer. Open without it:\n{}\n\
         To run all the same: `reduced = true` under [enforcement], or SLUICE_REDUCED=1",
        list(.0)
    )]
    Reduced(Vec<String>),
    /// The proxy process would have privileges to lose.
    #[error("[proxy] user: the proxy process must have a uid of its own, not 0")]
    RootAccount,
    /// The proxy process cannot start; it said why.
    #[error("the proxy process cannot start: {0}")]
    Worker(String),
}

impl DaemonError {
    /// An I/O error with what was being done.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
        let what = what.into();
        move |error| DaemonError::Io { what, error }
    }
}

/// An error with everything that it was caused by.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn list(open: &[String]) -> String {
    open.iter()
        .map(|escape| format!("  - {escape}"))
        .collect::<Vec<_>>()
        .join("\n")
}
