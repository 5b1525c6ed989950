//! The JSON Schema of connector files accepts every shipped file and refuses what the parser refuses by shape.
//! A small reader of the keywords that the schema uses stands in for a validator; a keyword it does not know fails the test.
//! INVARIANT: schema and parser name the same keys.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use policies::{Connector, Source};
use serde_json::Value;

/// The first violation, with where it is.
fn violation(schema: &Value, root: &Value, value: &Value, at: &str) -> Option<String> {
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let wrong = match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "title" | "description" => None,
            "$ref" => violation(
                root.pointer(rule.as_str()?.strip_prefix('#')?)
                    .expect("a known $ref"),
                root,
                value,
                at,
            ),
            "anyOf" => {
                let tried: Vec<_> = rule
                    .as_array()?
                    .iter()
                    .map(|one| violation(one, root, value, at))
                    .collect();
                (!tried.iter().any(Option::is_none)).then(|| format!("{at}: none of {tried:?}"))
            }
            "type" => {
                let names: Vec<&str> = rule.as_array().map_or_else(
                    || vec![rule.as_str().unwrap()],
                    |all| all.iter().map(|name| name.as_str().unwrap()).collect(),
                );
                (!names.iter().any(|name| is_type(name, value)))
                    .then(|| format!("{at}: not {names:?}"))
            }
            "const" => (rule != value).then(|| format!("{at}: not {rule}")),
            "enum" => (!rule.as_array()?.contains(value))
                .then(|| format!("{at}: {value} is not in {rule}")),
            "required" => rule
                .as_array()?
                .iter()
                .find(|key| value.get(key.as_str().unwrap()).is_none())
                .map(|key| format!("{at}: lacks {key}")),
            "properties" => rule.as_object()?.iter().find_map(|(key, rule)| {
                violation(rule, root, value.get(key)?, &format!("{at}/{key}"))
            }),
            "additionalProperties" => {
                let known = |key: &str| {
                    schema
                        .get("properties")
                        .is_some_and(|known| known.get(key).is_some())
                };
                value
                    .as_object()?
                    .iter()
                    .filter(|(key, _)| !known(key))
                    .find_map(|(key, value)| match rule {
                        Value::Bool(false) => Some(format!("{at}: unknown key {key}")),
                        rule => violation(rule, root, value, &format!("{at}/{key}")),
                    })
            }
            "items" => value.as_array().and_then(|items| {
                items
                    .iter()
                    .enumerate()
                    .find_map(|(index, item)| violation(rule, root, item, &format!("{at}/{index}")))
            }),
            "minItems" => value
                .as_array()
                .filter(|items| (items.len() as u64) < rule.as_u64().unwrap())
                .map(|_| format!("{at}: too few")),
            "minLength" => value
                .as_str()
                .filter(|text| (text.len() as u64) < rule.as_u64().unwrap())
                .map(|_| format!("{at}: too short")),
            "maxLength" => value
                .as_str()
                .filter(|text| text.len() as u64 > rule.as_u64().unwrap())
                .map(|_| format!("{at}: too long")),
            "minimum" => value
                .as_i64()
                .filter(|number| *number < rule.as_i64().unwrap())
                .map(|_| format!("{at}: too small")),
            "maximum" => value
                .as_i64()
                .filter(|number| *number > rule.as_i64().unwrap())
                .map(|_| format!("{at}: too large")),
            // Text patterns are the newtypes' own checks; the parser's tests hold those.
            "pattern" => None,
            other => panic!("the schema uses the keyword {other}, which this test does not know"),
        };
        if wrong.is_some() {
            return wrong;
        }
    }
    None
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("unknown type {other}"),
    }
}

fn judge(text: &str) -> Option<String> {
    let schema: Value = serde_json::from_str(Connector::schema()).unwrap();
    let value: Value = toml::from_str(text).unwrap();
    violation(&schema, &schema, &value, "")
}

#[test]
fn the_schema_accepts_every_shipped_file() {
    for source in Connector::shipped_sources() {
        assert_eq!(judge(&source.text), None, "{}", source.path.display());
    }
}

#[test]
fn the_schema_and_the_parser_refuse_the_same_shapes() {
    let good = include_str!("connector_files/small.toml");
    assert_eq!(judge(good), None);
    for (from, to) in [
        ("schema = 1", "schema = 2"),
        ("docs = ", "doc = "),
        ("\"read\"", "\"reed\""),
        ("kind = \"bearer\"", "kind = \"oauth\""),
        ("type = \"integer\"", "type = \"number\""),
        ("in = \"query\"", "in = \"body\""),
        (
            "method = \"GET\", path = \"/v1/things\" }",
            "methods = \"GET\", path = \"/v1/things\" }",
        ),
        (
            "examples.hit = [{ method = \"GET\"",
            "examples.hits = [{ method = \"GET\"",
        ),
        ("[auth]", "[autth]"),
    ] {
        let changed = good.replacen(from, to, 1);
        assert_ne!(changed, good, "{from}");
        assert!(judge(&changed).is_some(), "the schema accepts {to}");
        assert!(
            Connector::parse(&Source {
                path: "x.toml".into(),
                text: changed
            })
            .is_err(),
            "the parser accepts {to}"
        );
    }
}
