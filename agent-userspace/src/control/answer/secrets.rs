//! Credentials: put, rotate, revoke. Also used by the command line when no daemon runs.
//! The only way a secret enters the vault.
//! INVARIANT: each change is in the tenant's audit log with who made it, and no secret is ever in an answer.

use std::sync::Arc;

use audit::{HostEvent, Ledger};
use policies::{CredentialId, Timestamp};
use serde_json::{Value, json};
use vault::{Secret, Vault, VaultError};

use crate::app::{Shared, now};
use crate::control::peer::Peer;
use crate::control::protocol::{ErrorCode, ErrorReply, SecretText};
use crate::control::server::Replies;

/// A change of the vault.
#[derive(Debug)]
pub(crate) enum Change {
    /// A new credential.
    Put(CredentialId, SecretText),
    /// No further use.
    Revoke(CredentialId),
    /// A new version.
    Rotate(CredentialId, SecretText),
}

pub(super) async fn send(
    peer: &Peer,
    wanted: Change,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let done = change(wanted, peer.user.as_str(), &shared.vault, &shared.ledger).await?;
    replies.item(&done).await
}

/// Makes a change and records it; returns what to show.
pub(crate) async fn change(
    wanted: Change,
    by: &str,
    vault: &Arc<Vault>,
    ledger: &Ledger,
) -> Result<Value, ErrorReply> {
    let by = by.to_owned();
    let at = now();
    let vault = Arc::clone(vault);
    let (credential, event) = super::blocking(move || apply(wanted, by, at, &vault)).await?;
    let shown = match &event {
        HostEvent::SecretPut { version, .. } | HostEvent::SecretRotated { version, .. } => {
            json!({ "credential": credential, "version": version })
        }
        _ => json!({ "credential": credential, "revoked": true }),
    };
    // The vault has changed already: a crash or a failed write here leaves a change that is not on record, and
    // whoever made it is told so.
    let unrecorded = |error| {
        ErrorReply::new(
            ErrorCode::AuditUnavailable,
            format!("{credential} was changed, but that could not be recorded: {error}"),
        )
    };
    ledger
        .event(Some(&credential.tenant), event)
        .await
        .map_err(unrecorded)?;
    Ok(shown)
}

fn apply(
    wanted: Change,
    by: String,
    at: Timestamp,
    vault: &Vault,
) -> Result<(CredentialId, HostEvent), ErrorReply> {
    match wanted {
        Change::Put(credential, text) => {
            let version = vault.put(&credential, secret(&text)?, at).map_err(failed)?;
            Ok((
                credential.clone(),
                HostEvent::SecretPut {
                    credential,
                    version,
                    by,
                },
            ))
        }
        Change::Revoke(credential) => {
            vault.revoke(&credential, at).map_err(failed)?;
            Ok((
                credential.clone(),
                HostEvent::SecretRevoked { credential, by },
            ))
        }
        Change::Rotate(credential, text) => {
            let version = vault
                .rotate(&credential, secret(&text)?, at)
                .map_err(failed)?;
            Ok((
                credential.clone(),
                HostEvent::SecretRotated {
                    credential,
                    version,
                    by,
                },
            ))
        }
    }
}

fn secret(text: &SecretText) -> Result<Secret, ErrorReply> {
    let bytes = text
        .decode()
        .ok_or_else(|| ErrorReply::new(ErrorCode::Malformed, "the secret is not base64"))?;
    Ok(Secret::new(bytes))
}

pub(super) fn failed(error: VaultError) -> ErrorReply {
    ErrorReply::new(ErrorCode::Credential, error.to_string())
}
