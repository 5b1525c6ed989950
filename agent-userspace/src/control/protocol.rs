//! What is said on the control socket: one JSON request line, then reply lines until `done` or `error`.
//! Both ends use these types; there is no other description.
//! INVARIANT: requests are closed enums without unknown fields; a secret is redacted in every debug output.

use audit::Kind;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use policies::{AgentId, ApprovalId, CredentialId, Tenant, Timestamp, Verdict};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The longest request line, in bytes; a secret of 64 KiB fits in it.
pub const MAX_REQUEST: usize = 96 * 1024;

/// What can be asked for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// All agents, with their workloads and whether they are switched off.
    AgentsList {},
    /// The kill switch.
    AgentsSet {
        /// Which agent.
        agent: AgentId,
        /// True to switch it off.
        disabled: bool,
    },
    /// A person's answer to a held call.
    ApprovalsAnswer {
        /// Which call.
        id: ApprovalId,
        /// Yes or no.
        verdict: Verdict,
        /// Why, for the record.
        note: Option<String>,
    },
    /// All approvals that the daemon knows; without `all` only those that wait.
    ApprovalsList {
        /// Closed ones too.
        all: bool,
    },
    /// One approval.
    ApprovalsShow {
        /// Which.
        id: ApprovalId,
    },
    /// The waiting approvals, then every change, until the client hangs up.
    ApprovalsWatch {},
    /// A freshly signed checkpoint of a log.
    AuditCheckpoint {
        /// Whose log; without one the host's own.
        tenant: Option<Tenant>,
    },
    /// A whole log in its export format.
    AuditExport {
        /// Whose log; without one the host's own.
        tenant: Option<Tenant>,
    },
    /// The public key that checkpoints are verified with.
    AuditKey {},
    /// Records of the logs, oldest first.
    AuditList {
        /// Which of them.
        filter: AuditFilter,
    },
    /// One record with everything it says.
    AuditShow {
        /// Whose log; without one the host's own.
        tenant: Option<Tenant>,
        /// Its place in the log.
        index: u64,
    },
    /// Whose logs there are.
    AuditTenants {},
    /// A new root for a tenant, or the end of a former one's time.
    CaRotate {
        /// Which tenant.
        tenant: Tenant,
        /// What of it.
        step: CaStep,
    },
    /// A tenant's root certificates.
    CaShow {
        /// Which tenant.
        tenant: Tenant,
    },
    /// The enforcement layers.
    Doctor {},
    /// What runs.
    Status {},
    /// The credentials, without their secrets.
    VaultList {},
    /// A new credential.
    VaultPut {
        /// Its name.
        credential: CredentialId,
        /// Its secret.
        secret: SecretText,
    },
    /// No further use of a credential.
    VaultRevoke {
        /// Its name.
        credential: CredentialId,
    },
    /// A new version of a credential.
    VaultRotate {
        /// Its name.
        credential: CredentialId,
        /// Its new secret.
        secret: SecretText,
    },
}

impl Request {
    /// True if members of the control group may ask for it; all else is for uid 0 alone.
    #[must_use]
    pub fn open_to_members(&self) -> bool {
        match self {
            Request::AgentsList {}
            | Request::ApprovalsAnswer { .. }
            | Request::ApprovalsList { .. }
            | Request::ApprovalsShow { .. }
            | Request::ApprovalsWatch {}
            | Request::AuditCheckpoint { .. }
            | Request::AuditExport { .. }
            | Request::AuditKey {}
            | Request::AuditList { .. }
            | Request::AuditShow { .. }
            | Request::AuditTenants {}
            | Request::CaShow { .. }
            | Request::Doctor {}
            | Request::Status {}
            | Request::VaultList {} => true,
            Request::AgentsSet { .. }
            | Request::CaRotate { .. }
            | Request::VaultPut { .. }
            | Request::VaultRevoke { .. }
            | Request::VaultRotate { .. } => false,
        }
    }
}

/// A step of a rotation of roots.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CaStep {
    /// A new root beside the one before.
    Begin,
    /// The one before goes, unless a workload trusts nothing else.
    Finish,
    /// It goes.
    ForceFinish,
}

/// One root of a tenant.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CaRoot {
    /// Which of the tenant's, from 1.
    pub generation: u32,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// Whether new workloads are shown leaves of it.
    pub current: bool,
    /// Live workloads that trust this one and not the next.
    pub alone: Vec<policies::WorkloadId>,
    /// The certificate.
    pub pem: String,
}

/// Which audit records are wanted.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AuditFilter {
    /// Only this tenant's log.
    pub tenant: Option<Tenant>,
    /// Only records of this agent.
    pub agent: Option<AgentId>,
    /// Only records of this kind.
    pub kind: Option<Kind>,
    /// Only records of this time or later.
    pub since: Option<Timestamp>,
    /// From this index on, the first `limit` of them; without it, the last.
    pub from: Option<u64>,
    /// How many.
    pub limit: Option<usize>,
}

/// One line of an answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A piece of text, as it is.
    Chunk(String),
    /// The answer is complete.
    Done {},
    /// There is no (further) answer.
    Error(ErrorReply),
    /// One object of the answer.
    Item(Value),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{message}")]
#[serde(deny_unknown_fields)]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl ErrorReply {
    /// An error with its words.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ErrorReply {
        ErrorReply {
            code,
            message: message.into(),
        }
    }
}

/// The closed set of ways a request fails.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No such agent in the bundle.
    AgentUnknown,
    /// The approval cannot take this answer: closed, answered already, not the right person.
    AnswerRefused,
    /// No approval of this id.
    ApprovalUnknown,
    /// The audit log cannot be read or written.
    AuditUnavailable,
    /// The tenant's roots cannot be changed so.
    Ca,
    /// The credential cannot be stored, changed or revoked.
    Credential,
    /// This user may not ask for it.
    Forbidden,
    /// The peer is a governed process.
    Governed,
    /// Not a request of this protocol.
    Malformed,
    /// The proxy process cannot reach the enforcer.
    NoEnforcer,
    /// The daemon is stopping.
    Stopping,
    /// No such tenant.
    TenantUnknown,
    /// The request took too long to arrive.
    Timeout,
}

/// A secret on its way to the vault, base64 on the wire. Wiped when dropped, never shown.
#[derive(Deserialize, Serialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a secret's bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> SecretText {
        SecretText(STANDARD.encode(bytes))
    }

    /// The secret's bytes; `None` if the text is not base64.
    #[must_use]
    pub fn decode(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.0).ok()
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SecretText(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str(line)
    }

    #[test]
    fn requests_are_closed() {
        assert!(read(r#"{"op":"status"}"#).is_ok());
        assert!(read(r#"{"op":"status","more":1}"#).is_err());
        assert!(read(r#"{"op":"vault_reveal","credential":"acme/stripe"}"#).is_err());
        assert!(read(r#"{"op":"vault_revoke","credential":"acme/stripe","force":true}"#).is_err());
        assert!(read(r#"{"op":"vault_revoke","credential":"../stripe"}"#).is_err());
    }

    #[test]
    fn a_secret_is_never_shown() {
        let secret = SecretText::new(b"sk_live_4242424242");
        assert_eq!(format!("{secret:?}"), "SecretText(..)");
        assert_eq!(
            secret.decode().as_deref(),
            Some(b"sk_live_4242424242".as_slice())
        );
        let request = Request::VaultPut {
            credential: "acme/stripe".parse().unwrap(),
            secret,
        };
        assert!(!format!("{request:?}").contains(&STANDARD.encode("sk_live_4242424242")));
    }
}
