//! Bad input of the operator's and of the machine's: a clear error each, nothing forwarded, nothing lost.
//! Each test runs a whole instance and asks the vendor's stand-in what reached it.
//! Invariant: every test first shows that the same call works while nothing is wrong.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use vm_tests::demo::Stage;
use vm_tests::output::{self, Output};

const BALANCE: &str = "https://api.stripe.com/v1/balance";

fn stage() -> Stage {
    let mut stage = Stage::set("2s").unwrap();
    stage.open().unwrap();
    works(&stage);
    stage
}

/// The positive control: a call goes through.
fn works(stage: &Stage) {
    let output = stage.curl(&[BALANCE]).unwrap();
    assert!(
        output.stdout.ends_with("\n200"),
        "{output}\n{}",
        stage.instance.log_tail()
    );
}

fn arrived(stage: &Stage) -> usize {
    stage.upstream.received("GET", "/v1/balance").len()
}

/// A bad file is named with its line by `sluice check`, changes nothing at a reload, and keeps a new daemon from starting.
fn refused_file(path: &str, text: &str, line: u32, says: &[&str]) {
    let mut stage = stage();
    let file = stage.instance.root().join("config").join(path);
    let before = fs::read_to_string(&file).ok();
    stage.instance.configure(path, text).unwrap();

    let place = format!(
        "{}:{line}:",
        Path::new(path).file_name().unwrap().to_string_lossy()
    );
    let clear = |output: &str| {
        assert!(output.contains(&place), "{path}: no {place} in {output}");
        for word in says {
            assert!(output.contains(word), "{path}: no {word:?} in {output}");
        }
    };
    let check = stage.instance.ask(&["check"]).unwrap();
    assert!(!check.status.success(), "{check}");
    clear(&check.text());

    stage.instance.reload().unwrap();
    rejected(&stage);
    works(&stage);

    stage.instance.stop().unwrap();
    let refused = stage.instance.start().unwrap_err().to_string();
    clear(&refused);

    match before {
        Some(before) => fs::write(&file, before).unwrap(),
        None => fs::remove_file(&file).unwrap(),
    }
    stage.instance.start().unwrap();
    works(&stage);
}

/// Waits until the log has the rejected reload.
fn rejected(stage: &Stage) {
    for _ in 0..100 {
        let output = stage
            .instance
            .ask(&["audit", "list", "--format", "json"])
            .unwrap();
        if output.stdout.contains("rejected") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!(
        "the rejected reload is not in the log\n{}",
        stage.instance.log_tail()
    );
}

#[test]
fn broken_toml_changes_nothing() {
    refused_file(
        "agents.d/broken.toml",
        "tenant = \"acme\"\nname = \n",
        2,
        &[],
    );
}

#[test]
fn an_unknown_key_changes_nothing() {
    let text = "tenant = \"acme\"\nname = \"other\"\nowner = \"ops\"\nstage = \"read\"\nstagge = \"write\"\n";
    refused_file("agents.d/other.toml", text, 5, &["stagge"]);
}

#[test]
fn a_policy_with_a_misspelt_capability_changes_nothing() {
    let text = "@id(\"no-refunds\")\nforbid (principal,\n  action == stripe::Action::\"refund.create\",\n  resource);\n";
    refused_file(
        "policies/misspelt.cedar",
        text,
        3,
        &["refund.create", "refunds.create"],
    );
}

#[test]
fn a_connector_with_an_overlapping_path_changes_nothing() {
    let capability = |name: &str, path: &str| {
        format!(
            "\n[[capability]]\nname = \"{name}\"\nrisk = \"read\"\nmatch = {{ method = \"GET\", path = \"{path}\" }}\n\
             examples.hit = [{{ method = \"GET\", path = \"/v1/things/1\" }}]\n"
        )
    };
    let text = format!(
        "schema = 1\nid = \"things\"\ndocs = \"https://things.example/api\"\nhosts = [\"things.example\"]\n[auth]\nkind = \"bearer\"\n{}{}",
        capability("things.read", "/v1/things/{thing}"),
        capability("items.read", "/v1/things/{item}"),
    );
    refused_file(
        "connectors.d/things.toml",
        &text,
        15,
        &["items.read", "things.read"],
    );
}

#[test]
fn a_vault_that_cannot_be_decrypted_keeps_the_daemon_from_starting() {
    let mut stage = stage();
    let count = arrived(&stage);
    stage.instance.stop().unwrap();
    let key = stage.instance.state().join("master.key");
    let right = fs::read(&key).unwrap();

    // Another instance's key: well-formed, and wrong.
    let mut other = Stage::set("2s").unwrap();
    other.open().unwrap();
    let wrong = fs::read(other.instance.state().join("master.key")).unwrap();
    drop(other);
    assert_ne!(right, wrong);
    fs::write(&key, &wrong).unwrap();

    let refused = stage.instance.start().unwrap_err().to_string();
    assert!(refused.contains("key"), "{refused}");
    assert_eq!(arrived(&stage), count);

    // Nothing lost: with the right key the same credential goes out as before.
    fs::write(&key, right).unwrap();
    stage.instance.start().unwrap();
    works(&stage);
    let seen = stage.upstream.received("GET", "/v1/balance");
    assert_eq!(
        seen[0].header("authorization"),
        seen[count].header("authorization")
    );
}

#[test]
fn a_full_disk_under_the_audit_log_refuses_calls_and_loses_nothing() {
    let mut stage = Stage::set("2s").unwrap();
    let disk = stage.instance.state().join("audit");
    fs::create_dir_all(&disk).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16m,mode=0755", "tmpfs"])
        .arg(&disk));
    stage.open().unwrap();
    works(&stage);

    // Fill what is free, then call until the log has no room of its own left either.
    let ballast = disk.join("ballast");
    drop(output::run(
        Command::new("dd")
            .args(["if=/dev/zero", "bs=4k"])
            .arg(format!("of={}", ballast.display())),
        vm_tests::instance::PATIENCE,
    ));
    let before = arrived(&stage);
    // Its journal has room for some hundred commits, and the database behind it some of its own.
    let mut calling = stage
        .instance
        .agent("acme/support", &["sh", "-c", CALL_UNTIL_REFUSED]);
    let calls = output::run(&mut calling, vm_tests::instance::PATIENCE * 4).unwrap();
    let answered: usize = calls.stdout.lines().filter(|line| *line == "200").count();
    assert!(calls.stdout.contains("audit_unavailable"), "{calls}");
    assert!(calls.stdout.contains("503"), "{calls}");
    assert_eq!(
        arrived(&stage),
        before + answered,
        "something was forwarded without a record"
    );

    // Room again: the same daemon goes on, or the next one does, and every call that went out is in the log.
    fs::remove_file(&ballast).unwrap();
    let again = stage.curl(&[BALANCE]).unwrap();
    if !again.stdout.ends_with("\n200") {
        stage.instance.stop().unwrap();
        stage.instance.start().unwrap();
        works(&stage);
    }
    assert_eq!(
        intents(&stage),
        arrived(&stage),
        "the log and the vendor disagree"
    );
    let verified = stage.instance.ask(&["audit", "verify"]).unwrap();
    assert!(verified.status.success(), "{verified}");
}

/// Prints the status of each call, and the body of the first that is not a 200.
const CALL_UNTIL_REFUSED: &str = "for i in $(seq 400); do
  set --
  for j in $(seq 10); do set -- \"$@\" https://api.stripe.com/v1/balance; done
  curl -s --max-time 25 -w '\\n%{http_code}\\n' \"$@\" > out || true
  grep -x -e 200 -e 503 out
  if grep -q audit_unavailable out; then grep audit_unavailable out | head -n 1; exit 0; fi
done";

fn intents(stage: &Stage) -> usize {
    let args = ["audit", "list", "--format", "json", "--limit", "100000"];
    let output: Output = stage.instance.ask(&args).unwrap().ok().unwrap();
    let records = output.json_lines().unwrap();
    records
        .iter()
        .filter(|record| record.get("kind").and_then(|kind| kind.as_str()) == Some("intent"))
        .count()
}

fn run(command: &mut Command) {
    output::run(command, vm_tests::instance::PATIENCE)
        .unwrap()
        .ok()
        .unwrap();
}
