//! Bodies pass as they come, both ways; what is owed to the ledger is written when they end.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::upstream::Reply;
use support::{HOST, Plan, World};
use tokio::sync::mpsc;

const PROMPT: Duration = Duration::from_millis(250);

type Upload = StreamBody<
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send>>,
>;

/// A request body fed from a channel.
fn upload() -> (mpsc::Sender<Bytes>, Upload) {
    let (sender, receiver) = mpsc::channel::<Bytes>(8);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver
            .recv()
            .await
            .map(|chunk| (Ok(Frame::data(chunk)), receiver))
    });
    (sender, StreamBody::new(Box::pin(frames)))
}

#[tokio::test(flavor = "multi_thread")]
async fn server_sent_events_arrive_one_by_one() {
    for h2 in [false, true] {
        let alpn: &[u8] = if h2 { b"h2" } else { b"http/1.1" };
        let world = World::planned(Plan {
            upstream_alpn: vec![alpn.to_vec()],
            ..Plan::default()
        })
        .await;
        let (events, receiver) = mpsc::channel(8);
        world.upstream.answers(Reply {
            headers: vec![("content-type", "text/event-stream".into())],
            stream: Some(Arc::new(Mutex::new(Some(receiver)))),
            ..Reply::default()
        });
        let mut client = if h2 {
            world.http2(HOST).await
        } else {
            world.http1(HOST).await
        };
        let uri = if h2 {
            format!("https://{HOST}/v1/stream")
        } else {
            "/v1/stream".to_owned()
        };
        let mut request = Request::get(uri);
        if !h2 {
            request = request.header("host", HOST);
        }
        let request = request
            .body(http_body_util::Full::new(Bytes::new()))
            .unwrap();
        let mut answer = client.send(request).await;
        for number in 0..5 {
            let event = format!("data: {number}\n\n");
            events.send(Bytes::from(event.clone())).await.unwrap();
            let frame = tokio::time::timeout(PROMPT, answer.body_mut().frame())
                .await
                .expect("an event that was sent");
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), event);
        }
        assert!(
            !world
                .records()
                .await
                .iter()
                .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
        );
        drop(events);
        // HTTP/2 may end a stream with an empty frame.
        while let Some(frame) = answer.body_mut().frame().await {
            assert_eq!(frame.unwrap().into_data().unwrap(), "");
        }
        let records = world
            .records_until(|records| {
                records
                    .iter()
                    .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
            })
            .await;
        let outcome = records.last().unwrap().record();
        assert_eq!(
            (outcome.status, outcome.response_bytes, outcome.reason),
            (Some(200), Some(45), None)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_streams_while_its_answer_streams_back() {
    for (agent_h2, upstream_h2) in [(true, true), (false, false), (true, false)] {
        let alpn: &[u8] = if upstream_h2 { b"h2" } else { b"http/1.1" };
        let world = World::planned(Plan {
            upstream_alpn: vec![alpn.to_vec()],
            ..Plan::default()
        })
        .await;
        world.upstream.answers(Reply {
            echo_live: true,
            ..Reply::default()
        });
        let stream = world.dial(HOST, 443).await;
        let (sender, body) = upload();
        let answer = if agent_h2 {
            let io = TokioIo::new(world.shake(stream, HOST, b"h2").await);
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            let request = Request::post(format!("https://{HOST}/v1/notes"))
                .body(body)
                .unwrap();
            tokio::spawn(async move { client.send_request(request).await.unwrap() })
        } else {
            let io = TokioIo::new(world.shake(stream, HOST, b"http/1.1").await);
            let (mut client, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            let request = Request::post("/v1/notes")
                .header("host", HOST)
                .body(body)
                .unwrap();
            tokio::spawn(async move { client.send_request(request).await.unwrap() })
        };
        sender.send(Bytes::from_static(b"first ")).await.unwrap();
        let mut answer = tokio::time::timeout(Duration::from_secs(2), answer)
            .await
            .expect("an early answer")
            .unwrap();
        let mut received = Vec::new();
        for part in ["", "second ", "third"] {
            if !part.is_empty() {
                sender
                    .send(Bytes::from_static(part.as_bytes()))
                    .await
                    .unwrap();
            }
            let frame = tokio::time::timeout(PROMPT, answer.body_mut().frame())
                .await
                .expect("the echo of a part");
            received.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
        drop(sender);
        while let Some(frame) = answer.body_mut().frame().await {
            received.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
        assert_eq!(received, b"first second third", "{agent_h2} {upstream_h2}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_passes_unchanged_and_is_counted() {
    let world = World::start().await;
    let body = "0123456789abcdef".repeat(256 * 1024);
    world.upstream.answers(Reply::text(&body));
    let mut client = world.http2(HOST).await;
    let answer = client.call("POST", "/v1/notes", &body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == body);
    assert!(world.upstream.seen()[0].body == body);
    let records = world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
        })
        .await;
    let outcome = records.last().unwrap().record();
    let size = Some(u64::try_from(body.len()).unwrap());
    assert_eq!(
        (outcome.request_bytes, outcome.response_bytes),
        (size, size)
    );
    assert!(outcome.request_digest.is_some() && outcome.response_digest.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_leaves_a_stream_ends_it_upstream_and_in_the_ledger() {
    let world = World::start().await;
    let (events, receiver) = mpsc::channel(8);
    let stream = Some(Arc::new(Mutex::new(Some(receiver))));
    world.upstream.answers(Reply {
        stream,
        ..Reply::default()
    });
    let mut client = world.http1(HOST).await;
    let request = Request::get("/v1/stream").header("host", HOST);
    let mut answer = client
        .send(
            request
                .body(http_body_util::Full::new(Bytes::new()))
                .unwrap(),
        )
        .await;
    events
        .send(Bytes::from_static(b"data: 1\n\n"))
        .await
        .unwrap();
    answer.body_mut().frame().await.unwrap().unwrap();
    drop((answer, client));
    let records = world
        .records_until(|records| records.iter().any(|entry| entry.line().contains("aborted")))
        .await;
    let outcome = records.last().unwrap().record();
    assert_eq!(
        (outcome.response_bytes, outcome.credential_version),
        (Some(9), Some(1))
    );
    tokio::time::timeout(Duration::from_secs(2), events.closed())
        .await
        .expect("upstream's stream was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_is_answered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start().await;
    let stream = world.dial(HOST, 443).await;
    let mut stream = world.shake(stream, HOST, b"http/1.1").await;
    let head = "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut part = [0; 1024];
    let length = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut part))
        .await
        .unwrap()
        .unwrap();
    assert!(
        part[..length].starts_with(b"HTTP/1.1 100 Continue"),
        "{}",
        String::from_utf8_lossy(&part[..length])
    );
    stream.write_all(b"hi").await.unwrap();
    let length = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut part))
        .await
        .unwrap()
        .unwrap();
    assert!(
        part[..length].starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&part[..length])
    );
    assert_eq!(world.upstream.seen()[0].body, "hi");
    assert!(!world.upstream.seen()[0].headers.contains_key("expect"));
}
