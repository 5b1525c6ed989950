//! The name of the CA-trust probe: answered by the proxy itself, and nothing of it leaves.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use mitm_proxy::PROBE_HOST;
use policies::Reason;
use support::{HOST, World, agent};

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_is_answered_by_the_proxy_and_nothing_of_it_leaves() {
    let world = World::start().await;
    for mut client in [world.http1(PROBE_HOST).await, world.http2(PROBE_HOST).await] {
        let answer = client
            .call_to(PROBE_HOST, "POST", "/v1/refunds", "amount=1")
            .await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains("acme"), "{answer:?}");
        let git = "/info/refs?service=git-upload-pack";
        let answer = client.call_to(PROBE_HOST, "GET", git, "").await;
        assert!(answer.body.starts_with("001e#"), "{answer:?}");
    }
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.records().await.len(), 0);
    assert_eq!(world.counts.calls.lock().unwrap().len(), 0);
    // Positive control: the same call to a name of a connection is a call.
    let answer = world.http1(HOST).await.call("POST", "/v1/notes", "x").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_is_no_way_around_the_name_that_was_dialled() {
    let world = World::start().await;
    // Dialled as the probe, and named otherwise, and the other way round.
    for (dialled, named) in [(PROBE_HOST, HOST), (HOST, PROBE_HOST)] {
        let stream = world.dial(dialled, 443).await;
        let stream = world.shake(stream, named, b"http/1.1").await;
        let mut client = agent::Client::http1(stream).await;
        let answer = client.call_to(named, "GET", "/v1/charges", "").await;
        assert_eq!(
            answer.reason(),
            Reason::SniMismatch.as_str(),
            "{dialled} {named}"
        );
    }
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_trust_the_ca_fails_at_the_probe_and_is_counted() {
    let world = World::start().await;
    let stream = world.dial(PROBE_HOST, 443).await;
    let nothing = agent::connector(rustls::RootCertStore::empty(), b"http/1.1");
    let name = rustls_pki_types::ServerName::try_from(PROBE_HOST).unwrap();
    assert!(nothing.connect(name, stream).await.is_err());
    for _ in 0..200 {
        if world.refusals().await.contains(&Reason::TlsRefusedByClient) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("not recorded");
}
