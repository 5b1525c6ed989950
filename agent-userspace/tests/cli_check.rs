//! Bad input at the command line: each kind gives a clear error with file, line, column and hint.
//! `sluice check` is what an operator runs before a reload.
//! The messages are held by snapshots, since people act on them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use support::{AGENT, Instance};

/// Positive control of every test below: the same configuration without the fault is accepted.
#[test]
fn a_good_configuration_is_accepted() {
    let instance = Instance::new();
    let said = instance.sluice(&["check"]);
    assert_eq!(said.code, 0, "{}", said.all());
    assert!(said.out.starts_with("ok: 1 agent, "), "{}", said.out);
    let said = instance.sluice(&["check", "--format", "json"]);
    let last = said.json().pop().unwrap();
    assert_eq!(last["severity"], "ok");
    assert_eq!(last["agents"], 1);
}

#[test]
fn broken_toml_is_refused_with_its_place() {
    let instance = Instance::new();
    instance.write("config.toml", "[metrics]\nlisten = \"127.0.0.1:9464\n");
    insta::assert_snapshot!(instance.sluice(&["check"]).all());
}

#[test]
fn an_unknown_key_is_refused_with_the_key_that_was_meant() {
    let instance = Instance::new();
    instance.write("config.toml", "[approvals]\nhodl = \"10s\"\n");
    insta::assert_snapshot!(instance.sluice(&["check"]).all());
}

#[test]
fn an_unknown_key_of_an_agent_is_refused() {
    let instance = Instance::new();
    instance.write(
        "agents.d/support.toml",
        &AGENT.replace("stage =", "staeg ="),
    );
    insta::assert_snapshot!(instance.sluice(&["check"]).all());
}

#[test]
fn a_misspelt_capability_in_a_policy_is_refused_with_the_one_that_was_meant() {
    let instance = Instance::new();
    instance.write(
        "policies/refunds.cedar",
        "@id(\"no-refunds\")\nforbid (principal, action == stripe::Action::\"refund.create\", resource);\n",
    );
    insta::assert_snapshot!(instance.sluice(&["check"]).all());
}

#[test]
fn an_overlapping_connector_path_is_refused_with_both_places() {
    let instance = Instance::new();
    instance.write(
        "connectors.d/shop.toml",
        r#"schema = 1
id = "shop"
hosts = ["shop.example"]
docs = "https://shop.example/docs"
[auth]
kind = "bearer"

[[capability]]
name = "orders.read"
risk = ["read"]
match = { method = "GET", path = "/v1/orders/{id}" }
examples = { hit = [{ method = "GET", path = "/v1/orders/7" }], miss = [{ method = "POST", path = "/v1/orders/7" }] }

[[capability]]
name = "orders.export"
risk = ["export"]
match = { method = "GET", path = "/v1/orders/{order}" }
examples = { hit = [{ method = "GET", path = "/v1/orders/7" }], miss = [{ method = "POST", path = "/v1/orders/7" }] }
"#,
    );
    insta::assert_snapshot!(instance.sluice(&["check"]).all());
}

#[test]
fn a_missing_configuration_directory_is_named() {
    let instance = Instance::new();
    let said = instance.sluice(&["--config", "/nonexistent/sluice", "check"]);
    insta::assert_snapshot!(said.all());
}

#[test]
fn an_extra_root_that_is_no_certificate_is_refused() {
    let instance = Instance::new();
    instance.write(
        "config.toml",
        "[proxy]\nextra_roots = [\"ca.pem\", \"gone.pem\"]\n",
    );
    instance.write("ca.pem", "hello\n");
    let said = instance.sluice(&["check"]);
    assert_eq!(said.code, 1);
    assert!(
        said.out.contains("gone.pem: the file cannot be read"),
        "{}",
        said.all()
    );
    std::fs::write(instance.path().join("config/gone.pem"), "hello\n").unwrap();
    let said = instance.sluice(&["check"]);
    assert_eq!(said.code, 1);
    assert!(
        said.out.contains("ca.pem:1:1")
            && said.out.contains("there is no certificate in this file"),
        "{}",
        said.all()
    );
}

#[test]
fn diagnostics_are_objects_for_programs() {
    let instance = Instance::new();
    instance.write("config.toml", "[approvals]\nhodl = \"10s\"\n");
    let said = instance.sluice(&["--format", "json", "check"]);
    assert_eq!(said.code, 1);
    let [line] = said.json().try_into().unwrap();
    assert_eq!(line["severity"], "error");
    assert_eq!(line["file"], "DIR/config/config.toml");
    assert_eq!(
        (line["line"].as_u64(), line["column"].as_u64()),
        (Some(2), Some(1))
    );
    assert_eq!(line["hint"], "did you mean `hold`?");
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let instance = Instance::new();
    assert_eq!(instance.sluice(&["chekc"]).code, 2);
    assert_eq!(instance.sluice(&["vault", "put", "no-tenant"]).code, 2);
    assert_eq!(
        instance
            .sluice(&[
                "vault",
                "put",
                "acme/stripe-live",
                "sk_live_on_the_command_line"
            ])
            .code,
        2
    );
}

#[test]
fn data_given_in_pieces_is_joined_as_curl_does() {
    let instance = Instance::new();
    let explain = |data: &[&str]| {
        let mut args = vec!["policy", "explain", "--agent", "acme/support"];
        args.extend(data.iter().flat_map(|piece| ["-d", piece]));
        args.push("https://api.stripe.com/v1/refunds");
        let said = instance.sluice(&args);
        assert_eq!(said.code, 0, "{}", said.all());
        said.out
    };
    let whole = explain(&["amount=12000&currency=usd&payment_intent=pi_1"]);
    assert!(whole.contains("amount = 12000"), "{whole}");
    let pieces = explain(&["amount=12000", "currency=usd", "payment_intent=pi_1"]);
    assert_eq!(pieces, whole);
}

#[test]
fn missing_cases_are_named_without_a_line() {
    let instance = Instance::new();
    let said = instance.sluice(&["policy", "test"]);
    assert_eq!(said.code, 1, "{}", said.all());
    let cases = "DIR/config/cases: there is no directory of decision cases here";
    assert!(said.err.contains(cases), "{}", said.all());
    assert!(
        said.err.contains("help: make it, or name"),
        "{}",
        said.all()
    );
    let said = instance.sluice(&["policy", "test", "/nonexistent"]);
    assert!(said.err.contains("/nonexistent: "), "{}", said.all());
}

#[test]
fn global_options_have_a_heading_of_their_own() {
    let instance = Instance::new();
    for args in [&["--help"][..], &["audit", "list", "--help"]] {
        let said = instance.sluice(args);
        let (own, global) = said.out.split_once("Global options:").unwrap();
        for option in ["--config", "--state-dir", "--runtime-dir", "--format"] {
            assert!(global.contains(option), "{option}: {}", said.all());
            assert!(!own.contains(option), "{option}: {}", said.all());
        }
    }
}
