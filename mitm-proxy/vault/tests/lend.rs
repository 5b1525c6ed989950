//! Lending as the path of a request uses it: a recorded call in, an armed request out, or a refusal.
//! Every `Recorded` comes from a real ledger and a real decision; nothing is built by hand.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::Path;

use audit::{IntentFacts, Ledger, Options, Outcome, Recorded, WorkloadFacts};
use http::Request;
use policies::{
    Bundle, CredentialId, Decision, Facts, Reason, RequestView, Source, Sources, Timestamp,
    WorkloadId,
};
use vault::{LendFault, MasterKey, Secret, Vault, VaultError};

const VALUE: &str = "sk_live_0123456789";

/// One connector per kind of auth, each on a host of its own; the agent's connection to it has the same name.
fn connector(kind: &str, auth: &str) -> Source {
    let text = format!(
        "schema = 1\nid = \"{kind}\"\ndocs = \"https://example.com\"\nhosts = [\"{kind}.example.com\"]\nauth = {auth}\n\
         [[capability]]\nname = \"items.read\"\nrisk = \"read\"\nmatch = {{ method = \"GET\", path = \"/items\" }}\n\
         params = {{ q = {{ in = \"query\", type = \"string\" }} }}\n\
         examples = {{ hit = [{{ method = \"GET\", path = \"/items\" }}] }}\n"
    );
    Source {
        path: format!("connectors.d/{kind}.toml").into(),
        text,
    }
}

fn bundle() -> Bundle {
    let kinds = [
        (
            "t-bearer",
            "{ kind = \"bearer\", strip = [\"x-api-key\"] }",
            "credential = \"live\"",
        ),
        ("t-bare", "{ kind = \"bearer\" }", ""),
        ("t-basic", "{ kind = \"basic\" }", "credential = \"live\""),
        (
            "t-header",
            "{ kind = \"header\", name = \"x-api-key\" }",
            "credential = \"live\"",
        ),
        (
            "t-query",
            "{ kind = \"query\", name = \"api_key\" }",
            "credential = \"live\"",
        ),
        (
            "t-none",
            "{ kind = \"none\", strip = [\"authorization\", \"?token\"] }",
            "",
        ),
    ];
    let mut agent =
        "tenant = \"acme\"\nname = \"support\"\nowner = \"olga\"\nstage = \"write\"\n".to_owned();
    let mut connectors = Vec::new();
    for (kind, auth, credential) in kinds {
        agent +=
            &format!("[[connections]]\nname = \"{kind}\"\nconnector = \"{kind}\"\n{credential}\n");
        connectors.push(connector(kind, auth));
    }
    let agents = vec![Source {
        path: "agents.d/support.toml".into(),
        text: agent,
    }];
    Bundle::load(&Sources {
        agents,
        connectors,
        policies: Vec::new(),
    })
    .unwrap_or_else(|p| panic!("{p}"))
}

struct Bench {
    bundle: Bundle,
    ledger: Ledger,
    vault: Vault,
    _dir: tempfile::TempDir,
}

fn live() -> CredentialId {
    "acme/live".parse().unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| Path::join(dir.path(), name);
        let ledger = Ledger::open(&at("audit"), Options::default()).unwrap();
        let vault = Vault::open(&at("vault.redb"), MasterKey::create(&at("key")).unwrap()).unwrap();
        Bench {
            bundle: bundle(),
            ledger,
            vault,
            _dir: dir,
        }
    }

    async fn recorded(&self, connection: &str) -> Recorded {
        let request = RequestView {
            method: "GET",
            path: "/items",
            query: None,
            headers: &[],
            body: None,
        };
        let endpoint = format!("{connection}.example.com:443").parse().unwrap();
        let call = self
            .bundle
            .call(&"acme/support".parse().unwrap(), &endpoint, &request)
            .unwrap();
        let Decision::Allow(permit) = self.bundle.decide(
            call,
            &Facts {
                now: now(),
                disabled: false,
            },
            None,
        ) else {
            panic!("not allowed")
        };
        let facts = IntentFacts {
            workload: WorkloadFacts {
                id: WorkloadId(1),
                pid: None,
                exe: None,
                cgroup: None,
            },
            method: "GET".to_owned(),
            path: "/items".to_owned(),
            host: endpoint.host,
            request_digest: None,
            at: now(),
            trace_id: String::new(),
        };
        self.ledger.intent(permit, facts).await.unwrap()
    }

    /// Arms a request that already carries something in every place, and shows what would be sent.
    async fn armed(&self, connection: &str) -> (String, Option<u32>, vault::Scrubber) {
        let mut request = Request::new("body");
        *request.uri_mut() = "/items?q=%2f&api_key=placeholder&API%5fKEY=mine&token=x"
            .parse()
            .unwrap();
        for (name, value) in [
            ("authorization", "Bearer placeholder"),
            ("Authorization", "Basic bWluZTptaW5l"),
            ("X-Api-Key", "placeholder"),
            ("x-keep", "kept"),
        ] {
            request.headers_mut().append(
                name.parse::<http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            );
        }
        let armed = self
            .vault
            .lend(request, self.recorded(connection).await)
            .unwrap();
        let version = armed.credential().map(|(id, version)| {
            assert_eq!(*id, live());
            version
        });
        let (request, scrubber, owed) = armed.into_parts();
        self.ledger.outcome(owed, Outcome::new(now()));
        let headers = request.headers().iter();
        let mut headers: Vec<_> = headers
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        headers.sort();
        assert_eq!(*request.body(), "body");
        (
            format!("{} | {}", request.uri(), headers.join(" | ")),
            version,
            scrubber,
        )
    }

    async fn fault(&self, connection: &str) -> LendFault {
        let error = self
            .vault
            .lend(Request::new(()), self.recorded(connection).await)
            .unwrap_err();
        assert_eq!(error.reason(), Reason::CredentialUnavailable);
        assert_eq!(error.call().connection().as_str(), connection);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("0123456789"), "{shown}");
        let fault = match error.fault() {
            LendFault::NotConfigured => LendFault::NotConfigured,
            LendFault::Vault(VaultError::NotFound(id)) => VaultError::NotFound(id.clone()).into(),
            LendFault::Vault(VaultError::Revoked(id)) => VaultError::Revoked(id.clone()).into(),
            LendFault::Unfit(id, why) => LendFault::Unfit(id.clone(), why),
            other => panic!("{other:?}"),
        };
        self.ledger.outcome(
            error.into_owed(),
            Outcome {
                reason: Some(Reason::CredentialUnavailable),
                ..Outcome::new(now())
            },
        );
        fault
    }
}

const REST: &str = "api_key=placeholder&API%5fKEY=mine&token=x";

#[tokio::test]
async fn the_placeholder_becomes_the_credential_in_its_place_only() {
    let bench = Bench::new();
    bench
        .vault
        .put(&live(), Secret::new(VALUE.into()), now())
        .unwrap();
    for (connection, expected) in [
        (
            "t-bearer",
            format!("/items?q=%2f&{REST} | authorization: Bearer {VALUE} | x-keep: kept"),
        ),
        (
            "t-header",
            format!("/items?q=%2f&{REST} | x-api-key: {VALUE} | x-keep: kept"),
        ),
        (
            "t-query",
            format!("/items?q=%2f&token=x&api_key={VALUE} | x-api-key: placeholder | x-keep: kept"),
        ),
    ] {
        let (sent, version, mut scrubber) = bench.armed(connection).await;
        assert_eq!(sent, expected, "{connection}");
        assert_eq!(version, Some(1));
        let echo = [
            scrubber.push(format!("you sent {VALUE}!").into()),
            scrubber.finish(),
        ]
        .concat();
        assert_eq!(
            echo,
            format!("you sent {}!", "*".repeat(VALUE.len())).as_bytes()
        );
    }
    // A connector without auth: nothing is lent, and what it strips is stripped all the same.
    let (sent, version, scrubber) = bench.armed("t-none").await;
    assert_eq!(
        sent,
        "/items?q=%2f&api_key=placeholder&API%5fKEY=mine | x-api-key: placeholder | x-keep: kept"
    );
    assert_eq!(version, None);
    assert!(scrubber.is_idle());
}

#[tokio::test]
async fn a_basic_credential_is_a_user_and_a_password() {
    let bench = Bench::new();
    bench
        .vault
        .put(&live(), Secret::new(VALUE.into()), now())
        .unwrap();
    assert!(matches!(bench.fault("t-basic").await, LendFault::Unfit(..)));
    bench
        .vault
        .rotate(&live(), Secret::new("alice:correct-horse".into()), now())
        .unwrap();
    let (sent, _, scrubber) = bench.armed("t-basic").await;
    assert!(
        sent.contains("authorization: Basic YWxpY2U6Y29ycmVjdC1ob3JzZQ=="),
        "{sent}"
    );
    assert!(!sent.contains("bWluZTptaW5l"), "{sent}");
    let header = "YWxpY2U6Y29ycmVjdC1ob3JzZQ== correct-horse alice";
    assert_eq!(
        scrubber.scrub_str(header),
        "**************************== ************* alice"
    );
}

#[tokio::test]
async fn without_its_credential_a_call_is_refused_and_told() {
    let bench = Bench::new();
    assert!(matches!(
        bench.fault("t-bearer").await,
        LendFault::Vault(VaultError::NotFound(_))
    ));
    bench
        .vault
        .put(&live(), Secret::new(VALUE.into()), now())
        .unwrap();
    bench.armed("t-bearer").await;
    // Rotation and revocation take effect on the next call.
    bench
        .vault
        .rotate(&live(), Secret::new("sk_live_the_second".into()), now())
        .unwrap();
    let (sent, version, _) = bench.armed("t-bearer").await;
    assert!(
        sent.contains("Bearer sk_live_the_second") && version == Some(2),
        "{sent}"
    );
    bench.vault.revoke(&live(), now()).unwrap();
    assert!(matches!(
        bench.fault("t-bearer").await,
        LendFault::Vault(VaultError::Revoked(_))
    ));
    // A connection that names none although its connector wants one.
    assert!(matches!(
        bench.fault("t-bare").await,
        LendFault::NotConfigured
    ));

    // The outcomes that were handed back are on record.
    bench
        .ledger
        .event(Some(&live().tenant), audit::HostEvent::DaemonStopped)
        .await
        .unwrap();
    let query = audit::Query {
        kind: Some(audit::Kind::Outcome),
        ..audit::Query::default()
    };
    let outcomes = bench.ledger.list(&query).unwrap();
    let refused = outcomes
        .iter()
        .filter(|entry| entry.record().reason.is_some())
        .count();
    assert_eq!((outcomes.len(), refused), (5, 3));
}

#[tokio::test]
async fn the_hosts_own_keys_are_never_lent() {
    let bench = Bench::new();
    let make = || Ok::<_, VaultError>(Secret::new(VALUE.into()));
    bench.vault.sealed(&live().tenant, "live", make).unwrap();
    assert!(matches!(
        bench.fault("t-bearer").await,
        LendFault::Vault(VaultError::NotFound(_))
    ));
}
