//! Upstreams over IPv6, the whole path: an address that a connection names, and a name that leads to one.
//! Everything is on loopback, where the addresses are private: only an operator's word leads there.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use support::agent::Client;
use support::peer::AGENT;
use support::{HOST, Plan, WORKLOAD, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server in the clear that keeps the heads it was sent.
async fn server() -> (SocketAddr, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("[::1]:0")
        .await
        .expect("IPv6 on loopback");
    let at = listener.local_addr().unwrap();
    let heard = Arc::<Mutex<String>>::default();
    let hears = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let text = String::from_utf8_lossy(&head[..length]).into_owned();
            hears.lock().unwrap().push_str(&text);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
    });
    (at, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_literal_ipv6_address_is_reached_only_where_a_connection_names_it() {
    let (at, heard) = server().await;
    let named = AGENT.replace("open.pay.test:8080", &at.to_string());
    assert_ne!(named, AGENT);
    for (agent, expected) in [(AGENT.to_owned(), 403), (named, 200)] {
        let world = World::planned(Plan {
            agent: Box::leak(agent.into_boxed_str()),
            ..Plan::default()
        })
        .await;
        let stream = world.dial_as(WORKLOAD, at).await;
        let mut client = Client::http1(stream).await;
        let answer = client.call_to(&at.to_string(), "GET", "/get/1", "").await;
        assert_eq!(answer.status, expected, "{answer:?}");
        if expected == 403 {
            assert_eq!(answer.reason(), "host_unknown");
            assert_eq!(*heard.lock().unwrap(), "");
        }
    }
    let heard = heard.lock().unwrap().to_ascii_lowercase();
    assert!(heard.contains(&format!("host: {at}\r\n")), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_over_ipv6_is_verified_for_its_name() {
    let world = World::start().await;
    // The same upstream, by way of IPv6.
    let listener = TcpListener::bind("[::1]:0")
        .await
        .expect("IPv6 on loopback");
    let at = listener.local_addr().unwrap();
    let behind = world.upstream.address;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(behind).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let lead = |trusted: bool| {
        let mut settings = mitm_proxy::Settings::default();
        if trusted {
            settings
                .extra_roots
                .push(world.upstream.root.clone().into());
        }
        let endpoint = format!("{HOST}:443").parse().unwrap();
        settings.connect_to.insert(endpoint, at.to_string());
        world.proxy.replace_settings(settings).unwrap();
    };
    lead(false);
    let refused = world.http1(HOST).await.call("GET", "/v1/charges", "").await;
    assert_eq!(refused.reason(), "upstream_certificate");
    lead(true);
    let answer = world.http1(HOST).await.call("GET", "/v1/charges", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(world.upstream.seen().len(), 1);
}
