//! The connector file as written: TOML with `schema = 1`, every key known, every place kept.
//! Step one of loading a connector; `compile` checks what the shape alone cannot.
//! INVARIANT: an unknown key, risk, type or place is an error at its line and column, never ignored.

use super::condition::Literal;
use super::param::ParamKind;
use crate::{Auth, CapabilityName, ConnectorId, HostPattern, Reason, Risk};
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor, value};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use toml::Spanned;

/// One value, or a list of them.
#[derive(Debug, Clone)]
pub(crate) struct OneOrMany<T>(pub(crate) Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        OneOrMany(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value or a list")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OneOrMany<T>, E> {
        T::deserialize(value::StrDeserializer::new(text)).map(|one| OneOrMany(vec![one]))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<OneOrMany<T>, E> {
        T::deserialize(value::BoolDeserializer::new(value)).map(|one| OneOrMany(vec![one]))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<OneOrMany<T>, E> {
        T::deserialize(value::I64Deserializer::new(value)).map(|one| OneOrMany(vec![one]))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<OneOrMany<T>, A::Error> {
        T::deserialize(value::MapAccessDeserializer::new(map)).map(|one| OneOrMany(vec![one]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany<T>, A::Error> {
        let mut many = Vec::new();
        while let Some(one) = list.next_element()? {
            many.push(one);
        }
        Ok(OneOrMany(many))
    }
}

/// A connector file.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConnector {
    pub(super) schema: Spanned<u32>,
    pub(super) id: Spanned<ConnectorId>,
    pub(super) docs: Spanned<String>,
    /// What an operator should know before using it.
    #[serde(default)]
    pub(super) notes: String,
    pub(super) hosts: Vec<Spanned<HostPattern>>,
    /// The host of every capability that names none itself.
    pub(super) default_host: Option<Spanned<HostPattern>>,
    /// Connections must name their own hosts.
    #[serde(default)]
    pub(super) require_hosts: bool,
    pub(super) auth: Spanned<RawConnectorAuth>,
    /// Another kind of auth on some hosts.
    #[serde(default)]
    pub(super) auth_by_host: BTreeMap<HostPattern, Spanned<RawAuth>>,
    /// Where params are read that do not say so themselves.
    pub(super) params_in: Option<Spanned<OneOrMany<RawPlace>>>,
    /// Params of every capability.
    #[serde(default)]
    pub(super) params: BTreeMap<Spanned<String>, Spanned<RawParam>>,
    #[serde(rename = "capability", default)]
    pub(super) capabilities: Vec<Spanned<RawCapability>>,
}

/// Where a credential goes, as a connection writes it.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAuth {
    kind: RawAuthKind,
    name: Option<String>,
}

/// Where a connector's credential goes, and what the agent may not bring itself.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConnectorAuth {
    kind: RawAuthKind,
    name: Option<String>,
    /// Headers that are removed, and `?name` for query keys.
    #[serde(default)]
    pub(super) strip: Vec<String>,
    /// Body fields that carry a credential: a request with one is refused.
    #[serde(default)]
    pub(super) refuse_fields: Vec<String>,
    /// Connections may set `auth` themselves.
    #[serde(default)]
    pub(super) settable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawAuthKind {
    Basic,
    Bearer,
    Header,
    None,
    Query,
}

impl RawAuth {
    /// The checked kind, or what is wrong.
    pub(crate) fn kind(&self) -> Result<Auth, String> {
        auth(self.kind, self.name.as_deref())
    }
}

impl RawConnectorAuth {
    pub(super) fn kind(&self) -> Result<Auth, String> {
        auth(self.kind, self.name.as_deref())
    }
}

fn auth(kind: RawAuthKind, name: Option<&str>) -> Result<Auth, String> {
    match (kind, name) {
        (RawAuthKind::None, None) => Ok(Auth::None),
        (RawAuthKind::Basic, None) => Ok(Auth::Basic),
        (RawAuthKind::Bearer, None) => Ok(Auth::Bearer),
        (RawAuthKind::Header, Some(name)) if is_header_name(name) => {
            Ok(Auth::Header { name: name.into() })
        }
        (RawAuthKind::Query, Some(name)) if !name.is_empty() => {
            Ok(Auth::Query { name: name.into() })
        }
        (RawAuthKind::Header, _) => {
            Err("this kind of auth needs `name`, a lower-case header name".into())
        }
        (RawAuthKind::Query, _) => Err("this kind of auth needs `name`, a query key".into()),
        (_, Some(_)) => Err("`name` is only for the kinds `header` and `query`".into()),
    }
}

/// Lower-case RFC 9110 token, and no header that frames or routes the request.
pub(super) fn is_header_name(name: &str) -> bool {
    const FRAMING: [&str; 9] = [
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    !name.is_empty() && name.bytes().all(token) && !FRAMING.contains(&name)
}

/// One capability.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCapability {
    pub(super) name: Spanned<CapabilityName>,
    #[serde(default)]
    pub(super) docs: Option<Spanned<String>>,
    pub(super) risk: Spanned<OneOrMany<Risk>>,
    #[serde(rename = "match")]
    pub(super) matchers: OneOrMany<RawMatch>,
    #[serde(default)]
    pub(super) params: BTreeMap<Spanned<String>, Spanned<RawParam>>,
    /// Bytes that may be read for a decision.
    pub(super) body_limit: Option<Spanned<usize>>,
    /// The body is never read: it holds a file.
    #[serde(default)]
    pub(super) opaque_body: bool,
    pub(super) examples: RawExamples,
}

/// What a request must be. All of it must hold.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMatch {
    pub(super) method: OneOrMany<String>,
    pub(super) path: Spanned<String>,
    /// The request asks to become a WebSocket; without it such a request is never this capability.
    #[serde(default)]
    pub(super) websocket: bool,
    pub(super) host: Option<Spanned<HostPattern>>,
    #[serde(default)]
    pub(super) query: BTreeMap<String, Spanned<RawTest>>,
    #[serde(default)]
    pub(super) header: BTreeMap<String, Spanned<RawTest>>,
    #[serde(default)]
    pub(super) form: BTreeMap<String, Spanned<RawTest>>,
    #[serde(default)]
    pub(super) json: BTreeMap<String, Spanned<RawTest>>,
    /// At least one of these body fields is present: `/pointer` for JSON, `name` for forms.
    #[serde(default)]
    pub(super) any_of: Vec<Spanned<String>>,
    /// None of these body fields is present.
    #[serde(default)]
    pub(super) none_of: Vec<Spanned<String>>,
    /// The body has no other fields at its top level than these.
    pub(super) only: Option<Vec<String>>,
}

/// A test of one field: a value, a list of values, or `{ present = .. }`.
#[derive(Debug)]
pub(super) enum RawTest {
    OneOf(Vec<Literal>),
    Present(bool),
}

impl<'de> serde::Deserialize<'de> for RawTest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        const EXPECTED: &str =
            "a test is a value, a list of values, or `{ present = true }` / `{ present = false }`";
        let literal = |value: toml::Value| match value {
            toml::Value::String(text) => Ok(Literal::Text(text)),
            toml::Value::Integer(number) => Ok(Literal::Integer(number)),
            toml::Value::Boolean(value) => Ok(Literal::Bool(value)),
            _ => Err(D::Error::custom(EXPECTED)),
        };
        match toml::Value::deserialize(deserializer)? {
            toml::Value::Array(values) if !values.is_empty() => Ok(RawTest::OneOf(
                values.into_iter().map(literal).collect::<Result<_, _>>()?,
            )),
            toml::Value::Table(table) if table.len() == 1 => match table.get("present") {
                Some(toml::Value::Boolean(present)) => Ok(RawTest::Present(*present)),
                _ => Err(D::Error::custom(EXPECTED)),
            },
            value => Ok(RawTest::OneOf(vec![literal(value)?])),
        }
    }
}

/// A place that a param is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawPlace {
    Form,
    Header,
    Json,
    Path,
    Query,
}

/// A param.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawParam {
    #[serde(rename = "in")]
    pub(super) places: Option<OneOrMany<RawPlace>>,
    /// The field's name; the param's own where absent. A JSON pointer starts with `/`.
    pub(super) name: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: ParamKind,
    #[serde(default)]
    pub(super) required: bool,
    /// A path param may hold an encoded slash.
    #[serde(default)]
    pub(super) encoded_slash: bool,
}

/// Requests that must be this capability, and requests that must not.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExamples {
    pub(super) hit: Vec<Spanned<RawExample>>,
    #[serde(default)]
    pub(super) miss: Vec<Spanned<RawExample>>,
}

/// One request.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawExample {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: Option<HostPattern>,
    pub(super) query: Option<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    pub(super) form: Option<String>,
    pub(super) json: Option<String>,
    /// Params that the call has, with these values (hit only).
    #[serde(default)]
    pub(super) params: BTreeMap<String, crate::Value>,
    /// The request is refused for this reason (miss only).
    pub(super) reason: Option<Reason>,
}
