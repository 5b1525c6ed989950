//! The vault and the audit logs without a daemon, at the command line.
//! What an operator does before the first start, and an auditor with an export.
//! Each refusal is shown beside the same command when it is accepted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use support::Instance;

const SECRET: &[u8] = b"sk_live_0123456789abcdef";

fn with_a_secret() -> Instance {
    let instance = Instance::new();
    let said = instance.sluice_with(&["vault", "put", "acme/stripe-live"], SECRET);
    assert_eq!(said.code, 0, "{}", said.all());
    instance
}

#[test]
fn a_secret_goes_in_by_standard_input_and_never_comes_out() {
    let instance = with_a_secret();
    let said = instance.sluice(&["vault", "list", "--format", "json"]);
    assert_eq!(said.code, 0, "{}", said.all());
    let [listing] = said.json().try_into().unwrap();
    assert_eq!(listing["credential"], "acme/stripe-live");
    assert_eq!(listing["version"], 1);
    for said in [
        said,
        instance.sluice(&["vault", "list"]),
        instance.sluice(&["audit", "list", "--format", "json"]),
    ] {
        assert!(!said.all().contains("sk_live"), "{}", said.all());
    }
    let mut files = vec![instance.path().join("state")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(
                !bytes.windows(SECRET.len()).any(|window| window == SECRET),
                "{} has the secret",
                path.display()
            );
        }
    }
}

#[test]
fn one_line_end_after_a_secret_is_dropped() {
    let instance = Instance::new();
    // A control character inside is refused by the vault, so an end that is not dropped would be seen.
    assert_eq!(
        instance
            .sluice_with(&["vault", "put", "acme/a"], b"0123456789\n")
            .code,
        0
    );
    assert_eq!(
        instance
            .sluice_with(&["vault", "put", "acme/b"], b"0123456789\r\n")
            .code,
        0
    );
    assert_eq!(
        instance
            .sluice_with(&["vault", "put", "acme/c"], b"0123456789\n\n")
            .code,
        1
    );
    assert_eq!(
        instance.sluice_with(&["vault", "put", "acme/d"], b"").code,
        2
    );
}

#[test]
fn rotation_and_revocation_are_on_record_with_who_did_it() {
    let instance = with_a_secret();
    assert_eq!(
        instance
            .sluice_with(&["vault", "put", "acme/stripe-live"], SECRET)
            .code,
        1,
        "a credential is not overwritten"
    );
    assert_eq!(
        instance
            .sluice_with(
                &["vault", "rotate", "acme/stripe-live"],
                b"sk_live_the_next_one"
            )
            .code,
        0
    );
    assert_eq!(
        instance
            .sluice(&["vault", "revoke", "acme/stripe-live"])
            .code,
        0
    );
    assert_eq!(instance.sluice(&["vault", "revoke", "acme/none"]).code, 1);
    let said = instance.sluice(&["audit", "list", "--tenant", "acme", "--format", "json"]);
    let records = said.json();
    let events: Vec<&str> = records
        .iter()
        .map(|record| record["event"].as_str().unwrap())
        .collect();
    assert_eq!(events, ["secret_put", "secret_rotated", "secret_revoked"]);
    for record in &records {
        assert_eq!(record["credential"], "acme/stripe-live");
        assert!(record["by"].is_string(), "{record}");
        for key in [
            "index",
            "kind",
            "agent",
            "capability",
            "decision",
            "reason",
            "policies",
            "approval",
            "credential",
            "status",
        ] {
            assert!(record.get(key).is_some(), "{key} is missing: {record}");
        }
    }
}

#[test]
fn a_vault_that_cannot_be_decrypted_is_a_clear_error_and_nothing_changes() {
    let instance = with_a_secret();
    let key = instance.path().join("state/master.key");
    let good = std::fs::read(&key).unwrap();
    let mut other = good.clone();
    other[0] = if other[0] == b'0' { b'1' } else { b'0' };
    std::fs::write(&key, &other).unwrap();
    let said = instance.sluice(&["vault", "list"]);
    insta::assert_snapshot!("wrong_master_key", said.all());
    std::fs::remove_file(&key).unwrap();
    let said = instance.sluice_with(&["vault", "put", "acme/other"], SECRET);
    insta::assert_snapshot!("missing_master_key", said.all());
    assert!(!key.exists(), "no new key beside an old vault");
    // Positive control: with its key the vault is as it was.
    std::fs::write(&key, &good).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(
        instance
            .sluice(&["vault", "list", "--format", "json"])
            .json()
            .len(),
        1
    );
}

#[test]
fn an_exported_log_verifies_and_one_changed_byte_does_not() {
    let instance = with_a_secret();
    let key = instance.sluice(&["audit", "key"]);
    assert_eq!(key.code, 0, "{}", key.all());
    let file = instance.path().join("acme.log");
    let path = file.to_str().unwrap();
    assert_eq!(
        instance
            .sluice(&["audit", "export", "--tenant", "acme", "--output", path])
            .code,
        0
    );
    // Offline: only the file and the key.
    let elsewhere = Instance::empty();
    let said = elsewhere.sluice(&["audit", "verify", path, "--key", key.out.trim()]);
    assert_eq!(said.code, 0, "{}", said.all());
    // Without the key it says what is missing; exit code 1 is kept for logs that do not verify.
    let said = elsewhere.sluice(&["audit", "verify", path]);
    assert_eq!(said.code, 2, "{}", said.all());
    assert!(said.err.contains("give --key"), "{}", said.all());
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 20;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let said = elsewhere.sluice(&["audit", "verify", path, "--key", key.out.trim()]);
    assert_eq!(said.code, 1, "{}", said.all());
    assert!(said.out.contains("does not verify"), "{}", said.all());
}

#[test]
fn all_logs_of_the_host_are_verified_without_a_file() {
    let instance = with_a_secret();
    let said = instance.sluice(&["audit", "verify", "--format", "json"]);
    assert_eq!(said.code, 0, "{}", said.all());
    let verified = said.json();
    assert!(
        verified
            .iter()
            .any(|log| log["tenant"] == "acme" && log["ok"] == true),
        "{}",
        said.all()
    );
}

#[test]
fn a_misspelt_tenant_is_not_a_quiet_one() {
    let instance = with_a_secret();
    let list = |tenant| instance.sluice(&["audit", "list", "--tenant", tenant]);
    assert_eq!(list("acme").code, 0);
    let said = list("acmee");
    assert_eq!(said.code, 1, "{}", said.all());
    let hint = "there is no log of tenant `acmee`; there are acme, host";
    assert!(said.err.contains(hint), "{}", said.all());
}

#[test]
fn who_only_looks_makes_no_log() {
    let instance = Instance::new();
    let said = instance.sluice(&["audit", "list"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("no daemon listens on"), "{}", said.all());
    assert!(!instance.path().join("state/audit").exists());
}

#[test]
fn doctor_and_status_say_that_no_daemon_runs() {
    let instance = Instance::new();
    let said = instance.sluice(&["doctor"]);
    assert_eq!(said.code, 1);
    insta::assert_snapshot!(said.out);
    let said = instance.sluice(&["status"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err
            .contains("no daemon listens on DIR/run/control.sock"),
        "{}",
        said.all()
    );
}
