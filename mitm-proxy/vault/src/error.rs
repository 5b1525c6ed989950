//! Every way the vault can fail, named where it is raised. No variant ever holds a byte of a secret.
//! Operators see [`VaultError`]; a call that cannot be armed becomes the refusal `credential_unavailable`.
//! INVARIANT: an `Err` of `put`, `rotate` or `revoke` means that the vault is as it was.

use std::fmt;
use std::path::PathBuf;

use audit::Owed;
use policies::{Call, CredentialId, Reason};

use crate::identity::IdentityError;

/// The fewest bytes a secret may have: scrubbing a shorter one would shred the responses.
pub const MIN_SECRET: usize = 8;

/// The most bytes a secret may have; more fits into no header.
pub const MAX_SECRET: usize = 16 * 1024;

/// Why the vault refused an operation.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A line break or another control character.
    #[error(
        "the secret contains a control character, perhaps the newline at its end; send it without"
    )]
    ControlCharacter,
    /// What is stored is not what was stored.
    #[error("{what} in the vault is damaged or was altered")]
    Corrupt {
        /// Which entry.
        what: String,
    },
    /// The database under the vault failed.
    #[error("vault database: {0}")]
    Database(Box<redb::Error>),
    /// The system has no randomness to give.
    #[error("no randomness: {0}")]
    Entropy(getrandom::Error),
    /// `put` is for new credentials.
    #[error("credential {0} exists already; rotate it to replace the secret")]
    Exists(CredentialId),
    /// Written by another version of Sluice.
    #[error("the vault has format {found}, this version reads format {expected}")]
    Format {
        /// What it says.
        found: String,
        /// What we read.
        expected: &'static str,
    },
    /// PEM that is no client certificate with its key.
    #[error("a secret that is PEM must be a certificate chain and its private key: {0}")]
    Identity(IdentityError),
    /// The file system refused.
    #[error("{path:?}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A master key is there already; it is not replaced, since everything sealed under it would be lost.
    #[error("{0:?} exists already; a master key is never replaced")]
    KeyExists(PathBuf),
    /// The file holds no master key.
    #[error("{0:?} does not hold a master key (64 hex digits)")]
    KeyFormat(PathBuf),
    /// There is no master key.
    #[error("{0:?}: no master key there")]
    KeyMissing(PathBuf),
    /// Others than its owner may read the master key.
    #[error("{path:?} can be read by others (mode {mode:o}); it must be 0600")]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process has the vault open.
    #[error("the vault {0:?} is in use by another process")]
    Locked(PathBuf),
    /// There is no such credential.
    #[error("there is no credential {0}")]
    NotFound(CredentialId),
    /// The cryptographic library refused to seal.
    #[error("the secret cannot be sealed")]
    Seal,
    /// The credential is revoked.
    #[error("credential {0} is revoked; put it anew")]
    Revoked(CredentialId),
    /// A secret that is all asterisks cannot be hidden behind asterisks.
    #[error("the secret consists of asterisks only")]
    Asterisks,
    /// More than [`MAX_SECRET`] bytes.
    #[error("the secret is longer than {MAX_SECRET} bytes")]
    TooLong,
    /// Fewer than [`MIN_SECRET`] bytes.
    #[error(
        "the secret is shorter than {MIN_SECRET} bytes; hiding it in responses would destroy them"
    )]
    TooShort,
    /// The vault was sealed under another master key.
    #[error("the vault {0:?} was sealed under another master key; nothing was changed")]
    WrongKey(PathBuf),
}

impl VaultError {
    pub(crate) fn database(error: impl Into<redb::Error>) -> VaultError {
        VaultError::Database(Box::new(error.into()))
    }
}

/// Why `Vault::sealed` gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum SealedError<E> {
    /// The secret could not be made.
    #[error("{0}")]
    Make(E),
    /// The vault failed.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// What stands between a call and its credential.
#[derive(Debug, thiserror::Error)]
pub enum LendFault {
    /// What the connection shows of itself is no certificate chain with its key.
    #[error("client certificate {0}: {1}")]
    Identity(CredentialId, IdentityError),
    /// The connector wants a credential and the connection names none.
    #[error("connection names no credential")]
    NotConfigured,
    /// The credential is of another tenant.
    #[error("credential {0} belongs to another tenant")]
    OtherTenant(CredentialId),
    /// The secret, or the request with it, is not valid HTTP at the place where it belongs.
    #[error("credential {0} cannot be written into the request: {1}")]
    Unfit(CredentialId, &'static str),
    /// A place to strip is no place of a request.
    #[error("the connector strips {0:?}, which is not a place in a request")]
    Place(String),
    /// The vault has no usable secret: missing, revoked, or damaged.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// A call that cannot be armed. Its request is gone; its outcome is still owed.
#[must_use = "the outcome is still owed"]
pub struct LendError {
    pub(crate) fault: LendFault,
    pub(crate) call: Box<Call>,
    pub(crate) owed: Owed,
}

impl LendError {
    /// The refusal: always `credential_unavailable`.
    pub fn reason(&self) -> Reason {
        Reason::CredentialUnavailable
    }

    /// What stood in the way.
    pub fn fault(&self) -> &LendFault {
        &self.fault
    }

    /// The call that is refused.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The outcome to record.
    pub fn into_owed(self) -> Owed {
        self.owed
    }
}

impl fmt::Display for LendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.fmt(f)
    }
}

impl fmt::Debug for LendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LendError")
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for LendError {}
