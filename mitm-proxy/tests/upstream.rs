//! The way out: verified, bounded in time, at most once; and nothing leaves that could not be written down.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::time::Duration;

use policies::Reason;
use support::upstream::Reply;
use support::{HOST, Plan, World};

async fn outcome_reason(world: &World) -> Option<Reason> {
    let ended = |records: &[audit::Entry]| {
        records
            .iter()
            .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
    };
    world
        .records_until(ended)
        .await
        .last()
        .unwrap()
        .record()
        .reason
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_verified_gets_no_request() {
    let world = World::planned(Plan {
        trust_upstream: false,
        ..Plan::default()
    })
    .await;
    let answer = world.http1(HOST).await.call("GET", "/v1/charges", "").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "upstream_certificate"),
        "{answer:?}"
    );
    assert!(world.upstream.seen().is_empty());
    assert_eq!(
        outcome_reason(&world).await,
        Some(Reason::UpstreamCertificate)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fixed_address_does_not_change_who_is_verified() {
    // The upstream's certificate names api.pay.test and files.pay.test; the agent asks for another name.
    let plan = Plan {
        tune: |settings| {
            let address = settings.connect_to.values().next().unwrap().clone();
            settings
                .connect_to
                .insert("other.pay.test:443".parse().unwrap(), address);
        },
        agent: AGENT_ANY,
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let answer = world
        .http1("other.pay.test")
        .await
        .call_to("other.pay.test", "GET", "/v1/charges", "")
        .await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "upstream_certificate"),
        "{answer:?}"
    );
    // Positive control: the same address under the name that the certificate holds.
    let answer = world
        .http1("files.pay.test")
        .await
        .call_to("files.pay.test", "GET", "/v1/charges", "")
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

const AGENT_ANY: &str = r#"
tenant = "acme"
name = "support"
owner = "bob"
stage = "write"

[[connections]]
name = "pay"
connector = "pay"
credential = "pay-live"
hosts = ["*.pay.test"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_not_there_is_a_502() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let world = World::start().await;
    let mut settings = mitm_proxy::Settings::default();
    settings
        .connect_to
        .insert(format!("{HOST}:443").parse().unwrap(), closed.to_string());
    world.proxy.replace_settings(settings).unwrap();
    let answer = world.http1(HOST).await.call("GET", "/v1/charges", "").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "upstream_unreachable"),
        "{answer:?}"
    );
    assert_eq!(
        outcome_reason(&world).await,
        Some(Reason::UpstreamUnreachable)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_says_nothing_is_a_504() {
    // Accepts and then holds its tongue: the TLS handshake never ends.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let plan = Plan {
        tune: |settings| settings.limits.upstream_handshake = Duration::from_millis(200),
        redirect_upstream: false,
        ..Plan::default()
    };
    let world = World::planned(plan).await;
    let mut settings = mitm_proxy::Settings::default();
    settings.limits.upstream_handshake = Duration::from_millis(200);
    settings
        .connect_to
        .insert(format!("{HOST}:443").parse().unwrap(), address.to_string());
    world.proxy.replace_settings(settings).unwrap();
    let answer = world.http1(HOST).await.call("GET", "/v1/charges", "").await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (504, "upstream_timeout"),
        "{answer:?}"
    );
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn hop_by_hop_headers_stay_on_their_hop() {
    let world = World::start().await;
    world.upstream.answers(Reply {
        headers: vec![
            ("keep-alive", "timeout=5".into()),
            ("alt-svc", "h3=\":443\"".into()),
            ("x-kept", "yes".into()),
        ],
        ..Reply::text("ok")
    });
    let mut client = world.http1(HOST).await;
    let request = http::Request::get("/v1/charges")
        .header("host", HOST)
        .header("connection", "keep-alive, te")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers")
        .header("proxy-authorization", "Basic eDp5")
        .header("x-kept", "yes")
        .body(http_body_util::Full::new(bytes::Bytes::new()))
        .unwrap();
    let answer = support::agent::Answer::read(client.send(request).await).await;
    for gone in ["keep-alive", "alt-svc", "connection"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(answer.headers["x-kept"], "yes");
    let seen = &world.upstream.seen()[0];
    for gone in ["keep-alive", "proxy-authorization"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    // What the proxy says of itself on its own hop: it understands trailers.
    assert_eq!(
        (&seen.headers["te"], &seen.headers["connection"]),
        (&"trailers".parse().unwrap(), &"te".parse().unwrap())
    );
    assert_eq!(seen.headers["x-kept"], "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_a_body_pass() {
    let world = World::start().await;
    let mut client = world.http1(HOST).await;
    let answer = client.call("HEAD", "/v1/echo", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert_eq!(
        client.call("GET", "/v1/echo", "").await.status,
        200,
        "the connection is still in step"
    );
    assert_eq!(world.upstream.seen()[0].method, "HEAD");
    let ended = |records: &[audit::Entry]| {
        let outcomes = records
            .iter()
            .filter(|entry| entry.line().contains("\"answered\""));
        outcomes.count() == 2
    };
    world.records_until(ended).await;
    assert_eq!(*world.upstream.connections.lock().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_open_calls_finish_and_takes_no_new_ones() {
    let world = World::start().await;
    let (events, receiver) = tokio::sync::mpsc::channel(1);
    let stream = Some(std::sync::Arc::new(std::sync::Mutex::new(Some(receiver))));
    world.upstream.answers(Reply {
        stream,
        ..Reply::default()
    });
    let mut client = world.http1(HOST).await;
    let call = tokio::spawn(async move { client.call("GET", "/v1/stream", "").await });
    while world.upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(
        tokio::net::TcpStream::connect(world.tcp).await.is_err(),
        "the listener is closed"
    );
    events
        .send(bytes::Bytes::from_static(b"done"))
        .await
        .unwrap();
    drop(events);
    assert_eq!(call.await.unwrap().body, "done");
    tokio::time::timeout(Duration::from_secs(2), world.running)
        .await
        .expect("drained")
        .unwrap();
}

/// A call whose answer streams until what this returns is dropped; it is under way when this returns.
async fn streamed(
    world: &World,
) -> (
    tokio::sync::mpsc::Sender<bytes::Bytes>,
    tokio::task::JoinHandle<Result<bytes::Bytes, hyper::Error>>,
) {
    let (events, receiver) = tokio::sync::mpsc::channel(1);
    let stream = Some(std::sync::Arc::new(std::sync::Mutex::new(Some(receiver))));
    world.upstream.answers(Reply {
        stream,
        ..Reply::default()
    });
    let before = world.upstream.seen().len();
    let mut client = world.http1(HOST).await;
    let request = http::Request::get("/v1/stream").header("host", HOST);
    let request = request.body(http_body_util::Full::default()).unwrap();
    let answer = client.send(request).await;
    assert_eq!(world.upstream.seen().len(), before + 1);
    let call = tokio::spawn(async move {
        // Its connection lives as long as the call.
        let _client = client;
        let body = http_body_util::BodyExt::collect(answer.into_body()).await;
        body.map(http_body_util::Collected::to_bytes)
    });
    (events, call)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_answer_outlives_a_reload_that_would_not_let_its_call_go() {
    const NONE: &str = r#"
@id("no-streams")
forbid (principal, action == pay::Action::"stream", resource);
"#;
    let world = World::start().await;
    let (events, call) = streamed(&world).await;
    events.send("one,".into()).await.unwrap();
    world
        .proxy
        .replace_bundle(support::bundle(support::AGENT, NONE));
    let mut settings = mitm_proxy::Settings::default();
    settings.limits.silence = Duration::from_millis(1);
    world.proxy.replace_settings(settings).unwrap();
    // Positive control: the reload is in force.
    let refused = world.http1(HOST).await.call("GET", "/v1/stream", "").await;
    assert_eq!(refused.reason(), "policy_denied");
    tokio::time::sleep(Duration::from_millis(50)).await;
    events.send("two".into()).await.unwrap();
    drop(events);
    assert_eq!(call.await.unwrap().unwrap(), "one,two");
    let ended = |records: &[audit::Entry]| {
        records
            .iter()
            .any(|entry| entry.line().contains("\"kind\":\"outcome\""))
    };
    let records = world.records_until(ended).await;
    let outcome = records
        .iter()
        .find(|entry| entry.line().contains("\"kind\":\"outcome\""));
    assert_eq!(outcome.unwrap().record().status, Some(200));
    assert_eq!(outcome.unwrap().record().reason, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_does_not_end_after_a_stop_is_cut_in_time_and_named() {
    let world = World::planned(Plan {
        tune: |settings| settings.limits.drain = Duration::from_millis(300),
        ..Plan::default()
    })
    .await;
    let (events, call) = streamed(&world).await;
    events.send("one".into()).await.unwrap();
    world.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), world.running)
        .await
        .expect("a stop is bounded")
        .unwrap();
    // The agent is not told that this was all.
    assert!(call.await.unwrap().is_err());
    drop(events);
    let ledger = world.ledger.clone();
    let query = audit::Query {
        tenant: Some("acme".parse().unwrap()),
        ..audit::Query::default()
    };
    for _ in 0..200 {
        let records = ledger.list(&query).unwrap();
        if let Some(reason) = records.last().unwrap().record().reason {
            assert_eq!(reason, Reason::Shutdown);
            let line = records.last().unwrap().line();
            assert!(line.contains("\"kind\":\"outcome\""), "{line}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no outcome");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_cannot_be_recorded_is_not_made() {
    let world = World::start().await;
    // The tenant's log is made with its first record; its directory is gone by then.
    let audit = world.directory.path().join("audit");
    let aside = world.directory.path().join("audit.aside");
    std::fs::rename(&audit, &aside).unwrap();
    std::fs::write(&audit, "").unwrap();
    for (method, path) in [
        ("GET", "/v1/charges"),
        ("GET", "/v1/nothing"),
        ("POST", "/v1/refunds"),
    ] {
        let body = if method == "POST" { "amount=1" } else { "" };
        let answer = world.http1(HOST).await.call(method, path, body).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (503, "audit_unavailable"),
            "{path}"
        );
    }
    assert!(world.upstream.seen().is_empty());
    assert!(
        world
            .counts
            .refused
            .lock()
            .unwrap()
            .iter()
            .all(|reason| *reason == Reason::AuditUnavailable)
    );
    assert_eq!(
        world.proxy.approvals().pending(),
        0,
        "nor is an approval asked for that could not be stored"
    );
    // Positive control: with the log back, the same call goes through.
    std::fs::remove_file(&audit).unwrap();
    std::fs::rename(&aside, &audit).unwrap();
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

/// A proxy that opens tunnels to one address, whatever is asked for, and keeps what was asked.
async fn corporate_proxy(
    to: std::net::SocketAddr,
    status: &'static str,
) -> (
    std::net::SocketAddr,
    std::sync::Arc<std::sync::Mutex<Vec<String>>>,
) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
    let keep = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let keep = keep.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                keep.lock()
                    .unwrap()
                    .push(head.lines().next().unwrap().to_owned());
                let answer = format!("HTTP/1.1 {status}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                if status.starts_with("200") {
                    let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
                }
            });
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbound_proxy_is_asked_for_a_tunnel_and_upstream_is_verified_all_the_same() {
    let plan = || Plan {
        redirect_upstream: false,
        ..Plan::default()
    };
    for (trusted, status, expected) in [
        (true, "200 Connection established", (200, "")),
        (
            false,
            "200 Connection established",
            (502, "upstream_certificate"),
        ),
        (
            true,
            "407 Proxy Authentication Required",
            (502, "upstream_unreachable"),
        ),
    ] {
        let world = World::planned(plan()).await;
        let (proxy, asked) = corporate_proxy(world.upstream.address, status).await;
        let mut settings = mitm_proxy::Settings {
            outbound: Some(proxy.to_string()),
            ..mitm_proxy::Settings::default()
        };
        if trusted {
            let root = rustls_pki_types::CertificateDer::from(world.upstream.root.clone());
            settings.extra_roots.push(root);
        }
        world.proxy.replace_settings(settings).unwrap();
        let answer = world.http1(HOST).await.call("GET", "/v1/charges", "").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            expected,
            "{answer:?}"
        );
        assert_eq!(
            *asked.lock().unwrap(),
            ["CONNECT api.pay.test:443 HTTP/1.1"]
        );
        assert_eq!(world.upstream.seen().len(), usize::from(expected.0 == 200));
    }
}

/// An upstream that closes each kept connection after one answer, without saying so beforehand.
async fn forgetful(identity: rustls::ServerConfig) -> (std::net::SocketAddr, Seen) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(identity));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let keep = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, keep) = (acceptor.clone(), keep.clone());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                keep.lock().unwrap().push(head);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
                tokio::time::sleep(Duration::from_millis(30)).await;
            });
        }
    });
    (address, seen)
}

type Seen = std::sync::Arc<std::sync::Mutex<Vec<Vec<u8>>>>;

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_closed_costs_no_call_and_sends_none_twice() {
    let world = World::start().await;
    let (root, identity) = support::upstream::identity(&[HOST], vec![b"http/1.1".to_vec()]);
    let (address, seen) = forgetful(identity).await;
    let mut settings = mitm_proxy::Settings::default();
    settings
        .connect_to
        .insert(format!("{HOST}:443").parse().unwrap(), address.to_string());
    settings
        .extra_roots
        .push(rustls_pki_types::CertificateDer::from(root));
    world.proxy.replace_settings(settings).unwrap();
    let mut client = world.http1(HOST).await;
    let (mut good, mut calls) = (0, 0);
    for pause in (0..40).map(|step| 20 + step % 20) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        calls += 1;
        good += usize::from(client.call("GET", "/v1/charges", "").await.status == 200);
    }
    // A call that met the closing in its very moment may have failed; none was sent again that had left.
    let arrived = seen.lock().unwrap().len();
    assert!(
        good <= arrived && arrived <= calls && good > calls / 2,
        "{good} {arrived} {calls}"
    );
}
