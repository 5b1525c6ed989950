//! Params: the typed facts that a call carries, and how each is read from the request.
//! Policies decide on them, people approve on them, the log keeps them.
//! INVARIANT: a param has one value. Two places that differ are ambiguous; a value that does not fit its type is malformed.

use super::json::Json;
use super::path;
use super::request::{Body, Field, Request};
use crate::{Refused, Value};
use serde::{Deserialize, Serialize};

/// The type of a param.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamKind {
    /// true or false; as text `true`, `false`, `1` or `0`.
    Boolean,
    /// A whole number of 64 bits in plain decimal. With a `*` in its JSON pointer: how many values there are.
    Integer,
    /// A list of texts; whole numbers in it are written as text.
    List,
    /// Text.
    String,
}

/// A param: its type, and where it is read.
#[derive(Debug, Clone)]
pub struct Param {
    pub(super) kind: ParamKind,
    pub(super) required: bool,
    pub(super) in_path: bool,
    pub(super) encoded_slash: bool,
    pub(super) fields: Vec<Field>,
}

impl Param {
    /// Its type.
    pub fn kind(&self) -> ParamKind {
        self.kind
    }

    /// Whether every call has it.
    pub fn required(&self) -> bool {
        self.required
    }

    /// Reads the param; `in_path` is the raw text of its hole in the path template.
    pub(super) fn read(
        &self,
        name: &str,
        request: &Request<'_>,
        in_path: Option<&str>,
    ) -> Result<Option<Value>, Refused> {
        let mut value = in_path.map(|raw| self.read_path(name, raw)).transpose()?;
        for field in &self.fields {
            let Some(found) = self.read_field(name, field, request)? else {
                continue;
            };
            if value.as_ref().is_some_and(|earlier| *earlier != found) {
                return Err(Refused::ambiguous(format!(
                    "`{name}` has different values in different places of the request"
                )));
            }
            value = Some(found);
        }
        match value {
            None if self.required => Err(Refused::malformed(format!("`{name}` is missing"))),
            value => Ok(value),
        }
    }

    fn read_path(&self, name: &str, raw: &str) -> Result<Value, Refused> {
        if raw.contains("%2F") && !self.encoded_slash {
            return Err(Refused::ambiguous(format!(
                "`{name}` in the path holds an encoded slash"
            )));
        }
        let text = path::decode(raw)
            .ok_or_else(|| Refused::ambiguous(format!("`{name}` in the path cannot be decoded")))?;
        self.of_text(name, &text)
    }

    fn read_field(
        &self,
        name: &str,
        field: &Field,
        request: &Request<'_>,
    ) -> Result<Option<Value>, Refused> {
        let list = match (self.kind, field, &request.body) {
            (_, Field::Json(pointer), Body::Json(json)) => {
                let Some(found) = pointer.find(json)? else {
                    return Ok(None);
                };
                return if pointer.is_many() {
                    self.of_many(name, &found)
                } else {
                    self.of_one(name, found.first().copied())
                };
            }
            (ParamKind::List, Field::Query(field), _) => request.query.list(field)?,
            (ParamKind::List, Field::Form(field), Body::Form(fields)) => fields.list(field)?,
            (ParamKind::List, Field::Header(_), _) | (_, Field::Json(_), _) => None,
            _ => {
                return request
                    .text(field)?
                    .map(|text| self.of_text(name, text))
                    .transpose();
            }
        };
        Ok(list.map(|texts| {
            Value::List(
                texts
                    .into_iter()
                    .map(|text| Value::Text(text.to_owned()))
                    .collect(),
            )
        }))
    }

    fn of_text(&self, name: &str, text: &str) -> Result<Value, Refused> {
        let value = match self.kind {
            ParamKind::Boolean => match text {
                "true" | "1" => Some(Value::Bool(true)),
                "false" | "0" => Some(Value::Bool(false)),
                _ => None,
            },
            // One spelling per number: no sign before zero, no leading zeros, no `+`, no exponent.
            ParamKind::Integer => text
                .parse::<i64>()
                .ok()
                .filter(|value| value.to_string() == text)
                .map(Value::Integer),
            ParamKind::List => None,
            ParamKind::String => Some(Value::Text(text.to_owned())),
        };
        value.ok_or_else(|| self.does_not_fit(name))
    }

    fn of_one(&self, name: &str, json: Option<&Json>) -> Result<Option<Value>, Refused> {
        let value = match (self.kind, json) {
            (_, None | Some(Json::Null)) => return Ok(None),
            (ParamKind::Boolean, Some(Json::Bool(value))) => Value::Bool(*value),
            (ParamKind::Integer, Some(Json::Integer(value))) => Value::Integer(*value),
            (ParamKind::String, Some(Json::Text(value))) => Value::Text(whole(name, value)?),
            (ParamKind::List, Some(Json::Array(items))) => {
                return self.of_many(name, &items.iter().collect::<Vec<_>>());
            }
            _ => return Err(self.does_not_fit(name)),
        };
        Ok(Some(value))
    }

    /// Every element of a list: how many they are, or their texts.
    fn of_many(&self, name: &str, found: &[&Json]) -> Result<Option<Value>, Refused> {
        if self.kind == ParamKind::Integer {
            return Ok(i64::try_from(found.len()).ok().map(Value::Integer));
        }
        let text = |json: &&Json| match json {
            Json::Text(text) => whole(name, text).map(Value::Text),
            Json::Integer(number) => Ok(Value::Text(number.to_string())),
            _ => Err(self.does_not_fit(name)),
        };
        found
            .iter()
            .map(text)
            .collect::<Result<_, _>>()
            .map(|values| Some(Value::List(values)))
    }

    fn does_not_fit(&self, name: &str) -> Refused {
        let kind = match self.kind {
            ParamKind::Boolean => "true or false",
            ParamKind::Integer => "a whole number in plain decimal",
            ParamKind::List => "a list of texts",
            ParamKind::String => "text",
        };
        Refused::malformed(format!("`{name}` must be {kind}"))
    }
}

/// Text that nobody reads up to a zero byte only; the other places that params stand in have none.
fn whole(name: &str, text: &str) -> Result<String, Refused> {
    if text.contains('\0') {
        return Err(Refused::ambiguous(format!(
            "`{name}` holds a zero byte, where some readers stop"
        )));
    }
    Ok(text.to_owned())
}
