//! What the tests of decisions share: a connector with one capability per risk class, an agent, and calls to it.
//! Everything goes through `Bundle::load` and `Bundle::call`, as in the daemon; nothing is built by hand.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::BTreeMap;
use std::sync::Mutex;

use policies::{
    Answer, Approval, ApprovalId, Bundle, Call, Decision, Denied, Diagnostics, Digest, Facts,
    Grant, Held, Permit, RequestView, Source, Sources, Timestamp, Verdict,
};

/// One capability per risk class, and some in several.
pub(crate) const DESK: &str = include_str!("desk.toml");

/// The policy of the design, for the desk's refunds.
pub(crate) const FINANCE_OVER_50: &str = r#"
@id("refund-over-50-needs-finance") @approval("finance") @within("15m") @quorum("1")
forbid (principal, action == desk::Action::"refunds.create", resource)
when { context.params has amount && context.params.amount > 5000 }
unless { context.approvals.contains(Group::"finance") };
"#;

/// Lets refunds up to 50.00 go; everything else financial stays with finance.
pub(crate) const SMALL_REFUNDS_GO: &str = r#"
@id("risk-financial") @approval("finance")
forbid (principal, action in Action::"financial", resource)
unless { principal in Stage::"autonomous" }
unless { action == desk::Action::"refunds.create" && context.params has amount && context.params.amount <= 5000 }
unless { context.approvals.contains(Group::"finance") };
"#;

pub(crate) const NOW: i64 = 1_800_000_000_000;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_millis(NOW)
}

pub(crate) fn facts() -> Facts {
    Facts {
        now: now(),
        disabled: false,
    }
}

pub(crate) fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.into(),
        text: text.to_owned(),
    }
}

/// `acme/support` at this stage, owned by `olga@example.com`, with a connection to the desk.
pub(crate) fn agent(stage: &str) -> String {
    format!(
        "tenant = \"acme\"\nname = \"support\"\nowner = \"olga@example.com\"\nstage = \"{stage}\"\ngroups = [\"pilots\"]\n\
         [[connections]]\nname = \"desk\"\nconnector = \"desk\"\ncredential = \"desk-live\"\n"
    )
}

pub(crate) fn sources(stage: &str, policies: &[&str]) -> Sources {
    Sources {
        agents: vec![source("agents.d/support.toml", &agent(stage))],
        connectors: vec![source("connectors.d/desk.toml", DESK)],
        policies: policies
            .iter()
            .enumerate()
            .map(|(number, text)| source(&format!("policies/{number}.cedar"), text))
            .collect(),
    }
}

pub(crate) fn load(stage: &str, policies: &[&str]) -> Result<Bundle, Diagnostics> {
    Bundle::load(&sources(stage, policies))
}

#[track_caller]
pub(crate) fn bundle(stage: &str, policies: &[&str]) -> Bundle {
    load(stage, policies).unwrap_or_else(|problems| panic!("{problems}"))
}

/// One bundle at stage `write` per policy text: loading is what takes the time in a test of many cases.
pub(crate) fn shared_bundle(policies: &'static str) -> &'static Bundle {
    static SHARED: Mutex<BTreeMap<&'static str, &'static Bundle>> = Mutex::new(BTreeMap::new());
    let mut shared = SHARED.lock().unwrap();
    shared
        .entry(policies)
        .or_insert_with(|| Box::leak(Box::new(bundle("write", &[policies]))))
}

/// The call that `METHOD /path` with this form is.
#[track_caller]
pub(crate) fn call(bundle: &Bundle, method: &str, path: &str, form: &str) -> Call {
    let request = RequestView {
        method,
        path,
        query: None,
        headers: &[("content-type", "application/x-www-form-urlencoded")],
        body: Some(form.as_bytes()),
    };
    let agent = "acme/support".parse().unwrap();
    let endpoint = "api.desk.example.com:443".parse().unwrap();
    bundle
        .call(&agent, &endpoint, &request)
        .unwrap_or_else(|refused| panic!("{refused:?}"))
}

/// A refund; `None` refunds everything.
#[track_caller]
pub(crate) fn refund(bundle: &Bundle, amount: Option<i64>) -> Call {
    let form = amount.map_or("charge=ch_1".to_owned(), |amount| {
        format!("charge=ch_1&amount={amount}")
    });
    call(bundle, "POST", "/refunds", &form)
}

pub(crate) fn body() -> Digest {
    Digest::of(b"POST /refunds charge=ch_1&amount=12000")
}

#[track_caller]
pub(crate) fn allowed(decision: Decision) -> Permit {
    match decision {
        Decision::Allow(permit) => permit,
        other => panic!("not allowed: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn held(decision: Decision) -> Held {
    match decision {
        Decision::Hold(held) => held,
        other => panic!("not held: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn denied(decision: Decision) -> Denied {
    match decision {
        Decision::Deny(denied) => denied,
        other => panic!("not denied: {other:?}"),
    }
}

pub(crate) fn approval(held: &Held) -> Approval {
    Approval::request(held, &body(), ApprovalId::from_entropy([7; 16]), now())
}

pub(crate) fn answer(approver: &str, groups: &[&str], verdict: Verdict, at: Timestamp) -> Answer {
    Answer {
        approver: approver.parse().unwrap(),
        groups: groups.iter().map(|group| group.parse().unwrap()).collect(),
        verdict,
        at,
        note: None,
    }
}

/// Has each asked group approve through one member of all of them, and takes the grant.
#[track_caller]
pub(crate) fn granted(held: &Held) -> Grant {
    let mut approval = approval(held);
    let groups: Vec<String> = held.groups().iter().map(ToString::to_string).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    for number in 0..held.quorum() {
        approval
            .answer(answer(
                &format!("approver-{number}"),
                &groups,
                Verdict::Approve,
                now(),
            ))
            .unwrap();
    }
    approval.take(held, &body(), now()).unwrap()
}

pub(crate) fn names(policies: &[policies::PolicyId]) -> Vec<&str> {
    policies.iter().map(policies::PolicyId::as_str).collect()
}
