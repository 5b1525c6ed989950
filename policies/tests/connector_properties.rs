//! Properties of loading and matching over generated input: nothing panics, and no odd spelling becomes a call.
//! Inputs are arbitrary bytes, damaged connector files, and requests that are a plain one with a few characters changed.
//! INVARIANT: a call's path is canonical, and equal requests are equal calls.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use policies::{Agent, AgentId, Catalogue, Connector, Endpoint, RequestView, Source};
use proptest::prelude::*;
use std::sync::LazyLock;

static CATALOGUE: LazyLock<(AgentId, Catalogue)> = LazyLock::new(|| {
    let text = "tenant = \"acme\"\nname = \"bot\"\nowner = \"Ada\"\nstage = \"write\"\n\
        [[connections]]\nname = \"web\"\nconnector = \"generic-http\"\nhosts = [\"web.example.com\"]\n\
        [[connections]]\nname = \"gh\"\nconnector = \"github\"\nhosts = [\"api.github.com\"]\n\
        [[connections]]\nname = \"pay\"\nconnector = \"stripe\"\n";
    let agent = Agent::parse(&Source {
        path: "bot.toml".into(),
        text: text.into(),
    })
    .unwrap();
    (
        agent.id().clone(),
        Catalogue::build(vec![agent], Vec::new()).unwrap(),
    )
});

/// The rules of a canonical path, written a second time and another way.
fn is_canonical(path: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    let segment = |segment: &str| {
        let bytes = segment.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            match bytes[at] {
                b'%' if at + 2 < bytes.len() && hex(bytes[at + 1]) && hex(bytes[at + 2]) => {
                    let value = u8::from_str_radix(&segment[at + 1..at + 3], 16).unwrap();
                    if value.is_ascii_alphanumeric()
                        || value < 0x20
                        || value == 0x7f
                        || b"-._~\\".contains(&value)
                    {
                        return false;
                    }
                    at += 3;
                }
                byte if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte) => {
                    at += 1
                }
                _ => return false,
            }
        }
        !segment.is_empty() && segment != "." && segment != ".."
    };
    path == "/"
        || path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(segment))
}

fn called(at: &str, view: &RequestView<'_>) -> bool {
    let (id, catalogue) = &*CATALOGUE;
    let at: Endpoint = at.parse().unwrap();
    let _ = catalogue.body_need(id, &at, view);
    let (once, twice) = (catalogue.call(id, &at, view), catalogue.call(id, &at, view));
    assert_eq!(once, twice);
    once.is_ok()
}

/// Fragments that paths are smuggled with.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("/"),
        Just("//"),
        Just("."),
        Just(".."),
        Just("%2e"),
        Just("%2E"),
        Just("%2F"),
        Just("%2f"),
        Just("%5C"),
        Just("\\"),
        Just(";"),
        Just("%3B"),
        Just("a"),
        Just("repos"),
        Just("v1"),
        Just("%61"),
        Just("%C3%A4"),
        Just("%C0%AF"),
        Just("%00"),
        Just("%25"),
        Just("%"),
        Just("?"),
        Just("#"),
        Just("ä"),
        Just(" "),
        Just("%20"),
        Just("*"),
        Just("{a}"),
        Just("issues"),
        Just("7")
    ];
    prop::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn fuzz_reading_arbitrary_bytes_as_a_connector_or_an_agent_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let source = Source { path: "x.toml".into(), text: String::from_utf8_lossy(&bytes).into_owned() };
        let _ = Connector::parse(&source);
        let _ = Agent::parse(&source);
    }

    #[test]
    fn fuzz_a_damaged_connector_never_panics_and_every_problem_has_a_place(at in 0usize..2000, cut in 0usize..60, text in "[\\[\\]{}=\"/*,a-z0-9 \n.]{0,8}") {
        let mut file: Vec<char> = include_str!("connector_files/small.toml").chars().collect();
        let at = at % file.len();
        let end = (at + cut).min(file.len());
        file.splice(at..end, text.chars());
        let text: String = file.into_iter().collect();
        let lines = text.lines().count() as u32 + 1;
        match Connector::parse(&Source { path: "x.toml".into(), text }) {
            Ok(connector) => drop(connector.test()),
            Err(problems) => {
                prop_assert!(!problems.0.is_empty());
                prop_assert!(problems.0.iter().all(|problem| (1..=lines).contains(&problem.line) && problem.column >= 1));
            }
        }
    }

    #[test]
    fn fuzz_a_path_that_is_not_canonical_is_never_a_call(path in path(), rooted in any::<bool>(), method in prop_oneof![Just("GET"), Just("DELETE"), Just("PATCH")]) {
        let path = if rooted { format!("/{path}") } else { path };
        let view = RequestView { method, path: &path, query: None, headers: &[], body: Some(b"") };
        for at in ["web.example.com:443", "api.github.com:443", "api.stripe.com:443"] {
            prop_assert!(!called(at, &view) || is_canonical(&path), "{at} {path}");
        }
    }

    #[test]
    fn fuzz_arbitrary_requests_never_panic(
        method in ".{0,8}", path in ".{0,40}", query in prop::option::of(".{0,40}"),
        headers in prop::collection::vec(("[a-z-]{1,24}", ".{0,20}"), 0..4),
        body in prop::option::of(prop::collection::vec(any::<u8>(), 0..80)),
    ) {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let view = RequestView { method: &method, path: &path, query: query.as_deref(), headers: &headers, body: body.as_deref() };
        for at in ["web.example.com:443", "api.github.com:443", "api.stripe.com:443"] {
            prop_assert!(!called(at, &view) || is_canonical(&path));
        }
    }

    #[test]
    fn fuzz_a_refund_is_never_read_for_another_amount(before in "[a-z&=%\\[\\];+A-Z0-9._ ]{0,20}", after in "[a-z&=%\\[\\];+A-Z0-9._ ]{0,20}", query in "[a-z&=%\\[\\]0-9]{0,16}") {
        let body = format!("{before}&amount=100&{after}");
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let view = RequestView { method: "POST", path: "/v1/refunds", query: Some(&query), headers: &headers, body: Some(body.as_bytes()) };
        let (id, catalogue) = &*CATALOGUE;
        if let Ok(call) = catalogue.call(id, &"api.stripe.com:443".parse().unwrap(), &view) {
            prop_assert_eq!(call.params().get("amount"), Some(&policies::Value::Integer(100)));
        }
    }
}
