//! The tamper-evident log of Sluice: what was asked, decided, lent and answered.
//! It stands between the decision and the credential: an intent is durable before a byte leaves the host.
//! INVARIANT: a [`Recorded`] exists only for a durable record, and a record only for a `policies::Permit`.
//!
//! Dependencies: `policies` alone among our crates. Nothing here knows a secret: events carry credential *ids*.
//! This crate is the only user of redb for the log.
//!
//! # Reading the code
//! [`Ledger`] is the door. [`record`] documents every byte that is hashed. `writer` is the one thread per log
//! that commits; `store` is what one commit does; [`verify()`] is the offline check that a stranger can re-write.
//!
//! # The types hold the order
//! A [`Recorded`] cannot be made by hand:
//! ```compile_fail,E0451
//! # fn forge(permit: policies::Permit, owed: audit::Owed) {
//! let _ = audit::Recorded { permit, owed };
//! # }
//! ```
//! nor used twice:
//! ```compile_fail,E0382
//! # fn twice(recorded: audit::Recorded) {
//! let _ = recorded.into_owed();
//! let _ = recorded.into_owed();
//! # }
//! ```
//! nor copied:
//! ```compile_fail,E0599
//! # fn copy(recorded: &audit::Recorded) -> audit::Recorded {
//! recorded.clone()
//! # }
//! ```
//! and the debt of an outcome cannot be invented either:
//! ```compile_fail,E0451
//! # fn invent(owed: audit::Owed) {
//! let _ = audit::Owed { debt: None, ..owed };
//! # }
//! ```
//! The positive control, that the same names are usable as meant:
//! ```
//! fn settle(ledger: &audit::Ledger, recorded: audit::Recorded, outcome: audit::Outcome) {
//!     let (_call, owed) = recorded.into_owed();
//!     ledger.outcome(owed, outcome);
//! }
//! ```
#![forbid(unsafe_code)]

mod batch;
mod checkpoint;
mod draft;
pub mod entropy;
mod error;
mod evidence;
mod export;
mod facts;
mod files;
mod journal;
mod key;
mod ledger;
mod line;
mod log;
mod proof;
mod query;
mod queue;
pub mod record;
mod replay;
mod store;
mod tree;
mod verify;
mod writer;

pub use error::{AuditError, CommitFailure, OpenError};
pub use evidence::{Guarantee, Owed, Recorded};
pub use facts::{ApprovalEvent, HostEvent, IntentFacts, Outcome, RefusalFacts, WorkloadFacts};
pub use key::{VerifierKey, VerifierKeyError};
pub use ledger::{CommitStats, Ledger, OnCommit, Options, Reads};
pub use proof::{
    Consistency, Inclusion, ProofError, verify_checkpoint, verify_consistency, verify_inclusion,
};
pub use query::{Entry, Query};
pub use record::{Kind, Record};
pub use verify::{CheckpointProblem, Verified, VerifyError, verify};
