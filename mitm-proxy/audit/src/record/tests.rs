//! The documented bytes, held to the letter: a change here is a change of the format that verifiers are written for.

use policies::WorkloadId;

use super::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + millis)
}

/// A record with every member, which no real record has.
fn full() -> Record {
    let digest = Digest::of(b"");
    Record {
        index: 7,
        agent: Some("acme/support".parse().unwrap()),
        capability: Some("stripe/refunds.create".parse().unwrap()),
        decision: Some(DecisionName::Hold),
        reason: Some(Reason::UpstreamTimeout),
        policies: vec!["refund-over-50-needs-finance".parse().unwrap()],
        approval: Some(ApprovalId::from_entropy([0; 16])),
        credential: Some("acme/stripe-live".parse().unwrap()),
        status: Some(200),
        event: Some(Event::Requested),
        outcome: Some(OutcomeName::Answered),
        intent: Some(3),
        owner: Some("olga@example.com".parse().unwrap()),
        connection: Some("stripe".parse().unwrap()),
        risks: vec![Risk::Financial, Risk::Write],
        params: Some(BTreeMap::from([
            ("reason".to_owned(), Value::Text("a \"quote\"\n".to_owned())),
            ("amount".to_owned(), Value::Integer(12000)),
        ])),
        policy_version: Some(PolicyVersion::new(digest)),
        held: Some(HeldRecord {
            digest,
            groups: vec!["finance".parse().unwrap()],
            quorum: 1,
            requested_at: at(0),
            expires_at: at(900_000),
            state: ApprovalState::Pending,
        }),
        answers: vec![AnswerRecord {
            approver: "alice".parse().unwrap(),
            groups: vec!["finance".parse().unwrap()],
            verdict: Verdict::Approve,
            at: at(5),
            note: None,
        }],
        method: Some("POST".to_owned()),
        host: Some("api.stripe.com".to_owned()),
        path: Some("/v1/refunds".to_owned()),
        workload: Some(WorkloadFacts {
            id: WorkloadId(4711),
            pid: Some(42),
            exe: Some("/usr/bin/python3".to_owned()),
            cgroup: Some("sluice/agents/acme.support.1".to_owned()),
        }),
        credential_version: Some(2),
        salt: Some("00".repeat(16)),
        request_digest: Some(digest),
        response_digest: Some(digest),
        request_bytes: Some(10),
        response_bytes: Some(20),
        request_frames: Some(4),
        response_frames: Some(5),
        upstream_us: Some(30),
        by: Some("root".to_owned()),
        trace: Some("4bf9".to_owned()),
        detail: Some("words".to_owned()),
        ..Record::new("acme".parse().unwrap(), Kind::Intent, at(1))
    }
}

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn record_bytes_are_as_documented() {
    let zeros = "0".repeat(64);
    let salt = "00".repeat(16);
    let expected = [
        format!(r#"{{"index":7,"prev":"{zeros}","tenant":"acme","kind":"intent","at":"2027-01-15T08:00:00.001Z","#),
        r#""agent":"acme/support","capability":"stripe/refunds.create","decision":"hold","reason":"upstream_timeout","#.to_owned(),
        r#""policies":["refund-over-50-needs-finance"],"approval":"apr_aaaaaaaaaaaaaaaaaaaaaaaaaa","credential":"acme/stripe-live","status":200,"#.to_owned(),
        r#""event":"requested","outcome":"answered","intent":3,"owner":"olga@example.com","connection":"stripe","risks":["financial","write"],"#.to_owned(),
        format!(r#""params":{{"amount":12000,"reason":"a \"quote\"\n"}},"policy_version":"{EMPTY}","#),
        format!(r#""held":{{"digest":"{EMPTY}","groups":["finance"],"quorum":1,"requested_at":"2027-01-15T08:00:00.000Z","expires_at":"2027-01-15T08:15:00.000Z","state":"pending"}},"#),
        r#""answers":[{"approver":"alice","groups":["finance"],"verdict":"approve","at":"2027-01-15T08:00:00.005Z","note":null}],"#.to_owned(),
        r#""method":"POST","host":"api.stripe.com","path":"/v1/refunds","#.to_owned(),
        r#""workload":{"id":4711,"pid":42,"exe":"/usr/bin/python3","cgroup":"sluice/agents/acme.support.1"},"credential_version":2,"#.to_owned(),
        format!(r#""salt":"{salt}","request_digest":"{EMPTY}","response_digest":"{EMPTY}","request_bytes":10,"response_bytes":20,"request_frames":4,"response_frames":5,"upstream_us":30,"#),
        r#""by":"root","trace":"4bf9","detail":"words"}"#.to_owned(),
    ];
    let line = serde_json::to_string(&full()).unwrap();
    assert_eq!(line, expected.concat());
    assert_eq!(written(&full()), line);
    assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), full());
}

#[test]
fn members_that_do_not_apply_are_null_or_left_out() {
    let record = Record::new("acme".parse().unwrap(), Kind::Refusal, at(0));
    let expected = format!(
        r#"{{"index":0,"prev":"{}","tenant":"acme","kind":"refusal","at":"2027-01-15T08:00:00.000Z","agent":null,"capability":null,"decision":null,"reason":null,"policies":[],"approval":null,"credential":null,"status":null}}"#,
        "0".repeat(64)
    );
    assert_eq!(serde_json::to_string(&record).unwrap(), expected);
    assert_eq!(written(&record), expected);
}

/// As the writer writes it.
fn written(record: &Record) -> String {
    let mut line = b"before".to_vec();
    crate::line::write(record, &mut line).unwrap();
    String::from_utf8(line.split_off(6)).unwrap()
}

#[test]
fn the_writers_lines_are_what_serde_writes() {
    // With each member but the first five as it is in a record of another kind.
    let (full, blank) = (
        serde_json::to_value(full()).unwrap(),
        Record::new("acme".parse().unwrap(), Kind::Outcome, at(2)),
    );
    let blank = serde_json::to_value(blank).unwrap();
    for name in full.as_object().unwrap().keys() {
        let mut record = full.clone();
        match blank.get(name) {
            Some(other) => record[name] = other.clone(),
            None => drop(record.as_object_mut().unwrap().remove(name)),
        }
        let record: Record = serde_json::from_value(record).unwrap();
        let expected = serde_json::to_string(&record).unwrap();
        assert_eq!(written(&record), expected, "{name}");
    }
}

#[test]
fn every_member_is_in_the_documentation_in_its_order() {
    let documented: Vec<&str> = include_str!("../record.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `")?.split('`').next())
        .collect();
    let written = serde_json::to_value(full()).unwrap();
    let written: Vec<&str> = written
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(documented, written);
}
