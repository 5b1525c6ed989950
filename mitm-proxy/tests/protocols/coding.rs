//! Compressed bodies: searched for what was lent, read for a decision, and never a way around either.

use std::io::Write as _;

use crate::support::agent::{Answer, Client};
use crate::support::peer::{CLEAR, OPEN, Peer};
use crate::support::upstream::Reply;
use crate::support::{HOST, Plan, SECRET, World};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::Request;
use http_body_util::Full;
use policies::Reason;

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
}

/// An answer in this coding, in pieces of a few bytes.
fn encoded(coding: &str, bytes: &[u8]) -> Reply {
    Reply {
        headers: vec![
            ("content-encoding", coding.to_owned()),
            ("content-length", bytes.len().to_string()),
            ("etag", "\"of-the-encoded\"".to_owned()),
        ],
        chunks: bytes.chunks(7).map(Bytes::copy_from_slice).collect(),
        ..Reply::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoded_answer_to_a_call_with_a_lent_credential_is_decoded_and_scrubbed() {
    let plain = format!(
        "{{\"key\":\"{SECRET}\",\"rest\":\"{}\"}}",
        "abc".repeat(100)
    );
    for (coding, bytes) in [
        ("gzip", gzip(plain.as_bytes())),
        ("deflate", zlib(plain.as_bytes())),
        ("zstd", zstd(plain.as_bytes())),
    ] {
        let world = World::start().await;
        world.upstream.answers(encoded(coding, &bytes));
        for _ in 0..2 {
            let answer = world.http1(HOST).await.call("GET", "/v1/echo", "").await;
            assert_eq!(answer.status, 200, "{coding}");
            let hidden = plain.replace(SECRET, &"*".repeat(SECRET.len()));
            assert_eq!(answer.body, hidden, "{coding}");
            for name in ["content-encoding", "etag"] {
                assert!(!answer.headers.contains_key(name), "{coding} {name}");
            }
        }
        // Upstream had been asked for a plain one.
        assert_eq!(
            world.upstream.seen()[0].headers["accept-encoding"],
            "identity"
        );
        let head = world.http1(HOST).await.call("HEAD", "/v1/echo", "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_a_bomb_or_broken_breaks_off_by_name() {
    for (bytes, reason) in [
        (gzip(&vec![0; 8 << 20]), Reason::CompressionBomb),
        (gzip(b"hello")[..12].to_vec(), Reason::ResponseEncoding),
        (
            [gzip(b"one"), gzip(b"two")].concat(),
            Reason::ResponseEncoding,
        ),
    ] {
        let world = World::start().await;
        let mut reply = encoded("gzip", &bytes);
        reply.chunks = vec![Bytes::from(bytes)];
        world.upstream.answers(reply);
        let Client::Http1(mut client) = world.http1(HOST).await else {
            panic!("not HTTP/1");
        };
        let request = Request::get("/v1/echo").header("host", HOST);
        let request = request.body(Full::default()).unwrap();
        // It may break off before its head was flushed.
        let whole = match client.send_request(request).await {
            Ok(answer) => http_body_util::BodyExt::collect(answer.into_body())
                .await
                .is_ok(),
            Err(_) => false,
        };
        assert!(!whole);
        let records = world
            .records_until(|records| {
                records
                    .iter()
                    .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
            })
            .await;
        assert_eq!(records.last().unwrap().record().reason, Some(reason));
    }
}

async fn order(client: &mut Client, kind: &str, coding: &str, body: Vec<u8>) -> Answer {
    let request = Request::post("/order")
        .header("host", CLEAR)
        .header("content-type", kind)
        .header("content-encoding", coding)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    Answer::read(client.send(request).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_body_is_decided_on_as_it_reads_and_sent_as_it_came() {
    const SMALL: &str = r#"
@id("small-orders") forbid (principal, action == open::Action::"order", resource)
when { context.params has amount && context.params.amount > 100 };
"#;
    let peer = Peer::http(None, false).await;
    let plan = Plan {
        policies: SMALL,
        ..Plan::default()
    };
    let world = World::with_peer(&peer, CLEAR, plan).await;
    let json = |amount: u32| format!("{{\"amount\":{amount}}}").into_bytes();
    for (coding, pack) in [
        ("gzip", gzip as fn(&[u8]) -> Vec<u8>),
        ("deflate", zlib),
        ("zstd", zstd),
    ] {
        let mut client = Client::http1(world.dial(OPEN, 8080).await).await;
        let body = pack(&json(7));
        let answer = order(&mut client, "application/json", coding, body.clone()).await;
        assert_eq!(answer.status, 200, "{coding}: {}", answer.body);
        let arrived = peer.arrived().pop().unwrap();
        assert_eq!(arrived.body, body, "{coding}");
        assert_eq!(arrived.headers["content-encoding"], coding);
        // The amount is read: the same shape with another one is denied.
        let answer = order(&mut client, "application/json", coding, pack(&json(700))).await;
        assert_eq!(answer.reason(), "policy_denied", "{coding}");
    }
    let sent = peer.arrived().len();
    // Nine blocks of 128 KiB in four bytes each.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
    for number in 0..9_u32 {
        let head = (128 * 1024_u32) << 3 | 1 << 1 | u32::from(number == 8);
        bomb.extend_from_slice(&head.to_le_bytes()[..3]);
        bomb.push(b' ');
    }
    let digits: String = (0..300_000).map(|number| number.to_string()).collect();
    let large = gzip(format!("{{\"amount\":7,\"x\":\"{digits}\"}}").as_bytes());
    for (kind, coding, body, reason) in [
        ("application/json", "zstd", bomb, "compression_bomb"),
        ("application/json", "gzip", large, "body_too_large"),
        (
            "application/json",
            "gzip",
            [gzip(&json(7)), gzip(&json(700))].concat(),
            "ambiguous_request",
        ),
        (
            "application/json",
            "gzip",
            gzip(&json(7))[..15].to_vec(),
            "malformed_request",
        ),
        ("application/json", "gzip", json(7), "ambiguous_request"),
        (
            "application/json",
            "gzip, gzip",
            gzip(&gzip(&json(7))),
            "ambiguous_request",
        ),
        ("application/json", "compress", json(7), "ambiguous_request"),
        // A server that ignores the coding would read the form within the head of the file.
        (
            "application/x-www-form-urlencoded",
            "gzip",
            gzip(b"amount=7"),
            "ambiguous_request",
        ),
    ] {
        let mut client = Client::http1(world.dial(OPEN, 8080).await).await;
        let answer = order(&mut client, kind, coding, body).await;
        assert_eq!(answer.reason(), reason, "{kind} {coding}: {}", answer.body);
    }
    assert_eq!(peer.arrived().len(), sent);
}
