//! A world on loopback: the real proxy, ledger, vault and bundle, a table in place of the kernel, and an upstream of our own.
//! Every test file uses a part of it.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses another part of the world"
)]

pub mod agent;
pub mod faults;
pub mod peer;
pub mod raw;
pub mod upstream;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use audit::{Entry, Ledger, Options, Query};
use mitm_proxy::meter::{AddressKind, Stage};
use mitm_proxy::{
    CallMeasure, Listeners, Meter, Origin, Origins, Proxy, Settings, Workload, Workloads,
};
use policies::{
    AgentId, Answer, ApprovalId, ApprovalState, Bundle, CredentialId, Reason, Risk, Source,
    Sources, Tenant, Timestamp, Verdict, WorkloadId,
};
use rustls_pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use vault::{MasterKey, Secret, Vault};

pub use upstream::Upstream;

/// The name that the test connector speaks to.
pub const HOST: &str = "api.pay.test";
/// An address that the connector names as it is (RFC 5737, never routed).
pub const LITERAL: &str = "203.0.113.80";
/// What upstream must see.
pub const SECRET: &str = "sk_live_0123456789abcdef";
/// What the agent holds.
pub const PLACEHOLDER: &str = "sk_placeholder";
/// The workload of `acme/support`, and of `acme/other`, in the kernel's place.
pub const WORKLOAD: WorkloadId = WorkloadId(4711);
pub const OTHER_WORKLOAD: WorkloadId = WorkloadId(4712);

/// The kernel's part: who owns which local port, and where it wanted to go.
#[derive(Default)]
pub struct Table(pub Mutex<HashMap<u16, Origin>>);

impl Origins for Table {
    fn accepted(&self, socket: BorrowedFd<'_>) -> Option<Origin> {
        let peer = socket2::SockRef::from(&socket)
            .peer_addr()
            .ok()?
            .as_socket()?;
        self.0.lock().unwrap().get(&peer.port()).copied()
    }

    fn datagram(&self, _: BorrowedFd<'_>, from: SocketAddr) -> Option<Origin> {
        self.0.lock().unwrap().get(&from.port()).copied()
    }
}

/// Counts what was measured.
#[derive(Default)]
pub struct Counts {
    /// Keeps nothing of what comes by the call: a run of an hour would measure this list.
    pub forgets: AtomicBool,
    pub refused: Mutex<Vec<Reason>>,
    pub calls: Mutex<Vec<(String, &'static str)>>,
    pub names: Mutex<Vec<bool>>,
    pub addresses: Mutex<Vec<AddressKind>>,
    pub stages: Mutex<Vec<Stage>>,
    pub connections: Mutex<i64>,
    pub retried: Mutex<u32>,
}

impl Counts {
    fn keep<T>(&self, list: &Mutex<Vec<T>>, one: impl FnOnce() -> T) {
        if !self.forgets.load(Ordering::Relaxed) {
            list.lock().unwrap().push(one());
        }
    }
}

impl Meter for Counts {
    fn call(&self, measure: &CallMeasure<'_>) {
        self.keep(&self.calls, || {
            (measure.capability.to_string(), measure.decision.as_str())
        });
    }
    fn refused(&self, _: Option<&Tenant>, _: Option<&AgentId>, reason: Reason) {
        self.keep(&self.refused, || reason);
    }
    fn stage(&self, stage: Stage, _: Duration) {
        self.keep(&self.stages, || stage);
    }
    fn name(&self, answered: bool) {
        self.keep(&self.names, || answered);
    }
    fn address_refused(&self, kind: AddressKind) {
        self.keep(&self.addresses, || kind);
    }
    fn retried(&self) {
        *self.retried.lock().unwrap() += 1;
    }
    fn connections(&self, delta: i64) {
        *self.connections.lock().unwrap() += delta;
    }
}

/// What a test can vary.
pub struct Plan {
    pub hold: Duration,
    pub agent: &'static str,
    pub policies: &'static str,
    pub upstream_alpn: Vec<Vec<u8>>,
    pub trust_upstream: bool,
    pub redirect_upstream: bool,
    pub tune: fn(&mut Settings),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            hold: Duration::from_millis(400),
            agent: AGENT,
            policies: "",
            upstream_alpn: vec![b"http/1.1".to_vec()],
            trust_upstream: true,
            redirect_upstream: true,
            tune: |_| {},
        }
    }
}

/// Everything that runs.
pub struct World {
    pub proxy: Proxy,
    pub ledger: Ledger,
    pub vault: Arc<Vault>,
    pub workloads: Arc<Workloads>,
    pub counts: Arc<Counts>,
    pub table: Arc<Table>,
    pub upstream: Upstream,
    pub tcp: SocketAddr,
    pub dns_tcp: SocketAddr,
    pub dns_udp: SocketAddr,
    pub stop: CancellationToken,
    pub running: tokio::task::JoinHandle<()>,
    pub directory: tempfile::TempDir,
}

impl World {
    pub async fn start() -> Self {
        Self::planned(Plan::default()).await
    }

    pub async fn planned(plan: Plan) -> Self {
        let upstream = Upstream::start(
            &[HOST, "files.pay.test", LITERAL],
            plan.upstream_alpn.clone(),
        )
        .await;
        let directory = tempfile::tempdir().unwrap();
        Self::assemble(plan, upstream, directory).await
    }

    async fn assemble(plan: Plan, upstream: Upstream, directory: tempfile::TempDir) -> Self {
        let ledger = open_ledger(directory.path()).await;
        let vault = Arc::new(open_vault(directory.path()));
        let workloads = Arc::new(Workloads::new());
        for (id, agent) in [(WORKLOAD, "acme/support"), (OTHER_WORKLOAD, "acme/other")] {
            workloads.insert(Workload {
                id,
                agent: agent.parse().unwrap(),
                pid: Some(4242),
                exe: Some("/usr/bin/curl".to_owned()),
                cgroup: format!("sluice/agents/{}.1", agent.replace('/', ".")),
                way: mitm_proxy::Way::Run,
            });
        }
        let mut settings = Settings {
            hold: plan.hold,
            ..Settings::default()
        };
        if plan.trust_upstream {
            settings
                .extra_roots
                .push(CertificateDer::from(upstream.root.clone()));
        }
        if plan.redirect_upstream {
            for host in [HOST, "files.pay.test", LITERAL] {
                settings.connect_to.insert(
                    format!("{host}:443").parse().unwrap(),
                    upstream.address.to_string(),
                );
            }
        }
        (plan.tune)(&mut settings);
        let counts = Arc::new(Counts::default());
        let table = Arc::new(Table::default());
        let proxy = Proxy::new(
            bundle(plan.agent, plan.policies),
            ledger.clone(),
            Arc::clone(&vault),
            Arc::clone(&table) as Arc<dyn Origins>,
            Arc::clone(&workloads),
            Arc::clone(&counts) as Arc<dyn Meter>,
            settings,
        )
        .unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dns_tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dns_udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addresses = (
            tcp.local_addr().unwrap(),
            dns_tcp.local_addr().unwrap(),
            dns_udp.local_addr().unwrap(),
        );
        let listeners = Listeners {
            tcp: vec![tcp],
            dns_tcp: vec![dns_tcp],
            dns_udp: vec![dns_udp],
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(proxy.clone().run(
            listeners,
            tokio::sync::mpsc::channel(1).1,
            stop.clone(),
        ));
        Self {
            proxy,
            ledger,
            vault,
            workloads,
            counts,
            table,
            upstream,
            tcp: addresses.0,
            dns_tcp: addresses.1,
            dns_udp: addresses.2,
            stop,
            running,
            directory,
        }
    }

    /// Stops the proxy and starts another over the same ledger and vault, as a new daemon would.
    pub async fn restart(self, plan: Plan) -> Self {
        self.stop.cancel();
        self.running.await.unwrap();
        let Self {
            proxy,
            ledger,
            vault,
            upstream,
            directory,
            ..
        } = self;
        drop((proxy, ledger, vault));
        Self::assemble(plan, upstream, directory).await
    }

    /// All records of the tenant so far, the oldest first; waits until `ready` holds, since outcomes are queued.
    pub async fn records_until(&self, ready: impl Fn(&[Entry]) -> bool) -> Vec<Entry> {
        for _ in 0..200 {
            let records = self.records().await;
            if ready(&records) {
                return records;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let lines: Vec<_> = self
            .records()
            .await
            .iter()
            .map(|entry| entry.line().to_owned())
            .collect();
        panic!(
            "the expected records did not come; there are:\n{}",
            lines.join("\n")
        );
    }

    pub async fn records(&self) -> Vec<Entry> {
        let ledger = self.ledger.clone();
        let list = move || {
            ledger.list(&Query {
                tenant: Some("acme".parse().unwrap()),
                ..Query::default()
            })
        };
        tokio::task::spawn_blocking(list).await.unwrap().unwrap()
    }

    /// The reasons of all refusal records.
    pub async fn refusals(&self) -> Vec<Reason> {
        let refused = |entry: &Entry| entry.line().contains("\"kind\":\"refusal\"");
        self.records()
            .await
            .iter()
            .filter(|entry| refused(entry))
            .filter_map(|entry| entry.record().reason)
            .collect()
    }

    /// The approval that is pending; waits for one.
    pub async fn pending(&self) -> ApprovalId {
        for _ in 0..200 {
            let all = self.proxy.approvals().list();
            if let Some(approval) = all
                .iter()
                .find(|approval| approval.state == ApprovalState::Pending)
            {
                return approval.id;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no approval is pending");
    }

    pub async fn answer(&self, id: &ApprovalId, verdict: Verdict) {
        let answer = Answer {
            approver: "alice".parse().unwrap(),
            groups: vec!["finance".parse().unwrap()],
            verdict,
            at: now(),
            note: None,
        };
        self.proxy.approvals().answer(id, answer).await.unwrap();
    }
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Timestamp::from_millis(since.as_millis().try_into().unwrap())
}

/// A stream of the old proxy may hold the ledger for a moment longer; a new daemon would be a new process.
async fn open_ledger(directory: &std::path::Path) -> Ledger {
    let mut tries = 0;
    loop {
        match Ledger::open(&directory.join("audit"), Options::default()) {
            Err(audit::OpenError::Locked { .. }) if tries < 100 => tries += 1,
            opened => return opened.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn open_vault(directory: &std::path::Path) -> Vault {
    let key = directory.join("master.key");
    let new = !key.exists();
    let master = if new {
        MasterKey::create(&key).unwrap()
    } else {
        MasterKey::load(&vault::MasterKeySource::KeyFile(key)).unwrap()
    };
    let vault = Vault::open(&directory.join("vault.redb"), master).unwrap();
    if new {
        let id: CredentialId = "acme/pay-live".parse().unwrap();
        vault
            .put(&id, Secret::new(SECRET.as_bytes().to_vec()), now())
            .unwrap();
    }
    vault
}

pub fn bundle(agent: &str, policies: &str) -> Bundle {
    let source = |path: String, text: String| Source {
        path: PathBuf::from(path),
        text,
    };
    let other = agent.replace("name = \"support\"", "name = \"other\"");
    // The shipped catalogue is large; a stub in each one's place makes a world start in milliseconds.
    let stubs = [
        "anthropic",
        "generic-http",
        "github",
        "jira",
        "openai",
        "slack",
        "stripe",
    ];
    // One capability of each risk class, so that every shipped policy still has something to be about.
    let capabilities: String = Risk::ALL
        .iter()
        .map(|risk| CAPABILITY.replace("RISK", risk.as_str()))
        .collect();
    let stub = [STUB, &capabilities].concat();
    let stubs = stubs.map(|id| source(format!("connectors.d/{id}.toml"), stub.replace("STUB", id)));
    let pay = source("connectors.d/pay.toml".into(), CONNECTOR.to_owned());
    let open = source("connectors.d/open.toml".into(), peer::CONNECTOR.to_owned());
    let sources = Sources {
        agents: vec![
            source("agents.d/support.toml".into(), agent.to_owned()),
            source("agents.d/other.toml".into(), other),
        ],
        connectors: [pay, open].into_iter().chain(stubs).collect(),
        policies: vec![source("policies/test.cedar".into(), policies.to_owned())],
    };
    Bundle::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

const STUB: &str = r#"
schema = 1
id = "STUB"
hosts = ["STUB.test"]
docs = "https://STUB.test/docs"
auth = { kind = "none" }
"#;

const CAPABILITY: &str = r#"
[[capability]]
name = "RISK.thing"
risk = "RISK"
match = { method = "GET", path = "/RISK" }
[capability.examples]
hit = [{ method = "GET", path = "/RISK" }]
"#;

/// The synthetic addresses that the pools give out lie in these.
pub fn is_synthetic(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => u32::from(v4) >> 17 == u32::from(Ipv4Addr::new(198, 18, 0, 0)) >> 17,
        IpAddr::V6(v6) => {
            let base = Ipv6Addr::new(0xfd53, 0x6c75, 0x6963, 0x65, 0, 0, 0, 0);
            u128::from(v6) >> 64 == u128::from(base) >> 64
        }
    }
}

pub const AGENT: &str = r#"
tenant = "acme"
name = "support"
owner = "bob"
stage = "write"

[[connections]]
name = "pay"
connector = "pay"
credential = "pay-live"
"#;

pub const CONNECTOR: &str = r#"
schema = 1
id = "pay"
hosts = ["api.pay.test", "*.pay.test", "203.0.113.80"]
docs = "https://pay.test/docs"

[auth]
kind = "bearer"

[[capability]]
name = "charges.list"
risk = "read"
match = { method = "GET", path = "/v1/charges" }
[capability.examples]
hit = [{ method = "GET", path = "/v1/charges" }]

[[capability]]
name = "echo"
risk = "read"
match = { method = ["GET", "HEAD"], path = "/v1/echo" }
[capability.examples]
hit = [{ method = "GET", path = "/v1/echo" }]

[[capability]]
name = "stream"
risk = "read"
match = { method = "GET", path = "/v1/stream" }
[capability.examples]
hit = [{ method = "GET", path = "/v1/stream" }]

[[capability]]
name = "socket"
risk = "read"
match = { method = "GET", path = "/v1/socket", websocket = true }
[capability.examples]
hit = [{ method = "GET", path = "/v1/socket", headers = { upgrade = "websocket" } }]

[[capability]]
name = "notes.create"
risk = "write"
match = { method = "POST", path = "/v1/notes" }
opaque_body = true
[capability.examples]
hit = [{ method = "POST", path = "/v1/notes" }]

[[capability]]
name = "refunds.create"
risk = ["financial", "write"]
match = { method = "POST", path = "/v1/refunds" }
[capability.params]
amount = { in = "form", type = "integer" }
[capability.examples]
hit = [{ method = "POST", path = "/v1/refunds", form = "amount=100", params = { amount = 100 } }]

[[capability]]
name = "customers.delete"
risk = "destructive"
match = { method = "DELETE", path = "/v1/customers/{id}" }
[capability.params]
id = { in = "path", type = "string" }
[capability.examples]
hit = [{ method = "DELETE", path = "/v1/customers/cus_1" }]
"#;
