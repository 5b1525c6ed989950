//! Held calls at the command line: what an approver sees, who may answer, and what an answer does.
//! The held call is put into the audit log as the path would, then a daemon starts on it, as after a restart.
//! Each refused answer stands beside one that is taken.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_userspace::config::Snapshot;
use audit::{ApprovalEvent, Ledger, Options};
use policies::{Approval, ApprovalId, Bundle, Decision, Digest, Facts, RequestView, Timestamp};
use support::daemon::Daemon;
use support::{Instance, Said};

const ELSEWHERE: &str = "/sluice-test/agents";

const POLICY: &str = r#"
@id("refund-over-50-needs-finance")
@approval("finance")
@within("15m")
@reason("refunds over 50.00 go to finance")
forbid (principal, action == stripe::Action::"refunds.create", resource)
when { context.params has amount && context.params.amount > 5000 }
unless { context.approvals.contains(Group::"finance") };
"#;

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap())
}

/// An instance with one refund of 120.00 USD held, asked for at `at`.
fn with_a_held_refund(at: Timestamp) -> (Instance, ApprovalId) {
    with_held(at, b"amount=12000&currency=usd&payment_intent=pi_1")
}

fn with_held(at: Timestamp, body: &[u8]) -> (Instance, ApprovalId) {
    let instance = Instance::new();
    instance.write("policies/refunds.cedar", POLICY);
    instance.write(
        "config.toml",
        "[control]\ngroup = \"4242\"\n[approvals.groups]\nfinance = [\"uid:4711\"]\n",
    );
    let bundle = Bundle::load(&Snapshot::read(&instance.paths()).unwrap().sources()).unwrap();
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let request = RequestView {
        method: "POST",
        path: "/v1/refunds",
        query: None,
        headers: &headers,
        body: Some(body),
    };
    let agent = "acme/support".parse().unwrap();
    let call = bundle
        .call(&agent, &"api.stripe.com:443".parse().unwrap(), &request)
        .unwrap();
    let Decision::Hold(held) = bundle.decide(
        call,
        &Facts {
            now: at,
            disabled: false,
        },
        None,
    ) else {
        panic!("not held")
    };
    let id = ApprovalId::from_entropy([7; 16]);
    let approval = Approval::request(&held, &Digest::of(body), id, at);
    let ledger = Ledger::open(&instance.paths().audit_dir(), Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime
        .block_on(ledger.approval(ApprovalEvent::Requested, &approval))
        .unwrap();
    (instance, id)
}

/// The line of the text log that has the answer.
fn answered_in_text(instance: &Instance) -> String {
    let said = instance.sluice(&["audit", "list", "--kind", "approval"]);
    let line = said.out.lines().find(|line| line.contains("  by "));
    line.unwrap_or_else(|| panic!("{}", said.all())).to_owned()
}

fn as_user(instance: &Instance, uid: u32, args: &[&str]) -> Said {
    std::fs::set_permissions(instance.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    instance.said(&instance.command(args).uid(uid).gid(4242).output().unwrap())
}

#[test]
fn an_approver_sees_who_what_how_much_why_until_when_and_how() {
    let (instance, id) = with_a_held_refund(now());
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    for args in [
        vec!["approvals", "list"],
        vec!["approvals", "show", &id.to_string()],
    ] {
        let said = instance.sluice(&args);
        assert_eq!(said.code, 0, "{}", said.all());
        let masked: Vec<String> = said
            .out
            .lines()
            .map(|line| {
                if line.trim_start().starts_with("expires") {
                    "  expires    TIME".to_owned()
                } else {
                    line.to_owned()
                }
            })
            .collect();
        insta::assert_snapshot!("card", masked.join("\n"));
    }
    let [json] = instance
        .sluice(&["approvals", "list", "--format", "json"])
        .json()
        .try_into()
        .unwrap();
    assert_eq!(json["id"], id.to_string());
    assert_eq!(json["agent"], "acme/support");
    assert_eq!(json["capability"], "stripe/refunds.create");
    assert_eq!(json["params"]["amount"], 12000);
    assert_eq!(json["state"], "pending");
    assert!(
        json["requested_at"].is_string() && json["expires_at"].is_string(),
        "{json}"
    );
    daemon.stop();
}

#[test]
fn an_amount_without_a_currency_is_not_taken_for_money() {
    let (instance, _) = with_held(now(), b"amount=12000&payment_intent=pi_1");
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let raw = "12000 (minor units; currency not given)";
    let said = instance.sluice(&["approvals", "list"]);
    assert!(
        said.out.contains(&format!("amount = {raw}\n")),
        "{}",
        said.all()
    );
    let said = instance.sluice(&["approvals", "list", "--all"]);
    assert!(said.out.contains(&format!("  {raw}  ")), "{}", said.all());
    daemon.stop();
}

#[test]
fn only_a_member_of_the_asked_group_approves_and_only_once() {
    let (instance, id) = with_a_held_refund(now());
    let id = id.to_string();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let stranger = as_user(&instance, 4712, &["approvals", "approve", &id]);
    assert_eq!(stranger.code, 1, "{}", stranger.all());
    assert!(
        stranger
            .err
            .contains("uid:4712 is in none of the groups asked for: finance"),
        "{}",
        stranger.all()
    );
    let member = as_user(
        &instance,
        4711,
        &["approvals", "approve", &id, "--note", "customer called"],
    );
    assert_eq!(member.code, 0, "{}", member.all());
    assert_eq!(member.out.trim(), format!("{id}: approved"));
    let again = instance.sluice(&["approvals", "approve", &id]);
    assert_eq!(again.code, 1, "{}", again.all());
    assert_eq!(
        instance
            .sluice(&["approvals", "list", "--format", "json"])
            .json()
            .len(),
        0
    );
    assert_eq!(
        instance
            .sluice(&["approvals", "list", "--all", "--format", "json"])
            .json()[0]["state"],
        "approved"
    );
    daemon.stop();
    let said = instance.sluice(&["audit", "list", "--kind", "approval", "--format", "json"]);
    let answered = said
        .json()
        .into_iter()
        .find(|record| record["event"] == "answered")
        .unwrap();
    assert_eq!(answered["answers"][0]["approver"], "uid:4711");
    assert_eq!(answered["answers"][0]["note"], "customer called");
    let line = answered_in_text(&instance);
    assert!(line.contains("approved"), "{line}");
    assert!(line.contains("by uid:4711"), "{line}");
}

#[test]
fn root_is_in_every_group_and_a_no_is_final() {
    let (instance, id) = with_a_held_refund(now());
    let id = id.to_string();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let said = instance.sluice(&["approvals", "deny", &id]);
    assert_eq!(said.out.trim(), format!("{id}: denied"), "{}", said.all());
    assert_eq!(
        as_user(&instance, 4711, &["approvals", "approve", &id]).code,
        1
    );
    daemon.stop();
    let line = answered_in_text(&instance);
    assert!(line.contains("denied"), "{line}");
    assert!(line.contains("by root"), "{line}");
}

#[test]
fn what_nobody_answered_in_time_is_over() {
    let old = Timestamp::from_millis(now().as_millis() - 16 * 60 * 1000);
    let (instance, id) = with_a_held_refund(old);
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let said = instance.sluice(&["approvals", "approve", &id.to_string()]);
    assert_eq!(said.code, 1, "{}", said.all());
    daemon.stop();
}

#[test]
fn watching_shows_what_waits_and_then_each_change() {
    use std::io::{BufRead as _, BufReader};
    let (instance, id) = with_a_held_refund(now());
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let mut child = instance
        .command(&["approvals", "watch", "--format", "json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let state = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["state"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(state(&lines.next().unwrap().unwrap()), "pending");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(
        instance
            .sluice(&["approvals", "approve", &id.to_string()])
            .code,
        0
    );
    assert_eq!(state(&lines.next().unwrap().unwrap()), "approved");
    child.kill().unwrap();
    child.wait().unwrap();
    daemon.stop();
}
