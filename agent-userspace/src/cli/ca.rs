//! `sluice ca show`: the root certificate that a tenant's workloads trust.
//! From the running daemon, else from the file it left in the runtime directory.
//! INVARIANT: only certificates are shown; the key never leaves the vault.

use std::process::ExitCode;

use clap::Subcommand;
use policies::Tenant;
use serde_json::json;

use super::{Failure, Global, Output};
use crate::config::read_one;
use crate::control::{Client, Part, Request};

/// What to show.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print a tenant's root certificate as PEM
    Show {
        /// The tenant
        tenant: Tenant,
    },
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let Command::Show { tenant } = command;
    let mut pem = String::new();
    match Client::connect(&global.paths.control_socket())? {
        Some(client) => client.ask(
            &Request::CaShow {
                tenant: tenant.clone(),
            },
            |part| {
                if let Part::Chunk(text) = part {
                    pem.push_str(&text);
                }
                Ok::<(), Failure>(())
            },
        )?,
        None => pem = read_one(&global.paths.ca_pem(&tenant))?.text,
    }
    let answer = json!({ "tenant": tenant, "pem": pem });
    Output::new(global).object(&answer, |_| pem.trim_end().to_owned())?;
    Ok(ExitCode::SUCCESS)
}
