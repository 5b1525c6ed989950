//! The vault and the audit logs without a daemon: opened in place, by root, and left as the daemon needs them.
//! For `vault` and `audit` on a host where none runs.
//! INVARIANT: what is made here belongs to the state directory's owner afterwards.

use std::sync::Arc;

use audit::Ledger;
use serde_json::Value;
use vault::Vault;

use super::{Failure, Global};
use crate::app::{master_key, open_ledger, open_vault};
use crate::config::{Accounts, Snapshot, adopt_owner};
use crate::control::{Change, change};

/// The audit logs of this instance.
pub(super) fn ledger(global: &Global) -> Result<Ledger, Failure> {
    let ledger = open_ledger(&global.paths, None)?;
    give_away(global)?;
    Ok(ledger)
}

/// The vault of this instance. The settings say where its key is.
pub(super) fn vault(global: &Global) -> Result<Vault, Failure> {
    let config = Snapshot::read(&global.paths)?.config()?;
    let vault = open_vault(&global.paths, master_key(&global.paths, &config)?)?;
    give_away(global)?;
    Ok(vault)
}

/// Changes the vault and records it.
pub(super) fn change_vault(global: &Global, wanted: Change) -> Result<Value, Failure> {
    let vault = Arc::new(vault(global)?);
    let ledger = ledger(global)?;
    let by = Accounts::read().user_name(rustix::process::getuid().as_raw());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(Failure::Output)?;
    let done = runtime.block_on(change(wanted, &by, &vault, &ledger))?;
    give_away(global)?;
    Ok(done)
}

fn give_away(global: &Global) -> Result<(), Failure> {
    adopt_owner(&global.paths).map_err(|source| Failure::Io {
        path: global.paths.state.clone(),
        source,
    })
}
