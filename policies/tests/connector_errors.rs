//! Broken connector files: each is refused with file, line, column and, where one can be guessed, a hint.
//! One good file, and one change to it per case; the good file loads, so it is the change that is refused.
//! INVARIANT: no broken file loads in part.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use policies::{Connector, Source};

const GOOD: &str = include_str!("connector_files/small.toml");

fn parse(text: String) -> Result<Connector, String> {
    Connector::parse(&Source {
        path: "things.toml".into(),
        text,
    })
    .map_err(|problems| problems.to_string())
}

/// Changes the good file in one place and expects this in the message.
fn check(from: &str, to: &str, expected: &str) {
    let changed = GOOD.replacen(from, to, 1);
    assert_ne!(changed, GOOD, "{from:?} is not in the file");
    let shown = parse(changed).expect_err(to);
    assert!(
        shown.contains(expected),
        "{to}: expected {expected:?} in\n{shown}"
    );
}

#[test]
fn the_good_file_loads_and_its_examples_hold() {
    let connector = parse(GOOD.to_owned()).unwrap();
    assert!(
        connector
            .test()
            .iter()
            .all(|result| result.failure.is_none())
    );
}

#[test]
fn unknown_words_are_refused_with_place_and_hint() {
    check(
        "risk = \"read\"",
        "rissk = \"read\"",
        "things.toml:12:1: unknown field `rissk`",
    );
    check(
        "risk = \"read\"",
        "rissk = \"read\"",
        "did you mean `risk`?",
    );
    check(
        "risk = \"read\"",
        "risk = \"raed\"",
        "things.toml:12:8: unknown variant `raed`",
    );
    check("risk = \"read\"", "risk = \"raed\"", "did you mean `read`?");
    check("[auth]", "[auht]", "did you mean `auth`?");
    check(
        "kind = \"bearer\"",
        "kind = \"baerer\"",
        "did you mean `bearer`?",
    );
    check(
        "type = \"integer\"",
        "type = \"int\"",
        "known here: boolean, integer, list, string",
    );
    check("in = \"query\"", "in = \"qeury\"", "did you mean `query`?");
    check(
        "params.limit = { in = \"query\", type",
        "params.limit = { in = \"query\", default = 3, type",
        "unknown field `default`",
    );
    check(
        "schema = 1",
        "schema = 2",
        "things.toml:1:10: only `schema = 1` is known",
    );
}

#[test]
fn broken_toml_is_refused_with_its_place() {
    check("hosts = [", "hosts = [[", "things.toml:");
    check(
        "id = \"things\"",
        "id = \"Things\"",
        "things.toml:2:6: `Things` is not a valid connector id",
    );
    check(
        "hosts = [\"api.example.com\"]",
        "hosts = [\"*.com\"]",
        "things.toml:4:9: `*.com` is not a valid host pattern",
    );
}

#[test]
fn bad_path_templates_are_refused() {
    check(
        "\"/v1/things/{thing}\"",
        "\"/v1/things/{thing\"",
        "things.toml:20:34: the segment `{thing` is not",
    );
    check(
        "\"/v1/things/{thing}\"",
        "\"/v1/things/\"",
        "is not canonical",
    );
    check(
        "\"/v1/things/{thing}\"",
        "\"/v1/../{thing}\"",
        "is not canonical",
    );
    check(
        "\"/v1/things/{thing}\"",
        "\"v1/{thing}\"",
        "starts with `/`",
    );
    check(
        "\"/v1/things/{thing}\"",
        "\"/v1/{*thing}/x\"",
        "can only be last",
    );
    check(
        "method = \"GET\"",
        "method = \"get\"",
        "`method` is a method in capitals",
    );
}

#[test]
fn overlapping_capabilities_are_refused_naming_both_and_where_they_are() {
    // The same path under another name of the hole.
    let twin = "[[capability]]\nname = \"things.peek\"\nrisk = \"read\"\nmatch = { method = \"GET\", path = \"/v1/things/{id}\" }\n\
                examples.hit = [{ method = \"GET\", path = \"/v1/things/a\" }]\n";
    let shown = parse(format!("{GOOD}\n{twin}")).unwrap_err();
    assert!(shown.contains("things.toml:37:8: `things.peek` and `things.read` (at things.toml:18:8) can be the same request"), "{shown}");
    assert!(shown.contains("hint: tell them apart"), "{shown}");
    // Without its condition, renaming could also be closing.
    check(
        ", none_of = [\"/state\"]",
        "",
        "`things.close` and `things.rename` (at things.toml:24:8) can be the same request",
    );
    // Two paths that cross, even under different methods.
    let crossing = twin
        .replace("/v1/things/{id}", "/v1/{kind}/list")
        .replace("/v1/things/a", "/v1/x/list");
    let shown = parse(format!("{GOOD}\n{crossing}")).unwrap_err();
    assert!(
        shown.contains(
            "`things.peek` and `things.read` (at things.toml:18:8) can be the same request"
        ),
        "{shown}"
    );
    let other_method = crossing.replace("GET", "PUT");
    assert!(
        parse(format!("{GOOD}\n{other_method}"))
            .unwrap_err()
            .contains("cross")
    );
    // The same name twice.
    check(
        "name = \"things.read\"",
        "name = \"things.list\"",
        "`things.list` is already declared at things.toml:11:8",
    );
}

#[test]
fn capabilities_that_exclude_each_other_load() {
    let fine = |extra: &str| {
        parse(format!(
            "{GOOD}\n[[capability]]\nname = \"x\"\nrisk = \"write\"\n{extra}"
        ))
        .unwrap()
    };
    fine(
        "match = { method = \"PATCH\", path = \"/v1/things/{thing}\", json = { \"/state\" = \"open\" }, only = [\"state\"] }\nexamples.hit = [{ method = \"PATCH\", path = \"/v1/things/a\", json = '{\"state\":\"open\"}' }]\n",
    );
    fine(
        "match = { method = \"GET\", path = \"/v1/things/special\" }\nexamples.hit = [{ method = \"GET\", path = \"/v1/things/special\" }]\n",
    );
}

#[test]
fn params_and_bodies_that_make_no_sense_are_refused() {
    check(
        "params.limit = { in = \"query\", type",
        "params.Limit = { in = \"query\", type",
        "`Limit` is not a param name",
    );
    check(
        "params.limit = { in = \"query\", type",
        "params.limit = { in = \"path\", type",
        "there is no `{limit}`",
    );
    check(
        "params.title = { name = \"/title\", type",
        "params.thing = { in = \"json\", name = \"/title\", type",
        "`thing` is a hole of the path",
    );
    check(
        "name = \"/title\", type = \"string\"",
        "name = \"/titles/*\", type = \"string\"",
        "a pointer with `*` is counted",
    );
    check(
        "name = \"/title\"",
        "name = \"/ti~tle\"",
        "is not a JSON pointer",
    );
    check(
        "params.title =",
        "opaque_body = true\nparams.title =",
        "the body is opaque",
    );
    check(
        "params.title =",
        "body_limit = 99999999\nparams.title =",
        "`body_limit` is between 1 and 16777216 bytes",
    );
    check("params_in = \"json\"\n", "", "this param needs `in`");
}

#[test]
fn a_param_of_every_capability_has_its_name_for_itself() {
    let everywhere =
        |param: &str| GOOD.replacen("[auth]", &format!("[params]\n{param}\n\n[auth]"), 1);
    let read = "{ in = \"header\", name = \"x-account\", type = \"string\" }";
    // Positive control: a name of its own, and it is there beside what a capability has itself.
    let connector = parse(everywhere(&format!("account = {read}"))).unwrap();
    for capability in connector.capabilities() {
        assert!(capability.params().contains_key("account"));
    }
    let twice = parse(everywhere(&format!("limit = {read}"))).unwrap_err();
    let expected = "things.toml:17:8: `things.list` has a param `limit` of its own, and every capability has one of that name already (at things.toml:8:1)";
    assert!(twice.contains(expected), "{twice}");
    let hole = parse(everywhere(&format!("thing = {read}"))).unwrap_err();
    assert!(
        hole.contains("`things.read` has a param `thing` of its own")
            && hole.contains("(at things.toml:8:1)"),
        "{hole}"
    );
    // What is wrong with it is said once, not once for each capability.
    let odd = parse(everywhere(&format!("Account = {read}"))).unwrap_err();
    assert_eq!(odd.matches("is not a param name").count(), 1, "{odd}");
}

#[test]
fn a_field_that_must_be_absent_is_absent_in_either_kind_of_body() {
    for field in ["/state", "state"] {
        let file = GOOD
            .replacen("params_in = \"json\"", "params_in = [\"json\", \"form\"]", 1)
            .replacen("none_of = [\"/state\"]", &format!("none_of = [\"{field}\"]"), 1)
            .replacen("name = \"/title\", ", "", 1)
            .replacen(
                "json = '{\"title\":\"b\"}', params = { title = \"b\" } }]",
                "json = '{\"title\":\"b\"}', params = { title = \"b\" } },\n\
                 { method = \"PATCH\", path = \"/v1/things/a\", form = \"title=b\", params = { title = \"b\" } }]\n\
                 examples.miss = [{ method = \"PATCH\", path = \"/v1/things/a\", form = \"title=b&state=closed\" },\n\
                 { method = \"PATCH\", path = \"/v1/things/a\", json = '{\"title\":\"b\",\"state\":\"closed\"}' }]",
                1,
            );
        // What tells the two apart stands in either place here, so closing is left out.
        let rename_only = file
            .split("\n[[capability]]\nname = \"things.close\"")
            .next();
        let results = parse(rename_only.unwrap().to_owned()).unwrap().test();
        assert_eq!(results.len(), 6, "{results:?}");
        for result in results {
            assert_eq!(result.failure, None, "{field}: {}", result.request);
        }
    }
}

#[test]
fn auth_that_makes_no_sense_is_refused() {
    check(
        "kind = \"bearer\"",
        "kind = \"header\"",
        "needs `name`, a lower-case header name",
    );
    check(
        "kind = \"bearer\"",
        "kind = \"header\"\nname = \"Host\"",
        "needs `name`, a lower-case header name",
    );
    check(
        "kind = \"bearer\"",
        "kind = \"header\"\nname = \"content-length\"",
        "needs `name`, a lower-case header name",
    );
    check(
        "kind = \"bearer\"",
        "kind = \"bearer\"\nname = \"x\"",
        "`name` is only for",
    );
    check(
        "kind = \"bearer\"",
        "kind = \"bearer\"\nstrip = [\"X-Key\"]",
        "`X-Key` in `strip`",
    );
}

#[test]
fn a_capability_without_an_example_is_refused_and_a_wrong_example_fails() {
    let none = GOOD.replacen("examples.hit = [{ method = \"GET\", path = \"/v1/things/a\", params = { thing = \"a\" } }]", "examples.hit = []", 1);
    assert!(
        parse(none)
            .unwrap_err()
            .contains("`things.read` has no example that hits it")
    );
    let wrong = GOOD.replacen("params = { limit = 2 }", "params = { limit = 3 }", 1);
    let failures: Vec<_> = parse(wrong)
        .unwrap()
        .test()
        .into_iter()
        .filter_map(|result| result.failure)
        .collect();
    assert_eq!(failures, ["the param `limit` is 2, not 3"]);
}

#[test]
fn a_host_outside_the_connector_is_refused() {
    let other = "path = \"/v1/things\", host = \"other.example.com\" }";
    check(
        "path = \"/v1/things\" }",
        other,
        "`other.example.com` is not among the connector's `hosts`",
    );
}
