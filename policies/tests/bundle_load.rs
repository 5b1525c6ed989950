//! Loading a bundle: every fault is reported, at its place, with what to do; nothing is half taken.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use common::{DESK, FINANCE_OVER_50, agent, bundle, load, source, sources};
use policies::{Bundle, Sources};

/// Loads this one policy and checks that what comes back has `place: message`, and the hint.
#[track_caller]
fn check(policy: &str, expected: &str, hint: &str) {
    let problems = load("write", &[policy])
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(problems.contains(expected), "{problems}");
    assert!(problems.contains(hint), "{problems}");
}

#[test]
fn a_misspelt_name_is_found_with_what_was_meant() {
    let forbid = |scope: &str| format!("@id(\"a\")\nforbid ({scope});");
    check(
        &forbid("principal, action == desk::Action::\"refund.create\", resource"),
        "policies/0.cedar:2:30: policy `a` names `desk::Action::\"refund.create\"`, which is no capability or risk class",
        "did you mean `desk::Action::\"refunds.create\"`?",
    );
    check(
        &forbid("principal, action == dsk::Action::\"refunds.create\", resource"),
        "which is no capability",
        "did you mean `desk::Action::\"refunds.create\"`?",
    );
    check(
        &forbid("principal, action in Action::\"finacial\", resource"),
        "which is no capability or risk class",
        "did you mean `Action::\"financial\"`?",
    );
    check(
        &forbid("principal in Stage::\"wirte\", action, resource"),
        "which is no stage",
        "did you mean `Stage::\"write\"`?",
    );
    check(
        &forbid("principal, action, resource in Connector::\"dsek\""),
        "which is no connector",
        "did you mean `Connector::\"desk\"`?",
    );
}

#[test]
fn a_misspelt_param_is_an_error_although_cedar_only_warns() {
    check(
        "@id(\"a\")\nforbid (principal, action == desk::Action::\"refunds.create\", resource)\nwhen { context.params has amout && context.params.amout > 5000 };",
        "policy is impossible",
        "",
    );
}

#[test]
fn strict_validation_is_mandatory() {
    let when = |when: &str| {
        format!(
            "@id(\"a\") forbid (principal, action == desk::Action::\"refunds.create\", resource) when {{ {when} }};"
        )
    };
    check(
        &when("context.params.amount > 5000"),
        "unable to guarantee safety of access to optional attribute `params.amount`",
        "has",
    );
    check(
        &when("context.params has amount && context.params.amount > \"50\""),
        "unexpected type",
        "",
    );
    check(&when("context.ammount > 1"), "attribute `ammount`", "");
    check(
        &when("principal.disabledd"),
        "attribute `disabledd`",
        "disabled",
    );
}

#[test]
fn every_policy_has_an_id_of_its_own() {
    let plain = "forbid (principal, action, resource) when { principal.disabled };";
    check(
        plain,
        "policies/0.cedar:1:1: the policy has no `@id`",
        "@id(\"a-name-of-its-own\")",
    );
    check(
        &format!("@id(\"a\") {plain}\n\n  @id(\"a\") {plain}"),
        "policies/0.cedar:3:3: the `@id` `a` is taken by policies/0.cedar:1",
        "",
    );
    check(
        &format!("@id(\"\") {plain}"),
        "is not a valid policy id",
        "@id(",
    );
    check(
        &format!("@id(\"kill-switch\") {plain}"),
        "the kill switch cannot be replaced",
        "",
    );
}

#[test]
fn a_policy_with_a_wrong_annotation_does_not_hide_its_other_faults() {
    let misspelt = "forbid (principal, action == desk::Action::\"refund.create\", resource);";
    let no_capability =
        "names `desk::Action::\"refund.create\"`, which is no capability or risk class";
    for (policy, annotation) in [
        (misspelt.to_owned(), "the policy has no `@id`"),
        (
            format!("@id(\"a\") @resaon(\"why\") {misspelt}"),
            "unknown annotation `@resaon`",
        ),
        (
            format!("@id(\"a\") permit (principal, action, resource); @id(\"a\") {misspelt}"),
            "the `@id` `a` is taken by policies/0.cedar:1",
        ),
    ] {
        check(&policy, annotation, no_capability);
    }
}

#[test]
fn annotations_that_mean_nothing_are_refused() {
    let policy = |annotations: &str, effect: &str| {
        format!(
            "@id(\"a\")\n{annotations}\n{effect} (principal, action, resource) unless {{ context.approvals.contains(Group::\"finance\") }};"
        )
    };
    check(
        &policy("@aproval(\"finance\")", "forbid"),
        ":2:1: unknown annotation `@aproval`",
        "did you mean `@approval`?",
    );
    check(
        &policy("@approval(\"finance\")", "permit"),
        ":2:1: `@approval` on a permit",
        "turn it round",
    );
    check(
        &policy("@approval(\"Finance\")", "forbid"),
        ":2:1: `Finance` is not a valid group name",
        "",
    );
    check(
        &policy("@approval(\"legal\")", "forbid"),
        ":2:1: `@approval(\"legal\")`, but no condition looks for an approval of `legal`",
        "Group::\"legal\"",
    );
    check(
        &policy("@within(\"15m\")", "forbid"),
        ":2:1: `@within` without `@approval` means nothing",
        "",
    );
    for bad in ["15", "15 m", "1h30m", "0s", "31d", "-5m", "soon"] {
        check(
            &policy(
                &format!("@approval(\"finance\")\n@within(\"{bad}\")"),
                "forbid",
            ),
            &format!(":3:1: `@within(\"{bad}\")` is not a time"),
            "15m",
        );
    }
    for bad in ["0", "33", "two", "-1", "1.5", "+2"] {
        check(
            &policy(
                &format!("@approval(\"finance\")\n@quorum(\"{bad}\")"),
                "forbid",
            ),
            &format!(":3:1: `@quorum(\"{bad}\")` is not a number"),
            "",
        );
    }
}

#[test]
fn what_cedar_cannot_read_has_a_place() {
    check(
        "@id(\"a\")\nforbid (principal, action resource);",
        "policies/0.cedar:2:27:",
        "",
    );
    check(
        "@id(\"a\")\nforbid (principal == ?principal, action, resource);",
        "policies/0.cedar:1:1: policy templates",
        "",
    );
}

#[test]
fn all_faults_of_all_files_are_reported_at_once() {
    let mut sources = sources(
        "wirte",
        &[
            "@id(\"a\")\nforbid (principal, action in Action::\"finacial\", resource);",
            "permit (principal, action, resource);",
        ],
    );
    sources.agents.push(source(
        "agents.d/b.toml",
        "tenant = \"acme\"\nnam = \"b\"\n",
    ));
    sources.connectors.push(source(
        "connectors.d/bad.toml",
        "schema = 1\nidd = \"bad\"\n",
    ));
    let problems = Bundle::load(&sources).unwrap_err();
    let files: Vec<String> = problems
        .0
        .iter()
        .map(|problem| problem.file.display().to_string())
        .collect();
    for file in [
        "agents.d/support.toml",
        "agents.d/b.toml",
        "connectors.d/bad.toml",
        "policies/1.cedar",
    ] {
        assert!(files.iter().any(|one| one == file), "{file} in {problems}");
    }
    // With the connectors readable, policies are checked although an agent is not.
    sources.connectors.pop();
    let problems = Bundle::load(&sources).unwrap_err().to_string();
    assert!(
        problems.contains("policies/0.cedar:2:30") && problems.contains("agents.d/support.toml"),
        "{problems}"
    );
}

#[test]
fn names_that_do_not_exist_here_are_noticed_not_refused() {
    let policy = "@id(\"a\") forbid (principal == Agent::\"acme/suport\", action, resource);";
    let bundle = bundle("write", &[policy]);
    let notices: Vec<String> = bundle.notices().iter().map(ToString::to_string).collect();
    assert_eq!(notices.len(), 1);
    assert!(
        notices[0].contains("did you mean `Agent::\"acme/support\"`?"),
        "{notices:?}"
    );
    assert!(
        common::bundle("write", &[FINANCE_OVER_50])
            .notices()
            .is_empty()
    );
}

#[test]
fn a_connector_with_a_shipped_id_replaces_the_shipped_one_and_says_so() {
    let mut sources = Sources {
        connectors: vec![source(
            "connectors.d/stripe.toml",
            &DESK.replace("\"desk\"", "\"stripe\""),
        )],
        ..Sources::default()
    };
    let replaced = Bundle::load(&sources).unwrap();
    assert_eq!(
        replaced.notices()[0].to_string(),
        "connectors.d/stripe.toml:2:6: replaces the shipped connector `stripe`"
    );
    assert!(replaced.schema_text().contains("tickets.close_many"));
    sources.connectors.clear();
    assert!(Bundle::load(&sources).unwrap().notices().is_empty());
}

#[test]
fn connectors_that_would_share_a_namespace_are_refused() {
    let connector = |id: &str, host: &str| {
        source(
            &format!("connectors.d/{id}.toml"),
            &DESK
                .replace("\"desk\"", &format!("\"{id}\""))
                .replace("api.desk.example.com", host),
        )
    };
    let load = |ids: [&str; 2]| {
        let connectors = vec![
            connector(ids[0], "a.example.com"),
            connector(ids[1], "b.example.com"),
        ];
        Bundle::load(&Sources {
            connectors,
            ..Sources::default()
        })
        .map(|_| ())
    };
    assert!(
        load(["a-b", "a_b"])
            .unwrap_err()
            .to_string()
            .contains("would share the policy namespace `a_b`")
    );
    assert!(
        load(["sluice", "b"])
            .unwrap_err()
            .to_string()
            .contains("the connector id `sluice` is Sluice's own")
    );
    assert_eq!(load(["a-b", "a-c"]), Ok(()));
}

#[test]
fn the_version_is_of_what_decides_and_of_nothing_else() {
    let version = |sources: &Sources| Bundle::load(sources).unwrap().version();
    let one = sources(
        "write",
        &[
            FINANCE_OVER_50,
            "@id(\"z\") permit (principal, action in Action::\"read\", resource);",
        ],
    );
    let mut moved = one.clone();
    moved.policies.reverse();
    moved.policies[0].path = "policies/renamed.cedar".into();
    assert_eq!(
        version(&one),
        version(&moved),
        "file names and their order do not decide"
    );

    let mut changed = one.clone();
    changed.policies[0].text = FINANCE_OVER_50.replace("5000", "5001");
    assert_ne!(version(&one), version(&changed));
    let mut changed = one.clone();
    changed.agents = vec![source("agents.d/support.toml", &agent("read"))];
    assert_ne!(version(&one), version(&changed));
    let mut changed = one.clone();
    changed.connectors[0].text = DESK.replace("\"/dump\"", "\"/dumps\"");
    assert_ne!(version(&one), version(&changed));
}

#[test]
fn the_shipped_policies_load_alone() {
    let bundle = Bundle::load(&Sources::default()).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(bundle.notices().is_empty());
    assert!(bundle.connectors().count() >= 7);
}

#[test]
fn a_connection_without_the_credential_it_needs_is_noticed() {
    let agent = |credential: &str| {
        let text = format!(
            "tenant = \"acme\"\nname = \"support\"\nowner = \"olga\"\nstage = \"write\"\n\
             [[connections]]\nname = \"stripe\"\nconnector = \"stripe\"\n{credential}"
        );
        Bundle::load(&Sources {
            agents: vec![source("agents.d/support.toml", &text)],
            ..Sources::default()
        })
        .unwrap()
    };
    let without = agent("");
    let notices: Vec<String> = without.notices().iter().map(ToString::to_string).collect();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(
        notices[0].starts_with("agents.d/support.toml:6:8: `stripe` needs a credential"),
        "{notices:?}"
    );
    assert!(agent("credential = \"stripe-live\"\n").notices().is_empty());
}

#[test]
fn pins_without_a_backup_are_noticed_and_pins_of_what_is_not_read_refused() {
    const ONE: &str = "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM=";
    const TWO: &str = "sha256/E9CZ9INDbd+2eRQozYqqbQ2yXLVKB9+xcprMF+44U1g=";
    let load = |connection: &str| {
        let text = format!(
            "tenant = \"acme\"\nname = \"support\"\nowner = \"olga\"\nstage = \"write\"\n\
             [[connections]]\nname = \"it\"\n{connection}"
        );
        Bundle::load(&Sources {
            agents: vec![source("agents.d/support.toml", &text)],
            ..Sources::default()
        })
    };
    let stripe = "connector = \"stripe\"\ncredential = \"stripe-live\"\n";
    let one = load(&format!("{stripe}pins = [\"{ONE}\"]\n")).unwrap();
    let notices: Vec<String> = one.notices().iter().map(ToString::to_string).collect();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(
        notices[0]
            .starts_with("agents.d/support.toml:6:8: this connection has one pin and no backup"),
        "{notices:?}"
    );
    let two = load(&format!("{stripe}pins = [\"{ONE}\", \"{TWO}\"]\n")).unwrap();
    assert!(two.notices().is_empty());
    let opaque =
        format!("connector = \"opaque\"\nhosts = [\"db.example.com:5432\"]\npins = [\"{ONE}\"]\n");
    let refused = load(&opaque).unwrap_err().to_string();
    assert!(
        refused.contains("agents.d/support.toml:6:8: what is opaque is not read"),
        "{refused}"
    );
}
