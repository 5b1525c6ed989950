//! JSON bodies read strictly, and RFC 6901 pointers into them with `*` for "each element".
//! Parsers differ on repeated keys and on case; where they could differ, the request is ambiguous.
//! INVARIANT: no object in a `Json` has a key twice.

use super::alike;
use crate::Refused;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// A JSON value. Numbers other than whole numbers of 64 bits are only known to be numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    OtherNumber,
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads a body: UTF-8 without byte order mark, one value, at most 127 levels deep.
    pub(crate) fn parse(body: &[u8]) -> Result<Json, Refused> {
        let twice = RefCell::new(None);
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let read = Strict(&twice)
            .deserialize(&mut deserializer)
            .and_then(|json| deserializer.end().map(|()| json));
        read.map_err(|error| match twice.take() {
            Some(key) => Refused::ambiguous(format!(
                "the JSON body has the key {key:?} twice in one object"
            )),
            None => Refused::malformed(format!("the body is not JSON: {error}")),
        })
    }

    /// The top-level keys; none where the value is no object.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let object = match self {
            Json::Object(object) => Some(object),
            _ => None,
        };
        object
            .into_iter()
            .flat_map(|object| object.keys().map(String::as_str))
    }

    /// Whether it is an object.
    pub(crate) fn is_object(&self) -> bool {
        matches!(self, Json::Object(_))
    }

    fn member(&self, key: &str) -> Result<Option<&Json>, Refused> {
        match self {
            Json::Object(object) => match object.keys().find(|given| alike::key(given, key)) {
                Some(given) => Err(Refused::ambiguous(format!(
                    "the JSON body has {given:?}, which could be taken for `{key}`"
                ))),
                None => Ok(object.get(key)),
            },
            Json::Array(items) => {
                let index = key
                    .parse::<usize>()
                    .ok()
                    .filter(|index| index.to_string() == key);
                Ok(index.and_then(|index| items.get(index)))
            }
            _ => Ok(None),
        }
    }
}

/// A parsed RFC 6901 pointer; a `*` token stands for every element of an array.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pointer(Vec<String>);

impl Pointer {
    /// Reads `/a/b~1c/*`; the empty pointer is not accepted, since it names the whole body.
    pub(crate) fn parse(text: &str) -> Result<Pointer, String> {
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| format!("`{text}` is not a JSON pointer: it starts with `/`"))?;
        let token = |token: &str| {
            let plain = token.replace("~1", "").replace("~0", "");
            if plain.contains('~') {
                Err(format!(
                    "`{text}` is not a JSON pointer: `~` stands only in `~0` and `~1`"
                ))
            } else {
                Ok(token.replace("~1", "/").replace("~0", "~"))
            }
        };
        rest.split('/')
            .map(token)
            .collect::<Result<_, _>>()
            .map(Pointer)
    }

    /// The pointer to a top-level key.
    pub(crate) fn key(name: &str) -> Pointer {
        Pointer(vec![name.to_owned()])
    }

    /// The first token: a top-level key.
    pub(crate) fn top(&self) -> &str {
        self.0.first().map(String::as_str).unwrap_or_default()
    }

    /// Whether the pointer is one key of the top level.
    pub(crate) fn is_top(&self) -> bool {
        self.0.len() == 1
    }

    /// Whether the pointer stands for many values.
    pub(crate) fn is_many(&self) -> bool {
        self.0.iter().any(|token| token == "*")
    }

    /// Whether `other` lies at or below this pointer.
    pub(crate) fn covers(&self, other: &Pointer) -> bool {
        other.0.starts_with(&self.0)
    }

    /// The values that the pointer names; `None` where an array that it goes through, or its one value, is absent.
    pub(crate) fn find<'j>(&self, json: &'j Json) -> Result<Option<Vec<&'j Json>>, Refused> {
        let mut found = vec![json];
        for token in &self.0 {
            let mut next = Vec::new();
            for json in found {
                match json {
                    Json::Array(items) if token == "*" => next.extend(items),
                    Json::Null if token == "*" => return Ok(None),
                    _ if token == "*" => {
                        return Err(Refused::malformed(format!(
                            "`{self}` goes through something that is no list"
                        )));
                    }
                    json => next.extend(json.member(token)?),
                }
            }
            found = next;
            if found.is_empty() && token != "*" {
                return Ok(None);
            }
        }
        Ok(Some(found))
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

/// Reads one value; a repeated key ends the reading and is left in the cell.
struct Strict<'c>(&'c RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Json;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(i64::try_from(value).map_or(Json::OtherNumber, Json::Integer))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Strict(self.0))? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut object = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Strict(self.0))?;
            if object.insert(key.clone(), value).is_some() {
                self.0.replace(Some(key));
                return Err(A::Error::custom("a key twice"));
            }
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    fn count(pointer: &str, body: &str) -> Result<Option<usize>, Reason> {
        let json = Json::parse(body.as_bytes()).map_err(|refused| refused.reason)?;
        let found = Pointer::parse(pointer)
            .unwrap()
            .find(&json)
            .map_err(|refused| refused.reason)?;
        Ok(found.map(|values| values.len()))
    }

    #[test]
    fn pointers_find_and_count() {
        let body = r#"{"a":{"b/c":[{"to":["x","y"]},{"to":[]},{"to":["z"]}]},"n":null,"e":[]}"#;
        assert_eq!(count("/a/b~1c/*/to/*", body), Ok(Some(3)));
        assert_eq!(count("/a/b~1c/*", body), Ok(Some(3)));
        assert_eq!(count("/a/b~1c/1/to", body), Ok(Some(1)));
        assert_eq!(count("/a/b~1c/01/to", body), Ok(None));
        assert_eq!(count("/e/*", body), Ok(Some(0)));
        assert_eq!(count("/n", body), Ok(Some(1)));
        assert_eq!(count("/absent", body), Ok(None));
        assert_eq!(count("/absent/*", body), Ok(None));
        assert_eq!(count("/n/x", body), Ok(None));
        assert_eq!(count("/a/*", body), Err(Reason::MalformedRequest));
        for bad in ["", "a", "/a~2", "/~"] {
            assert!(Pointer::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn repeated_and_look_alike_keys_are_ambiguous() {
        assert_eq!(
            count("/a", r#"{"a":1,"a":1}"#),
            Err(Reason::AmbiguousRequest)
        );
        assert_eq!(
            count("/a", r#"{"x":{"y":[{"a":1,"\u0061":2}]}}"#),
            Err(Reason::AmbiguousRequest)
        );
        assert_eq!(count("/a", r#"{"A":1}"#), Err(Reason::AmbiguousRequest));
        for given in [r"\u0041", " a", "a ", r"a\u0000b", r"\ufeffa", "_a"] {
            assert_eq!(
                count("/a", &format!("{{\"{given}\":1}}")),
                Err(Reason::AmbiguousRequest),
                "{given}"
            );
        }
        assert_eq!(
            count("/to/kind", "{\"to\":{\"\u{212a}ind\":1}}"),
            Err(Reason::AmbiguousRequest)
        );
        assert_eq!(count("/a", r#"{"b":1,"B":2}"#), Ok(None));
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        let deep = "[".repeat(200);
        for bad in [
            "",
            "{",
            "{}{}",
            "{}\u{0}",
            "{}x",
            "{\"a\":\u{0}1}",
            "{\"a\u{0}\":1}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":0x1}",
            "{'a':1}",
            "\u{feff}{}",
            "{\"a\":1,}",
            "NaN",
            "{\"a\":\"\\ud800\"}",
            "1e999",
            &deep,
        ] {
            assert_eq!(count("/a", bad), Err(Reason::MalformedRequest), "{bad:?}");
        }
        assert!(Json::parse(b"{\"a\":\"\xff\"}").is_err());
    }
}
