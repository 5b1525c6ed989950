//! Secrets of Sluice: sealed at rest, lent to one call at a time, scrubbed from what comes back.
//! Step 8 of a request's path: the placeholder becomes the credential, for this connection only.
//! INVARIANT: no credential without an `audit::Recorded`; a [`Secret`] cannot be copied, printed or serialised.
//!
//! Dependencies: `audit` and `policies` among our crates. This is the only crate that can read a credential.
//!
//! # The types hold it
//! An [`Armed`] request cannot be made by hand:
//! ```compile_fail,E0451
//! # fn forge(request: http::Request<()>, call: policies::Call, owed: audit::Owed, scrubber: vault::Scrubber) {
//! let _ = vault::Armed { request, call, credential: None, identity: None, scrubber, owed };
//! # }
//! ```
//! nothing is lent without a record:
//! ```compile_fail,E0308
//! # fn lend(vault: &vault::Vault, request: http::Request<()>, call: policies::Call) {
//! let _ = vault.lend(request, call);
//! # }
//! ```
//! and a secret is neither copied, nor shown, nor written out:
//! ```compile_fail,E0599
//! # fn copy(secret: &vault::Secret) -> vault::Secret { secret.clone() }
//! ```
//! ```compile_fail,E0277
//! # fn show(secret: &vault::Secret) { format!("{secret}"); }
//! ```
//! ```compile_fail,E0277
//! # fn write(secret: &vault::Secret) { let _ = serde_json::to_string(secret); }
//! ```
//! The positive control, that the same names are usable as meant:
//! ```
//! fn lend(vault: &vault::Vault, request: http::Request<()>, recorded: audit::Recorded) -> Option<audit::Owed> {
//!     let (_request, _scrubber, owed) = vault.lend(request, recorded).ok()?.into_parts();
//!     Some(owed)
//! }
//! ```
#![forbid(unsafe_code)]

mod error;
mod finder;
mod forms;
mod identity;
mod inject;
mod kept;
mod lend;
mod master;
mod scrub;
mod seal;
mod secret;
mod store;
mod strip;

pub use error::{LendError, LendFault, MAX_SECRET, MIN_SECRET, SealedError, VaultError};
pub use identity::{Identity, IdentityError, KeyForm, Lent};
pub use lend::Armed;
pub use master::{MasterKey, MasterKeySource};
pub use scrub::Scrubber;
pub use secret::Secret;
pub use store::{Listing, Vault};
