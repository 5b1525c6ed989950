//! Bounds and overload: each bound refuses by its name, and one agent's flood leaves the other agents' calls alone.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use policies::{Reason, WorkloadId};
use support::agent::Client;
use support::upstream::Reply;
use support::{HOST, OTHER_WORKLOAD, Plan, WORKLOAD, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

async fn connect(world: &World, workload: WorkloadId) -> TlsStream<TcpStream> {
    let address = world.address_of(HOST).await;
    let stream = world.dial_as(workload, SocketAddr::new(address, 443)).await;
    world.shake(stream, HOST, b"http/1.1").await
}

/// A call whose body is awaited: it is under way for as long as the stream is held.
async fn half_a_call(world: &World, workload: WorkloadId) -> TlsStream<TcpStream> {
    let mut stream = connect(world, workload).await;
    let head = "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 4\r\n\r\nab";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// What is answered, until the peer closes or has said `until`.
async fn answer(stream: &mut TlsStream<TcpStream>, until: &str) -> String {
    let mut all = Vec::new();
    let reading = async {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut part).await {
            all.extend_from_slice(&part[..length]);
            if String::from_utf8_lossy(&all).contains(until) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), reading).await;
    String::from_utf8_lossy(&all).into_owned()
}

async fn list_as(world: &World, workload: WorkloadId) -> (u16, String) {
    let mut client = Client::http1(connect(world, workload).await).await;
    let answer = client.call("GET", "/v1/charges", "").await;
    (answer.status, answer.reason())
}

async fn refused(world: &World, reason: Reason) {
    for _ in 0..1000 {
        if world.counts.refused.lock().unwrap().contains(&reason) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{reason}: {:?}", world.counts.refused.lock().unwrap());
}

/// Waits until this many intents were written.
async fn intents(world: &World, many: usize) {
    let count = |records: &[audit::Entry]| {
        let intents = records.iter().map(audit::Entry::record);
        intents.filter(|it| it.kind == audit::Kind::Intent).count()
    };
    world.records_until(|records| count(records) >= many).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_floods_with_calls_is_refused_and_the_others_calls_go_on() {
    let plan = Plan {
        tune: |settings| {
            settings.limits.calls = 6;
            settings.limits.calls_per_agent = 6;
        },
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let mut flood = Vec::new();
    for _ in 0..6 {
        flood.push(half_a_call(&world, WORKLOAD).await);
    }
    intents(&world, 6).await;
    for _ in 0..20 {
        assert_eq!(
            list_as(&world, WORKLOAD).await,
            (503, "overloaded".to_owned())
        );
    }
    // Nothing is left of what all share, and the other agent has its even part of it all the same.
    let _others = [
        half_a_call(&world, OTHER_WORKLOAD).await,
        half_a_call(&world, OTHER_WORKLOAD).await,
    ];
    intents(&world, 8).await;
    assert_eq!(list_as(&world, OTHER_WORKLOAD).await.0, 200);
    // A flood that is refused is counted whole, and written down only as far as it tells something.
    let counted = world.counts.refused.lock().unwrap().len();
    assert_eq!((counted, world.refusals().await.len()), (20, 10));
    // What ended makes room again.
    for stream in &mut flood {
        stream.write_all(b"cd").await.unwrap();
        assert!(answer(stream, "true").await.contains(" 200 "));
    }
    drop(flood);
    assert_eq!(list_as(&world, WORKLOAD).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agents_connections_leave_room_for_the_others() {
    let plan = Plan {
        tune: |settings| {
            settings.limits.connections = 4;
            settings.limits.connections_per_agent = 4;
        },
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(connect(&world, WORKLOAD).await);
    }
    let address = world.address_of(HOST).await;
    let mut fifth = world.dial_as(WORKLOAD, SocketAddr::new(address, 443)).await;
    assert!(matches!(fifth.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    refused(&world, Reason::Overloaded).await;
    assert_eq!(list_as(&world, OTHER_WORKLOAD).await.0, 200);
    open.clear();
    let mut answer = None;
    for _ in 0..100 {
        let dialled = world.dial_as(WORKLOAD, SocketAddr::new(address, 443)).await;
        let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
        if let Ok(stream) = world.tls(b"http/1.1").connect(name, dialled).await {
            let mut client = Client::http1(stream).await;
            answer = Some(client.call("GET", "/v1/charges", "").await.status);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(answer, Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_too_slowly_is_refused_by_name_and_an_idle_connection_is_closed() {
    let plan = Plan {
        tune: |settings| settings.limits.head = Duration::from_millis(400),
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let mut idle = connect(&world, WORKLOAD).await;
    let request = "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n";
    idle.write_all(request.as_bytes()).await.unwrap();
    assert!(answer(&mut idle, "true").await.contains(" 200 "));
    assert_eq!(
        answer(&mut idle, "never").await,
        "",
        "closed without a word"
    );
    assert!(world.counts.refused.lock().unwrap().is_empty());

    let mut slow = connect(&world, WORKLOAD).await;
    for byte in request.as_bytes() {
        if slow.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert!(!answer(&mut slow, "never").await.contains(" 200 "));
    refused(&world, Reason::RequestTimeout).await;
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_coming_ends_its_call_by_name() {
    let plan = Plan {
        tune: |settings| settings.limits.stall = Duration::from_millis(300),
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let mut stream = half_a_call(&world, WORKLOAD).await;
    assert!(answer(&mut stream, "request_timeout").await.contains("408"));
    let ended = |records: &[audit::Entry]| {
        let mut records = records.iter().map(audit::Entry::record);
        records
            .any(|it| it.kind == audit::Kind::Outcome && it.reason == Some(Reason::RequestTimeout))
    };
    world.records_until(ended).await;
    assert!(world.upstream.seen().is_empty(), "no whole request");
    // Positive control: a body that comes slowly, but comes, is passed on.
    let mut stream = half_a_call(&world, WORKLOAD).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    stream.write_all(b"cd").await.unwrap();
    assert!(answer(&mut stream, "true").await.contains(" 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_takes_is_given_up_by_name() {
    let plan = Plan {
        tune: |settings| settings.limits.stall = Duration::from_millis(300),
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    world.upstream.answers(Reply {
        chunks: vec![Bytes::from(vec![b'a'; 64 << 20])],
        ..Reply::default()
    });
    let request = b"GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n";
    let mut stream = connect(&world, WORKLOAD).await;
    stream.write_all(request).await.unwrap();
    refused(&world, Reason::AnswerNotTaken).await;
    let given_up = |records: &[audit::Entry]| {
        let mut lines = records.iter().map(audit::Entry::line);
        lines.any(|line| line.contains("\"outcome\":\"aborted\""))
    };
    world.records_until(given_up).await;
    // Positive control: who reads gets it all, however long it takes.
    let mut stream = connect(&world, WORKLOAD).await;
    stream.write_all(request).await.unwrap();
    let (mut part, mut total) = (vec![0; 1 << 20], 0);
    while total < 64 << 20 {
        total += stream.read(&mut part).await.unwrap();
        if total % (16 << 20) < 1 << 14 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_read_ahead_are_bounded_for_each_agent() {
    let plan = Plan {
        tune: |settings| {
            settings.limits.buffered = 64 * 1024;
            settings.limits.buffered_per_agent = 64 * 1024;
        },
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let head = "POST /v1/refunds HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 100000\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n\r\namount=1&x=";
    let begun = [head.as_bytes(), &[b'a'; 40_000]].concat();
    let mut first = connect(&world, WORKLOAD).await;
    first.write_all(&begun).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut second = connect(&world, WORKLOAD).await;
    second.write_all(&begun).await.unwrap();
    let said = answer(&mut second, "overloaded").await;
    assert!(
        said.contains("503") && said.contains("overloaded"),
        "{said}"
    );
    // The other agent has its even part of the budget.
    let small = head.replace("100000", "31");
    let mut other = connect(&world, OTHER_WORKLOAD).await;
    let rest = "a".repeat(20);
    other.write_all(small.as_bytes()).await.unwrap();
    other.write_all(rest.as_bytes()).await.unwrap();
    let said = answer(&mut other, "reason").await;
    assert!(!said.is_empty() && !said.contains("overloaded"), "{said}");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_bound_is_refused_or_broken_off() {
    let plan = Plan {
        tune: |settings| settings.limits.request_bytes = 1_000,
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let mut stream = connect(&world, WORKLOAD).await;
    let head = "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 1001\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(answer(&mut stream, "body_too_large").await.contains("413"));
    assert_eq!(
        *world.counts.refused.lock().unwrap(),
        [Reason::BodyTooLarge]
    );

    let mut stream = connect(&world, WORKLOAD).await;
    let head =
        "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = format!("3e9\r\n{}\r\n0\r\n\r\n", "a".repeat(1001));
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(chunk.as_bytes()).await.unwrap();
    assert!(
        !answer(&mut stream, "body_too_large")
            .await
            .contains(" 200 ")
    );
    let ended = |records: &[audit::Entry]| {
        let mut records = records.iter().map(audit::Entry::record);
        records.any(|it| it.kind == audit::Kind::Outcome && it.reason == Some(Reason::BodyTooLarge))
    };
    world.records_until(ended).await;
    assert!(world.upstream.seen().is_empty(), "no whole request");
    // Positive control.
    let mut client = Client::http1(connect(&world, WORKLOAD).await).await;
    let answer = client.call("POST", "/v1/notes", &"a".repeat(1000)).await;
    assert_eq!(answer.status, 200);
}
