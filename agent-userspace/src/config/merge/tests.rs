//! What the merged configuration says, and where it says what is wrong.

use std::time::Duration;

use super::*;

fn file(path: &str, text: &str) -> TextFile {
    TextFile {
        path: path.into(),
        text: text.to_owned(),
    }
}

fn check(text: &str) -> Result<Config, String> {
    merge(Path::new("/etc/sluice"), &[file("config.toml", text)])
        .map_err(|errors| errors.to_string())
}

#[test]
fn nothing_written_is_all_defaults() {
    let config = merge(Path::new("/etc/sluice"), &[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.proxy.user, "sluice");
    assert_eq!(config.approvals.hold, Duration::from_secs(10));
    assert_eq!(config.metrics.listen, None);
    assert_eq!(config.audit.reads, Reads::Durable);
}

#[test]
fn every_documented_key_is_read() {
    let config = check(
        r#"
        [proxy]
        extra_roots = ["ca.pem", "/srv/other.pem"]
        outbound = "proxy.corp.example:3128"
        nameservers = ["10.0.0.53", "[fd00::53]:5353"]
        user = "1234"
        [proxy.connect_to]
        "api.stripe.com:443" = "127.0.0.1:8443"
        [metrics]
        listen = "127.0.0.1:9464"
        [audit]
        reads = "grouped"
        [approvals]
        hold = "1500ms"
        [approvals.groups]
        finance = ["alice", "bob"]
        [control]
        group = "ops"
        [enforcement]
        reduced = true
        [limits]
        answer = "20m"
        body_bytes = "2MiB"
        calls_per_agent = 100
        stall = "30s"
        [names]
        pool4 = "10.64.0.0/16"
        pool6 = "fd00::/64"
        [vault]
        key_file = "keys/master"
        "#,
    )
    .unwrap();
    assert_eq!(
        config.proxy.extra_roots,
        [Path::new("/etc/sluice/ca.pem"), Path::new("/srv/other.pem")]
    );
    assert_eq!(
        config
            .proxy
            .connect_to
            .get(&"api.stripe.com:443".parse().unwrap())
            .map(String::as_str),
        Some("127.0.0.1:8443")
    );
    assert_eq!(
        config.metrics.listen,
        Some("127.0.0.1:9464".parse().unwrap())
    );
    assert_eq!(config.approvals.hold, Duration::from_millis(1500));
    let alice: Approver = "alice".parse().unwrap();
    assert_eq!(
        config.approvals.groups_of(&alice),
        ["finance".parse::<Group>().unwrap()]
    );
    assert_eq!(config.audit.reads, Reads::Grouped);
    assert_eq!(config.control.group.as_deref(), Some("ops"));
    assert!(config.enforcement.reduced);
    let limits = mitm_proxy::Limits {
        answer: Duration::from_secs(1200),
        body_bytes: 2 << 20,
        calls_per_agent: 100,
        stall: Duration::from_secs(30),
        ..mitm_proxy::Limits::default()
    };
    assert_eq!(
        config.proxy.nameservers,
        [
            "10.0.0.53:53".parse().unwrap(),
            "[fd00::53]:5353".parse().unwrap()
        ]
    );
    assert_eq!(
        config.proxy.outbound.as_deref(),
        Some("proxy.corp.example:3128")
    );
    assert_eq!(config.limits, limits);
    assert_eq!(config.names.pool4, ("10.64.0.0".parse().unwrap(), 16));
    assert_eq!(
        config.vault.key_file.as_deref(),
        Some(Path::new("/etc/sluice/keys/master"))
    );
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let cases = [
        (
            "[audit]\nreads = \"sometimes\"\n",
            "config.toml:2:9: `sometimes` is neither \"durable\" nor \"grouped\"",
        ),
        (
            "[metrics]\nlisen = \"127.0.0.1:1\"\n",
            "config.toml:2:1: unknown field `lisen`, expected `listen`\n  hint: did you mean `listen`?",
        ),
        (
            "[metrics]\nlisten = \"9464\"\n",
            "config.toml:2:10: `9464` is not an address and port such as 127.0.0.1:9464",
        ),
        (
            "[approvals]\nhold = \"10\"\n",
            "config.toml:2:8: the duration has no unit; write for example 10s",
        ),
        (
            "[limits]\ncalls = 0\n",
            "config.toml:2:9: 0 is out of range\n  hint: write a number from 1 to 1000000",
        ),
        (
            "[limits]\nhead = 60\n",
            "config.toml:2:8: `60` is not a time such as \"10s\"\n  hint: write a time from 100ms to 1h",
        ),
        (
            "[limits]\nhead = \"60\"\n",
            "config.toml:2:8: the duration has no unit; write for example 10s\n  hint: write a time from 100ms to 1h",
        ),
        (
            "[limits]\nhead_bytes = \"2MiB\"\n",
            "config.toml:2:14: `2MiB` is out of range\n  hint: write a size from 4KiB to 1MiB",
        ),
        (
            "[limits]\nhead_bytes = 65536\n",
            "config.toml:2:14: `65536` is not a size such as \"64KiB\"\n  hint: write a size from 4KiB to 1MiB",
        ),
        (
            "[limits]\ncalls = \"many\"\n",
            "config.toml:2:9: `many` is not a number\n  hint: write it without quotes",
        ),
        (
            "[limits]\ncalls = 10\n",
            "config.toml:2:1: `limits.calls_per_agent` (4096) is more than `limits.calls` (10)\n  hint: raise the one or lower the other",
        ),
        (
            "[proxy]\nnameservers = [\"10.0.0.53\", \"dns.corp.example\"]\n",
            "config.toml:2:29: `dns.corp.example` is not an address such as 10.0.0.53 or 10.0.0.53:53",
        ),
        (
            "[names]\npool4 = \"10.0.0.0/30\"\n",
            "config.toml:2:9: the prefix length 30 is not between 8 and 24",
        ),
        (
            "[proxy.connect_to]\n\"api.stripe.com:443\" = \"8443\"\n",
            "config.toml:2:24: `8443` is not a host and port such as 127.0.0.1:8443",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(check(text).unwrap_err(), expected);
    }
}

#[test]
fn a_key_set_in_two_files_is_an_error_that_names_both() {
    let files = [
        file("config.toml", "[approvals]\nhold = \"10s\"\n"),
        file(
            "config.d/10-hold.toml",
            "# ours\n[approvals]\nhold = \"20s\"\n",
        ),
    ];
    let error = merge(Path::new("/etc/sluice"), &files)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "config.d/10-hold.toml:3:8: `approvals.hold` is set twice\n  hint: it is already set at config.toml:2; keep one of the two"
    );
}

#[test]
fn files_may_share_a_table_if_they_set_different_keys() {
    let files = [
        file(
            "config.toml",
            "[proxy.connect_to]\n\"a.example:443\" = \"127.0.0.1:1\"\n[approvals.groups]\nfinance = [\"alice\"]\n",
        ),
        file(
            "config.d/b.toml",
            "[proxy.connect_to]\n\"b.example:443\" = \"127.0.0.1:2\"\n[approvals.groups]\nops = [\"bob\"]\n",
        ),
    ];
    let config = merge(Path::new("/etc/sluice"), &files).unwrap();
    assert_eq!(config.proxy.connect_to.len(), 2);
    assert_eq!(config.approvals.groups.len(), 2);
}
