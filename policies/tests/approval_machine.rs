//! The approval state machine: what no sequence of answers, clocks and attempts may bring about.
//! Every approval here comes from a call that a real bundle held.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{answer, approval, body, bundle, facts, held, now, refund};
use policies::{AnswerError, Approval, ApprovalState, Bundle, Digest, Held, Verdict};
use proptest::prelude::*;

const TWO_GROUPS: &str = r#"
@id("legal-too") @approval("legal") @within("10m") @quorum("2")
forbid (principal, action == desk::Action::"refunds.create", resource)
unless { context.approvals.contains(Group::"legal") };
"#;

fn hold(bundle: &Bundle, amount: i64) -> Held {
    held(bundle.decide(refund(bundle, Some(amount)), &facts(), None))
}

fn finance() -> (&'static Bundle, Held, Approval) {
    let bundle = common::shared_bundle("");
    let held = hold(bundle, 12_000);
    let approval = approval(&held);
    (bundle, held, approval)
}

#[test]
fn an_approved_call_gives_one_grant() {
    let (_, held, mut approval) = finance();
    assert_eq!(
        approval.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Pending
    );
    assert_eq!(
        approval.answer(answer("alice", &["finance"], Verdict::Approve, now())),
        Ok(ApprovalState::Approved)
    );
    let grant = approval.take(&held, &body(), now()).unwrap();
    assert_eq!(grant.approval(), &approval.id);
    assert_eq!(
        approval.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Used
    );
}

#[test]
fn nobody_approves_an_agent_of_their_own() {
    // The owner is olga@example.com; on the control socket she is olga.
    for own in [
        "olga@example.com",
        "Olga@Example.com",
        "olga",
        "OLGA",
        "support",
        "acme/support",
    ] {
        let (_, held, mut approval) = finance();
        let error = approval
            .answer(answer(own, &["finance"], Verdict::Approve, now()))
            .unwrap_err();
        assert!(matches!(error, AnswerError::OwnAgent(_)), "{own}: {error}");
        assert_eq!(
            approval.take(&held, &body(), now()).unwrap_err(),
            ApprovalState::Pending,
            "{own}"
        );
    }
    // The control: somebody else in the same group does.
    for other in ["olgah", "olga@example.org", "alice"] {
        let (_, _, mut approval) = finance();
        assert!(
            approval
                .answer(answer(other, &["finance"], Verdict::Approve, now()))
                .is_ok(),
            "{other}"
        );
    }
}

#[test]
fn only_members_of_an_asked_group_answer() {
    let (_, _, mut approval) = finance();
    for groups in [&[][..], &["approvers"], &["legal", "ops"]] {
        let error = approval
            .answer(answer("alice", groups, Verdict::Deny, now()))
            .unwrap_err();
        assert!(matches!(error, AnswerError::NotAMember { .. }), "{error}");
    }
    assert_eq!(approval.state, ApprovalState::Pending);
    assert!(approval.answers.is_empty());
}

#[test]
fn every_group_must_bring_its_quorum() {
    let bundle = bundle("write", &[TWO_GROUPS]);
    let held = hold(&bundle, 12_000);
    assert_eq!(
        (held.quorum(), held.within()),
        (2, Duration::from_secs(600))
    );
    let mut approval = approval(&held);
    let mut say =
        |who: &str, groups: &[&str]| approval.answer(answer(who, groups, Verdict::Approve, now()));
    assert_eq!(
        say("alice", &["finance", "legal"]),
        Ok(ApprovalState::Pending)
    );
    assert!(matches!(
        say("Alice", &["finance", "legal"]),
        Err(AnswerError::AlreadyAnswered(_))
    ));
    assert_eq!(
        say("bob", &["finance"]),
        Ok(ApprovalState::Pending),
        "legal has brought one of two"
    );
    assert_eq!(
        say("carol", &["finance"]),
        Ok(ApprovalState::Pending),
        "more of finance does not help legal"
    );
    assert_eq!(say("dave", &["legal"]), Ok(ApprovalState::Approved));
}

#[test]
fn one_no_is_final() {
    let (_, held, mut approval) = finance();
    assert_eq!(
        approval.answer(answer("alice", &["finance"], Verdict::Deny, now())),
        Ok(ApprovalState::Denied)
    );
    let late = approval.answer(answer("bob", &["finance"], Verdict::Approve, now()));
    assert_eq!(late, Err(AnswerError::Closed(ApprovalState::Denied)));
    assert_eq!(
        approval.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Denied
    );
    assert!(!approval.expire(approval.expires_at), "denied stays denied");
}

#[test]
fn expiry_is_a_no_whether_pending_or_approved() {
    let (_, held, mut pending) = finance();
    let just_before = pending.expires_at - Duration::from_millis(1);
    let mut approved = pending.clone();
    approved
        .answer(answer("alice", &["finance"], Verdict::Approve, now()))
        .unwrap();
    // The control: a moment earlier it is still good.
    assert!(approved.clone().take(&held, &body(), just_before).is_ok());

    let deadline = pending.expires_at;
    let late = pending.answer(answer("alice", &["finance"], Verdict::Approve, deadline));
    assert_eq!(late, Err(AnswerError::Expired(deadline)));
    assert_eq!(pending.state, ApprovalState::Expired);
    assert_eq!(
        approved.take(&held, &body(), deadline).unwrap_err(),
        ApprovalState::Expired
    );
    assert_eq!(
        approved.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Expired,
        "a clock set back does not revive it"
    );
}

#[test]
fn an_approval_is_for_one_call_one_content_and_one_policy_version() {
    let (bundle, held, mut approval) = finance();
    approval
        .answer(answer("alice", &["finance"], Verdict::Approve, now()))
        .unwrap();
    let other_amount = hold(bundle, 12_001);
    let other_policies = common::bundle("write", &[common::FINANCE_OVER_50]);
    let other_policies = hold(&other_policies, 12_000);
    let attempts = [
        (&other_amount, body()),
        (&other_policies, body()),
        (&held, Digest::of(b"other content")),
    ];
    for (held, body) in attempts {
        assert_eq!(
            approval.take(held, &body, now()).unwrap_err(),
            ApprovalState::Approved
        );
    }
    assert!(
        approval.take(&held, &body(), now()).is_ok(),
        "and none of the attempts used it up"
    );
}

#[test]
fn an_approval_survives_a_restart() {
    let bundle = common::bundle("write", &[TWO_GROUPS]);
    let held = hold(&bundle, 12_000);
    let mut first = approval(&held);
    first
        .answer(answer(
            "alice",
            &["finance", "legal"],
            Verdict::Approve,
            now(),
        ))
        .unwrap();
    let stored = serde_json::to_string(&first).unwrap();
    let mut second: Approval = serde_json::from_str(&stored).unwrap();
    assert_eq!(second, first);
    second
        .answer(answer(
            "bob",
            &["finance", "legal"],
            Verdict::Approve,
            now(),
        ))
        .unwrap();
    assert!(second.take(&held, &body(), now()).is_ok());
}

#[test]
fn a_record_that_says_approved_without_the_answers_gives_no_grant() {
    let (_, held, mut approval) = finance();
    approval.state = ApprovalState::Approved;
    assert_eq!(
        approval.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Pending
    );
    approval.quorum = 0;
    assert_eq!(
        approval.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Pending
    );
    approval.groups.clear();
    assert_eq!(
        approval.take(&held, &body(), now()).unwrap_err(),
        ApprovalState::Pending
    );
}

#[derive(Debug, Clone)]
enum Step {
    Answer {
        approver: usize,
        groups: Vec<&'static str>,
        verdict: Verdict,
    },
    Expire,
    Restart,
    Take {
        held: usize,
        body: bool,
    },
    Wait {
        seconds: u64,
    },
}

const APPROVERS: [&str; 7] = ["alice", "Alice", "bob", "carol", "dave", "olga", "support"];

fn step() -> impl Strategy<Value = Step> {
    let groups = proptest::sample::subsequence(vec!["finance", "legal", "ops"], 0..=3);
    let verdict = prop_oneof![6 => Just(Verdict::Approve), 1 => Just(Verdict::Deny)];
    prop_oneof![
        8 => (0..APPROVERS.len(), groups, verdict).prop_map(|(approver, groups, verdict)| Step::Answer { approver, groups, verdict }),
        1 => Just(Step::Expire),
        1 => Just(Step::Restart),
        4 => (0..2usize, proptest::bool::weighted(0.8)).prop_map(|(held, body)| Step::Take { held, body }),
        2 => (0..200u64).prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What an approver outside the machine would have noted down.
#[derive(Default)]
struct Notes {
    yes: BTreeMap<&'static str, BTreeSet<String>>,
    denied: bool,
    expired: bool,
    grants: usize,
}

impl Notes {
    fn answered(&mut self, approver: &str, groups: &[&'static str], verdict: Verdict) {
        self.denied |= verdict == Verdict::Deny;
        for group in groups {
            if verdict == Verdict::Approve {
                self.yes
                    .entry(group)
                    .or_default()
                    .insert(approver.to_lowercase());
            }
        }
    }

    fn quorum(&self, quorum: usize) -> bool {
        ["finance", "legal"]
            .iter()
            .all(|group| self.yes.get(group).is_some_and(|yes| yes.len() >= quorum))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_sequence_gives_two_grants_or_one_after_no_expiry_or_too_few(steps in prop::collection::vec(step(), 1..60)) {
        let bundle = common::shared_bundle(TWO_GROUPS);
        let calls = [hold(bundle, 12_000), hold(bundle, 1)];
        let held = &calls[0];
        let mut approval = approval(held);
        let (mut clock, mut notes) = (now(), Notes::default());
        for step in steps {
            notes.expired |= clock >= approval.expires_at;
            match step {
                Step::Answer { approver, groups, verdict } => {
                    let approver = APPROVERS[approver];
                    if approval.answer(answer(approver, &groups, verdict, clock)).is_ok() {
                        prop_assert!(!notes.denied && !notes.expired && notes.grants == 0);
                        prop_assert!(approver != "olga" && approver != "support");
                        notes.answered(approver, &groups, verdict);
                    }
                }
                Step::Expire => { approval.expire(clock); }
                Step::Restart => approval = serde_json::from_str(&serde_json::to_string(&approval).unwrap()).unwrap(),
                Step::Take { held, body: right } => {
                    let body = if right { body() } else { Digest::of(b"other") };
                    if approval.take(&calls[held], &body, clock).is_ok() {
                        prop_assert!(held == 0 && right);
                        prop_assert!(!notes.denied && !notes.expired);
                        prop_assert!(notes.quorum(2));
                        notes.grants += 1;
                    }
                }
                Step::Wait { seconds } => clock = clock + Duration::from_secs(seconds),
            }
            prop_assert!(notes.grants <= 1);
        }
    }
}
