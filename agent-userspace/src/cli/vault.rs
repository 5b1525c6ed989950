//! `sluice vault`: put, rotate, revoke and list credentials.
//! Through the running daemon, so that a change counts for the next call; without one, in place.
//! INVARIANT: a secret comes from standard input and is never printed.

use std::process::ExitCode;

use clap::Subcommand;
use policies::CredentialId;
use serde_json::Value;

use super::output::Tone;
use super::{Failure, Global, Output, offline, secret};
use crate::control::{Change, Client, Part, Request, SecretText};

/// What to do with credentials.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the credentials, without their secrets
    List,
    /// Store a new credential; the secret is read from standard input
    Put {
        /// TENANT/NAME
        credential: CredentialId,
    },
    /// Let a credential not be used any more
    Revoke {
        /// TENANT/NAME
        credential: CredentialId,
    },
    /// Replace a credential's secret, read from standard input, from the next call on
    Rotate {
        /// TENANT/NAME
        credential: CredentialId,
    },
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let (wanted, word) = match command {
        Command::List => return list(global),
        Command::Put { credential } => {
            let text = SecretText::new(&secret::read(&credential.to_string())?);
            (Change::Put(credential, text), "stored")
        }
        Command::Revoke { credential } => (Change::Revoke(credential), "revoked"),
        Command::Rotate { credential } => {
            let text = SecretText::new(&secret::read(&credential.to_string())?);
            (Change::Rotate(credential, text), "rotated")
        }
    };
    let done: Value = match Client::connect(&global.paths.control_socket())? {
        Some(client) => client.ask_one(&request(wanted))?,
        None => offline::change_vault(global, wanted)?,
    };
    let output = Output::new(global);
    output.object(&done, |done| {
        let credential = done
            .get("credential")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let version = done
            .get("version")
            .map(|version| format!(", version {version}"))
            .unwrap_or_default();
        format!("{credential} {}{version}", output.tone(Tone::Good, word))
    })?;
    Ok(ExitCode::SUCCESS)
}

fn request(wanted: Change) -> Request {
    match wanted {
        Change::Put(credential, secret) => Request::VaultPut { credential, secret },
        Change::Revoke(credential) => Request::VaultRevoke { credential },
        Change::Rotate(credential, secret) => Request::VaultRotate { credential, secret },
    }
}

fn list(global: &Global) -> Result<ExitCode, Failure> {
    let mut listings: Vec<Value> = Vec::new();
    match Client::connect(&global.paths.control_socket())? {
        Some(client) => client.ask(&Request::VaultList {}, |part| {
            if let Part::Item(value) = part {
                listings.push(value);
            }
            Ok::<(), Failure>(())
        })?,
        None => {
            let found = offline::vault(global)?
                .list()
                .map_err(crate::app::StartError::from)?;
            let found: Result<Vec<Value>, _> = found.iter().map(serde_json::to_value).collect();
            listings = found.map_err(|error| Failure::Output(error.into()))?;
        }
    }
    let text = |value: &Value, name: &str| match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let header = ["CREDENTIAL", "VERSION", "STATE", "CHANGED"];
    Output::new(global).table(
        &listings,
        &header,
        "the vault is empty; `sluice vault put TENANT/NAME` adds a credential",
        |listing| {
            let revoked = listing.get("revoked_at").is_some_and(|at| !at.is_null());
            let state = if revoked { "revoked" } else { "usable" };
            vec![
                text(listing, "credential"),
                text(listing, "version"),
                state.to_owned(),
                text(listing, "changed_at"),
            ]
        },
    )?;
    Ok(ExitCode::SUCCESS)
}
