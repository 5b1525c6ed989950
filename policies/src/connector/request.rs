//! One request in its only reading: method, path, query, headers and, where it is needed, body.
//! Made once per request, before any connector looks at it.
//! INVARIANT: whatever could make an upstream see another method, path or field than we do was refused on the way here.

use super::alike;
use super::fields::Fields;
use super::json::{Json, Pointer};
use super::path::RawPath;
use crate::{Refused, RequestView, Strip};

/// Headers with which some servers let a client replace the method or the path.
const OVERRIDES: [&str; 6] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];
/// Headers that say how the rest is read; a server that takes `_` for `-` must not find a second one.
const FRAMING: [&str; 4] = [
    "content-encoding",
    "content-length",
    "content-type",
    "transfer-encoding",
];
/// Fields with which some frameworks let a client replace the method.
const METHOD_FIELDS: [&str; 2] = ["_method", "_http_method"];
const METHODS: [&str; 9] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
];

/// A request that can be matched.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: RawPath<'a>,
    pub(crate) query: Fields,
    pub(crate) body: Body,
    /// It asks to become a WebSocket.
    pub(crate) websocket: bool,
    view: RequestView<'a>,
}

/// A body, as far as it was read.
#[derive(Debug)]
pub(crate) enum Body {
    /// No candidate needed it.
    Unread,
    /// There is none.
    Empty,
    /// application/x-www-form-urlencoded.
    Form(Fields),
    /// application/json or `+json`.
    Json(Json),
}

/// One field of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Form(String),
    Header(String),
    Json(Pointer),
    Query(String),
}

impl Field {
    /// Whether the field is part of the body.
    pub(crate) fn in_body(&self) -> bool {
        matches!(self, Field::Form(_) | Field::Json(_))
    }

    /// The name under which a server that merges query and body would find this field.
    pub(crate) fn merged_name(&self) -> Option<&str> {
        match self {
            Field::Form(name) | Field::Query(name) => Some(name),
            Field::Json(pointer) => pointer.is_top().then(|| pointer.top()),
            Field::Header(_) => None,
        }
    }
}

impl<'a> Request<'a> {
    /// Reads the head and refuses every second reading of it; the body stays unread.
    pub(crate) fn head(view: &RequestView<'a>) -> Result<Request<'a>, Refused> {
        check_method(view.method)?;
        if let Some((name, _)) = view
            .headers
            .iter()
            .find(|(name, _)| names(&OVERRIDES, name))
        {
            return Err(Refused::ambiguous(format!(
                "the header `{name}` can replace the method or the path"
            )));
        }
        let path = RawPath::parse(view.path)?;
        let query = Fields::parse("query", view.query.unwrap_or_default().as_bytes())?;
        let upgrade = view.headers.iter().find(|(name, _)| *name == "upgrade");
        let websocket = upgrade.is_some_and(|(_, to)| to.eq_ignore_ascii_case("websocket"));
        let request = Request {
            websocket,
            method: view.method,
            path,
            query,
            body: Body::Unread,
            view: *view,
        };
        for name in FRAMING {
            request.header_beside(name)?;
        }
        request.one_header("content-type")?;
        refuse_method_fields(&request.query)?;
        if matches!(view.method, "GET" | "HEAD") && request.has_body() {
            return Err(Refused::ambiguous(format!(
                "a {} with a body is read differently by different servers",
                view.method
            )));
        }
        Ok(request)
    }

    /// What capabilities are told apart by besides the path.
    pub(crate) fn kind(&self) -> (&'a str, bool) {
        (self.method, self.websocket)
    }

    /// Reads the body too, as its one Content-Type says.
    pub(crate) fn read_body(&mut self) -> Result<(), Refused> {
        let Some(bytes) = self.view.body else {
            return Err(Refused::ambiguous(
                "the body decides what this request is, and it was not read",
            ));
        };
        if bytes.is_empty() {
            self.body = Body::Empty;
            return Ok(());
        }
        if self
            .header_values("content-encoding")
            .any(|coding| !coding.trim().eq_ignore_ascii_case("identity"))
        {
            return Err(Refused::ambiguous(
                "the body decides what this request is, and it is compressed; send it plain",
            ));
        }
        self.body = match media_type(self.one_header("content-type")?)? {
            Media::Form => Body::Form(Fields::parse("form", bytes)?),
            Media::Json => Body::Json(Json::parse(bytes)?),
        };
        if let Body::Form(fields) = &self.body {
            refuse_method_fields(fields)?;
        }
        Ok(())
    }

    /// A header that may be sent once, in printable ASCII: beyond that, readers differ in charset and in what they trim.
    pub(crate) fn one_header(&self, name: &str) -> Result<Option<&'a str>, Refused> {
        self.header_beside(name)?;
        let mut values = self.header_values(name);
        let first = values.next();
        match values.next() {
            Some(_) => Err(Refused::ambiguous(format!(
                "the header `{name}` is sent more than once"
            ))),
            None if first.is_some_and(|value| value.bytes().any(|b| !matches!(b, 0x20..=0x7e))) => {
                Err(Refused::ambiguous(format!(
                    "the header `{name}` holds more than printable ASCII"
                )))
            }
            None => Ok(first),
        }
    }

    /// Refuses what a server could take for one of these places, where a credential of the agent's own would go past us.
    pub(crate) fn refuse_beside(&self, places: &[Strip]) -> Result<(), Refused> {
        for place in places {
            match place {
                Strip::Header(name) => self.header_beside(name)?,
                Strip::Query(name) => {
                    if let Some(given) = self.query.beside(name) {
                        return Err(Refused::ambiguous(format!(
                            "the query has `{given}`, which could be taken for `{name}`"
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the field is there in any spelling that a server could take for it.
    pub(crate) fn has(&self, field: &Field) -> Result<bool, Refused> {
        match (field, &self.body) {
            (Field::Query(name), _) => Ok(self.query.mentions(name)),
            (Field::Header(name), _) => {
                self.header_beside(name)?;
                Ok(self.header_values(name).next().is_some())
            }
            (Field::Form(name), Body::Form(fields)) => Ok(fields.mentions(name)),
            (Field::Json(pointer), Body::Json(json)) => Ok(pointer.find(json)?.is_some()),
            // A field that must be absent is not to be had by sending the other kind of body.
            (Field::Json(pointer), Body::Form(_)) => Ok(self.body_mentions(pointer.top())),
            (Field::Form(name), Body::Json(_)) => {
                Ok(self.body_mentions(name.split('[').next().unwrap_or(name)))
            }
            _ => Ok(false),
        }
    }

    /// The text of a query, header or form field.
    pub(crate) fn text(&self, field: &Field) -> Result<Option<&str>, Refused> {
        match (field, &self.body) {
            (Field::Query(name), _) => self.query.one(name),
            (Field::Header(name), _) => self.one_header(name),
            (Field::Form(name), Body::Form(fields)) => fields.one(name),
            _ => Ok(None),
        }
    }

    /// Whether the body has this field at its top level, in any spelling that a server could take for it.
    pub(crate) fn body_mentions(&self, name: &str) -> bool {
        match &self.body {
            Body::Form(fields) => fields.mentions(name),
            Body::Json(json) => json.keys().any(|key| key == name || alike::key(key, name)),
            Body::Empty | Body::Unread => false,
        }
    }

    /// The top-level names in the body.
    pub(crate) fn body_names(&self) -> Vec<&str> {
        match &self.body {
            Body::Form(fields) => fields.bases().collect(),
            Body::Json(json) => json.keys().collect(),
            Body::Empty | Body::Unread => Vec::new(),
        }
    }

    fn header_beside(&self, name: &str) -> Result<(), Refused> {
        let mut given = self.view.headers.iter().map(|(given, _)| *given);
        match given.find(|given| alike::header(given, name)) {
            Some(given) => Err(Refused::ambiguous(format!(
                "the header `{given}` could be taken for `{name}`"
            ))),
            None => Ok(()),
        }
    }

    fn header_values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.view
            .headers
            .iter()
            .filter(move |(given, _)| *given == name)
            .map(|(_, value)| *value)
    }

    fn has_body(&self) -> bool {
        let length = self
            .header_values("content-length")
            .any(|length| length.trim() != "0");
        length
            || self.header_values("transfer-encoding").next().is_some()
            || self.view.body.is_some_and(|body| !body.is_empty())
    }
}

fn check_method(method: &str) -> Result<(), Refused> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if method.is_empty() || method.len() > 32 || !method.bytes().all(token) {
        return Err(Refused::malformed("the method is not a token"));
    }
    let known = METHODS
        .iter()
        .find(|known| known.eq_ignore_ascii_case(method));
    if known.is_some_and(|known| *known != method) {
        return Err(Refused::ambiguous(
            "the method is a known one in another case",
        ));
    }
    Ok(())
}

/// Whether a header is one of these, in any spelling that a server could take for it.
fn names(known: &[&str], given: &str) -> bool {
    known
        .iter()
        .any(|name| given == *name || alike::header(given, name))
}

fn refuse_method_fields(fields: &Fields) -> Result<(), Refused> {
    match METHOD_FIELDS.iter().find(|name| fields.mentions(name)) {
        Some(name) => Err(Refused::ambiguous(format!(
            "the field `{name}` can replace the method"
        ))),
        None => Ok(()),
    }
}

enum Media {
    Form,
    Json,
}

/// The media type of a body that must be read; only UTF-8, and no other parameter than `charset`.
fn media_type(content_type: Option<&str>) -> Result<Media, Refused> {
    let given = content_type.unwrap_or_default();
    let mut parts = given
        .split(';')
        .map(|part| part.trim().to_ascii_lowercase());
    let essence = parts.next().unwrap_or_default();
    let plain =
        parts.all(|part| matches!(part.as_str(), "" | "charset=utf-8" | "charset=\"utf-8\""));
    let json = essence == "application/json"
        || essence
            .strip_prefix("application/")
            .is_some_and(|sub| sub.ends_with("+json"));
    match essence.as_str() {
        "application/x-www-form-urlencoded" if plain => Ok(Media::Form),
        _ if json && plain => Ok(Media::Json),
        _ => Err(Refused::ambiguous(format!(
            "the body decides what this request is, and `content-type: {}` does not say how to read it; \
             send application/json or application/x-www-form-urlencoded in UTF-8",
            given.chars().take(80).collect::<String>()
        ))),
    }
}
