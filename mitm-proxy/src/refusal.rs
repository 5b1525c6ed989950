//! A refusal on its way to the agent: one name, one status, one body.
//! Place on the path: made wherever a stage says no; `serve` alone turns it into response, record and metric.
//! INVARIANT: the reason in the body, in the record and on the metric is the same value.

use audit::AuditError;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode, Version};
use policies::{ApprovalId, Call, Denied, Held, PolicyId, PolicyVersion, Reason, Refused};
use serde::Serialize;

use crate::response::ResponseBody;

/// A stage said no.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The name.
    pub(crate) reason: Reason,
    /// What to ask for, in words.
    pub(crate) detail: String,
    /// What was refused, where the request was mapped.
    pub(crate) about: Option<Box<About>>,
    /// Whether the ledger already knows: after an intent, the outcome record holds the reason.
    pub(crate) recorded: bool,
    /// Whether the connection's framing can no longer be trusted and it must close.
    pub(crate) close: bool,
}

/// A refused call, and who or what refused it.
#[derive(Debug)]
pub(crate) struct About {
    /// The call.
    pub(crate) call: Call,
    /// The policies that determined it.
    pub(crate) policies: Vec<PolicyId>,
    /// The bundle that was asked, where one decided.
    pub(crate) version: Option<PolicyVersion>,
    /// The approval that is waited for, or that ended.
    pub(crate) approval: Option<ApprovalId>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            about: None,
            recorded: false,
            close: false,
        }
    }

    /// A refusal of a call that policy would let go only with a person's yes.
    pub(crate) fn held(
        reason: Reason,
        held: &Held,
        approval: ApprovalId,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            about: Some(Box::new(About {
                call: held.call().clone(),
                policies: held.policies().to_vec(),
                version: Some(held.version()),
                approval: Some(approval),
            })),
            ..Self::new(reason, detail)
        }
    }

    /// The same refusal, of this call.
    pub(crate) fn of_call(mut self, call: &Call) -> Self {
        self.about = Some(Box::new(About {
            call: call.clone(),
            policies: Vec::new(),
            version: None,
            approval: None,
        }));
        self
    }

    /// The same refusal, after which the connection closes.
    pub(crate) fn and_close(mut self) -> Self {
        self.close = true;
        self
    }

    /// The same refusal, which the ledger holds as the outcome of an intent.
    pub(crate) fn already_recorded(mut self) -> Self {
        self.recorded = true;
        self
    }

    /// What the agent reads, in the protocol that it asked in.
    pub(crate) fn response(&self, version: Version) -> Response<ResponseBody> {
        let status = status(self.reason);
        let approval = self.about.as_ref().and_then(|about| about.approval);
        let problem = Problem {
            kind: format!("urn:sluice:refusal:{}", self.reason.as_str()),
            title: self.reason.title(),
            status: status.as_u16(),
            detail: &self.detail,
            reason: self.reason.as_str(),
            approval: approval.map(|id| id.to_string()),
        };
        // A struct of strings and numbers always serialises; were it not so, the status still says no.
        let mut body = serde_json::to_vec_pretty(&problem).unwrap_or_default();
        body.push(b'\n');
        let mut response = Response::new(ResponseBody::whole(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // HTTP/2 has no such header; a stream that is refused does not harm the others.
        if self.close && version < Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<AuditError> for Refusal {
    fn from(error: AuditError) -> Self {
        Self::new(
            error.reason(),
            format!("The call could not be recorded, so it was not made: {error}."),
        )
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::new(refused.reason, refused.detail)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self {
            about: Some(Box::new(About {
                call: denied.call,
                policies: denied.policies,
                version: None,
                approval: None,
            })),
            ..Self::new(denied.reason, denied.detail)
        }
    }
}

/// RFC 9457, with two members of our own.
#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<String>,
}

/// The status of each refusal. Not 401 and not 429: clients answer those by asking again.
pub(crate) fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::AmbiguousRequest | Reason::MalformedRequest | Reason::NotHttp => {
            StatusCode::BAD_REQUEST
        }
        Reason::AdoptStands
        | Reason::AdoptUnfit
        | Reason::AgentDisabled
        | Reason::AgentUnknown
        | Reason::AlreadyGoverned
        | Reason::ApprovalDenied
        | Reason::ApprovalExpired
        | Reason::ApprovalRequired
        | Reason::CgroupGone
        | Reason::CgroupUnfit
        | Reason::CgroupUnknown
        | Reason::CredentialUnavailable
        | Reason::EncryptedHello
        | Reason::HeldOpen
        | Reason::HostUnknown
        | Reason::KernelRefused
        | Reason::NameNotAllowed
        | Reason::NameRateLimited
        | Reason::NamesExhausted
        | Reason::NotAttached
        | Reason::OriginUnknown
        | Reason::PeerRefused
        | Reason::PolicyDenied
        | Reason::PolicyError
        | Reason::ProcessGone
        | Reason::QueryTypeRefused
        | Reason::SniMissing
        | Reason::TlsHandshake
        | Reason::TlsRefusedByClient
        | Reason::TreeUnsettled
        | Reason::TunnelLimit
        | Reason::Unmapped
        | Reason::UpstreamAddress
        | Reason::WorkloadAlive => StatusCode::FORBIDDEN,
        Reason::ConnectMethod => StatusCode::METHOD_NOT_ALLOWED,
        Reason::AnswerNotTaken | Reason::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::BodyTooLarge | Reason::CompressionBomb => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::AuthorityMismatch | Reason::SniMismatch => StatusCode::MISDIRECTED_REQUEST,
        Reason::ProtocolUnsupported => StatusCode::NOT_IMPLEMENTED,
        Reason::ClientCertificateRequired
        | Reason::ResponseEncoding
        | Reason::UpstreamCertificate
        | Reason::UpstreamPin
        | Reason::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
        Reason::AdmissionTimeout
        | Reason::AdmissionUnavailable
        | Reason::AuditUnavailable
        | Reason::EnforcementBroken
        | Reason::EnforcementFailed
        | Reason::LiteralsFull
        | Reason::Overloaded
        | Reason::Panic
        | Reason::Shutdown
        | Reason::WorkloadsFull => StatusCode::SERVICE_UNAVAILABLE,
        Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}
