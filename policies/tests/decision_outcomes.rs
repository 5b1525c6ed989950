//! Decisions: which calls go, which wait for whom, which do not; and that no way round leads to a permit.
//! Every property has its control: the same call without what is tested.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

mod common;

use std::time::Duration;

use common::{
    FINANCE_OVER_50, SMALL_REFUNDS_GO, agent, allowed, body, bundle, call, denied, facts, granted,
    held, names, refund, source, sources,
};
use policies::{Bundle, Decision, Facts, Reason};
use proptest::prelude::*;

#[test]
fn the_design_example_works_as_written_on_a_fresh_install() {
    let bundle = bundle("write", &[FINANCE_OVER_50]);
    let large = held(bundle.decide(refund(&bundle, Some(12_000)), &facts(), None));
    assert_eq!(large.groups(), ["finance".parse().unwrap()]);
    assert_eq!(
        names(large.policies()),
        ["refund-over-50-needs-finance", "risk-financial"]
    );
    assert_eq!(
        (large.within(), large.quorum()),
        (Duration::from_secs(900), 1)
    );

    // The shipped default still holds what the example does not speak of: small ones, and those that refund everything.
    for amount in [Some(2_000), None] {
        let small = held(bundle.decide(refund(&bundle, amount), &facts(), None));
        assert_eq!(names(small.policies()), ["risk-financial"], "{amount:?}");
    }
}

#[test]
fn an_operator_loosens_a_shipped_default_on_purpose() {
    let bundle = bundle("write", &[FINANCE_OVER_50, SMALL_REFUNDS_GO]);
    let small = allowed(bundle.decide(refund(&bundle, Some(2_000)), &facts(), None));
    assert_eq!(names(small.policies()), ["stage-write"]);
    assert_eq!(small.approval(), None);
    let _ = held(bundle.decide(refund(&bundle, Some(5_001)), &facts(), None));
    let _ = held(bundle.decide(refund(&bundle, None), &facts(), None));
    let notices: Vec<String> = bundle
        .notices()
        .iter()
        .map(|notice| notice.message.clone())
        .collect();
    assert_eq!(
        notices,
        ["replaces the shipped policy `risk-financial` of default/risk.cedar"]
    );
}

#[test]
fn an_approved_call_is_decided_again_and_goes_once() {
    let bundle = bundle("write", &[FINANCE_OVER_50]);
    let held_call = held(bundle.decide(refund(&bundle, Some(12_000)), &facts(), None));
    let grant = granted(&held_call);
    let approval = *grant.approval();
    let permit = allowed(bundle.decide(held_call.into_call(), &facts(), Some(grant)));
    assert_eq!(permit.approval(), Some(&approval));
    assert_eq!(permit.version(), bundle.version());
    // The same refund sent again is a new call without an approval.
    let _ = held(bundle.decide(refund(&bundle, Some(12_000)), &facts(), None));
}

#[test]
fn a_grant_is_for_the_call_that_was_approved() {
    let bundle = bundle("write", &[FINANCE_OVER_50]);
    let small = held(bundle.decide(refund(&bundle, Some(6_000)), &facts(), None));
    let answer = denied(bundle.decide(
        refund(&bundle, Some(600_000)),
        &facts(),
        Some(granted(&small)),
    ));
    assert_eq!(answer.reason, Reason::PolicyDenied);
    assert_eq!(answer.detail, "the approval was given for another call");
    // The control: the call that was approved.
    let _ = allowed(bundle.decide(
        refund(&bundle, Some(6_000)),
        &facts(),
        Some(granted(&small)),
    ));
}

#[test]
fn a_grant_is_judged_by_the_policies_of_the_moment() {
    const LEGAL: &str = r#"@id("legal-too") @approval("legal") @within("5m")
        forbid (principal, action == desk::Action::"refunds.create", resource) unless { context.approvals.contains(Group::"legal") };"#;
    const FREEZE: &str = r#"@id("freeze") @reason("books are closed") @hint("try on Monday")
        forbid (principal, action in Action::"financial", resource);"#;
    let before = bundle("write", &[]);
    let ask = || held(before.decide(refund(&before, Some(12_000)), &facts(), None));

    let legal = bundle("write", &[LEGAL]);
    let again = held(legal.decide(
        refund(&before, Some(12_000)),
        &facts(),
        Some(granted(&ask())),
    ));
    assert_eq!(
        again.groups(),
        ["finance".parse().unwrap(), "legal".parse().unwrap()],
        "the new approval starts from nothing"
    );
    assert_eq!(again.within(), Duration::from_secs(300));
    let _ = allowed(legal.decide(
        refund(&legal, Some(12_000)),
        &facts(),
        Some(granted(&again)),
    ));

    let frozen = bundle("write", &[FREEZE]);
    let answer = denied(frozen.decide(
        refund(&before, Some(12_000)),
        &facts(),
        Some(granted(&ask())),
    ));
    assert_eq!(
        (answer.reason, names(&answer.policies)),
        (Reason::PolicyDenied, vec!["freeze"])
    );
    assert_eq!(answer.detail, "books are closed (try on Monday)");
}

#[test]
fn a_plain_forbid_is_never_put_to_a_person() {
    const NEVER: &str = r#"@id("never-100000") forbid (principal, action == desk::Action::"refunds.create", resource)
        when { context.params has amount && context.params.amount >= 100000 };"#;
    let bundle = bundle("write", &[FINANCE_OVER_50, NEVER]);
    let answer = denied(bundle.decide(refund(&bundle, Some(100_000)), &facts(), None));
    assert_eq!(
        names(&answer.policies),
        [
            "never-100000",
            "refund-over-50-needs-finance",
            "risk-financial"
        ]
    );
    let _ = held(bundle.decide(refund(&bundle, Some(99_999)), &facts(), None));
}

#[test]
fn nobody_is_asked_where_no_policy_permits_the_call_anyway() {
    for stage in ["read", "draft"] {
        let bundle = bundle(stage, &[]);
        let answer = denied(bundle.decide(refund(&bundle, Some(1)), &facts(), None));
        assert_eq!(
            (answer.reason, answer.policies.len()),
            (Reason::PolicyDenied, 0)
        );
        assert_eq!(
            answer.detail,
            format!("no policy permits `desk/refunds.create` to an agent at stage `{stage}`")
        );
    }
}

#[test]
fn no_broad_permit_gets_around_an_approval_or_the_observe_stage() {
    const EVERYTHING: &str = r#"@id("everything") permit (principal, action, resource);"#;
    for amount in [Some(12_000), Some(1), None] {
        let bundle = bundle("read", &[EVERYTHING, FINANCE_OVER_50]);
        let _ = held(bundle.decide(refund(&bundle, amount), &facts(), None));
    }
    let observed = bundle("observe", &[EVERYTHING]);
    let answer = denied(observed.decide(call(&observed, "GET", "/tickets/1", ""), &facts(), None));
    assert_eq!(names(&answer.policies), ["stage-observe"]);
    let answer = bundle("write", &[EVERYTHING]);
    let answer = denied(answer.decide(call(&answer, "DELETE", "/tickets/1", ""), &facts(), None));
    assert_eq!(names(&answer.policies), ["risk-destructive"]);
    // The control: the permit does what it says where no forbid stands.
    let read = bundle("read", &[EVERYTHING]);
    let _ = allowed(read.decide(
        call(&read, "POST", "/tickets/1/replies", ""),
        &facts(),
        None,
    ));
}

#[test]
fn an_evaluation_error_is_a_deny_in_either_pass() {
    // Overflows for amounts over 3: Cedar skips a forbid that fails, and would allow.
    const OVERFLOWS: &str = r#"@id("overflows") forbid (principal, action == desk::Action::"refunds.create", resource)
        when { context.params has amount && context.params.amount * 3000000000000000000 < 0 };"#;
    const OVERFLOWS_ONCE_APPROVED: &str = r#"@id("overflows-later") forbid (principal, action == desk::Action::"refunds.create", resource)
        when { context.approvals.contains(Group::"finance") && context.params has amount
               && context.params.amount * 3000000000000000000 < 0 };"#;
    for (stage, policy, id) in [
        ("autonomous", OVERFLOWS, "overflows"),
        ("write", OVERFLOWS, "overflows"),
        ("write", OVERFLOWS_ONCE_APPROVED, "overflows-later"),
    ] {
        let bundle = bundle(stage, &[policy]);
        let answer = denied(bundle.decide(refund(&bundle, Some(4)), &facts(), None));
        assert_eq!(
            (answer.reason, names(&answer.policies)),
            (Reason::PolicyError, vec![id]),
            "{stage}"
        );
        // The control: without the overflow the same policy forbids nothing.
        assert!(
            !matches!(
                bundle.decide(refund(&bundle, Some(3)), &facts(), None),
                Decision::Deny(_)
            ),
            "{stage}"
        );
    }
}

#[test]
fn a_disabled_agent_makes_no_call_not_even_an_approved_one() {
    let bundle = bundle("autonomous", &[]);
    let disabled = Facts {
        disabled: true,
        ..facts()
    };
    let answer = denied(bundle.decide(call(&bundle, "GET", "/tickets/1", ""), &disabled, None));
    assert_eq!(
        (answer.reason, names(&answer.policies)),
        (Reason::AgentDisabled, vec!["kill-switch"])
    );
    let _ = allowed(bundle.decide(call(&bundle, "GET", "/tickets/1", ""), &facts(), None));

    let write = common::bundle("write", &[]);
    let ask = held(write.decide(refund(&write, Some(1)), &facts(), None));
    let answer = denied(write.decide(refund(&write, Some(1)), &disabled, Some(granted(&ask))));
    assert_eq!(answer.reason, Reason::AgentDisabled);

    // The shipped policy says so too, by itself: an explanation asks Cedar, which knows nothing of the check before it.
    let explained = bundle.explain(&call(&bundle, "GET", "/tickets/1", ""), &disabled);
    assert_eq!(explained.reason, Some(Reason::AgentDisabled));
    assert_eq!(explained.policies[0].id.as_str(), "kill-switch");
}

#[test]
fn a_call_that_its_bundle_no_longer_offers_is_denied() {
    let made_under = bundle("write", &[]);
    let ticket = || call(&made_under, "POST", "/tickets/1", "");
    let with_agent = |text: &str| {
        let mut sources = sources("write", &[]);
        sources.agents = vec![source("agents.d/support.toml", text)];
        Bundle::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
    };
    let plain = agent("write");
    let check = |text: &str, reason| {
        assert_eq!(
            denied(with_agent(text).decide(ticket(), &facts(), None)).reason,
            reason,
            "{text}"
        )
    };
    check(
        &plain.replace("\"support\"", "\"billing\""),
        Reason::AgentUnknown,
    );
    check(
        &plain.replace("name = \"desk\"", "name = \"desk2\""),
        Reason::PolicyDenied,
    );
    check(
        &plain.replace("desk-live", "desk-test"),
        Reason::PolicyDenied,
    );
    check(
        &format!("{plain}capabilities = [\"*.read\"]\n"),
        Reason::PolicyDenied,
    );
    check(
        &format!("{plain}hosts = [\"other.example.com\"]\n"),
        Reason::PolicyDenied,
    );
    // The control: an agent that is as it was.
    let _ = allowed(with_agent(&plain).decide(ticket(), &facts(), None));
}

#[test]
fn groups_are_all_asked_the_time_is_the_shortest_the_quorum_the_highest() {
    const HASTY: &str = r#"@id("hasty") @approval("ops") @within("90s")
        forbid (principal, action in Action::"write", resource) unless { context.approvals.contains(Group::"ops") };"#;
    const MANY: &str = r#"@id("many") @approval("legal") @within("2h") @quorum("3")
        forbid (principal, action in Action::"write", resource) unless { context.approvals.contains(Group::"legal") };"#;
    let bundle = bundle("write", &[HASTY, MANY]);
    let ask = held(bundle.decide(refund(&bundle, Some(1)), &facts(), None));
    let groups: Vec<&str> = ask.groups().iter().map(|group| group.as_str()).collect();
    assert_eq!(groups, ["finance", "legal", "ops"]);
    assert_eq!((ask.within(), ask.quorum()), (Duration::from_secs(90), 3));
    let ask = held(bundle.decide(call(&bundle, "POST", "/tickets/1", ""), &facts(), None));
    assert_eq!(
        ask.groups().len(),
        2,
        "only those of the policies that hold it"
    );
}

#[test]
fn policies_see_params_host_time_and_group_of_their_types() {
    let forbid = |when: &str| {
        format!(
            "@id(\"probe\") forbid (principal, action == desk::Action::\"tickets.update\", resource) when {{ {when} }};"
        )
    };
    for (when, form, expected) in [
        (
            "context.params has urgent && context.params.urgent",
            "urgent=true",
            true,
        ),
        (
            "context.params has urgent && context.params.urgent",
            "urgent=false",
            false,
        ),
        (
            "context.params has tags && context.params.tags.contains(\"b\")",
            "tags=a&tags=b",
            true,
        ),
        (
            "context.params has tags && context.params.tags.contains(\"c\")",
            "tags=a&tags=b",
            false,
        ),
        (
            "context.params has ticket && context.params.ticket like \"1*\"",
            "",
            true,
        ),
        ("context.host == \"api.desk.example.com\"", "", true),
        ("context.now >= 1800000000000", "", true),
        ("context.now > 1800000000000", "", false),
        ("principal in Group::\"pilots\"", "", true),
        (
            "principal in Tenant::\"acme\" && principal == Agent::\"acme/support\"",
            "",
            true,
        ),
        (
            "resource in Connector::\"desk\" && resource == Connection::\"acme/support/desk\"",
            "",
            true,
        ),
        (
            "resource.name == \"desk\" && principal.name == \"support\"",
            "",
            true,
        ),
    ] {
        let bundle = bundle("write", &[&forbid(when)]);
        let decision = bundle.decide(call(&bundle, "POST", "/tickets/1", form), &facts(), None);
        assert_eq!(
            matches!(decision, Decision::Deny(_)),
            expected,
            "{when} {form}"
        );
    }
}

#[test]
fn an_explanation_says_what_would_be_enough() {
    let explain = |stage, method, path| {
        let bundle = bundle(stage, &[FINANCE_OVER_50]);
        let call = call(
            &bundle,
            method,
            path,
            if path == "/refunds" {
                "amount=12000"
            } else {
                ""
            },
        );
        bundle.explain(&call, &facts())
    };
    let held = explain("write", "POST", "/refunds");
    insta::assert_snapshot!(held.to_string(), @r#"
    hold: desk/refunds.create by acme/support (stage write)
      risk: financial, write
      param amount = 12000
      reason: approval_required: policy `refund-over-50-needs-finance` wants approval by finance; calls that move money need approval by finance
      forbid `refund-over-50-needs-finance` (policies/0.cedar:2)
      forbid `risk-financial` (default/risk.cedar:28, shipped): calls that move money need approval by finance
      needs: one approver of finance, within 15m
      at every stage it would be asked for
    "#);
    let denied = explain("read", "POST", "/refunds");
    insta::assert_snapshot!(denied.to_string(), @r#"
    deny: desk/refunds.create by acme/support (stage read)
      risk: financial, write
      param amount = 12000
      reason: policy_denied: no policy permits `desk/refunds.create` to an agent at stage `read`
      at stage write it would be held for a person
    "#);
    insta::assert_json_snapshot!(explain("draft", "DELETE", "/tickets/1"), @r#"
    {
      "agent": "acme/support",
      "stage": "draft",
      "capability": "desk/tickets.delete",
      "risks": [
        "destructive",
        "write"
      ],
      "params": {
        "ticket": "1"
      },
      "decision": "deny",
      "reason": "policy_denied",
      "detail": "what cannot be undone is left to agents at stage autonomous",
      "policies": [
        {
          "id": "risk-destructive",
          "at": "default/risk.cedar:14",
          "effect": "forbid",
          "reason": "what cannot be undone is left to agents at stage autonomous",
          "approval": null,
          "shipped": true
        }
      ],
      "approval": null,
      "stage_to_allow": "autonomous",
      "stage_to_ask": "autonomous"
    }
    "#);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_refund_goes_without_a_person_only_where_the_rules_say_so(amount in proptest::option::of(any::<i64>())) {
        let bundle = common::shared_bundle(SMALL_REFUNDS_GO);
        let decision = bundle.decide(refund(bundle, amount), &facts(), None);
        let small = amount.is_some_and(|amount| amount <= 5_000);
        prop_assert_eq!(matches!(decision, Decision::Allow(_)), small);
        prop_assert_eq!(matches!(decision, Decision::Hold(_)), !small);
    }

    #[test]
    fn two_different_requests_never_share_a_digest(one: (i64, String), other: (i64, String)) {
        let bundle = common::shared_bundle(FINANCE_OVER_50);
        let digest = |(amount, charge): &(i64, String)| {
            let amount = amount.saturating_abs().max(6_000);
            let form = format!("amount={amount}&charge={}", charge.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>());
            let ask = held(bundle.decide(call(bundle, "POST", "/refunds", &form), &facts(), None));
            (ask.call().params().clone(), ask.digest(&body()))
        };
        let (one, other) = (digest(&one), digest(&other));
        prop_assert_eq!(one.0 == other.0, one.1 == other.1);
    }
}
