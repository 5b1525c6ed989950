//! Where agents try to be somebody or somewhere else: unknown origins, fronting, smuggling, other protocols.
//! Each property comes with its positive control: the same client, without the trick, is served.

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

use policies::{Reason, WorkloadId};
use support::agent::{Answer, Client, connector};
use support::{HOST, LITERAL, WORKLOAD, World};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Writes raw bytes and reads until the peer closes or falls silent.
async fn raw<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, bytes: &[u8]) -> String {
    // The peer may close while we still write; what it said is read all the same.
    let _ = io.write_all(bytes).await;
    let mut all = Vec::new();
    let mut part = [0; 4096];
    // The first record of a tenant makes its log, and that waits for the disk a few times.
    let mut patience = Duration::from_secs(4);
    while let Ok(Ok(length)) = tokio::time::timeout(patience, io.read(&mut part)).await {
        if length == 0 {
            break;
        }
        all.extend_from_slice(&part[..length]);
        patience = Duration::from_millis(400);
    }
    String::from_utf8_lossy(&all).into_owned()
}

async fn host_log(world: &World) -> String {
    let ledger = world.ledger.clone();
    let query = audit::Query {
        tenant: Some(audit::Ledger::host_tenant()),
        ..audit::Query::default()
    };
    let entries = tokio::task::spawn_blocking(move || ledger.list(&query))
        .await
        .unwrap()
        .unwrap();
    entries
        .iter()
        .map(|entry| entry.line().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_an_origin_gets_no_byte() {
    let world = World::start().await;
    let stream = tokio::net::TcpStream::connect(world.tcp).await.unwrap();
    assert_eq!(
        raw(stream, b"GET / HTTP/1.1\r\nHost: api.pay.test\r\n\r\n").await,
        ""
    );
    // An origin whose workload nobody registered is no better.
    let destination = SocketAddr::new(world.address_of(HOST).await, 443);
    let stream = world.dial_as(WorkloadId(99), destination).await;
    assert_eq!(
        raw(stream, b"GET / HTTP/1.1\r\nHost: api.pay.test\r\n\r\n").await,
        ""
    );
    // The record follows the close.
    let mut log = host_log(&world).await;
    for _ in 0..100 {
        if log.contains("agent_unknown") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        log = host_log(&world).await;
    }
    assert!(
        log.contains("origin_unknown") && log.contains("agent_unknown"),
        "{log}"
    );
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
async fn the_server_name_must_be_the_name_that_was_dialled() {
    let world = World::start().await;
    for other in ["files.pay.test", "evil.example"] {
        let stream = world.dial(HOST, 443).await;
        let mut client = Client::http1(world.shake(stream, other, b"http/1.1").await).await;
        let answer = client.call_to(other, "GET", "/v1/charges", "").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (421, "sni_mismatch")
        );
        // And not by way of the right Host, either.
        let answer = client.call("GET", "/v1/charges", "").await;
        assert_eq!(answer.reason(), "sni_mismatch");
    }
    assert!(world.upstream.seen().is_empty());
    assert_eq!(world.refusals().await, [Reason::SniMismatch; 4]);
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
async fn tls_without_a_server_name_is_refused() {
    let world = World::start().await;
    let address = world.address_of(HOST).await;
    let stream = world.dial_as(WORKLOAD, SocketAddr::new(address, 443)).await;
    let mut config = rustls::ClientConfig::clone(world.tls(b"http/1.1").config());
    config.enable_sni = false;
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap();
    let answer = Client::http1(stream)
        .await
        .call("GET", "/v1/charges", "")
        .await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (403, "sni_missing")
    );
    assert!(world.upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_authority_must_be_the_name_that_was_dialled() {
    let world = World::start().await;
    for h2 in [false, true] {
        let mut client = if h2 {
            world.http2(HOST).await
        } else {
            world.http1(HOST).await
        };
        for other in [
            "files.pay.test",
            "evil.example",
            "api.pay.test:8443",
            "api.pay.test.evil.example",
        ] {
            let answer = client.call_to(other, "GET", "/v1/charges", "").await;
            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (421, "authority_mismatch"),
                "{other}"
            );
        }
        // Positive control: letter case and the explicit port name the same place.
        for same in ["API.pay.TEST", "api.pay.test:443"] {
            assert_eq!(
                client.call_to(same, "GET", "/v1/charges", "").await.status,
                200,
                "{same}"
            );
        }
    }
    let seen = world.upstream.seen();
    assert_eq!(seen.len(), 4);
    assert!(
        seen.iter().all(|seen| seen.headers["host"] == HOST),
        "what was decided on is what is sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn request_smuggling_is_refused() {
    let world = World::start().await;
    let cases: &[(&str, &str, &str)] = &[
        (
            "content-length and chunked",
            "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "ambiguous_request",
        ),
        (
            "chunked and content-length",
            "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            "ambiguous_request",
        ),
        (
            "two equal lengths",
            "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            "ambiguous_request",
        ),
        (
            "two different lengths",
            "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "400",
        ),
        (
            "gzip, chunked",
            "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "ambiguous_request",
        ),
        (
            "chunked in HTTP/1.0",
            "POST /v1/notes HTTP/1.0\r\nHost: api.pay.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "two hosts",
            "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\nHost: api.pay.test\r\n\r\n",
            "ambiguous_request",
        ),
        (
            "no host",
            "GET /v1/charges HTTP/1.1\r\n\r\n",
            "malformed_request",
        ),
        (
            "folded header",
            "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\nX: a\r\n b\r\n\r\n",
            "400",
        ),
        (
            "bare LF",
            "GET /v1/charges HTTP/1.1\nHost: api.pay.test\n\n",
            "ambiguous_request",
        ),
        (
            "space before colon",
            "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\nX : a\r\n\r\n",
            "400",
        ),
        (
            "host named hop-by-hop",
            "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\nConnection: authorization\r\n\r\n",
            "ambiguous_request",
        ),
        (
            "absolute form elsewhere",
            "GET https://evil.example/v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n",
            "authority_mismatch",
        ),
        (
            "absolute form, other scheme",
            "GET http://api.pay.test/v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n",
            "authority_mismatch",
        ),
        (
            "user information",
            "GET https://x@api.pay.test/v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n",
            "authority_mismatch",
        ),
        (
            "CONNECT",
            "CONNECT api.pay.test:443 HTTP/1.1\r\nHost: api.pay.test:443\r\n\r\n",
            "connect_method",
        ),
        (
            "asterisk",
            "OPTIONS * HTTP/1.1\r\nHost: api.pay.test\r\n\r\n",
            "ambiguous_request",
        ),
        (
            "websocket",
            "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            "malformed_request",
        ),
        ("not a request", "GET\r\n\r\n", "400"),
    ];
    for (name, bytes, expected) in cases {
        let stream = world.dial(HOST, 443).await;
        let answer = raw(
            world.shake(stream, HOST, b"http/1.1").await,
            bytes.as_bytes(),
        )
        .await;
        assert!(answer.contains(expected), "{name}: {answer}");
        assert!(!answer.contains("HTTP/1.1 200"), "{name}: {answer}");
    }
    assert!(
        world.upstream.seen().is_empty(),
        "{:?}",
        world.upstream.seen()
    );
    // Each left a metric and a record of the same name.
    assert_eq!(world.counts.refused.lock().unwrap().len(), cases.len());
    for _ in 0..50 {
        if world.refusals().await.len() == cases.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        world.refusals().await,
        *world.counts.refused.lock().unwrap()
    );

    // Positive controls: the plain forms of the same requests are served.
    let good = [
        "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 2\r\n\r\nhi",
        "GET https://api.pay.test/v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n",
        "GET /v1/charges HTTP/1.0\r\nHost: api.pay.test\r\n\r\n",
    ];
    for bytes in good {
        let stream = world.dial(HOST, 443).await;
        let answer = raw(
            world.shake(stream, HOST, b"http/1.1").await,
            bytes.as_bytes(),
        )
        .await;
        assert!(answer.contains(" 200 OK"), "{bytes}: {answer}");
    }
    assert_eq!(world.upstream.seen().len(), good.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smuggled_second_request_is_not_served() {
    let world = World::start().await;
    let stream = world.dial(HOST, 443).await;
    let bytes = "POST /v1/notes HTTP/1.1\r\nHost: api.pay.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
                 0\r\n\r\nGET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n";
    let answer = raw(
        world.shake(stream, HOST, b"http/1.1").await,
        bytes.as_bytes(),
    )
    .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert!(world.upstream.seen().is_empty());
    // Positive control: two plain requests in one write are both served.
    let stream = world.dial(HOST, 443).await;
    let bytes = "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\n\r\n".repeat(2);
    let answer = raw(
        world.shake(stream, HOST, b"http/1.1").await,
        bytes.as_bytes(),
    )
    .await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_neither_tls_nor_http_is_dropped() {
    let world = World::start().await;
    for (bytes, reason) in [
        (&b"\x00\x00\x00\x08\x04\xd2\x16\x2f"[..], Reason::NotHttp),
        (b"SSH-2.0-OpenSSH_9.7\r\n", Reason::MalformedRequest),
        (b"\x16\x03\x01\x00\x05hello", Reason::TlsHandshake),
    ] {
        let stream = world.dial(HOST, 443).await;
        let answer = raw(stream, bytes).await;
        assert!(!answer.contains("200"), "{answer}");
        // The connection may end a moment before it is counted.
        for _ in 0..50 {
            if world.counts.refused.lock().unwrap().last() == Some(&reason) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(world.counts.refused.lock().unwrap().last(), Some(&reason));
    }
    assert!(world.upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hello_in_two_parts_is_intercepted_all_the_same() {
    let world = World::start().await;
    let mut stream = world.dial(HOST, 443).await;
    stream.set_nodelay(true).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    stream.write_all(&hello[..1]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(&hello[1..]).await.unwrap();
    let mut record = [0; 6];
    stream.read_exact(&mut record).await.unwrap();
    assert_eq!((record[0], record[5]), (0x16, 2), "a ServerHello of ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_trust_the_ca_is_counted() {
    let world = World::start().await;
    let stream = world.dial(HOST, 443).await;
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    let failed = connector(rustls::RootCertStore::empty(), b"http/1.1")
        .connect(name, stream)
        .await;
    assert!(failed.is_err());
    for _ in 0..100 {
        if !world.refusals().await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.refusals().await, [Reason::TlsRefusedByClient]);
    assert_eq!(
        *world.counts.refused.lock().unwrap(),
        [Reason::TlsRefusedByClient]
    );
    // On record with the name it called, its agent, and what to do.
    let records = world.records().await;
    let mut records = records.iter().map(|entry| entry.record());
    let refused = records
        .find(|record| record.reason == Some(Reason::TlsRefusedByClient))
        .unwrap();
    assert_eq!(refused.host.as_deref(), Some(HOST));
    assert!(refused.agent.is_some() && refused.workload.is_some());
    let detail = refused.detail.as_deref().unwrap();
    assert!(detail.contains("sluice doctor --agent"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_stands_for_no_name_is_refused_readably() {
    let world = World::start().await;
    for destination in [
        "198.18.7.7:443",
        "203.0.113.9:443",
        "[fd53:6c75:6963:65::77]:443",
    ] {
        let stream = world.dial_as(WORKLOAD, destination.parse().unwrap()).await;
        let mut client = Client::http1(world.shake(stream, HOST, b"http/1.1").await).await;
        let answer = client.call("GET", "/v1/charges", "").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (403, "host_unknown"),
            "{destination}"
        );
    }
    assert!(world.upstream.seen().is_empty());
    assert_eq!(world.refusals().await, [Reason::HostUnknown; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_have_their_own_roots_and_they_last() {
    let world = World::start().await;
    let acme = world.proxy.ca_pem(&"acme".parse().unwrap()).unwrap();
    let globex = world.proxy.ca_pem(&"globex".parse().unwrap()).unwrap();
    assert_ne!(acme, globex);
    let world = world.restart(support::Plan::default()).await;
    assert_eq!(
        world.proxy.ca_pem(&"acme".parse().unwrap()).unwrap(),
        acme,
        "the root survives a restart"
    );
    // A client that trusts the other tenant's root refuses our leaf.
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(rustls_pki_types::CertificateDer::from_pem_slice(globex.as_bytes()).unwrap())
        .unwrap();
    let stream = world.dial(HOST, 443).await;
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    assert!(
        connector(roots, b"http/1.1")
            .connect(name, stream)
            .await
            .is_err()
    );
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
async fn oversized_heads_are_refused() {
    let plan = support::Plan {
        tune: |settings| settings.limits.head_bytes = 8192,
        ..support::Plan::default()
    };
    let world = World::planned(plan).await;
    let stream = world.dial(HOST, 443).await;
    let bytes = format!(
        "GET /v1/charges HTTP/1.1\r\nHost: api.pay.test\r\nX: {}\r\n\r\n",
        "a".repeat(10_000)
    );
    let answer = raw(
        world.shake(stream, HOST, b"http/1.1").await,
        bytes.as_bytes(),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert!(world.upstream.seen().is_empty());
    let mut client = world.http1(HOST).await;
    assert!(Answer::status_ok(
        &client.call("GET", "/v1/charges", "").await
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_a_connection_names_is_served_under_a_leaf_for_that_address() {
    let world = World::start().await;
    let destination = format!("{LITERAL}:443").parse().unwrap();
    let stream = world.dial_as(WORKLOAD, destination).await;
    // The client sends no server name for an address, and checks the certificate's IP SAN.
    let mut client = Client::http1(world.shake(stream, LITERAL, b"http/1.1").await).await;
    let answer = client.call_to(LITERAL, "GET", "/v1/charges", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // A name on such a connection is fronting.
    let stream = world.dial_as(WORKLOAD, destination).await;
    let mut client = Client::http1(world.shake(stream, HOST, b"http/1.1").await).await;
    assert_eq!(
        client.call("GET", "/v1/charges", "").await.reason(),
        "sni_mismatch"
    );
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_bound_are_dropped_and_counted() {
    let plan = support::Plan {
        tune: |settings| settings.limits.connections = 1,
        ..support::Plan::default()
    };
    let world = World::planned(plan).await;
    let mut first = world.http1(HOST).await;
    let second = world.dial(HOST, 443).await;
    assert_eq!(raw(second, b"GET / HTTP/1.1\r\n\r\n").await, "");
    assert_eq!(*world.counts.refused.lock().unwrap(), [Reason::Overloaded]);
    assert_eq!(first.call("GET", "/v1/charges", "").await.status, 200);
}
