//! Held calls: a person's yes lets exactly one call go, and nothing else does.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::time::Duration;

use policies::{ApprovalState, Reason, Verdict};
use support::agent::{Answer, Client};
use support::{HOST, Plan, World};

fn patient() -> Plan {
    Plan {
        hold: Duration::from_secs(10),
        ..Plan::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_is_sent_exactly_once_when_approved_and_held_again_when_repeated() {
    for h2 in [false, true] {
        let world = World::planned(patient()).await;
        let mut client = if h2 {
            world.http2(HOST).await
        } else {
            world.http1(HOST).await
        };
        let call = tokio::spawn(async move {
            let answer = client.call("POST", "/v1/refunds", "amount=12000").await;
            (client, answer)
        });
        let id = world.pending().await;
        assert!(
            world.upstream.seen().is_empty(),
            "nothing leaves before the answer"
        );
        let shown = world.proxy.approvals().show(&id).unwrap();
        assert_eq!(shown.params["amount"], policies::Value::Integer(12000));
        world.answer(&id, Verdict::Approve).await;
        let (mut client, answer) = call.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        let seen = world.upstream.seen();
        assert_eq!(
            (seen.len(), seen[0].body.as_ref()),
            (1, &b"amount=12000"[..])
        );
        assert_eq!(
            world.proxy.approvals().show(&id).unwrap().state,
            ApprovalState::Used
        );

        let again =
            tokio::spawn(async move { client.call("POST", "/v1/refunds", "amount=12000").await });
        let second = world.pending().await;
        assert_ne!(second, id, "a used approval does not let a second call go");
        world.answer(&second, Verdict::Deny).await;
        let answer = again.await.unwrap();
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (403, "approval_denied")
        );
        assert_eq!(world.upstream.seen().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_call_is_refused_with_the_approvals_id_and_goes_through_once_after_a_late_yes()
 {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    let answer = client.call("POST", "/v1/refunds", "amount=12000").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (403, "approval_required")
    );
    let id = world.pending().await;
    let mut problem = answer.problem();
    assert_eq!(problem["approval"], id.to_string());
    let detail = problem["detail"]
        .as_str()
        .unwrap()
        .replace(&id.to_string(), "apr_ID");
    problem["detail"] = detail.into();
    problem["approval"] = "apr_ID".into();
    insta::assert_json_snapshot!("approval_required", problem);

    // A repeated call joins the open approval instead of asking twice.
    let answer = client.call("POST", "/v1/refunds", "amount=12000").await;
    assert_eq!(answer.problem()["approval"], id.to_string());
    assert_eq!(world.proxy.approvals().pending(), 1);

    world.answer(&id, Verdict::Approve).await;
    // Another amount is another call.
    let other = client.call("POST", "/v1/refunds", "amount=12001").await;
    assert_eq!(other.reason(), "approval_required");
    assert!(world.upstream.seen().is_empty());
    assert_eq!(
        client
            .call("POST", "/v1/refunds", "amount=12000")
            .await
            .status,
        200
    );
    assert_eq!(
        client
            .call("POST", "/v1/refunds", "amount=12000")
            .await
            .reason(),
        "approval_required"
    );
    assert_eq!(world.upstream.seen().len(), 1);
    let refused = world.refusals().await;
    assert!(
        refused
            .iter()
            .all(|reason| *reason == Reason::ApprovalRequired),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_holds_for_the_very_request_that_was_shown() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    let refund = ("POST", "/v1/refunds", "amount=12000&note=a");
    assert_eq!(
        client.call(refund.0, refund.1, refund.2).await.reason(),
        "approval_required"
    );
    let id = world.pending().await;
    world.answer(&id, Verdict::Approve).await;
    // What no param captures is bound as well: the query, and the rest of the body.
    for (path, body) in [
        ("/v1/refunds?on_behalf_of=acct_2", "amount=12000&note=a"),
        ("/v1/refunds?", "amount=12000&note=a"),
        ("/v1/refunds", "amount=12000&note=b"),
        ("/v1/refunds", "note=a&amount=12000"),
    ] {
        let answer = client.call("POST", path, body).await;
        assert_eq!(answer.reason(), "approval_required", "{path} {body}");
        assert_ne!(
            answer.problem()["approval"],
            id.to_string(),
            "{path} {body}"
        );
    }
    assert!(world.upstream.seen().is_empty());
    // Positive control: the request as it was shown.
    assert_eq!(client.call(refund.0, refund.1, refund.2).await.status, 200);
    let counted = world.counts.calls.lock().unwrap().clone();
    let of = |decision| {
        counted
            .iter()
            .filter(|(_, counted)| *counted == decision)
            .count()
    };
    assert_eq!(
        (of("hold"), of("allow")),
        (6, 1),
        "a release is a decision of its own"
    );
}

/// A refund as an SDK sends it, with these headers besides; status and, where refused, the reason.
async fn refund(client: &mut Client, headers: &[(&str, &str)]) -> (u16, String) {
    let mut request = http::Request::post("/v1/refunds")
        .header("host", HOST)
        .header("content-type", "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"amount=12000"));
    let answer = Answer::read(client.send(request.body(body).unwrap()).await).await;
    let reason = if answer.status == 200 {
        String::new()
    } else {
        answer.reason()
    };
    (answer.status, reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_does_not_hold_for_another_account_in_a_header() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    let held = (403, "approval_required".to_owned());
    let first = [
        ("authorization", "Bearer sk_placeholder"),
        ("stripe-account", "acct_1"),
        ("x-tag", "a"),
        ("x-tag", "b"),
        ("user-agent", "Stripe/v1 PythonBindings/12.0.0"),
        ("idempotency-key", "k1"),
        ("x-stainless-retry-count", "0"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ];
    assert_eq!(refund(&mut client, &first).await, held);
    let id = world.pending().await;
    world.answer(&id, Verdict::Approve).await;
    let other = |name: &str, value: &'static str| {
        let mut headers = first.to_vec();
        let at = headers.iter().position(|(given, _)| *given == name);
        headers[at.unwrap()].1 = value;
        headers
    };
    let mut swapped = first.to_vec();
    swapped.swap(2, 3);
    let mut without = first.to_vec();
    without.remove(1);
    for headers in [
        other("stripe-account", "acct_2"),
        swapped,
        without,
        [&first[..], &[("x-unheard-of", "1")]].concat(),
    ] {
        assert_eq!(refund(&mut client, &headers).await, held, "{headers:?}");
    }
    assert!(world.upstream.seen().is_empty());
    // Positive control: the next attempt of an SDK, which tells its retry, trace and key anew and orders its headers in another way.
    let mut retry = other("x-stainless-retry-count", "1");
    retry[0].1 = "Bearer sk_another_placeholder";
    retry[4].1 = "Stripe/v1 PythonBindings/12.0.1";
    retry[5].1 = "k2";
    retry[7].1 = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
    retry.rotate_left(4);
    assert_eq!(refund(&mut client, &retry).await.0, 200);
    assert_eq!(world.upstream.seen()[0].headers["stripe-account"], "acct_1");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_equal_calls_that_wait_one_approval_lets_one_go() {
    let world = World::planned(Plan {
        hold: Duration::from_millis(1500),
        ..Plan::default()
    })
    .await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        let mut client = world.http1(HOST).await;
        calls.push(tokio::spawn(async move {
            client.call("POST", "/v1/refunds", "amount=9900").await
        }));
    }
    let id = world.pending().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(
        world.proxy.approvals().pending(),
        1,
        "equal calls wait for one approval"
    );
    world.answer(&id, Verdict::Approve).await;
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap().status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 403, 403]);
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_for_an_agent_that_hung_up() {
    let world = World::planned(patient()).await;
    let mut client = world.http1(HOST).await;
    let call =
        tokio::spawn(async move { client.call("POST", "/v1/refunds", "amount=12000").await });
    let id = world.pending().await;
    call.abort();
    assert!(call.await.is_err());
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.answer(&id, Verdict::Approve).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.upstream.seen().is_empty());
    assert_eq!(
        world.proxy.approvals().show(&id).unwrap().state,
        ApprovalState::Approved
    );
    // Positive control: the approval stands, and an agent that is there gets it.
    assert_eq!(
        world
            .http1(HOST)
            .await
            .call("POST", "/v1/refunds", "amount=12000")
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_that_nobody_answers_expires_as_a_denial() {
    const SOON: &str = r#"
        @id("refunds-soon") @approval("finance") @within("1s")
        forbid (principal, action == pay::Action::"refunds.create", resource)
        unless { context.approvals.contains(Group::"finance") };
    "#;
    let world = World::planned(Plan {
        policies: SOON,
        ..patient()
    })
    .await;
    let mut client = world.http1(HOST).await;
    let answer = client.call("POST", "/v1/refunds", "amount=12000").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (403, "approval_expired"),
        "{answer:?}"
    );
    assert!(world.upstream.seen().is_empty());
    assert_eq!(
        world.proxy.approvals().list()[0].state,
        ApprovalState::Expired
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_survives_a_restart() {
    let world = World::start().await;
    let answer = world
        .http1(HOST)
        .await
        .call("POST", "/v1/refunds", "amount=12000")
        .await;
    assert_eq!(answer.reason(), "approval_required");
    let id = world.pending().await;
    let world = world.restart(Plan::default()).await;
    assert_eq!(world.pending().await, id);
    world.answer(&id, Verdict::Approve).await;
    let world = world.restart(Plan::default()).await;
    assert_eq!(
        world.proxy.approvals().show(&id).unwrap().state,
        ApprovalState::Approved
    );
    assert_eq!(
        world
            .http1(HOST)
            .await
            .call("POST", "/v1/refunds", "amount=12000")
            .await
            .status,
        200
    );
    // Used is durable, too.
    let world = world.restart(Plan::default()).await;
    let answer = world
        .http1(HOST)
        .await
        .call("POST", "/v1/refunds", "amount=12000")
        .await;
    assert_eq!(answer.reason(), "approval_required");
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_to_decide_on_is_refused() {
    let plan = Plan {
        tune: |settings| settings.limits.body_bytes = 1024,
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let body = format!("amount=1&pad={}", "x".repeat(4096));
    let answer = world
        .http1(HOST)
        .await
        .call("POST", "/v1/refunds", &body)
        .await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (413, "body_too_large")
    );
    assert!(world.upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_each_change() {
    let world = World::planned(patient()).await;
    let mut changes = world.proxy.approvals().watch();
    let mut client = world.http1(HOST).await;
    let call =
        tokio::spawn(async move { client.call("POST", "/v1/refunds", "amount=12000").await });
    let requested = changes.recv().await.unwrap();
    assert_eq!(requested.state, ApprovalState::Pending);
    world.answer(&requested.id, Verdict::Approve).await;
    assert_eq!(changes.recv().await.unwrap().state, ApprovalState::Approved);
    assert_eq!(changes.recv().await.unwrap().state, ApprovalState::Used);
    assert_eq!(call.await.unwrap().status, 200);
}
