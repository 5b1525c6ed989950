//! The vault's file: sealed credentials by version, what is known about them, and the host's own sealed keys.
//! Opened once by the daemon; operators change it through the daemon, calls read it through `lend`.
//! INVARIANT: nothing here is readable without the master key, and the host's own keys are out of the reach of `lend`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use policies::{CredentialId, Tenant, Timestamp};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use crate::error::{MAX_SECRET, MIN_SECRET, SealedError, VaultError};
use crate::identity;
use crate::kept::{Kept, Opened};
use crate::master::MasterKey;
use crate::seal::{self, Label, Purpose};
use crate::secret::Secret;

/// `tenant/name` -> what is known about the credential, as JSON.
const CREDENTIALS: TableDefinition<&str, &[u8]> = TableDefinition::new("credentials");
/// `tenant/name` -> the current version, sealed. Absent once revoked.
const SECRETS: TableDefinition<&str, &[u8]> = TableDefinition::new("secrets");
/// `tenant/label` -> one of the host's own keys, sealed.
const OWN: TableDefinition<&str, &[u8]> = TableDefinition::new("own");
/// `format`, `canary`.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const FORMAT: &str = "sluice-vault-1";
const CACHE: usize = 4 * 1024 * 1024;
const CANARY: Label<'_> = Label {
    purpose: Purpose::Canary,
    tenant: "",
    name: "canary",
    version: 1,
};

/// What is known about a credential; never the secret.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// Which credential.
    pub credential: CredentialId,
    /// The current version; counts up from 1, also across a revocation.
    pub version: u32,
    /// When it was first put.
    pub created_at: Timestamp,
    /// When the current version was put.
    pub changed_at: Timestamp,
    /// When it was revoked; `None` while it is lent.
    pub revoked_at: Option<Timestamp>,
}

/// The secrets of this host, in one file, mode 0600.
pub struct Vault {
    db: Database,
    master: MasterKey,
    kept: Kept,
}

impl Vault {
    /// Opens the vault, or makes an empty one where there is none. Blocks.
    ///
    /// A crash while it is made leaves a file without a canary, which is made anew the next time: nothing was in it.
    ///
    /// # Errors
    /// Another master key, another process, a damaged or unreadable file. The vault is not changed then.
    pub fn open(path: &Path, master: MasterKey) -> Result<Vault, VaultError> {
        let vault = Vault {
            db: open_database(path)?,
            master,
            kept: Kept::default(),
        };
        vault.check_key(path)?;
        Ok(vault)
    }

    /// Adds a credential and says its version: 1, or after a revocation the next one.
    ///
    /// Durable when it returns; a crash before that leaves the vault as it was.
    ///
    /// # Errors
    /// It exists already, or the secret cannot be used.
    pub fn put(
        &self,
        id: &CredentialId,
        secret: Secret,
        now: Timestamp,
    ) -> Result<u32, VaultError> {
        check_secret(&secret)?;
        self.change(id, |known| match known {
            None => Ok((new_version(id, 1, now, now), Some(secret))),
            Some(Listing {
                revoked_at: None, ..
            }) => Err(VaultError::Exists(id.clone())),
            Some(old) => Ok((next_version(old, now), Some(secret))),
        })
    }

    /// Replaces the secret of a credential and says the new version. The next call is lent the new one.
    ///
    /// Durable when it returns; a crash before that leaves the old version.
    ///
    /// # Errors
    /// There is no such credential, it is revoked, or the secret cannot be used.
    pub fn rotate(
        &self,
        id: &CredentialId,
        secret: Secret,
        now: Timestamp,
    ) -> Result<u32, VaultError> {
        check_secret(&secret)?;
        self.change(id, |known| match known {
            None => Err(VaultError::NotFound(id.clone())),
            Some(Listing {
                revoked_at: Some(_),
                ..
            }) => Err(VaultError::Revoked(id.clone())),
            Some(old) => Ok((next_version(old, now), Some(secret))),
        })
    }

    /// Forgets the secret of a credential. The next call that needs it is refused.
    ///
    /// Durable when it returns; a crash before that leaves it in force. Revoking twice changes nothing.
    ///
    /// # Errors
    /// There is no such credential.
    pub fn revoke(&self, id: &CredentialId, now: Timestamp) -> Result<(), VaultError> {
        let revoked = self.change(id, |known| match known {
            None => Err(VaultError::NotFound(id.clone())),
            Some(old) => {
                let revoked_at = old.revoked_at.or(Some(now));
                Ok((Listing { revoked_at, ..old }, None))
            }
        });
        revoked.map(drop)
    }

    /// Every credential, revoked ones too, in alphabetical order.
    ///
    /// # Errors
    /// The vault cannot be read.
    pub fn list(&self) -> Result<Vec<Listing>, VaultError> {
        let snapshot = self.db.begin_read().map_err(VaultError::database)?;
        let table = snapshot
            .open_table(CREDENTIALS)
            .map_err(VaultError::database)?;
        let mut listings = Vec::new();
        for entry in table.iter().map_err(VaultError::database)? {
            let (id, json) = entry.map_err(VaultError::database)?;
            listings.push(decode(id.value(), json.value())?);
        }
        Ok(listings)
    }

    /// One of the host's own keys, such as a tenant's CA key: made and sealed when it is first asked for.
    /// It is no credential and is never lent.
    ///
    /// Durable before it is returned, so that nothing is ever signed with a key that a crash forgets.
    ///
    /// # Errors
    /// It could not be made, sealed or opened.
    pub fn sealed<E>(
        &self,
        tenant: &Tenant,
        label: &str,
        make: impl FnOnce() -> Result<Secret, E>,
    ) -> Result<Secret, SealedError<E>> {
        let place = format!("{tenant}/{label}");
        let seal_label = own_label(tenant, label);
        // One writer at a time: of two that come at once the second finds what the first made.
        let transaction = self.db.begin_write().map_err(VaultError::database)?;
        let secret = {
            let mut table = transaction.open_table(OWN).map_err(VaultError::database)?;
            let stored = table.get(place.as_str()).map_err(VaultError::database)?;
            if let Some(stored) = stored {
                let opened = seal::open(&self.master, seal_label, stored.value());
                return Ok(opened.map_err(|_| corrupt(&place))?);
            }
            drop(stored);
            let secret = make().map_err(SealedError::Make)?;
            let sealed = seal::seal(&self.master, seal_label, &secret)?;
            table
                .insert(place.as_str(), sealed.as_slice())
                .map_err(VaultError::database)?;
            secret
        };
        transaction.commit().map_err(VaultError::database)?;
        Ok(secret)
    }

    /// What [`Vault::sealed`] or [`Vault::reseal`] sealed under this label, if they did.
    ///
    /// # Errors
    /// It could not be opened.
    pub fn unsealed(&self, tenant: &Tenant, label: &str) -> Result<Option<Secret>, VaultError> {
        let place = format!("{tenant}/{label}");
        let snapshot = self.db.begin_read().map_err(VaultError::database)?;
        let table = match snapshot.open_table(OWN) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(VaultError::database(error)),
        };
        let stored = table.get(place.as_str()).map_err(VaultError::database)?;
        let Some(stored) = stored else {
            return Ok(None);
        };
        let opened = seal::open(&self.master, own_label(tenant, label), stored.value());
        opened.map(Some).map_err(|_| corrupt(&place))
    }

    /// Seals one of the host's own keys in the place of what was there, and wipes what `instead_of` names; durable when it
    /// returns. A crash before it leaves what was.
    ///
    /// # Errors
    /// It could not be sealed or written.
    pub fn reseal(
        &self,
        tenant: &Tenant,
        label: &str,
        secret: &Secret,
        instead_of: &[&str],
    ) -> Result<(), VaultError> {
        let place = format!("{tenant}/{label}");
        let sealed = seal::seal(&self.master, own_label(tenant, label), secret)?;
        let transaction = self.db.begin_write().map_err(VaultError::database)?;
        {
            let mut table = transaction.open_table(OWN).map_err(VaultError::database)?;
            table
                .insert(place.as_str(), sealed.as_slice())
                .map_err(VaultError::database)?;
            for label in instead_of {
                table
                    .remove(format!("{tenant}/{label}").as_str())
                    .map_err(VaultError::database)?;
            }
        }
        transaction.commit().map_err(VaultError::database)
    }

    /// Wipes the open secrets that were opened longer ago than this. A later call opens its own anew.
    pub fn forget_older(&self, than: Duration) {
        self.kept.forget_older(than);
    }

    /// The current secret of a credential, and its version: kept open from call to call, until it changes.
    pub(crate) fn current(&self, id: &CredentialId) -> Result<Arc<Opened>, VaultError> {
        self.kept.get(id, || self.open_current(id))
    }

    fn open_current(&self, id: &CredentialId) -> Result<Opened, VaultError> {
        let place = id.to_string();
        let snapshot = self.db.begin_read().map_err(VaultError::database)?;
        let known = snapshot
            .open_table(CREDENTIALS)
            .map_err(VaultError::database)?;
        let json = known.get(place.as_str()).map_err(VaultError::database)?;
        let json = json.ok_or_else(|| VaultError::NotFound(id.clone()))?;
        let listing = decode(&place, json.value())?;
        if listing.revoked_at.is_some() {
            return Err(VaultError::Revoked(id.clone()));
        }
        let secrets = snapshot.open_table(SECRETS).map_err(VaultError::database)?;
        let sealed = secrets.get(place.as_str()).map_err(VaultError::database)?;
        let sealed = sealed.ok_or_else(|| corrupt(&place))?;
        let label = credential_label(id, listing.version);
        let secret =
            seal::open(&self.master, label, sealed.value()).map_err(|_| corrupt(&place))?;
        Ok(Opened::new(secret, listing.version))
    }

    /// Changes one credential in one durable transaction: its listing, and its secret (`None` removes it).
    /// Whatever came of it, what is kept open of the credential is taken out before this returns.
    fn change(
        &self,
        id: &CredentialId,
        decide: impl FnOnce(Option<Listing>) -> Result<(Listing, Option<Secret>), VaultError>,
    ) -> Result<u32, VaultError> {
        let changed = self.commit_change(id, decide);
        self.kept.forget(id);
        changed
    }

    fn commit_change(
        &self,
        id: &CredentialId,
        decide: impl FnOnce(Option<Listing>) -> Result<(Listing, Option<Secret>), VaultError>,
    ) -> Result<u32, VaultError> {
        let place = id.to_string();
        let transaction = self.db.begin_write().map_err(VaultError::database)?;
        let version = {
            let mut known = transaction
                .open_table(CREDENTIALS)
                .map_err(VaultError::database)?;
            let mut secrets = transaction
                .open_table(SECRETS)
                .map_err(VaultError::database)?;
            let old = known.get(place.as_str()).map_err(VaultError::database)?;
            let old = old.map(|json| decode(&place, json.value())).transpose()?;
            let (new, secret) = decide(old)?;

            let json = serde_json::to_vec(&new).map_err(|_| corrupt(&place))?;
            known
                .insert(place.as_str(), json.as_slice())
                .map_err(VaultError::database)?;
            match secret {
                Some(secret) => {
                    let label = credential_label(id, new.version);
                    let sealed = seal::seal(&self.master, label, &secret)?;
                    secrets.insert(place.as_str(), sealed.as_slice())
                }
                None => secrets.remove(place.as_str()),
            }
            .map_err(VaultError::database)?;
            new.version
        };
        transaction.commit().map_err(VaultError::database)?;
        Ok(version)
    }

    /// Opens the canary, or seals one into a new vault. Writes nothing into a vault that has one.
    fn check_key(&self, path: &Path) -> Result<(), VaultError> {
        let transaction = self.db.begin_write().map_err(VaultError::database)?;
        if self.has_canary(&transaction, path)? {
            return transaction.abort().map_err(VaultError::database);
        }
        {
            let canary = seal::seal(&self.master, CANARY, &Secret::new(FORMAT.into()))?;
            let mut meta = transaction.open_table(META).map_err(VaultError::database)?;
            meta.insert("format", FORMAT.as_bytes())
                .map_err(VaultError::database)?;
            meta.insert("canary", canary.as_slice())
                .map_err(VaultError::database)?;
            // So that readers find every table.
            for table in [CREDENTIALS, SECRETS, OWN] {
                transaction
                    .open_table(table)
                    .map_err(VaultError::database)?;
            }
        }
        transaction.commit().map_err(VaultError::database)
    }

    fn has_canary(&self, transaction: &WriteTransaction, path: &Path) -> Result<bool, VaultError> {
        let meta = transaction.open_table(META).map_err(VaultError::database)?;
        let format = meta.get("format").map_err(VaultError::database)?;
        if let Some(found) = format.filter(|format| format.value() != FORMAT.as_bytes()) {
            let found = String::from_utf8_lossy(found.value()).into_owned();
            return Err(VaultError::Format {
                found,
                expected: FORMAT,
            });
        }
        let Some(canary) = meta.get("canary").map_err(VaultError::database)? else {
            return Ok(false);
        };
        let opened = seal::open(&self.master, CANARY, canary.value());
        opened
            .map(|_| true)
            .map_err(|_| VaultError::WrongKey(path.to_owned()))
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

fn own_label<'a>(tenant: &'a Tenant, label: &'a str) -> Label<'a> {
    Label {
        purpose: Purpose::Own,
        tenant: tenant.as_str(),
        name: label,
        version: 1,
    }
}

fn credential_label(id: &CredentialId, version: u32) -> Label<'_> {
    let (tenant, name) = (id.tenant.as_str(), id.name.as_str());
    Label {
        purpose: Purpose::Credential,
        tenant,
        name,
        version,
    }
}

fn new_version(id: &CredentialId, version: u32, created_at: Timestamp, now: Timestamp) -> Listing {
    Listing {
        credential: id.clone(),
        version,
        created_at,
        changed_at: now,
        revoked_at: None,
    }
}

fn next_version(old: Listing, now: Timestamp) -> Listing {
    new_version(
        &old.credential,
        old.version.saturating_add(1),
        old.created_at,
        now,
    )
}

fn check_secret(secret: &Secret) -> Result<(), VaultError> {
    match secret.expose() {
        bytes if bytes.len() > MAX_SECRET => Err(VaultError::TooLong),
        bytes if identity::is_pem(bytes) => identity::read(bytes)
            .map(drop)
            .map_err(VaultError::Identity),
        bytes if bytes.iter().any(u8::is_ascii_control) => Err(VaultError::ControlCharacter),
        bytes if bytes.len() < MIN_SECRET => Err(VaultError::TooShort),
        bytes if bytes.iter().all(|byte| *byte == b'*') => Err(VaultError::Asterisks),
        _ => Ok(()),
    }
}

fn decode(place: &str, json: &[u8]) -> Result<Listing, VaultError> {
    serde_json::from_slice(json).map_err(|_| corrupt(place))
}

fn corrupt(place: &str) -> VaultError {
    VaultError::Corrupt {
        what: place.to_owned(),
    }
}

/// redb checks every page now: a damaged vault is an error here, not a surprise at the first call.
fn open_database(path: &Path) -> Result<Database, VaultError> {
    let io = |source| VaultError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    File::open(path.parent().unwrap_or(Path::new(".")))
        .and_then(|dir| dir.sync_all())
        .map_err(io)?;
    FileBackend::new(file)
        .and_then(|backend| {
            Builder::new()
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(true)
                .create_with_backend(backend)
        })
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => VaultError::Locked(path.to_owned()),
            other => VaultError::database(other),
        })
}
