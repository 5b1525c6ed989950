//! What the tests of the ledger share: a tenant with one agent, and calls that a real bundle permitted or held.
//! Everything goes through `Bundle::call` and `Bundle::decide`, as in the daemon; no permit is made by hand.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::path::Path;
use std::time::Duration;

use audit::{
    IntentFacts, Ledger, Options, Outcome, Owed, Query, Record, RefusalFacts, WorkloadFacts,
};
use policies::{
    Answer, Approval, ApprovalId, Bundle, Call, Decision, Digest, Facts, Held, Permit, Reason,
    RequestView, Source, Sources, Tenant, Timestamp, Verdict, WorkloadId,
};

const CONNECTOR: &str = r#"
schema = 1
id = "desk"
docs = "https://desk.example.com/docs"
hosts = ["api.desk.example.com"]
auth = { kind = "bearer" }

[[capability]]
name = "tickets.read"
risk = "read"
match = { method = "GET", path = "/tickets/{ticket}" }
params = { ticket = { in = "path", type = "string" } }
examples = { hit = [{ method = "GET", path = "/tickets/1" }] }

[[capability]]
name = "refunds.create"
risk = ["financial", "write"]
match = { method = "POST", path = "/refunds" }
examples = { hit = [{ method = "POST", path = "/refunds", form = "charge=ch_1&amount=100", params = { amount = 100 } }] }
[capability.params]
charge = { in = "form", type = "string" }
amount = { in = "form", type = "integer" }
"#;

const AGENT: &str = r#"
tenant = "acme"
name = "support"
owner = "olga@example.com"
stage = "write"
[[connections]]
name = "desk"
connector = "desk"
credential = "desk-live"
"#;

pub fn now() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

pub fn tenant() -> Tenant {
    "acme".parse().unwrap()
}

pub fn bundle() -> &'static Bundle {
    static BUNDLE: std::sync::OnceLock<Bundle> = std::sync::OnceLock::new();
    BUNDLE.get_or_init(|| {
        let source = |path: &str, text: &str| Source {
            path: path.into(),
            text: text.to_owned(),
        };
        let sources = Sources {
            agents: vec![source("agents.d/support.toml", AGENT)],
            connectors: vec![source("connectors.d/desk.toml", CONNECTOR)],
            policies: Vec::new(),
        };
        Bundle::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
    })
}

fn call(method: &str, path: &str, body: &str) -> Call {
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let body = Some(body.as_bytes());
    let request = RequestView {
        method,
        path,
        query: None,
        headers: &headers,
        body,
    };
    let endpoint = "api.desk.example.com:443".parse().unwrap();
    bundle()
        .call(&"acme/support".parse().unwrap(), &endpoint, &request)
        .unwrap()
}

fn decide(call: Call, grant: Option<policies::Grant>) -> Decision {
    bundle().decide(
        call,
        &Facts {
            now: now(),
            disabled: false,
        },
        grant,
    )
}

pub fn permit() -> Permit {
    match decide(call("GET", "/tickets/7", ""), None) {
        Decision::Allow(permit) => permit,
        other => panic!("{other:?}"),
    }
}

pub fn held() -> Held {
    match decide(call("POST", "/refunds", "charge=ch_1&amount=12000"), None) {
        Decision::Hold(held) => held,
        other => panic!("{other:?}"),
    }
}

pub fn body() -> Digest {
    Digest::of(b"charge=ch_1&amount=12000")
}

pub fn requested(held: &Held, id: u8) -> Approval {
    Approval::request(held, &body(), ApprovalId::from_entropy([id; 16]), now())
}

pub fn approve(approval: &mut Approval) {
    let answer = Answer {
        approver: "alice".parse().unwrap(),
        groups: approval.groups.clone(),
        verdict: Verdict::Approve,
        at: now() + Duration::from_secs(5),
        note: Some("customer called".to_owned()),
    };
    approval.answer(answer).unwrap();
}

/// The permit of a held call, through an approved approval.
pub fn permit_by(approval: &mut Approval, held: Held) -> Permit {
    let grant = approval
        .take(&held, &body(), now() + Duration::from_secs(6))
        .unwrap();
    match decide(held.into_call(), Some(grant)) {
        Decision::Allow(permit) => permit,
        other => panic!("{other:?}"),
    }
}

pub fn workload() -> WorkloadFacts {
    WorkloadFacts {
        id: WorkloadId(4711),
        pid: Some(42),
        exe: Some("/usr/bin/python3".to_owned()),
        cgroup: Some("sluice/agents/acme.support.1".to_owned()),
    }
}

pub fn facts() -> IntentFacts {
    IntentFacts {
        workload: workload(),
        method: "GET".to_owned(),
        path: "/tickets/7?api_key=in-the-query".to_owned(),
        host: "api.desk.example.com".parse().unwrap(),
        request_digest: Some(Digest::of(b"")),
        at: now(),
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
    }
}

pub fn answered() -> Outcome {
    Outcome {
        status: Some(200),
        response_bytes: 12,
        response_digest: Some(Digest::of(b"{\"ticket\":7}")),
        credential: Some(("acme/desk-live".parse().unwrap(), 3)),
        upstream: Duration::from_micros(1234),
        ..Outcome::new(now() + Duration::from_millis(20))
    }
}

pub fn refusal() -> RefusalFacts {
    RefusalFacts {
        agent: Some("acme/support".parse().unwrap()),
        host: Some("evil.example.com".to_owned()),
        detail: "no connection names this host".to_owned(),
        ..RefusalFacts::new(tenant(), Reason::HostUnknown, now())
    }
}

pub fn open(dir: &Path) -> Ledger {
    Ledger::open(dir, Options::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// An intent whose outcome is still owed.
pub async fn intent(ledger: &Ledger) -> Owed {
    ledger
        .intent(permit(), facts())
        .await
        .unwrap()
        .into_owed()
        .1
}

pub fn records(ledger: &Ledger, tenant: &Tenant) -> Vec<Record> {
    let query = Query {
        tenant: Some(tenant.clone()),
        limit: usize::MAX,
        ..Query::default()
    };
    ledger
        .list(&query)
        .unwrap()
        .iter()
        .map(|entry| entry.record().clone())
        .collect()
}

/// Waits for what was only queued: a record whose caller waits comes after it.
pub async fn settled(ledger: &Ledger) -> Vec<Record> {
    ledger.refused(refusal()).await.unwrap();
    let mut records = records(ledger, &tenant());
    records.pop();
    records
}

pub fn export(ledger: &Ledger) -> Vec<u8> {
    let mut text = Vec::new();
    ledger.export(&tenant(), &mut text).unwrap();
    text
}
