//! Lending: a recorded call gets its credential, for this one request.
//! Step 8 of a request's path; `Vault::lend` is the only way from a sealed credential to the wire.
//! INVARIANT: what the agent sent in the credential's places is gone before anything else is decided.

use std::fmt;

use audit::{Owed, Recorded};
use http::Request;
use http::request::Parts;
use policies::{Auth, Call, CredentialId};

use crate::error::{LendError, LendFault};
use crate::identity::{self, Lent};
use crate::inject::inject;
use crate::scrub::Scrubber;
use crate::store::Vault;
use crate::strip::strip;

/// A request that carries its credential and may be sent, and what must happen to the answer.
#[must_use = "an armed request that is dropped is recorded as aborted"]
pub struct Armed<B> {
    request: Request<B>,
    call: Call,
    credential: Option<(CredentialId, u32)>,
    identity: Option<Lent>,
    scrubber: Scrubber,
    owed: Owed,
}

impl Vault {
    /// Strips the credential's places from the request and writes the credential into its own.
    ///
    /// A connector without auth gets nothing, and what it strips is stripped all the same.
    ///
    /// # Errors
    /// The connector wants a credential that is not configured, missing, revoked, of another tenant, or no valid HTTP.
    /// The request is gone then; the outcome is still owed.
    pub fn lend<B>(&self, request: Request<B>, recorded: Recorded) -> Result<Armed<B>, LendError> {
        let (call, owed) = recorded.into_owed();
        let (mut head, body) = request.into_parts();
        match self.arm(&mut head, &call) {
            Ok(Loan {
                credential,
                identity,
                scrubber,
            }) => {
                let request = Request::from_parts(head, body);
                Ok(Armed {
                    request,
                    call,
                    credential,
                    identity,
                    scrubber,
                    owed,
                })
            }
            Err(fault) => Err(LendError {
                fault,
                call: Box::new(call),
                owed,
            }),
        }
    }

    fn arm(&self, head: &mut Parts, call: &Call) -> Result<Loan, LendFault> {
        strip(&mut head.headers, &mut head.uri, call.strip())?;
        // The call says so too; lending does not depend on it.
        strip(
            &mut head.headers,
            &mut head.uri,
            call.auth().place().as_slice(),
        )?;
        let identity = self.identity(call)?;
        if *call.auth() == Auth::None {
            return Ok(Loan {
                credential: None,
                identity,
                scrubber: Scrubber::default(),
            });
        }

        let id = call.credential().ok_or(LendFault::NotConfigured)?;
        if id.tenant != call.agent().tenant {
            return Err(LendFault::OtherTenant(id));
        }
        let current = self.current(&id)?;
        if identity::is_pem(current.secret.expose()) {
            let why = "it is a client certificate with its key, which is lent to a handshake alone";
            return Err(LendFault::Unfit(id, why));
        }
        inject(
            &mut head.headers,
            &mut head.uri,
            call.auth(),
            &current.secret,
        )
        .map_err(|why| LendFault::Unfit(id.clone(), why))?;
        Ok(Loan {
            credential: Some((id, current.version)),
            identity,
            scrubber: Scrubber::new(current.forms(call.auth())),
        })
    }

    /// What the call's connection shows of itself to upstream; in the handshake, and only if upstream asks.
    fn identity(&self, call: &Call) -> Result<Option<Lent>, LendFault> {
        let Some(id) = call.peer().and_then(|peer| peer.client_certificate()) else {
            return Ok(None);
        };
        if id.tenant != call.agent().tenant {
            return Err(LendFault::OtherTenant(id.clone()));
        }
        let current = self.current(id)?;
        if !identity::is_pem(current.secret.expose()) {
            let why = identity::IdentityError::NoCertificate;
            return Err(LendFault::Identity(id.clone(), why));
        }
        Ok(Some(Lent::new(id.clone(), current)))
    }
}

/// What a request was lent, and what takes it out of the answer.
struct Loan {
    credential: Option<(CredentialId, u32)>,
    identity: Option<Lent>,
    scrubber: Scrubber,
}

impl<B> Armed<B> {
    /// The call that leaves.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The credential that was lent, and its version; for the outcome record.
    pub fn credential(&self) -> Option<(&CredentialId, u32)> {
        self.credential.as_ref().map(|(id, version)| (id, *version))
    }

    /// The client certificate that upstream may be shown in the handshake.
    pub fn take_identity(&mut self) -> Option<Lent> {
        self.identity.take()
    }

    /// The request to send, the scrubber of its answer, and the outcome to record.
    pub fn into_parts(self) -> (Request<B>, Scrubber, Owed) {
        (self.request, self.scrubber, self.owed)
    }
}

impl<B> fmt::Debug for Armed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Armed")
            .field("owed", &self.owed)
            .finish_non_exhaustive()
    }
}
