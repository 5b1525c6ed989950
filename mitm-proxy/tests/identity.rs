//! Who is at the other end, and who we are to it: pins and client certificates of a connection, each shown to matter.
//! The upstreams here are TLS servers of our own with chains of our own.

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

use policies::{CredentialId, Pin, Reason, WorkloadId};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use support::agent::{Answer, Client};
use support::{HOST, OTHER_WORKLOAD, Plan, SECRET, WORKLOAD, World, now};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use vault::Secret;

/// An authority, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(ca(name), KeyPair::generate().unwrap());
        Self(issuer.unwrap())
    }

    /// An authority below this one.
    fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(ca(name), key, &self.0).unwrap())
    }

    fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn pin(&self) -> Pin {
        Pin::of(&self.0.key().subject_public_key_info())
    }

    fn leaf(&self, name: &str) -> (CertificateDer<'static>, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        (leaf.der().clone(), key)
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A client certificate, if one was shown, and whether the session was resumed.
type Came = (Option<Vec<u8>>, bool);

/// A server that counts what it is sent inside TLS, and answers each request with what it knows of the client.
struct Server {
    address: SocketAddr,
    /// Bytes that arrived inside TLS.
    heard: Arc<Mutex<usize>>,
    /// Who came: the client certificate of each connection, and whether it was resumed.
    came: Arc<Mutex<Vec<Came>>>,
}

impl Server {
    async fn start(config: rustls::ServerConfig) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            heard: Arc::default(),
            came: Arc::default(),
        };
        let (heard, came) = (this.heard.clone(), this.came.clone());
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, heard, came) = (acceptor.clone(), heard.clone(), came.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let tls = stream.get_ref().1;
                    let who = tls.peer_certificates().map(|chain| chain[0].to_vec());
                    let resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                    came.lock().unwrap().push((who, resumed));
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                        *heard.lock().unwrap() += length;
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        this
    }
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    clients: Option<&Authority>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.der()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    builder.with_single_cert(chain, key).unwrap()
}

const BOTH: &[&rustls::SupportedProtocolVersion] = rustls::ALL_VERSIONS;

/// A world whose connection has these lines more, and whose upstream is `server` under `root`.
async fn world(lines: &str, root: &Authority, server: &Server) -> World {
    let agent = format!("{}{lines}\n", support::AGENT);
    let world = World::planned(Plan {
        agent: Box::leak(agent.into_boxed_str()),
        ..Plan::default()
    })
    .await;
    settle(&world, &[root], server);
    world
}

fn settle(world: &World, roots: &[&Authority], server: &Server) {
    let mut settings = mitm_proxy::Settings::default();
    settings
        .extra_roots
        .extend(roots.iter().map(|root| root.der()));
    settings.connect_to.insert(
        format!("{HOST}:443").parse().unwrap(),
        server.address.to_string(),
    );
    world.proxy.replace_settings(settings).unwrap();
}

async fn call(world: &World) -> Answer {
    world.http1(HOST).await.call("GET", "/v1/charges", "").await
}

async fn http1_as(world: &World, workload: WorkloadId) -> Client {
    let address = SocketAddr::new(world.address_of(HOST).await, 443);
    let stream = world.dial_as(workload, address).await;
    Client::http1(world.shake(stream, HOST, b"http/1.1").await).await
}

async fn outcome(world: &World) -> (Option<Reason>, String) {
    let ended = |records: &[audit::Entry]| {
        records
            .last()
            .is_some_and(|entry| entry.line().contains("\"kind\":\"outcome\""))
    };
    let records = world.records_until(ended).await;
    let last = records.last().unwrap();
    (last.record().reason, last.line().to_owned())
}

fn pins(pins: &[Pin]) -> String {
    let pins: Vec<String> = pins.iter().map(|pin| format!("\"{pin}\"")).collect();
    format!("pins = [{}]", pins.join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_the_pinned_key_gets_no_byte_of_the_call() {
    let (root, stranger) = (Authority::new("root"), Authority::new("stranger"));
    let (leaf, key) = root.leaf(HOST);
    let server = Server::start(server_config(vec![leaf], &key, None, BOTH)).await;
    // Positive control: without the pin the same upstream is good.
    let open = world("", &root, &server).await;
    assert_eq!(call(&open).await.status, 200);
    let heard = *server.heard.lock().unwrap();
    assert!(heard > 0);

    let pinned = world(&pins(&[stranger.pin()]), &root, &server).await;
    let answer = call(&pinned).await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (502, "upstream_pin"),
        "{answer:?}"
    );
    assert_eq!(*server.heard.lock().unwrap(), heard);
    assert_eq!(outcome(&pinned).await.0, Some(Reason::UpstreamPin));
    assert_eq!(
        *pinned.counts.refused.lock().unwrap(),
        [Reason::UpstreamPin]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_of_the_leaf_of_an_authority_between_or_of_the_root_is_enough() {
    let (root, stranger) = (Authority::new("root"), Authority::new("stranger"));
    let between = root.below("between");
    let (leaf, key) = between.leaf(HOST);
    let leaf_pin = Pin::of(&key.subject_public_key_info());
    let chain = vec![leaf, between.der()];
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let config = server_config(chain.clone(), &key, None, versions);
        let server = Server::start(config).await;
        for pin in [leaf_pin, between.pin(), root.pin()] {
            // Beside another: any one is enough.
            let world = world(&pins(&[stranger.pin(), pin]), &root, &server).await;
            assert_eq!(call(&world).await.status, 200, "{pin}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_sent_along_and_signs_nothing_does_not_meet_the_pin() {
    // Mallory has a certificate for the name from an authority that is trusted, and the public one that is pinned.
    let (root, pinned) = (Authority::new("root"), Authority::new("pinned"));
    let between = pinned.below("pinned, between");
    let (leaf, key) = root.leaf(HOST);
    let chain = vec![leaf, between.der(), pinned.der()];
    let server = Server::start(server_config(chain, &key, None, BOTH)).await;
    for pin in [between.pin(), pinned.pin()] {
        let world = world(&pins(&[pin]), &root, &server).await;
        // Even where the pinned authority itself is trusted.
        settle(&world, &[&root, &pinned], &server);
        let answer = call(&world).await;
        assert_eq!(answer.reason(), "upstream_pin", "{answer:?}");
    }
    assert_eq!(*server.heard.lock().unwrap(), 0);
    // Positive control: the authority that did sign.
    let world = world(&pins(&[root.pin()]), &root, &server).await;
    assert_eq!(call(&world).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_never_stands_in_for_verification() {
    let (root, other) = (Authority::new("root"), Authority::new("other"));
    let (wrong_name, key) = root.leaf("evil.test");
    let pin = Pin::of(&key.subject_public_key_info());
    let server = Server::start(server_config(vec![wrong_name], &key, None, BOTH)).await;
    let named_otherwise = world(&pins(&[pin]), &root, &server).await;
    assert_eq!(
        call(&named_otherwise).await.reason(),
        "upstream_certificate"
    );

    let (leaf, key) = root.leaf(HOST);
    let pin = Pin::of(&key.subject_public_key_info());
    let server = Server::start(server_config(vec![leaf], &key, None, BOTH)).await;
    let untrusted = world(&pins(&[pin]), &other, &server).await;
    assert_eq!(call(&untrusted).await.reason(), "upstream_certificate");
    assert_eq!(*server.heard.lock().unwrap(), 0);
    // Positive control: the same pin under the right root.
    let good = world(&pins(&[pin]), &root, &server).await;
    assert_eq!(call(&good).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_does_not_outlive_the_pins_that_it_was_opened_under() {
    let (root, stranger) = (Authority::new("root"), Authority::new("stranger"));
    let (leaf, key) = root.leaf(HOST);
    let server = Server::start(server_config(vec![leaf], &key, None, BOTH)).await;
    let world = world(&pins(&[root.pin()]), &root, &server).await;
    let mut client = world.http1(HOST).await;
    for _ in 0..2 {
        assert_eq!(client.call("GET", "/v1/charges", "").await.status, 200);
    }
    // Positive control: it is kept between calls.
    assert_eq!(server.came.lock().unwrap().len(), 1);
    let agent = format!("{}{}\n", support::AGENT, pins(&[stranger.pin()]));
    let agent = Box::leak(agent.into_boxed_str());
    world.proxy.replace_bundle(support::bundle(agent, ""));
    let answer = client.call("GET", "/v1/charges", "").await;
    assert_eq!(answer.reason(), "upstream_pin", "{answer:?}");
}

/// The client certificate's PEM, and its DER.
fn client(authority: &Authority) -> (String, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["support.acme.test".to_owned()]).unwrap();
    let leaf = params.signed_by(&key, &authority.0).unwrap();
    (leaf.pem() + &key.serialize_pem(), leaf.der().to_vec())
}

fn put(world: &World, pem: &str) {
    let id: CredentialId = "acme/pay-client".parse().unwrap();
    let secret = Secret::new(pem.as_bytes().to_vec());
    world.vault.put(&id, secret, now()).unwrap();
}

const CLIENT: &str = "client_certificate = \"pay-client\"";

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_demands_a_client_certificate_gets_the_vaults() {
    let (root, clients) = (Authority::new("root"), Authority::new("clients"));
    let (leaf, key) = root.leaf(HOST);
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let config = server_config(vec![leaf.clone()], &key, Some(&clients), versions);
        let server = Server::start(config).await;
        let world = world(CLIENT, &root, &server).await;
        let (pem, der) = client(&clients);
        put(&world, &pem);
        let mut agent = world.http1(HOST).await;
        let answer = agent.call("GET", "/v1/charges", "").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "ok"),
            "{answer:?}"
        );
        assert_eq!(*server.came.lock().unwrap(), [(Some(der), false)]);
        // The agent's leg knows nothing of it, and the key is in no record.
        let (reason, line) = outcome(&world).await;
        assert_eq!(reason, None);
        let secret: String = pem.lines().nth_back(2).unwrap().to_owned();
        assert!(!line.contains(&secret) && !line.contains(SECRET), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_demands_a_client_certificate_is_named_where_there_is_none() {
    let (root, clients) = (Authority::new("root"), Authority::new("clients"));
    let (leaf, key) = root.leaf(HOST);
    let stranger = client(&Authority::new("stranger")).0;
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let config = server_config(vec![leaf.clone()], &key, Some(&clients), versions);
        let server = Server::start(config).await;
        let none = world("", &root, &server).await;
        let answer = call(&none).await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (502, "client_certificate_required"),
            "{answer:?}"
        );
        assert!(
            answer.body.contains("this connection has none"),
            "{answer:?}"
        );
        assert_eq!(
            outcome(&none).await.0,
            Some(Reason::ClientCertificateRequired)
        );
        assert_eq!(
            *none.counts.refused.lock().unwrap(),
            [Reason::ClientCertificateRequired]
        );
        let wrong = world(CLIENT, &root, &server).await;
        put(&wrong, &stranger);
        let answer = call(&wrong).await;
        assert_eq!(answer.reason(), "client_certificate_required", "{answer:?}");
        assert!(answer.body.contains("acme/pay-client"), "{answer:?}");
        // Never put, and revoked: as with every credential.
        let missing = world(CLIENT, &root, &server).await;
        assert_eq!(call(&missing).await.reason(), "credential_unavailable");
        assert_eq!(*server.heard.lock().unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shows_a_client_certificate_is_shared_with_nobody() {
    let (root, clients) = (Authority::new("root"), Authority::new("clients"));
    let (leaf, key) = root.leaf(HOST);
    let server = Server::start(server_config(vec![leaf], &key, Some(&clients), BOTH)).await;
    let world = world(CLIENT, &root, &server).await;
    let (pem, der) = client(&clients);
    put(&world, &pem);
    let mut one = http1_as(&world, WORKLOAD).await;
    for _ in 0..2 {
        assert_eq!(one.call("GET", "/v1/charges", "").await.status, 200);
    }
    // Positive control: one agent's calls do share.
    assert_eq!(server.came.lock().unwrap().len(), 1);
    let mut other = http1_as(&world, OTHER_WORKLOAD).await;
    assert_eq!(other.call("GET", "/v1/charges", "").await.status, 200);
    // A new version is shown in a new handshake, and no session of the old one is resumed.
    let (renewed, renewed_der) = client(&clients);
    let id: CredentialId = "acme/pay-client".parse().unwrap();
    let secret = Secret::new(renewed.into_bytes());
    world.vault.rotate(&id, secret, now()).unwrap();
    assert_eq!(one.call("GET", "/v1/charges", "").await.status, 200);
    assert_eq!(
        *server.came.lock().unwrap(),
        [
            (Some(der.clone()), false),
            (Some(der), false),
            (Some(renewed_der), false)
        ]
    );
    // Revoked: not even the connection that is open and kept.
    world.vault.revoke(&id, now()).unwrap();
    let answer = one.call("GET", "/v1/charges", "").await;
    assert_eq!(answer.reason(), "credential_unavailable", "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_never_written_into_a_request() {
    let (root, clients) = (Authority::new("root"), Authority::new("clients"));
    let (leaf, key) = root.leaf(HOST);
    let server = Server::start(server_config(vec![leaf], &key, None, BOTH)).await;
    let world = world("", &root, &server).await;
    assert_eq!(call(&world).await.status, 200);
    let id: CredentialId = "acme/pay-live".parse().unwrap();
    let secret = Secret::new(client(&clients).0.into_bytes());
    world.vault.rotate(&id, secret, now()).unwrap();
    let heard = *server.heard.lock().unwrap();
    assert_eq!(call(&world).await.reason(), "credential_unavailable");
    assert_eq!(*server.heard.lock().unwrap(), heard);
}
