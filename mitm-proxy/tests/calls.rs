//! One call, end to end: what is allowed arrives upstream with the credential; what is not never arrives.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use audit::Entry;
use bytes::Bytes;
use mitm_proxy::meter::Stage;
use policies::{CredentialId, Reason};
use support::upstream::Reply;
use support::{HOST, PLACEHOLDER, Plan, SECRET, World};

fn has(records: &[Entry], kind: &str) -> bool {
    records
        .iter()
        .any(|entry| entry.line().contains(&format!("\"kind\":\"{kind}\"")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_through_with_the_real_credential_and_without_the_placeholder() {
    for (agent_h2, upstream_h2) in [(false, false), (true, false), (false, true), (true, true)] {
        let alpn: &[u8] = if upstream_h2 { b"h2" } else { b"http/1.1" };
        let world = World::planned(Plan {
            upstream_alpn: vec![alpn.to_vec()],
            ..Plan::default()
        })
        .await;
        let mut client = if agent_h2 {
            world.http2(HOST).await
        } else {
            world.http1(HOST).await
        };
        let answer = client.call("GET", "/v1/charges?limit=3", "").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "{\"ok\":true}"),
            "{agent_h2} {upstream_h2}"
        );
        let seen = world.upstream.seen();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].headers["authorization"], format!("Bearer {SECRET}"));
        assert_eq!(
            (seen[0].path.as_str(), seen[0].query.as_deref()),
            ("/v1/charges", Some("limit=3"))
        );
        assert!(!format!("{:?}", seen[0]).contains(PLACEHOLDER));
        let named = seen[0].authority.clone().or(seen[0]
            .headers
            .get("host")
            .map(|host| host.to_str().unwrap().into()));
        assert_eq!(named.as_deref(), Some(HOST));
        let records = world.records_until(|records| has(records, "outcome")).await;
        assert!(has(&records, "intent"));
        let outcome = records.last().unwrap().record();
        assert_eq!(
            (outcome.status, outcome.credential_version),
            (Some(200), Some(1))
        );
        assert_eq!(outcome.response_bytes, Some(11));
        assert!(!records.iter().any(|entry| entry.line().contains(SECRET)));
        assert_eq!(
            *world.counts.calls.lock().unwrap(),
            [("pay/charges.list".to_owned(), "allow")]
        );
        for stage in [Stage::Decision, Stage::Upstream, Stage::Whole] {
            assert!(
                world.counts.stages.lock().unwrap().contains(&stage),
                "{stage:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reused_on_both_legs() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    for _ in 0..5 {
        assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
    }
    assert_eq!(*world.upstream.connections.lock().unwrap(), 1);
    assert_eq!(*world.counts.connections.lock().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_do_not_share_upstream_connections() {
    let world = World::start().await;
    let destination = std::net::SocketAddr::new(world.address_of(HOST).await, 443);
    for workload in [
        support::WORKLOAD,
        support::OTHER_WORKLOAD,
        support::WORKLOAD,
    ] {
        let stream = world.dial_as(workload, destination).await;
        let mut client =
            support::agent::Client::http1(world.shake(stream, HOST, b"http/1.1").await).await;
        assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // The first agent's second connection found its own upstream connection again; the other agent's was never offered.
    assert_eq!(*world.upstream.connections.lock().unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why_and_leave_the_connection_usable() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    let denied = client.call("DELETE", "/v1/customers/cus_1", "").await;
    let unmapped = client.call("GET", "/v1/balance", "").await;
    let ambiguous = client.call("GET", "/v1/../v1/charges", "").await;
    insta::assert_json_snapshot!("denied", denied.problem());
    insta::assert_json_snapshot!("unmapped", unmapped.problem());
    insta::assert_json_snapshot!("ambiguous", ambiguous.problem());
    for answer in [&denied, &unmapped, &ambiguous] {
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(!answer.headers.contains_key("retry-after"));
        assert_eq!(
            answer.status,
            u16::try_from(answer.problem()["status"].as_u64().unwrap()).unwrap()
        );
    }
    let expected = [
        Reason::PolicyDenied,
        Reason::Unmapped,
        Reason::AmbiguousRequest,
    ];
    assert_eq!(world.refusals().await, expected);
    assert_eq!(*world.counts.refused.lock().unwrap(), expected);
    assert!(world.upstream.seen().is_empty());
    // Positive control: the same connection still serves what is allowed.
    assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_upstream_echoes_never_reaches_the_agent() {
    let world = World::start().await;
    let halves = SECRET.split_at(9);
    world.upstream.answers(Reply {
        headers: vec![("x-echo", format!("Bearer {SECRET}"))],
        chunks: [
            "{\"token\":\"",
            halves.0,
            halves.1,
            "\",\"twice\":\"",
            SECRET,
            "\"}",
        ]
        .map(|part| Bytes::copy_from_slice(part.as_bytes()))
        .to_vec(),
        trailers: Some(("x-last", SECRET.to_owned())),
        ..Reply::default()
    });
    // Positive control: upstream really sends the secret in this way.
    assert!(
        world
            .upstream
            .reply
            .lock()
            .unwrap()
            .chunks
            .concat()
            .windows(SECRET.len())
            .any(|w| w == SECRET.as_bytes())
    );
    for h2 in [false, true] {
        let mut client = if h2 {
            world.http2(HOST).await
        } else {
            world.http1(HOST).await
        };
        let answer = client.call("GET", "/v1/echo", "").await;
        let stars = "*".repeat(SECRET.len());
        assert_eq!(
            answer.body,
            format!("{{\"token\":\"{stars}\",\"twice\":\"{stars}\"}}")
        );
        assert_eq!(answer.headers["x-echo"], format!("Bearer {stars}"));
        if let Some(trailers) = &answer.trailers {
            assert_eq!(trailers["x-last"], stars);
        }
        assert!(!format!("{answer:?}").contains(SECRET));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_scrubbed_is_not_relayed() {
    let world = World::start().await;
    let encoded = |encoding: &str| Reply {
        headers: vec![("content-encoding", encoding.into())],
        ..Reply::text("zz")
    };
    world.upstream.answers(encoded("compress"));
    let mut client = world.http1(HOST).await;
    let answer = client.call("GET", "/v1/echo", "").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "response_encoding")
    );
    // Upstream was asked for a plain answer, whatever the agent can read; and for the whole of it.
    assert_eq!(
        world.upstream.seen()[0].headers["accept-encoding"],
        "identity"
    );
    let records = world.records_until(|records| has(records, "outcome")).await;
    assert_eq!(
        records.last().unwrap().record().reason,
        Some(Reason::ResponseEncoding)
    );
    // Positive control: an encoding that hides nothing passes.
    world.upstream.answers(encoded("identity"));
    assert_eq!(client.call("GET", "/v1/echo", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_cannot_be_read_in_ranges() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    let request = http::Request::get("/v1/echo")
        .header("host", HOST)
        .header("range", "bytes=0-4")
        .body(http_body_util::Full::new(Bytes::new()))
        .unwrap();
    client.send(request).await;
    assert!(!world.upstream.seen()[0].headers.contains_key("range"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_credential_refuses_the_next_call() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
    let id: CredentialId = "acme/pay-live".parse().unwrap();
    world.vault.revoke(&id, support::now()).unwrap();
    let answer = client.call("GET", "/v1/charges", "").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (403, "credential_unavailable")
    );
    assert_eq!(world.upstream.seen().len(), 1);
    let failed = |records: &[Entry]| {
        records
            .last()
            .is_some_and(|entry| entry.record().reason == Some(Reason::CredentialUnavailable))
    };
    world.records_until(failed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_the_credential_it_needs_sends_nothing() {
    const WITHOUT: &str = "tenant = \"acme\"\nname = \"support\"\nowner = \"bob\"\nstage = \"write\"\n\
        [[connections]]\nname = \"pay\"\nconnector = \"pay\"\n";
    let without = World::planned(Plan {
        agent: WITHOUT,
        ..Plan::default()
    })
    .await;
    let answer = without
        .http1(HOST)
        .await
        .call("GET", "/v1/charges", "")
        .await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (403, "credential_unavailable"),
        "{answer:?}"
    );
    assert!(without.upstream.seen().is_empty());
    // Positive control: the same call where the connection names the credential.
    let with = World::start().await;
    let answer = with.http1(HOST).await.call("GET", "/v1/charges", "").await;
    assert_eq!((answer.status, with.upstream.seen().len()), (200, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_with_a_body_is_refused_though_nothing_else_reads_it() {
    for h2 in [false, true] {
        let world = World::start().await;
        let mut client = if h2 {
            world.http2(HOST).await
        } else {
            world.http1(HOST).await
        };
        let answer = client.call("GET", "/v1/charges", "limit=100").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (400, "ambiguous_request"),
            "{answer:?}"
        );
        assert!(world.upstream.seen().is_empty());
        // Positive control.
        assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_refuses_new_connections_and_cuts_open_ones() {
    let world = World::start().await;
    let agent = "acme/support".parse().unwrap();
    let mut client = world.http1(HOST).await;
    assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
    world.workloads.set_disabled(&agent, true);
    let support::agent::Client::Http1(sender) = &mut client else {
        unreachable!()
    };
    let cut = async {
        while !sender.is_closed() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_millis(100), cut)
        .await
        .expect("cut within 100 ms");
    let mut stream = world.dial(HOST, 443).await;
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)
        .await
        .ok();
    assert!(rest.is_empty());
    world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.record().reason == Some(Reason::AgentDisabled))
        })
        .await;
    // Positive control: it is the switch that refused.
    world.workloads.set_disabled(&agent, false);
    assert_eq!(
        world
            .http1(HOST)
            .await
            .call("GET", "/v1/charges", "")
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_not_lent_in_the_clear() {
    let world = World::start().await;
    let stream = world.dial(HOST, 80).await;
    let mut client = support::agent::Client::http1(stream).await;
    let answer = client.call("GET", "/v1/charges", "").await;
    assert_eq!(answer.status / 100, 4, "{answer:?}");
    assert!(
        ["protocol_unsupported", "host_unknown"].contains(&answer.reason().as_str()),
        "{answer:?}"
    );
    assert!(world.upstream.seen().is_empty());
}
