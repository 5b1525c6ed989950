//! Hosts that speak no HTTP: reached only where a connection says so, decided, bounded and recorded as one call.

use std::time::Duration;

use crate::support::peer::{Peer, Stream, exchange};
use crate::support::{Plan, World};
use policies::{Reason, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const DATABASE: &str = "db.pay.test";
const AT: &str = "db.pay.test:5432";

const AGENT: &str = r#"
tenant = "acme"
name = "support"
owner = "bob"
stage = "write"

[[connections]]
name = "pay"
connector = "pay"
hosts = ["api.pay.test"]
credential = "pay-live"

[[connections]]
name = "database"
connector = "opaque"
hosts = ["db.pay.test:5432"]
"#;

/// A server that speaks first, and then says everything back.
async fn database() -> Peer {
    Peer::start(None, |mut stream: Stream| async move {
        stream.write_all(b"READY\n").await.unwrap();
        let mut part = [0; 1024];
        while let Ok(length @ 1..) = stream.read(&mut part).await {
            if stream.write_all(&part[..length]).await.is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"BYE\n").await;
    })
    .await
}

async fn world(peer: &Peer, policies: &'static str) -> World {
    let world = World::planned(Plan {
        agent: AGENT,
        policies,
        ..Plan::default()
    })
    .await;
    world.lead(peer, AT, |_| {});
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_host_is_reached_at_its_port_alone_and_on_record() {
    let peer = database().await;
    let world = world(&peer, "").await;
    let mut stream = world.dial(DATABASE, 5432).await;
    assert_eq!(exchange(&mut stream, b"", "READY\n").await, "READY\n");
    assert_eq!(
        exchange(&mut stream, b"\x16\0select", "select").await,
        "\x16\0select"
    );
    // Half-closed: what the other side has to say still comes.
    stream.shutdown().await.unwrap();
    assert_eq!(exchange(&mut stream, b"", "\0").await, "BYE\n");
    let records = world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
        })
        .await;
    let intent = records[0].record();
    assert_eq!(intent.method.as_deref(), Some("CONNECT"));
    assert_eq!(intent.host.as_deref(), Some(DATABASE));
    assert_eq!(
        intent.capability.as_ref().unwrap().to_string(),
        "opaque/connect"
    );
    let outcome = records[1].record();
    assert_eq!(
        (outcome.request_bytes, outcome.response_bytes),
        (Some(8), Some(18))
    );
    assert_eq!(outcome.reason, None);
    // Positive control and property: the same bytes at another port are read as HTTP, and refused.
    let mut stream = world.dial(DATABASE, 5433).await;
    assert_eq!(exchange(&mut stream, b"\0\0\0\x08", "\0").await, "");
    assert!(
        world
            .counts
            .refused
            .lock()
            .unwrap()
            .contains(&Reason::NotHttp)
    );
    // HTTP's own CONNECT is not this capability.
    let stream = world.dial("api.pay.test", 443).await;
    let mut stream = world.shake(stream, "api.pay.test", b"http/1.1").await;
    let head = b"CONNECT api.pay.test:443 HTTP/1.1\r\nHost: api.pay.test\r\n\r\n";
    assert!(
        exchange(&mut stream, head, "}")
            .await
            .contains("connect_method")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opaque_connection_is_decided_held_and_bounded_like_any_call() {
    const ASK: &str = r#"
@id("database-needs-finance") @approval("finance")
forbid (principal, action == opaque::Action::"connect", resource)
unless { context.approvals.contains(Group::"finance") };
"#;
    let peer = database().await;
    let world = world(&peer, ASK).await;
    let mut stream = world.dial(DATABASE, 5432).await;
    assert_eq!(exchange(&mut stream, b"select", "\0").await, "");
    let id = world.pending().await;
    assert_eq!(world.refusals().await, [Reason::ApprovalRequired]);
    world.answer(&id, Verdict::Approve).await;
    world.lead(&peer, AT, |settings| settings.limits.tunnel_bytes = 12);
    let mut stream = world.dial(DATABASE, 5432).await;
    assert_eq!(
        exchange(&mut stream, b"123456", "123456").await,
        "READY\n123456"
    );
    assert_eq!(exchange(&mut stream, b"1234567", "1234567").await, "");
    let records = world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.line().contains("tunnel_limit"))
        })
        .await;
    assert_eq!(
        records.last().unwrap().record().reason,
        Some(Reason::TunnelLimit)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_agents_opaque_connection_is_cut() {
    let peer = database().await;
    let world = world(&peer, "").await;
    let mut stream = world.dial(DATABASE, 5432).await;
    assert_eq!(exchange(&mut stream, b"", "READY\n").await, "READY\n");
    world
        .workloads
        .set_disabled(&"acme/support".parse().unwrap(), true);
    let end = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut [0; 8])).await;
    assert!(matches!(end.unwrap(), Ok(0) | Err(_)));
    let mut stream = world.dial(DATABASE, 5432).await;
    assert_eq!(exchange(&mut stream, b"", "READY\n").await, "");
}
