//! Every way the ledger can fail, named where it is raised.
//! The path of a request turns each of them into a refusal; none is ever ignored.
//! INVARIANT: an `Err` means that the caller may not act on the record.

use std::path::PathBuf;
use std::sync::Arc;

use policies::{ApprovalId, Reason, Tenant};

/// Why the ledger could not be opened. Nothing is served then.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The stored checkpoint does not fit the stored records: the file was altered or damaged.
    #[error("audit log {path:?} is corrupt: {detail}")]
    Corrupt {
        /// The log's file.
        path: PathBuf,
        /// What does not fit.
        detail: &'static str,
    },
    /// The database under the log failed.
    #[error("audit log {path:?}: {source}")]
    Database {
        /// The log's file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// The first commit, or the recovery of unfinished calls, failed.
    #[error("audit log {path:?} cannot be written: {source}")]
    Commit {
        /// The log's file.
        path: PathBuf,
        /// What failed.
        source: CommitFailure,
    },
    /// A file ends in `.redb` but is not named after a tenant.
    #[error("{path:?} is not the log of a tenant; move it out of the audit directory")]
    FileName {
        /// The file.
        path: PathBuf,
    },
    /// The log was written by another version of Sluice.
    #[error("audit log {path:?} has format {found}, this version reads format {expected}")]
    Format {
        /// The log's file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What we read.
        expected: &'static str,
    },
    /// The file system refused.
    #[error("{path:?}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The signing key is not one.
    #[error("{path:?} does not hold a signing key")]
    Key {
        /// The key file.
        path: PathBuf,
    },
    /// There are logs but no key: a new key would make them unverifiable.
    #[error(
        "{path:?} is missing although there are audit logs beside it; restore it from the backup"
    )]
    KeyMissing {
        /// The key file.
        path: PathBuf,
    },
    /// The key name of the options cannot stand in a signed note.
    #[error("audit key name {name:?} must not be empty nor contain spaces or '+'")]
    KeyName {
        /// What was asked for.
        name: String,
    },
    /// Others than its owner may read the key.
    #[error("{path:?} can be read by others (mode {mode:o}); it must be 0600")]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another process has the log open.
    #[error("audit log {path:?} is in use by another process")]
    Locked {
        /// The log's file.
        path: PathBuf,
    },
    /// The system has no randomness to give.
    #[error("no randomness: {0}")]
    Entropy(getrandom::Error),
    /// The writer thread could not be started.
    #[error("cannot start the audit writer: {0}")]
    Thread(std::io::Error),
}

/// Why a transaction was not committed. Shared by every record of the batch.
#[derive(Debug, thiserror::Error)]
pub enum CommitFailure {
    /// The database failed: no space, an I/O error.
    #[error("database: {0}")]
    Database(Box<redb::Error>),
    /// The journal failed: no space, an I/O error.
    #[error("journal: {0}")]
    Journal(std::io::Error),
    /// The log could not be opened again after an earlier failure.
    #[error("reopening: {0}")]
    Reopen(Box<OpenError>),
    /// A record could not be written as JSON.
    #[error("record: {0}")]
    Serialise(serde_json::Error),
    /// The checkpoint could not be signed.
    #[error("checkpoint: {0}")]
    Sign(signed_note::NoteError),
}

impl<E: Into<redb::Error>> From<E> for CommitFailure {
    fn from(error: E) -> CommitFailure {
        CommitFailure::Database(Box::new(error.into()))
    }
}

/// Why a record was not written, or could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The approval that the permit used is not open in the store: it was used, denied, or never stored.
    #[error("approval {0} is not open")]
    ApprovalSpent(ApprovalId),
    /// The log's writer has ended.
    #[error("the audit log is closed")]
    Closed,
    /// The batch was not committed; nothing of it counts.
    #[error("the audit log cannot be written: {0}")]
    Commit(Arc<CommitFailure>),
    /// A stored record cannot be read.
    #[error("audit log of {tenant}: record {index} is corrupt")]
    Corrupt {
        /// Whose log.
        tenant: Tenant,
        /// Which record.
        index: u64,
    },
    /// A stored approval cannot be read.
    #[error("audit log of {tenant}: a stored approval is corrupt")]
    CorruptApproval {
        /// Whose log.
        tenant: Tenant,
    },
    /// The system has no randomness to give.
    #[error("no randomness: {0}")]
    Entropy(getrandom::Error),
    /// The tenant has no log yet.
    #[error("there is no audit log of {0}")]
    NoLog(Tenant),
    /// The log has no such record.
    #[error("audit log of {tenant} has {size} records, not {index}")]
    NoRecord {
        /// Whose log.
        tenant: Tenant,
        /// Which was asked for.
        index: u64,
        /// How many there are.
        size: u64,
    },
    /// The tenant's log could not be opened.
    #[error(transparent)]
    Open(Arc<OpenError>),
    /// More records wait than the queue may hold.
    #[error("the audit queue is full")]
    Overloaded,
    /// The log could not be read.
    #[error("the audit log cannot be read: {0}")]
    Read(Arc<redb::Error>),
    /// A record may hold at most [`crate::record::MAX_RECORD`] bytes.
    #[error("the audit record is too large ({0} bytes)")]
    RecordTooLarge(usize),
    /// The host's own log has a tenant's name; no agent may belong to it.
    #[error("the tenant name \"host\" is reserved")]
    TenantReserved,
    /// The tree could not be read.
    #[error("the merkle tree cannot be read: {0}")]
    Tree(Arc<tlog_tiles::tlog::Error>),
    /// The export could not be written to its destination.
    #[error("cannot write the export: {0}")]
    Write(Arc<std::io::Error>),
}

impl AuditError {
    /// The refusal that the agent sees. A spent approval is the agent's concern; all else is ours.
    pub fn reason(&self) -> Reason {
        match self {
            AuditError::ApprovalSpent(_) => Reason::ApprovalRequired,
            _ => Reason::AuditUnavailable,
        }
    }

    pub(crate) fn tree(error: tlog_tiles::tlog::Error) -> AuditError {
        AuditError::Tree(Arc::new(error))
    }

    pub(crate) fn read(error: impl Into<redb::Error>) -> AuditError {
        AuditError::Read(Arc::new(error.into()))
    }
}

impl From<CommitFailure> for AuditError {
    fn from(failure: CommitFailure) -> AuditError {
        AuditError::Commit(Arc::new(failure))
    }
}
