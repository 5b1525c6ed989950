//! The edge of HTTP: old versions, pipelines, trailers, expectations, HTTP/2 without TLS, and what is never spoken.

use std::sync::Arc;
use std::time::Duration;

use crate::support::peer::{CLEAR, OPEN, Peer, SEALED, exchange};
use crate::support::{Plan, World};
use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use policies::Reason;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served_with_and_without_host_and_kept_alive_when_asked() {
    let peer = Peer::http(None, false).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let mut stream = world.dial(OPEN, 8080).await;
    let kept = exchange(
        &mut stream,
        b"GET /get/1 HTTP/1.0\r\nHost: open.pay.test:8080\r\nConnection: keep-alive\r\n\r\n",
        "GET /get/1",
    )
    .await;
    assert!(kept.starts_with("HTTP/1.0 200"), "{kept}");
    // Nothing that 1.0 does not know comes back: the length is unknown, so the end of the connection is the end.
    assert!(!kept.to_ascii_lowercase().contains("chunked"), "{kept}");
    let mut stream = world.dial(OPEN, 8080).await;
    let bare = exchange(&mut stream, b"GET /get/2 HTTP/1.0\r\n\r\n", "\0").await;
    assert!(
        bare.starts_with("HTTP/1.0 200") && bare.ends_with("GET /get/2"),
        "{bare}"
    );
    let arrived = peer.arrived();
    assert_eq!(arrived.len(), 2);
    for request in arrived {
        assert_eq!(request.headers["host"], CLEAR);
        assert_eq!(request.version, Version::HTTP_11);
    }
    // What 1.0 cannot frame is not guessed at.
    let mut stream = world.dial(OPEN, 8080).await;
    let refused = exchange(
        &mut stream,
        b"POST /post HTTP/1.0\r\nHost: open.pay.test:8080\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "\0",
    )
    .await;
    assert!(refused.contains(" 400 "), "{refused}");
    assert_eq!(peer.arrived().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_each_decided_and_answered_in_order() {
    let peer = Peer::http(None, false).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let mut stream = world.dial(OPEN, 8080).await;
    let bytes: String = [
        "GET /get/1",
        "GET /nowhere",
        "GET /get/2",
        "DELETE /post",
        "GET /get/3",
    ]
    .map(|line| format!("{line} HTTP/1.1\r\nHost: {CLEAR}\r\n\r\n"))
    .concat();
    let answers = exchange(&mut stream, bytes.as_bytes(), "GET /get/3").await;
    let at = |text: &str| {
        answers
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {answers}"))
    };
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 3, "{answers}");
    assert!(at("GET /get/1") < at("\"unmapped\""));
    assert!(at("\"unmapped\"") < at("GET /get/2"));
    assert!(at("GET /get/2") < at("\"policy_denied\""));
    assert!(at("\"policy_denied\"") < at("GET /get/3"));
    assert_eq!(peer.arrived().len(), 3);
}

/// A body with one chunk and these trailers.
fn with_trailers(
    fields: &[(&'static str, &'static str)],
) -> http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible> {
    let mut trailers = HeaderMap::new();
    for (name, value) in fields {
        trailers.append(*name, value.parse().unwrap());
    }
    let frames = [
        Ok(Frame::data(Bytes::from_static(b"hello"))),
        Ok(Frame::trailers(trailers)),
    ];
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_both_ways_without_the_credentials_among_them() {
    let sent = [
        ("x-checksum", "42"),
        ("x-api-key", "sk_own"),
        ("x_api_key", "sk_own"),
    ];
    for (agent_h2, upstream_h2) in [(false, false), (false, true), (true, false), (true, true)] {
        let alpn: &[u8] = if upstream_h2 { b"h2" } else { b"http/1.1" };
        let peer = Peer::http(Some(alpn), upstream_h2).await;
        let world = World::with_peer(&peer, SEALED, Plan::default()).await;
        let stream = world.dial(OPEN, 443).await;
        let request = Request::post(format!("https://{OPEN}/post"))
            .header("te", "trailers")
            .header("trailer", "x-checksum, x_api_key, x-api-key");
        let answer = if agent_h2 {
            let io = TokioIo::new(world.shake(stream, OPEN, b"h2").await);
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            let request = request.body(with_trailers(&sent)).unwrap();
            client.send_request(request).await.unwrap()
        } else {
            let io = TokioIo::new(world.shake(stream, OPEN, b"http/1.1").await);
            let (mut client, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            let request = request
                .uri("/post")
                .header("host", OPEN)
                .body(with_trailers(&sent))
                .unwrap();
            client.send_request(request).await.unwrap()
        };
        assert_eq!(answer.status(), 200);
        let collected = answer.into_body().collect().await.unwrap();
        assert_eq!(
            collected.trailers().unwrap()["x-sum"],
            "7",
            "{agent_h2} {upstream_h2}"
        );
        let arrived = peer.arrived();
        assert_eq!(arrived[0].body, "hello");
        let names: Vec<_> = arrived[0]
            .trailers
            .keys()
            .map(|name| name.as_str())
            .collect();
        assert_eq!(names, ["x-checksum"], "{agent_h2} {upstream_h2}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_is_answered_after_the_decision_and_not_where_it_is_no() {
    let peer = Peer::http(None, false).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let head = |method: &str, path: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {CLEAR}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
    };
    for (method, path, reason) in [
        ("POST", "/nowhere", "unmapped"),
        ("DELETE", "/post", "policy_denied"),
    ] {
        let mut stream = world.dial(OPEN, 8080).await;
        let answer = exchange(&mut stream, head(method, path).as_bytes(), "}").await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains(reason), "{answer}");
        // The body that never came is not waited for, nor taken for the next request.
        let rest = exchange(&mut stream, b"", "\0").await;
        assert_eq!(rest, "");
    }
    for path in ["/post", "/order"] {
        let mut stream = world.dial(OPEN, 8080).await;
        let mut bytes = head("POST", path);
        bytes = bytes.replace("Expect", "Content-Type: application/json\r\nExpect");
        bytes = bytes.replace("Length: 5", "Length: 12");
        let go = exchange(&mut stream, bytes.as_bytes(), "\r\n\r\n").await;
        assert_eq!(go, "HTTP/1.1 100 Continue\r\n\r\n");
        let answer = exchange(&mut stream, b"{\"amount\":3}", path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let arrived = peer.arrived();
    assert_eq!(arrived.len(), 2);
    assert!(arrived.iter().all(|request| {
        request.body == "{\"amount\":3}" && !request.headers.contains_key("expect")
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_in_the_clear_goes_upstream_as_http2_in_the_clear() {
    let peer = Peer::http(None, true).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let stream = world.dial(OPEN, 8080).await;
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    for number in 0..3 {
        let request = Request::get(format!("http://{CLEAR}/get/{number}"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = client.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), format!("GET /get/{number}"));
    }
    let arrived = peer.arrived();
    assert!(arrived.iter().all(|one| one.version == Version::HTTP_2));
    assert_eq!(arrived.len(), 3);
    // What is refused over TLS is refused here: another authority, another scheme.
    for uri in [
        "http://api.pay.test:8080/get/1".to_owned(),
        format!("https://{CLEAR}/get/1"),
    ] {
        let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), 421);
    }
    assert_eq!(peer.arrived().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preface_in_two_parts_is_http2_and_half_a_one_is_not_waited_for_without_end() {
    let peer = Peer::http(None, true).await;
    let world = World::with_peer(&peer, CLEAR, Plan::default()).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for at in [1, 3, 13, 14, 20] {
        let mut stream = world.dial(OPEN, 8080).await;
        stream.set_nodelay(true).unwrap();
        stream.write_all(&preface[..at]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
        // SETTINGS come first: length, then type 4 on stream 0.
        let mut first = [0; 9];
        stream.write_all(&preface[at..]).await.unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut first)
            .await
            .unwrap();
        assert_eq!(first[3], 4, "cut at {at}");
    }
    // A method that begins like the preface is a method.
    let mut stream = world.dial(OPEN, 8080).await;
    let bytes = format!("PROPFIND /get/1 HTTP/1.1\r\nHost: {CLEAR}\r\n\r\n");
    let answer = exchange(&mut stream, bytes.as_bytes(), "}").await;
    assert!(answer.contains("unmapped"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_is_refused_by_name_and_extended_connect_is_not_offered() {
    let peer = Peer::http(Some(b"h2"), true).await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let stream = world.dial(OPEN, 443).await;
    let mut stream = world.shake(stream, OPEN, b"http/1.1").await;
    let bytes = format!("CONNECT {OPEN}:443 HTTP/1.1\r\nHost: {OPEN}\r\n\r\n");
    let answer = exchange(&mut stream, bytes.as_bytes(), "}").await;
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.contains("connect_method"),
        "{answer}"
    );

    let stream = world.dial(OPEN, 443).await;
    let stream = world.shake(stream, OPEN, b"h2").await;
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::connect(format!("{OPEN}:443")).body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 405);
    assert!(!client.is_extended_connect_protocol_enabled());
    assert!(
        world
            .counts
            .refused
            .lock()
            .unwrap()
            .iter()
            .all(|reason| *reason == Reason::ConnectMethod)
    );
    assert!(peer.arrived().is_empty());
}

/// A configuration for Encrypted ClientHello under this public name, with a key that nobody has (RFC 9849 section 4).
fn ech(public: &str) -> rustls::client::EchMode {
    let mut contents = vec![7, 0, 0x20, 0, 32];
    contents.extend_from_slice(&[9; 32]);
    contents.extend_from_slice(&[0, 4, 0, 1, 0, 1, 0]);
    contents.push(u8::try_from(public.len()).unwrap());
    contents.extend_from_slice(public.as_bytes());
    contents.extend_from_slice(&[0, 0]);
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    let config = [&[0xfe, 0x0d][..], &length(&contents), &contents].concat();
    let list = [&length(&config)[..], &config].concat();
    let suites = rustls::crypto::aws_lc_rs::hpke::ALL_SUPPORTED_SUITES;
    let config = rustls::client::EchConfig::new(list.into(), suites).unwrap();
    rustls::client::EchMode::Enable(config)
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_names_and_tls_without_http_are_refused_by_name() {
    let peer = Peer::http(Some(b"h2"), true).await;
    let world = World::with_peer(&peer, SEALED, Plan::default()).await;
    let last = || world.counts.refused.lock().unwrap().last().copied();
    let mut roots = rustls::RootCertStore::empty();
    let pem = world.proxy.ca_pem(&"acme".parse().unwrap()).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_ech(ech(OPEN))
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = world.dial(OPEN, 443).await;
    let hidden = ServerName::try_from("hidden.example").unwrap();
    let shaken = TlsConnector::from(Arc::new(config))
        .connect(hidden, stream)
        .await;
    assert!(shaken.is_err());
    let seen = world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.line().contains("encrypted_hello"))
        })
        .await;
    assert_eq!((seen.len(), last()), (1, Some(Reason::EncryptedHello)));

    let stream = world.dial(OPEN, 443).await;
    let name = ServerName::try_from(OPEN).unwrap();
    let shaken = world.tls(b"postgresql").connect(name, stream).await;
    assert!(shaken.is_err());
    world
        .records_until(|records| {
            records
                .iter()
                .any(|entry| entry.line().contains("not_http"))
        })
        .await;
    assert_eq!(last(), Some(Reason::NotHttp));
    assert!(peer.arrived().is_empty());
}
