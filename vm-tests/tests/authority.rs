//! The tenant's roots of a whole instance: shown, as a bundle, and rotated under an agent that lives through it.
//! Each test runs a daemon of its own.
//! Invariant: that nobody loses trust is shown beside a client that would have: one with the former root alone.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vm_tests::demo::Stage;
use vm_tests::demo::stage::AGENT;
use vm_tests::output;

const CALL: &str =
    "curl -sSv -o /dev/null -w 'status %{http_code}\\n' https://api.stripe.com/v1/balance";
const PATIENCE: Duration = Duration::from_secs(30);

fn stage() -> Stage {
    let mut stage = Stage::set("2s").unwrap();
    stage.open().unwrap();
    stage
}

fn ca(stage: &Stage, words: &[&str]) -> output::Output {
    let all: Vec<&str> = ["ca"].iter().chain(words).copied().collect();
    stage.instance.ask(&all).unwrap()
}

/// Waits for a file of the agent's, and takes what is in it.
fn said(file: PathBuf) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = fs::read_to_string(&file) {
            return text;
        }
        assert!(Instant::now() < deadline, "no {}", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_rotation_leaves_each_workload_with_leaves_of_a_root_that_it_knows() {
    let stage = stage();
    let home = stage.instance.root().join("home");
    let first = ca(&stage, &["show", "acme"]).ok().unwrap().stdout;
    fs::write(home.join("first.pem"), &first).unwrap();
    let events = || -> Vec<String> {
        let all = stage.audit().unwrap();
        all.iter()
            .filter_map(|record| Some(record["event"].as_str()?.to_owned()))
            .filter(|event| event.starts_with("ca_"))
            .collect()
    };

    // Calls whenever it is told to, from before the rotation on.
    let program = format!(
        "n=1; while true; do while [ ! -e go.$n ]; do [ -e end ] && exit 0; sleep 0.05; done; {CALL} > part.$n 2>&1; mv part.$n said.$n; n=$((n+1)); done"
    );
    let old = output::start(&mut stage.instance.agent(AGENT, &["sh", "-c", &program])).unwrap();
    let call_of_old = |number: u32| {
        fs::write(home.join(format!("go.{number}")), "").unwrap();
        said(home.join(format!("said.{number}")))
    };
    let before = call_of_old(1);
    assert!(before.contains("status 200"), "{before}");

    let asked = ca(&stage, &["rotate", "acme"]).ok().unwrap();
    assert!(asked.stdout.contains("1 workload"), "{asked}");
    assert_eq!(events(), ["ca_rotated"]);
    let both = ca(&stage, &["show", "acme"]).ok().unwrap().stdout;
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2, "{both}");
    assert!(both.contains(first.trim()), "the former is among them");

    let issued_by_second = |text: &str| text.contains("CN=Sluice CA of acme 2");
    let after = call_of_old(2);
    assert!(
        after.contains("status 200") && !issued_by_second(&after),
        "{after}"
    );
    let new = stage.run(&["sh", "-c", CALL]).unwrap().text();
    assert!(
        new.contains("status 200") && issued_by_second(&new),
        "{new}"
    );
    // The control: a workload with the former root alone could not have verified that.
    let alone = CALL.replace("curl", "curl --cacert first.pem");
    let alone = stage.run(&["sh", "-c", &alone]).unwrap();
    assert!(!alone.status.success(), "{alone}");

    // While it lives, its root stays, and there is no third.
    let early = ca(&stage, &["rotate", "acme", "--finish"]);
    assert!(
        !early.status.success() && early.stderr.contains("1 workload"),
        "{early}"
    );
    let again = ca(&stage, &["rotate", "acme"]);
    assert!(
        !again.status.success() && again.stderr.contains("--finish"),
        "{again}"
    );
    assert!(call_of_old(3).contains("status 200"));
    // A new proxy process knows as much.
    stage.instance.kill_proxy().unwrap();
    stage.instance.until_it_answers().unwrap();
    let restarted = call_of_old(4);
    assert!(
        restarted.contains("status 200") && !issued_by_second(&restarted),
        "{restarted}"
    );

    fs::write(home.join("end"), "").unwrap();
    old.wait(PATIENCE).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !ca(&stage, &["rotate", "acme", "--finish"]).status.success() {
        assert!(Instant::now() < deadline, "the former root is not let go");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(events(), ["ca_rotated", "ca_rotation_finished"]);
    let one = ca(&stage, &["show", "acme"]).ok().unwrap().stdout;
    assert_eq!(one.matches("BEGIN CERTIFICATE").count(), 1);
    assert_ne!(one, first);
    let last = stage.run(&["sh", "-c", CALL]).unwrap().text();
    assert!(
        last.contains("status 200") && issued_by_second(&last),
        "{last}"
    );
}

#[test]
fn the_bundle_is_what_a_workload_trusts() {
    let stage = stage();
    let bundle = ca(&stage, &["bundle", "acme"]).ok().unwrap().stdout;
    let seen = stage.run(&["sh", "-c", "cat \"$SSL_CERT_FILE\""]).unwrap();
    assert_eq!(bundle.trim(), seen.ok().unwrap().stdout.trim());
    let unknown = ca(&stage, &["show", "nobody"]);
    assert!(
        !unknown.status.success() && unknown.stderr.contains("nobody"),
        "{unknown}"
    );
}
