//! WebSocket through the path: a call like any other until upstream switches, then frames, counted, bounded and scrubbed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::peer::{AGENT, CLEAR, OPEN, Peer, SEALED, Stream, exchange};
use crate::support::{HOST, PLACEHOLDER, Plan, SECRET, World, bundle};
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use policies::{Reason, Verdict};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{accept_hdr_async, client_async};

type Heads = Arc<Mutex<Vec<HeaderMap>>>;
type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// A server that says everything back, and takes the subprotocol `chat.v2`.
async fn echo(stream: Stream, heads: Heads) {
    let mut extra = None;
    #[expect(
        clippy::result_large_err,
        reason = "the library's callback has this type"
    )]
    let taken = |request: &Request, mut response: Response| {
        heads.lock().unwrap().push(request.headers().clone());
        if request.headers().contains_key("sec-websocket-protocol") {
            let chosen = "chat.v2".parse().unwrap();
            response
                .headers_mut()
                .insert("sec-websocket-protocol", chosen);
        }
        extra = request.headers().get("x-split").cloned();
        Ok(response)
    };
    let accepted = accept_hdr_async(stream, taken).await;
    let Ok(mut socket) = accepted else { return };
    if extra.is_some() {
        // The secret in two frames of one message, with a ping between them.
        let (one, two) = SECRET.split_at(7);
        let part = |text: &str, kind, last| {
            Message::Frame(Frame::message(text.to_owned(), OpCode::Data(kind), last))
        };
        socket
            .send(part(&format!("a{one}"), Data::Text, false))
            .await
            .unwrap();
        socket
            .send(Message::Ping("still here".into()))
            .await
            .unwrap();
        socket
            .send(part(&format!("{two}b"), Data::Continue, true))
            .await
            .unwrap();
    }
    while let Some(Ok(message)) = socket.next().await {
        if matches!(message, Message::Text(_) | Message::Binary(_))
            && socket.send(message).await.is_err()
        {
            return;
        }
    }
}

async fn server() -> (Peer, Heads) {
    let heads = Heads::default();
    let seen = Arc::clone(&heads);
    let peer = Peer::start(Some(b"http/1.1"), move |stream| {
        echo(stream, Arc::clone(&seen))
    })
    .await;
    (peer, heads)
}

/// A world where the connection with the credential leads to `peer`.
async fn lent(peer: &Peer, policies: &'static str) -> World {
    let world = World::planned(Plan {
        agent: AGENT,
        policies,
        ..Plan::default()
    })
    .await;
    world.lead(peer, &format!("{HOST}:443"), |_| {});
    world
}

async fn connect(
    world: &World,
    host: &str,
    path: &str,
    more: &[(&'static str, &str)],
) -> Result<(Socket, HeaderMap), Error> {
    let stream = world.dial(host, 443).await;
    let stream = world.shake(stream, host, b"http/1.1").await;
    let mut request = format!("wss://{host}{path}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert(
        "authorization",
        format!("Bearer {PLACEHOLDER}").parse().unwrap(),
    );
    for (name, value) in more {
        headers.insert(*name, value.parse().unwrap());
    }
    let (socket, answer) = client_async(request, stream).await?;
    Ok((socket, answer.headers().clone()))
}

/// Status and reason of a handshake that was refused.
fn refused(result: Result<(Socket, HeaderMap), Error>) -> (u16, String) {
    match result {
        Err(Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let reason = problem["reason"].as_str().unwrap_or_default().to_owned();
            (answer.status().as_u16(), reason)
        }
        other => panic!("not refused: {other:?}"),
    }
}

async fn outcome(world: &World) -> audit::Record {
    let over = |entry: &audit::Entry| entry.line().contains("\"kind\":\"outcome\"");
    let records = world
        .records_until(|records| records.iter().any(over))
        .await;
    records
        .iter()
        .rfind(|entry| over(entry))
        .unwrap()
        .record()
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_a_recorded_call_with_the_lent_credential_and_its_frames_are_scrubbed() {
    let (peer, heads) = server().await;
    let world = lent(&peer, "").await;
    let offer = [
        ("sec-websocket-protocol", "chat.v1, chat.v2"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("x-split", "1"),
    ];
    let (mut socket, head) = connect(&world, HOST, "/v1/socket", &offer).await.unwrap();
    assert_eq!(head["sec-websocket-protocol"], "chat.v2");
    {
        let heads = heads.lock().unwrap();
        assert_eq!(heads[0]["authorization"], format!("Bearer {SECRET}"));
        // Compressed frames could hide what was lent.
        assert!(!heads[0].contains_key("sec-websocket-extensions"));
    }
    let mut received = Vec::new();
    while received.len() < 2 {
        received.push(socket.next().await.unwrap().unwrap());
    }
    let hidden = "*".repeat(SECRET.len());
    assert!(
        received.contains(&Message::Text(format!("a{hidden}b").into())),
        "{received:?}"
    );
    assert!(received.contains(&Message::Ping("still here".into())));
    for (sent, back) in [
        ("hello", "hello".to_owned()),
        (SECRET, hidden.clone()),
        (&format!("x {SECRET} y"), format!("x {hidden} y")),
        // What could be the beginning of the secret is not held back at the end of a message.
        (&SECRET[..5], SECRET[..5].to_owned()),
        ("", String::new()),
    ] {
        socket.send(Message::Text(sent.into())).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(2), socket.next()).await;
        assert_eq!(
            answer.unwrap().unwrap().unwrap(),
            Message::Text(back.into())
        );
    }
    let large = vec![7_u8; 300_000];
    socket
        .send(Message::Binary(large.clone().into()))
        .await
        .unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Binary(large.into())
    );
    assert!(
        !world
            .records()
            .await
            .iter()
            .any(|entry| entry.line().contains("\"outcome\""))
    );
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    let record = outcome(&world).await;
    assert_eq!(
        (record.status, record.reason),
        (Some(101), None),
        "{record:?}"
    );
    // Six messages, an answer to the ping, the goodbye; three frames more came from upstream.
    assert_eq!(record.request_frames, Some(8));
    assert_eq!(record.response_frames, Some(10));
    assert!(record.request_bytes > Some(300_000) && record.response_bytes > Some(300_000));
    assert_eq!(record.credential_version, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_own_refusal_is_passed_on() {
    for status in [401, 403] {
        let peer = Peer::start(Some(b"http/1.1"), move |mut stream: Stream| async move {
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 4\r\nX-Own: 1\r\n\r\nnope");
            exchange(&mut stream, b"", "\r\n\r\n").await;
            stream.write_all(head.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        })
        .await;
        let world = lent(&peer, "").await;
        match connect(&world, HOST, "/v1/socket", &[]).await {
            Err(Error::Http(answer)) => {
                assert_eq!(answer.status().as_u16(), status);
                assert_eq!(answer.headers()["x-own"], "1");
                assert_eq!(answer.body().as_deref(), Some(&b"nope"[..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(outcome(&world).await.status, Some(status));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_that_is_no_websocket_does_not_become_one_and_nothing_else_is_upgraded_to() {
    let (peer, heads) = server().await;
    let world = lent(&peer, "").await;
    // Positive control: the same path is a capability of the agent's.
    let answer = world.http1(HOST).await.call("GET", "/v1/echo", "").await;
    assert_ne!(answer.reason(), "unmapped");
    for (path, more, expected) in [
        ("/v1/echo", ("x-a", "b"), (403, "unmapped")),
        (
            "/v1/socket",
            ("upgrade", "spdy/3"),
            (501, "protocol_unsupported"),
        ),
        (
            "/v1/socket",
            ("upgrade", "websocket, tls/1.0"),
            (501, "protocol_unsupported"),
        ),
        (
            "/v1/socket",
            ("sec-websocket-version", "8"),
            (400, "malformed_request"),
        ),
        (
            "/v1/socket",
            ("sec-websocket-key", "short"),
            (400, "malformed_request"),
        ),
    ] {
        let stream = world.dial(HOST, 443).await;
        let mut stream = world.shake(stream, HOST, b"http/1.1").await;
        let mut fields = vec![
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        fields.retain(|(name, _)| *name != more.0);
        fields.push(more);
        let fields: String = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
        let answer = exchange(&mut stream, head.as_bytes(), "}").await;
        assert!(
            answer.contains(&format!(" {} ", expected.0)) && answer.contains(expected.1),
            "{more:?}: {answer}"
        );
    }
    // A plain GET is not the WebSocket at its path, either.
    let answer = world.http1(HOST).await.call("GET", "/v1/socket", "").await;
    assert_eq!(answer.reason(), "unmapped");
    assert!(heads.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_of_http2_is_answered_in_http1_as_a_server_that_does_not_know_it_does() {
    let peer = Peer::http(None, false).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let mut stream = world.dial(OPEN, 8080).await;
    let head = format!(
        "GET /get/1 HTTP/1.1\r\nHost: {CLEAR}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n\r\n"
    );
    let answer = exchange(&mut stream, head.as_bytes(), "GET /get/1").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let arrived = peer.arrived();
    assert!(!arrived[0].headers.contains_key("upgrade"));
    assert!(!arrived[0].headers.contains_key("http2-settings"));
}

/// A handshake by hand, so that frames can be anything.
async fn by_hand(stream: &mut TcpStream) -> String {
    let head = format!(
        "GET /socket HTTP/1.1\r\nHost: {CLEAR}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    );
    exchange(stream, head.as_bytes(), "\r\n\r\n").await
}

/// Switches with permessage-deflate, keeps what arrives, and says `back`.
async fn deflating(extension: &'static str, back: &'static [u8], got: Arc<Mutex<Vec<u8>>>) -> Peer {
    Peer::start(None, move |mut stream: Stream| {
        let got = Arc::clone(&got);
        async move {
            let head = exchange(&mut stream, b"", "\r\n\r\n").await;
            got.lock().unwrap().extend_from_slice(head.as_bytes());
            let switch = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{extension}\r\n"
            );
            stream.write_all(switch.as_bytes()).await.unwrap();
            stream.write_all(back).await.unwrap();
            let mut part = [0; 1024];
            while let Ok(length @ 1..) = stream.read(&mut part).await {
                got.lock().unwrap().extend_from_slice(&part[..length]);
            }
        }
    })
    .await
}

const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn deflate_is_negotiated_between_the_ends_where_nothing_is_lent() {
    let got = Arc::new(Mutex::new(Vec::new()));
    // A compressed "Hello" (RFC 7692 section 7.2.3.1).
    let frame = b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00";
    let peer = deflating(DEFLATE, frame, Arc::clone(&got)).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let mut stream = world.dial(OPEN, 8080).await;
    let answer = by_hand(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 101") && answer.to_lowercase().contains("permessage-deflate")
    );
    let mut back = answer.split_once("\r\n\r\n").unwrap().1.len();
    while back < frame.len() {
        back += stream.read(&mut [0; 64]).await.unwrap();
    }
    let masked = b"\xc1\x87\0\0\0\0\xf2\x48\xcd\xc9\xc9\x07\x00";
    stream.write_all(masked).await.unwrap();
    for _ in 0..200 {
        if got.lock().unwrap().ends_with(masked) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let got = got.lock().unwrap().clone();
    assert!(got.ends_with(masked));
    assert!(String::from_utf8_lossy(&got).contains("client_max_window_bits"));
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_protocol_end_the_connection_by_name() {
    for (extension, back, reason) in [
        // Compressed without an extension.
        ("", &b"\xc1\x01x"[..], Reason::UpstreamUnreachable),
        // Masked by the server.
        (DEFLATE, b"\x81\x81\0\0\0\0x", Reason::UpstreamUnreachable),
    ] {
        let peer = deflating(extension, back, Arc::default()).await;
        let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
        let mut stream = world.dial(OPEN, 8080).await;
        by_hand(&mut stream).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(outcome(&world).await.reason, Some(reason), "{back:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_was_not_offered_is_not_accepted_where_a_credential_was_lent() {
    let peer = Peer::start(Some(b"http/1.1"), |mut stream: Stream| async move {
        exchange(&mut stream, b"", "\r\n\r\n").await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await;
    let world = lent(&peer, "").await;
    let answer = connect(&world, HOST, "/v1/socket", &[]).await;
    assert_eq!(refused(answer), (502, "response_encoding".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_nobody_asked_for_is_not_passed_on() {
    let peer = Peer::start(None, |mut stream: Stream| async move {
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        exchange(&mut stream, b"", "\r\n\r\n").await;
        stream.write_all(switch).await.unwrap();
        let _ = stream.read(&mut [0; 16]).await;
    })
    .await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let mut stream = world.dial(OPEN, 8080).await;
    let head = format!("GET /get/1 HTTP/1.1\r\nHost: {CLEAR}\r\n\r\n");
    let answer = exchange(&mut stream, head.as_bytes(), "}").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_bounded_in_frames_bytes_silence_and_time_and_says_so() {
    type Tune = fn(&mut mitm_proxy::Limits);
    let cases: [(Tune, &str); 4] = [
        (|bounds| bounds.tunnel_frames = 3, "More than 3 frames"),
        (|bounds| bounds.tunnel_bytes = 40, "More than 40 bytes"),
        (
            |bounds| bounds.tunnel_idle = Duration::from_millis(300),
            "Silent for more than",
        ),
        (
            |bounds| bounds.tunnel_time = Duration::from_millis(300),
            "Open for more than",
        ),
    ];
    for (tune, detail) in cases {
        let (peer, _) = server().await;
        let world = World::with_peer(&peer, SEALED, Plan::default()).await;
        world.lead(&peer, SEALED, |settings| tune(&mut settings.limits));
        let (mut socket, _) = connect(&world, OPEN, "/socket", &[]).await.unwrap();
        for _ in 0..5 {
            let _ = socket.send(Message::Text("0123456789".into())).await;
        }
        let close = loop {
            match tokio::time::timeout(Duration::from_secs(5), socket.next())
                .await
                .unwrap()
            {
                Some(Ok(Message::Close(close))) => break close,
                Some(Ok(_)) => {}
                other => panic!("{detail}: {other:?}"),
            }
        };
        let Some(CloseFrame { code, reason }) = close else {
            panic!("{detail}: no reason");
        };
        assert_eq!((u16::from(code), reason.as_str()), (1008, "tunnel_limit"));
        let record = outcome(&world).await;
        assert_eq!(record.reason, Some(Reason::TunnelLimit));
        assert!(record.detail.unwrap().starts_with(detail));
        assert!(
            world
                .counts
                .refused
                .lock()
                .unwrap()
                .contains(&Reason::TunnelLimit)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_cuts_a_live_websocket_and_its_frames_are_on_record() {
    let (peer, _) = server().await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let (mut socket, _) = connect(&world, OPEN, "/socket", &[]).await.unwrap();
    socket.send(Message::Text("hello".into())).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Text("hello".into())
    );
    world
        .workloads
        .set_disabled(&"acme/support".parse().unwrap(), true);
    let end = tokio::time::timeout(Duration::from_secs(2), socket.next()).await;
    assert!(!matches!(end.unwrap(), Some(Ok(_))));
    let record = outcome(&world).await;
    assert_eq!(
        (record.request_frames, record.response_frames),
        (Some(1), Some(1))
    );
    assert!(format!("{:?}", record.outcome).contains("Aborted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_held_and_approved_and_a_stop_says_goodbye() {
    const ASK: &str = r#"
@id("sockets-need-finance") @approval("finance")
forbid (principal, action == pay::Action::"socket", resource)
unless { context.approvals.contains(Group::"finance") };
"#;
    let (peer, heads) = server().await;
    let world = lent(&peer, ASK).await;
    let first = connect(&world, HOST, "/v1/socket", &[]).await;
    assert_eq!(refused(first), (403, "approval_required".to_owned()));
    let id = world.pending().await;
    assert!(heads.lock().unwrap().is_empty());
    world.answer(&id, Verdict::Approve).await;
    // Another key, as every attempt has; the same call.
    let (mut socket, _) = connect(&world, HOST, "/v1/socket", &[]).await.unwrap();
    socket.send(Message::Text("hello".into())).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Text("hello".into())
    );
    let second = connect(&world, HOST, "/v1/socket", &[]).await;
    assert_eq!(refused(second), (403, "approval_required".to_owned()));
    world.stop.cancel();
    match tokio::time::timeout(Duration::from_secs(2), socket.next())
        .await
        .unwrap()
    {
        Some(Ok(Message::Close(Some(close)))) => assert_eq!(u16::from(close.code), 1001),
        other => panic!("{other:?}"),
    }
    let ended = outcome(&world).await;
    assert_eq!(ended.reason, Some(Reason::Shutdown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_outlives_a_reload_that_would_not_let_it_open() {
    const NONE: &str = r#"
@id("no-sockets")
forbid (principal, action == pay::Action::"socket", resource);
"#;
    let (peer, _) = server().await;
    let world = lent(&peer, "").await;
    let (mut socket, _) = connect(&world, HOST, "/v1/socket", &[]).await.unwrap();
    let mut says = async |text: &str| {
        socket.send(Message::Text(text.into())).await.unwrap();
        let said = tokio::time::timeout(Duration::from_secs(2), socket.next()).await;
        assert_eq!(said.unwrap().unwrap().unwrap(), Message::Text(text.into()));
    };
    says("before").await;
    world.proxy.replace_bundle(bundle(AGENT, NONE));
    world.lead(&peer, &format!("{HOST}:443"), |settings| {
        settings.limits.tunnel_bytes = 1;
    });
    says("after").await;
    // Positive control: the reload is in force.
    let second = connect(&world, HOST, "/v1/socket", &[]).await;
    assert_eq!(refused(second), (403, "policy_denied".to_owned()));
    says("still").await;
    drop(socket);
    assert_eq!(outcome(&world).await.reason, None);
}
