//! The decision cases of `policies/cases`, and the runner that `sluice policy test` shares with this test.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{bundle, source};
use policies::{Bundle, CaseReport, Source, Sources, run_case};

fn files(directory: &str, extension: &str) -> Vec<Source> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|one| one == extension))
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        Source {
            path: path
                .strip_prefix(env!("CARGO_MANIFEST_DIR"))
                .unwrap()
                .to_owned(),
            text,
        }
    };
    paths.into_iter().map(read).collect()
}

#[track_caller]
fn check(bundle: &Bundle, case: &Source) -> CaseReport {
    run_case(bundle, case).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_case_comes_out_as_it_says() {
    let agents = files("cases/agents.d", "toml");
    let bundle = Bundle::load(&Sources {
        agents,
        ..Sources::default()
    })
    .unwrap_or_else(|problems| panic!("{problems}"));
    let cases = files("cases", "toml");
    assert!(cases.len() >= 25, "{}", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .map(|case| check(&bundle, case))
        .filter(|report| !report.passed())
        .map(|report| report.to_string())
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_lists_of_shipped_files_are_their_directories() {
    // A file that nobody lists would look shipped and not be.
    let listed = |file: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        fs::read_to_string(path).unwrap()
    };
    let lists = [
        ("default", "cedar", listed("src/cedar/load.rs")),
        ("connectors", "toml", listed("src/connector/shipped.rs")),
    ];
    for (directory, extension, list) in lists {
        let files = files(directory, extension);
        assert!(!files.is_empty(), "{directory}");
        for file in files {
            let name = file.path.file_name().unwrap().to_str().unwrap();
            assert!(
                list.contains(&format!("\"{name}\"")),
                "{directory}/{name} is not listed"
            );
        }
    }
}

const CASE: &str = r#"
about = "a refund is held"
agent = "acme/support"
[request]
method = "POST"
url = "https://api.desk.example.com/refunds"
form = "amount=12000"
[expect]
decision = "hold"
groups = ["finance"]
params = { amount = 12000 }
"#;

#[test]
fn a_case_that_says_otherwise_fails() {
    let bundle = bundle("write", &[]);
    assert!(check(&bundle, &source("case.toml", CASE)).passed());
    for (from, to, key) in [
        ("\"hold\"", "\"allow\"", "decision"),
        ("[\"finance\"]", "[\"legal\"]", "groups"),
        ("{ amount = 12000 }", "{ amount = 1 }", "params"),
        ("[expect]", "[expect]\nreason = \"policy_denied\"", "reason"),
        (
            "[expect]",
            "[expect]\ncapability = \"desk/tickets.read\"",
            "capability",
        ),
        ("[expect]", "[expect]\npolicies = []", "policies"),
        ("[expect]", "[expect]\nwithin = 1", "within"),
        ("[expect]", "[expect]\nquorum = 2", "quorum"),
        (
            "[expect]",
            "[expect]\ndetail = \"nothing like it\"",
            "detail",
        ),
        ("/refunds", "/nothing", "decision"),
        (
            "agent = \"acme/support\"",
            "agent = \"acme/support\"\nstage = \"read\"",
            "decision",
        ),
        (
            "agent = \"acme/support\"",
            "agent = \"acme/support\"\napproved = [\"finance\"]",
            "decision",
        ),
        (
            "agent = \"acme/support\"",
            "agent = \"acme/support\"\ndisabled = true",
            "decision",
        ),
    ] {
        let report = check(&bundle, &source("case.toml", &CASE.replace(from, to)));
        assert_eq!(report.mismatches[0].key, key, "{report}");
    }
}

#[test]
fn a_case_that_cannot_be_read_is_reported_at_its_place() {
    let bundle = bundle("write", &[]);
    let problem = |from: &str, to: &str| {
        run_case(&bundle, &source("case.toml", &CASE.replace(from, to)))
            .unwrap_err()
            .to_string()
    };
    assert!(problem("decision", "decison").contains("case.toml:9:1: unknown field `decison`"));
    assert!(problem("acme/support", "acme/suport").contains("did you mean `acme/support`?"));
    assert!(problem("https://", "").contains("does not start with https://"));
    assert!(
        problem("form =", "json = \"{}\"\nform =").contains("one of `form`, `json` and `body`")
    );
    let given = "[given]\npolicies = ['''\n@id(\"a\")\nforbid (principal in Stage::\"wirte\", action, resource);\n''']\n[request]";
    assert!(
        problem("[request]", given).contains("case.toml:7:22: policy `a` names `Stage::\"wirte\"`"),
        "{}",
        problem("[request]", given)
    );
}
