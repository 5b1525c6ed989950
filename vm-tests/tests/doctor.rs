//! `sluice doctor` of a whole instance: what is open, and whether the clients of this machine trust the tenant's CA.
//! Each test runs a daemon of its own; the clients are those that are installed.
//! Invariant: a client that is called trusting was also shown to fail where it has other roots.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;
use vm_tests::demo::Stage;
use vm_tests::demo::stage::AGENT;
use vm_tests::output;

/// All probes together, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

fn stage() -> Stage {
    let mut stage = Stage::set("2s").unwrap();
    stage.open().unwrap();
    stage
}

/// What the doctor says of one client.
fn probe<'a>(doctor: &'a Value, client: &str) -> &'a Value {
    let probes = doctor["trust"].as_array().expect("probes");
    let found = probes.iter().find(|probe| probe["client"] == client);
    found.unwrap_or_else(|| panic!("no {client} in {probes:?}"))
}

#[test]
fn every_client_of_this_machine_trusts_the_tenants_ca_and_one_with_other_roots_does_not() {
    let stage = stage();
    let ask = |path: &str| {
        let arguments = ["doctor", "--agent", AGENT, "--format", "json"];
        let mut command = stage.instance.sluice(&arguments);
        command.env("PATH", path);
        output::run(&mut command, PATIENCE).unwrap()
    };
    // What every uid may execute.
    let path = "/usr/local/bin:/usr/bin:/bin";
    let asked = ask(path);
    let doctor = asked.json().unwrap();
    for probe in doctor["trust"].as_array().unwrap() {
        let trust = probe["trust"].as_str().unwrap();
        assert!(matches!(trust, "trusted" | "not_installed"), "{probe:#}");
    }
    assert_eq!(probe(&doctor, "curl")["trust"], "trusted");
    assert_eq!(probe(&doctor, "python ssl")["trust"], "trusted");
    assert!(asked.status.success(), "{asked}");

    // The positive control: the same client with the roots of somebody else.
    let other = stage.instance.root().join("home/other");
    fs::create_dir(&other).unwrap();
    let roots = rcgen::generate_simple_self_signed(vec!["x.test".to_owned()]).unwrap();
    fs::write(other.join("roots.pem"), roots.cert.pem()).unwrap();
    let curl = format!(
        "#!/bin/sh\nPATH={path} exec curl --cacert {}/roots.pem \"$@\"\n",
        other.display()
    );
    fs::write(other.join("curl"), curl).unwrap();
    fs::set_permissions(other.join("curl"), fs::Permissions::from_mode(0o755)).unwrap();
    let asked = ask(&format!("{}:{path}", other.display()));
    let doctor = asked.json().unwrap();
    let curl = probe(&doctor, "curl");
    assert_eq!(curl["trust"], "not_trusted", "{curl:#}");
    assert!(curl["advice"].as_str().unwrap().contains("CURL_CA_BUNDLE"));
    assert_eq!(probe(&doctor, "python ssl")["trust"], "trusted");
    assert_eq!(asked.status.code(), Some(1));
    let metrics = stage.instance.metrics().unwrap();
    assert!(metrics.contains("tls_refused_by_client"), "counted, too");
}

#[test]
fn the_doctor_derives_each_way_out_from_the_layers_that_are_live() {
    let stage = stage();
    let doctor = stage.instance.ask(&["doctor", "--format", "json"]).unwrap();
    assert!(doctor.status.success(), "{doctor}");
    let doctor = doctor.json().unwrap();
    let live = |name: &Value| {
        let layers = doctor["layers"].as_array().unwrap();
        layers
            .iter()
            .any(|layer| layer["name"] == *name && layer["state"] == "live")
    };
    let escapes = doctor["escapes"].as_array().unwrap();
    assert!(escapes.len() > 20);
    for escape in escapes {
        assert!(escape["held_by"].as_array().unwrap().iter().all(live));
        assert!(!escape["missing"].as_array().unwrap().iter().any(live));
        let class = escape["class"].as_str().unwrap();
        if ["tcp_connect", "udp", "raw_ip", "proxy_port"].contains(&class) {
            assert_eq!(escape["state"], "closed", "{escape:#}");
        }
        assert!(escape["state"] != "open" || escape["allowed_open"] == true);
    }
    let metrics = stage.instance.metrics().unwrap();
    let line = "sluice_escape{class=\"tcp_connect\",state=\"closed\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn an_agent_that_does_not_exist_is_not_probed() {
    let stage = stage();
    let arguments = ["doctor", "--agent", "acme/nobody"];
    let asked = stage.instance.ask(&arguments).unwrap();
    assert_eq!(asked.status.code(), Some(1));
    assert!(asked.stderr.contains("agent_unknown"), "{asked}");
}
