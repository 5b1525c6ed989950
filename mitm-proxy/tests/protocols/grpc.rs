//! gRPC through the path: unary and streaming both ways with trailers, and refusals that a gRPC client can read.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::peer::{CLEAR, OPEN, Peer, SEALED, Stream};
use crate::support::{HOST, PLACEHOLDER, Plan, SECRET, World};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::sync::Semaphore;

const PROMPT: Duration = Duration::from_secs(2);
/// Where the order is what counts, and not the time.
const PATIENCE: Duration = Duration::from_secs(30);

/// One length-prefixed message.
fn message(text: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(text.len()).unwrap());
    bytes.extend_from_slice(text.as_bytes());
    bytes.freeze()
}

/// A gRPC server without any library of gRPC: answers each message with itself, and ends with `grpc-status: 0`.
async fn serve(stream: Stream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let head = Response::builder()
                .header("content-type", "application/grpc")
                .header("x-te", request.headers()["te"].clone())
                .header(
                    "x-accepts",
                    format!("{:?}", request.headers().get("grpc-accept-encoding")),
                )
                .body(())
                .unwrap();
            let coded = request.headers().contains_key("x-answer-coded");
            let mut head = head;
            if coded {
                head.headers_mut()
                    .insert("grpc-encoding", "gzip".parse().unwrap());
            }
            let mut answer = respond.send_response(head, false).unwrap();
            let credential = request.headers().get("authorization").cloned();
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                answer.send_data(data, false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            trailers.insert("grpc-message", "fine".parse().unwrap());
            if let Some(credential) = credential {
                trailers.insert("x-credential", credential);
            }
            answer.send_trailers(trailers).unwrap();
        });
    }
}

async fn client(world: &World, name: &str) -> SendRequest<Bytes> {
    let stream = world.dial(name, 443).await;
    let stream = world.shake(stream, name, b"h2").await;
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn call(authority: &str, method: &str) -> Request<()> {
    Request::post(format!("https://{authority}/pkg.Echo/{method}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .header("grpc-accept-encoding", "gzip")
        .header("authorization", format!("Bearer {PLACEHOLDER}"))
        .body(())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_call_passes_with_its_trailers() {
    let peer = Peer::start(Some(b"h2"), serve).await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let mut client = client(&world, OPEN).await;
    let (answer, mut send) = client.send_request(call(OPEN, "Unary"), false).unwrap();
    send.send_data(message("hello"), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert_eq!(answer.headers()["x-te"], "trailers");
    // Nothing was lent, so compression is between the ends.
    assert_eq!(answer.headers()["x-accepts"], "Some(\"gzip\")");
    let mut body = answer.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), message("hello"));
    while let Some(data) = body.data().await {
        assert_eq!(data.unwrap(), "");
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"0".parse().unwrap(), &"fine".parse().unwrap())
    );
    // The agent's own credential went nowhere.
    assert!(!trailers.contains_key("x-credential"));
    let records = world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.line().contains("\"outcome\""))
        })
        .await;
    assert_eq!(records.last().unwrap().record().status, Some(200));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_stream_both_ways_one_by_one_over_tls_and_in_the_clear() {
    for clear in [false, true] {
        let alpn: Option<&[u8]> = if clear { None } else { Some(b"h2") };
        let peer = Peer::start(alpn, serve).await;
        let at = if clear { CLEAR } else { SEALED };
        let world = World::with_peer(&peer, at, Plan::default()).await;
        let mut client = if clear {
            let stream = world.dial(OPEN, 8080).await;
            let (client, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            client.ready().await.unwrap()
        } else {
            client(&world, OPEN).await
        };
        let mut request = call(OPEN, "Chat");
        if clear {
            *request.uri_mut() = format!("http://{CLEAR}/pkg.Echo/Chat").parse().unwrap();
        }
        let (answer, mut send) = client.send_request(request, false).unwrap();
        // The answer's head comes before any message was sent: bidirectional streams need that.
        let answer = tokio::time::timeout(PROMPT, answer).await.unwrap().unwrap();
        let mut body = answer.into_body();
        for number in 0..5 {
            let sent = message(&number.to_string());
            send.send_data(sent.clone(), false).unwrap();
            let received = tokio::time::timeout(PROMPT, body.data()).await;
            assert_eq!(received.unwrap().unwrap().unwrap(), sent, "{clear}");
        }
        send.send_data(Bytes::new(), true).unwrap();
        while let Some(data) = body.data().await {
            assert_eq!(data.unwrap(), "");
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_streams_its_answers_one_by_one() {
    let may = Arc::new(Semaphore::new(0));
    let permits = Arc::clone(&may);
    // One answer to the one message for each permit.
    let serve = move |stream| {
        let may = Arc::clone(&permits);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let may = Arc::clone(&may);
                tokio::spawn(async move {
                    let asked = request.into_body().data().await.unwrap().unwrap();
                    let head = Response::builder().header("content-type", "application/grpc");
                    let mut answer = respond
                        .send_response(head.body(()).unwrap(), false)
                        .unwrap();
                    for _ in 0..3 {
                        may.acquire().await.unwrap().forget();
                        answer.send_data(asked.clone(), false).unwrap();
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    answer.send_trailers(trailers).unwrap();
                });
            }
        }
    };
    let peer = Peer::start(Some(b"h2"), serve).await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let mut client = client(&world, OPEN).await;
    let (answer, mut send) = client.send_request(call(OPEN, "Chat"), false).unwrap();
    let asked = message("tell me");
    send.send_data(asked.clone(), true).unwrap();
    let mut body = tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap()
        .unwrap();
    let body = body.body_mut();
    for _ in 0..3 {
        // The next one is sent only now that the one before has arrived.
        may.add_permits(1);
        let told = tokio::time::timeout(PATIENCE, body.data()).await;
        assert_eq!(told.unwrap().unwrap().unwrap(), asked);
    }
    assert!(body.data().await.is_none());
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_streams_its_messages_one_by_one() {
    let arrived = Arc::<Mutex<Vec<Bytes>>>::default();
    let seen = Arc::clone(&arrived);
    let serve = move |stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                        if !data.is_empty() {
                            seen.lock().unwrap().push(data);
                        }
                    }
                    // The one answer, after the last message.
                    let head = Response::builder().header("content-type", "application/grpc");
                    let mut answer = respond
                        .send_response(head.body(()).unwrap(), false)
                        .unwrap();
                    let count = seen.lock().unwrap().len().to_string();
                    answer.send_data(message(&count), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    answer.send_trailers(trailers).unwrap();
                });
            }
        }
    };
    let peer = Peer::start(Some(b"h2"), serve).await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let mut client = client(&world, OPEN).await;
    let (answer, mut send) = client.send_request(call(OPEN, "Chat"), false).unwrap();
    for number in 0..3 {
        let part = message(&number.to_string());
        send.send_data(part.clone(), false).unwrap();
        let comes = async {
            while arrived.lock().unwrap().last() != Some(&part) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // Before the next one is sent, and before there is any answer.
        tokio::time::timeout(PATIENCE, comes).await.unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
    let mut body = tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap()
        .unwrap();
    let body = body.body_mut();
    assert_eq!(body.data().await.unwrap().unwrap(), message("3"));
    while let Some(data) = body.data().await {
        assert_eq!(data.unwrap(), "");
    }
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_status_that_a_grpc_client_reads() {
    let peer = Peer::start(Some(b"h2"), serve).await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let mut client = client(&world, OPEN).await;
    let (answer, mut send) = client.send_request(call(OPEN, "Wipe"), false).unwrap();
    let _ = send.send_data(message("hello"), true);
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.body().is_end_stream(), "trailers only");
    let headers = answer.headers();
    assert_eq!(headers["grpc-status"], "7");
    assert_eq!(headers["content-type"], "application/grpc");
    assert_eq!(headers["sluice-refusal"], "unmapped");
    assert!(
        headers["grpc-message"]
            .to_str()
            .unwrap()
            .starts_with("unmapped: "),
        "{headers:?}"
    );
    assert_eq!(world.refusals().await, [policies::Reason::Unmapped]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lent_credential_is_scrubbed_and_compressed_messages_that_could_hide_it_are_refused() {
    let peer = Peer::start(Some(b"h2"), serve).await;
    let world = World::planned(Plan {
        agent: crate::support::peer::AGENT,
        ..Plan::default()
    })
    .await;
    world.lead(&peer, &format!("{HOST}:443"), |_| {});
    let mut client = client(&world, HOST).await;
    let request = |coded: bool| {
        let mut request = call(HOST, "Unary");
        *request.uri_mut() = format!("https://{HOST}/v1/notes").parse().unwrap();
        if coded {
            request
                .headers_mut()
                .insert("x-answer-coded", "1".parse().unwrap());
        }
        request
    };
    let (answer, mut send) = client.send_request(request(false), false).unwrap();
    // The peer sends back what it is told, and the credential among its trailers.
    send.send_data(message(SECRET), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["x-accepts"], "None");
    let mut body = answer.into_body();
    let mut received = Vec::new();
    while let Some(data) = body.data().await {
        received.extend_from_slice(&data.unwrap());
    }
    assert_eq!(received, message(&"*".repeat(SECRET.len())));
    let trailers = body.trailers().await.unwrap().unwrap();
    let shown = trailers["x-credential"].to_str().unwrap();
    assert!(shown.starts_with("Bearer ***") && !shown.contains(SECRET));

    let (answer, mut send) = client.send_request(request(true), false).unwrap();
    let _ = send.send_data(message("hello"), true);
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["sluice-refusal"], "response_encoding");
    assert_eq!(answer.headers()["grpc-status"], "14");
}
