//! A few of the rounds of `cargo xtask rounds`: a daemon that dies and comes back under an agent that never stops dialling.
//! In full: `cargo xtask rounds --rounds 1000`.
//! Invariant: the program itself judges; it fails if anything leaked, was lost or was disturbed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::process::Command;

#[test]
fn a_daemon_that_dies_and_comes_back_lets_nothing_out_and_disturbs_nobody() {
    let rounds = std::env::var("SLUICE_ROUNDS").unwrap_or_else(|_| "10".to_owned());
    let output = Command::new(env!("CARGO_BIN_EXE_harness"))
        .args([
            "rounds", "--rounds", &rounds, "--seed", "7", "--format", "json",
        ])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}\n{complained}");
    let report: serde_json::Value = serde_json::from_str(told.trim()).unwrap();
    assert!(report["reached_by_control"].as_u64().unwrap() > 0);
    assert_eq!(report["reached_ungoverned"], 0);
    assert_eq!(report["pins_lost"], 0);
    assert_eq!(report["ungoverned"]["failed"], 0);
}
