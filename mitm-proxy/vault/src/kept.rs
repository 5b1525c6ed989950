//! The secrets that were lent lately, opened once and ready for the next call: the bytes, and the forms to scrub.
//! Between the store, which opens them, and lending, which borrows them.
//! INVARIANT: what is kept is the version in force: a change of a credential takes it out before the change is reported.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use policies::{Auth, CredentialId};

use crate::error::VaultError;
use crate::forms::Forms;
use crate::secret::Secret;

/// One version of a secret, open. Wiped when the last call that borrows it is over.
pub(crate) struct Opened {
    pub(crate) secret: Secret,
    pub(crate) version: u32,
    forms: OnceLock<Arc<Forms>>,
    /// Of a secret that is `user:password`, the password's forms besides.
    basic: OnceLock<Arc<Forms>>,
    at: Instant,
}

impl Opened {
    pub(crate) fn new(secret: Secret, version: u32) -> Opened {
        Opened {
            secret,
            version,
            forms: OnceLock::new(),
            basic: OnceLock::new(),
            at: Instant::now(),
        }
    }

    /// What a response to a call that was lent this is scrubbed of. Made once.
    pub(crate) fn forms(&self, auth: &Auth) -> Arc<Forms> {
        let place = match auth {
            Auth::Basic => &self.basic,
            Auth::Bearer | Auth::Header { .. } | Auth::None | Auth::Query { .. } => &self.forms,
        };
        let made = || Arc::new(Forms::of(&self.secret, auth));
        Arc::clone(place.get_or_init(made))
    }
}

/// The open secrets, by credential.
#[derive(Default)]
pub(crate) struct Kept(RwLock<HashMap<CredentialId, Arc<Opened>>>);

impl Kept {
    /// The open secret, or the one that `open` opens; `open` runs under the lock, so that a change cannot fall between
    /// its reading and the keeping.
    pub(crate) fn get(
        &self,
        id: &CredentialId,
        open: impl FnOnce() -> Result<Opened, VaultError>,
    ) -> Result<Arc<Opened>, VaultError> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = known.get(id) {
            return Ok(Arc::clone(opened));
        }
        drop(known);
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = known.get(id) {
            return Ok(Arc::clone(opened));
        }
        let opened = Arc::new(open()?);
        known.insert(id.clone(), Arc::clone(&opened));
        Ok(opened)
    }

    /// Takes a credential out, because it changed.
    pub(crate) fn forget(&self, id: &CredentialId) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// Takes out what was opened longer ago than this.
    pub(crate) fn forget_older(&self, than: Duration) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, opened| opened.at.elapsed() < than);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_opened_once_and_again_after_a_change_or_a_while() {
        let (kept, id): (_, CredentialId) = (Kept::default(), "acme/live".parse().unwrap());
        let version = |next: u32| {
            let opened = kept.get(&id, || {
                Ok(Opened::new(Secret::new(b"s3cret-s3cret".to_vec()), next))
            });
            opened.unwrap().version
        };
        assert_eq!((version(1), version(2)), (1, 1));
        kept.forget(&id);
        assert_eq!(version(3), 3);
        kept.forget_older(Duration::from_secs(3600));
        assert_eq!(version(4), 3);
        kept.forget_older(Duration::ZERO);
        assert_eq!(version(5), 5);
    }

    #[test]
    fn what_cannot_be_opened_is_asked_for_again() {
        let (kept, id): (_, CredentialId) = (Kept::default(), "acme/live".parse().unwrap());
        let refused = kept.get(&id, || Err(VaultError::Revoked(id.clone())));
        assert!(matches!(refused, Err(VaultError::Revoked(_))));
        let opened = kept.get(&id, || {
            Ok(Opened::new(Secret::new(b"s3cret-s3cret".to_vec()), 2))
        });
        assert_eq!(opened.unwrap().version, 2);
    }
}
