//! Conditions: what a request must carry, beyond method and path, to be a capability; and when two sets of them exclude each other.
//! "Close the issue" and "edit the title" are the same PATCH; conditions on the body tell them apart.
//! INVARIANT: `excludes` is never true for two matchers that some request satisfies both of.

use super::json::{Json, Pointer};
use super::request::{Body, Field, Request};
use crate::Refused;
use std::fmt;

/// A value in a connector file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Literal {
    Bool(bool),
    Integer(i64),
    Text(String),
}

impl Literal {
    fn is(&self, json: &Json) -> bool {
        match (self, json) {
            (Literal::Bool(a), Json::Bool(b)) => a == b,
            (Literal::Integer(a), Json::Integer(b)) => a == b,
            (Literal::Text(a), Json::Text(b)) => a == b,
            _ => false,
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Bool(value) => value.fmt(f),
            Literal::Integer(value) => value.fmt(f),
            Literal::Text(value) => f.write_str(value),
        }
    }
}

/// What one field must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Test {
    Present(bool),
    OneOf(Vec<Literal>),
}

/// One field and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) field: Field,
    pub(crate) test: Test,
}

impl Condition {
    fn holds(&self, request: &Request<'_>) -> Result<bool, Refused> {
        match (&self.test, &self.field, &request.body) {
            (Test::Present(wanted), field, _) => Ok(request.has(field)? == *wanted),
            (Test::OneOf(values), Field::Json(pointer), Body::Json(json)) => {
                match pointer.find(json)?.as_deref() {
                    Some([found]) => Ok(values.iter().any(|value| value.is(found))),
                    _ => Ok(false),
                }
            }
            (Test::OneOf(values), field, _) => {
                let found = request.text(field)?;
                Ok(
                    found
                        .is_some_and(|found| values.iter().any(|value| value.to_string() == found)),
                )
            }
        }
    }
}

/// Whether `field` can only be present where `above` is.
fn below(field: &Field, above: &Field) -> bool {
    matches!((above, field), (Field::Json(above), Field::Json(field)) if above.covers(field))
}

/// All conditions of one matcher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    pub(crate) all: Vec<Condition>,
    /// Body fields of which at least one is present; empty for no such demand.
    pub(crate) any_of: Vec<Field>,
    /// The only top-level names that the body may have.
    pub(crate) only: Option<Vec<String>>,
}

impl Conditions {
    /// Whether the request satisfies all of them.
    pub(crate) fn hold(&self, request: &Request<'_>) -> Result<bool, Refused> {
        for condition in &self.all {
            if !condition.holds(request)? {
                return Ok(false);
            }
        }
        let mut any = self.any_of.is_empty();
        for field in &self.any_of {
            any |= request.has(field)?;
        }
        let only = self.only.as_ref().is_none_or(|only| {
            request
                .body_names()
                .iter()
                .all(|name| only.iter().any(|known| known == name))
        });
        Ok(any && only)
    }

    /// The conditions outside the body hold, so that the body is worth reading.
    pub(crate) fn hold_outside_body(&self, request: &Request<'_>) -> Result<bool, Refused> {
        for condition in self
            .all
            .iter()
            .filter(|condition| !condition.field.in_body())
        {
            if !condition.holds(request)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether some condition looks at the body.
    pub(crate) fn read_body(&self) -> bool {
        self.only.is_some()
            || !self.any_of.is_empty()
            || self.all.iter().any(|condition| condition.field.in_body())
    }

    /// Every field that is looked at.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.all
            .iter()
            .map(|condition| &condition.field)
            .chain(&self.any_of)
    }

    /// Whether no request can satisfy both.
    pub(crate) fn excludes(&self, other: &Conditions) -> bool {
        self.contradicts(other) || other.contradicts(self)
    }

    fn contradicts(&self, other: &Conditions) -> bool {
        let absent = |field: &Field| {
            self.all.iter().any(|c| {
                c.test == Test::Present(false) && (c.field == *field || below(field, &c.field))
            })
        };
        let forbidden = |field: &Field| absent(field) || self.outside_only(field);
        let needs_forbidden = other
            .all
            .iter()
            .any(|c| c.test != Test::Present(false) && forbidden(&c.field));
        let needs_one_forbidden = !other.any_of.is_empty() && other.any_of.iter().all(forbidden);
        let values_apart = self.all.iter().any(|a| {
            other
                .all
                .iter()
                .any(|b| a.field == b.field && apart(&a.test, &b.test))
        });
        needs_forbidden || needs_one_forbidden || values_apart
    }

    /// Whether `only` keeps this body field away.
    fn outside_only(&self, field: &Field) -> bool {
        let name = match field {
            Field::Form(name) => name.split('[').next().unwrap_or(name),
            Field::Json(pointer) => pointer.top(),
            Field::Header(_) | Field::Query(_) => return false,
        };
        self.only
            .as_ref()
            .is_some_and(|only| !only.iter().any(|known| known == name))
    }
}

fn apart(left: &Test, right: &Test) -> bool {
    match (left, right) {
        // Text places compare by text, so values that print alike are alike.
        (Test::OneOf(a), Test::OneOf(b)) => !a
            .iter()
            .any(|a| b.iter().any(|b| a.to_string() == b.to_string())),
        _ => false,
    }
}

/// A body field as files name it: `/pointer` for JSON, `name` for forms.
pub(crate) fn body_field(text: &str) -> Result<Field, String> {
    if text.starts_with('/') {
        Pointer::parse(text).map(Field::Json)
    } else {
        Ok(Field::Form(text.to_owned()))
    }
}
