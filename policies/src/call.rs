//! A call: one request, mapped to a capability with its typed params. And the view of a request that mapping reads.
//! Step 5 of a request's path makes it; policy, audit and vault carry it from there.
//! INVARIANT: only the catalogue makes a `Call`; its fields are private and never change afterwards.

use crate::{
    AgentId, CapabilityId, ConnectionName, ConnectorId, CredentialId, Endpoint, Owner, Peer, Reason,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The head, and where it was needed the body, of one request as the agent sent it.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// The method, exactly as sent.
    pub method: &'a str,
    /// The raw path, without query.
    pub path: &'a str,
    /// The raw query, without `?`.
    pub query: Option<&'a str>,
    /// All header fields in order, names in lower case.
    pub headers: &'a [(&'a str, &'a str)],
    /// The whole body, as sent; `None` where it was not read.
    pub body: Option<&'a [u8]>,
}

/// Whether mapping a request needs its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyNeed {
    /// The head is enough; the body may stream.
    None,
    /// The whole body is needed, of at most this many bytes; a larger one is refused as `body_too_large`.
    Whole {
        /// Bytes.
        limit: usize,
    },
}

/// What mapping a request by its head came to.
#[derive(Debug)]
pub enum Mapping {
    /// The call that it is. The body may stream, unless it was read already.
    Call(Box<Call>),
    /// The body decides: all of it, of at most this many bytes; a larger one is refused as `body_too_large`.
    NeedsBody {
        /// Bytes.
        limit: usize,
    },
}

/// A request that became no call, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `HostUnknown`, `Unmapped`, `AmbiguousRequest` or `MalformedRequest`.
    pub reason: Reason,
    /// What stood in the way, and what to ask for.
    pub detail: String,
}

impl Refused {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Refused {
        Refused {
            reason,
            detail: detail.into(),
        }
    }

    pub(crate) fn ambiguous(detail: impl Into<String>) -> Refused {
        Refused::new(Reason::AmbiguousRequest, detail)
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Refused {
        Refused::new(Reason::MalformedRequest, detail)
    }

    pub(crate) fn unmapped(detail: impl Into<String>) -> Refused {
        Refused::new(Reason::Unmapped, detail)
    }
}

/// The value of a param.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// true or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Text.
    Text(String),
    /// Texts, in the order they were sent.
    List(Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => value.fmt(f),
            Value::Integer(value) => value.fmt(f),
            Value::Text(value) => write!(f, "{value:?}"),
            Value::List(values) => {
                f.write_str("[")?;
                for (at, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if at > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Where a connector's credential goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Auth {
    /// No credential is added.
    None,
    /// `Authorization: Bearer SECRET`.
    Bearer,
    /// `Authorization: Basic base64(SECRET)`; the secret is `user:password`.
    Basic,
    /// The secret is the whole value of this header (lower-case name).
    Header {
        /// Lower-case header name.
        name: String,
    },
    /// The secret is the value of this query key.
    Query {
        /// Query key.
        name: String,
    },
}

impl Auth {
    /// The place that this kind writes to, which is therefore always stripped.
    pub fn place(&self) -> Option<Strip> {
        match self {
            Auth::None => None,
            Auth::Bearer | Auth::Basic => Some(Strip::Header("authorization".into())),
            Auth::Header { name } => Some(Strip::Header(name.clone())),
            Auth::Query { name } => Some(Strip::Query(name.clone())),
        }
    }
}

/// A place in which whatever the agent sent is removed before the call leaves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Strip {
    /// A header, by lower-case name: every occurrence.
    Header(String),
    /// A query key: every occurrence, however it is percent-encoded.
    Query(String),
}

/// What kind of harm a capability can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Many objects at once.
    Bulk,
    /// Cannot be undone.
    Destructive,
    /// Reversible, and not visible outside.
    Draft,
    /// Reads much, or reads what is sensitive.
    Export,
    /// Moves money or commits to paying.
    Financial,
    /// Changes infrastructure or permissions.
    Infrastructure,
    /// Reaches people outside.
    Message,
    /// Reads.
    Read,
    /// Writes inside.
    Write,
}

impl Risk {
    /// Every risk class, in alphabetical order.
    pub const ALL: [Risk; 9] = [
        Risk::Bulk,
        Risk::Destructive,
        Risk::Draft,
        Risk::Export,
        Risk::Financial,
        Risk::Infrastructure,
        Risk::Message,
        Risk::Read,
        Risk::Write,
    ];

    /// The name used in files, policies and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Risk::Bulk => "bulk",
            Risk::Destructive => "destructive",
            Risk::Draft => "draft",
            Risk::Export => "export",
            Risk::Financial => "financial",
            Risk::Infrastructure => "infrastructure",
            Risk::Message => "message",
            Risk::Read => "read",
            Risk::Write => "write",
        }
    }
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One request as a capability with params: who asks, what for, where, and with which credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    pub(crate) agent: AgentId,
    pub(crate) owner: Owner,
    pub(crate) connection: ConnectionName,
    pub(crate) capability: CapabilityId,
    pub(crate) risks: Vec<Risk>,
    pub(crate) params: BTreeMap<String, Value>,
    pub(crate) credential: Option<CredentialId>,
    pub(crate) auth: Auth,
    pub(crate) strip: Arc<[Strip]>,
    pub(crate) endpoint: Endpoint,
    pub(crate) template: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<Arc<Peer>>,
}

impl Call {
    /// The agent that asks.
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// Who answers for the agent.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The connection it goes through.
    pub fn connection(&self) -> &ConnectionName {
        &self.connection
    }

    /// The connector of that connection.
    pub fn connector(&self) -> &ConnectorId {
        &self.capability.connector
    }

    /// The capability it is.
    pub fn capability(&self) -> &CapabilityId {
        &self.capability
    }

    /// The capability's risk classes, the main one first.
    pub fn risks(&self) -> &[Risk] {
        &self.risks
    }

    /// The params, by the capability's own names.
    pub fn params(&self) -> &BTreeMap<String, Value> {
        &self.params
    }

    /// The credential to lend; `None` where the connection has none.
    pub fn credential(&self) -> Option<CredentialId> {
        self.credential.clone()
    }

    /// Where the credential goes; [`Auth::None`] where the connector needs none.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// The places whose content from the agent is removed; the credential's own place is among them.
    pub fn strip(&self) -> &Arc<[Strip]> {
        &self.strip
    }

    /// The host and port it goes to.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The path template that matched, `/v1/charges/{charge}`: fit for labels and records, holds nothing the agent chose.
    pub fn template(&self) -> &str {
        &self.template
    }

    /// What the connection asks of its upstream's TLS; `None` where it is the usual verification and nothing besides.
    pub fn peer(&self) -> Option<&Arc<Peer>> {
        self.peer.as_ref()
    }
}
