//! Facts become records: what is kept, in which member, cut to which length, salted how.
//! The writer adds only `index` and `prev`; everything else is decided here.
//! INVARIANT: no query string, no secret and no unsalted body digest enters a record.

use std::collections::BTreeMap;

use policies::{Answer, Approval, Digest, Permit, Reason, Tenant, Timestamp, Value};

use crate::entropy;
use crate::error::AuditError;
use crate::facts::{ApprovalEvent, HostEvent, IntentFacts, Outcome, RefusalFacts, WorkloadFacts};
use crate::record::{
    AnswerRecord, DecisionName, Event, HeldRecord, Kind, MAX_TEXT, OutcomeName, Record,
};

pub(crate) fn intent(permit: &Permit, facts: IntentFacts) -> Result<Record, AuditError> {
    let call = permit.call();
    let mut record = Record {
        agent: Some(call.agent().clone()),
        capability: Some(call.capability().clone()),
        decision: Some(DecisionName::Allow),
        policies: permit.policies().to_vec(),
        approval: permit.approval().copied(),
        credential: call.credential(),
        owner: Some(call.owner().clone()),
        connection: Some(call.connection().clone()),
        risks: call.risks().to_vec(),
        params: params(call.params()),
        policy_version: Some(permit.version()),
        method: Some(bounded(facts.method)),
        host: Some(facts.host.to_string()),
        path: Some(path(facts.path)),
        workload: Some(workload(facts.workload)),
        trace: text(facts.trace_id),
        ..Record::new(call.agent().tenant.clone(), Kind::Intent, facts.at)
    };
    if let Some(request) = facts.request_digest {
        let salt = entropy::draw().map_err(AuditError::Entropy)?;
        add_digests(&mut record, salt, Some(request), None);
    }
    Ok(record)
}

/// Fills in how the call ended.
pub(crate) fn outcome(record: &mut Record, outcome: Outcome) {
    let (credential, version) = outcome.credential.unzip();
    record.at = outcome.at;
    record.outcome = Some(match (outcome.aborted, outcome.reason) {
        (true, _) => OutcomeName::Aborted,
        (false, None) => OutcomeName::Answered,
        (false, Some(_)) => OutcomeName::Failed,
    });
    record.reason = outcome.reason;
    record.credential = credential.or(record.credential.take());
    record.credential_version = version;
    record.status = outcome.status;
    record.request_bytes = Some(outcome.request_bytes);
    record.response_bytes = Some(outcome.response_bytes);
    (record.request_frames, record.response_frames) = outcome.frames.unzip();
    record.upstream_us = Some(u64::try_from(outcome.upstream.as_micros()).unwrap_or(u64::MAX));
    record.detail = outcome.detail.and_then(text);
    // Without randomness the outcome is still told; only the digests, which need a salt, are left out.
    if (outcome.request_digest.is_some() || outcome.response_digest.is_some())
        && let Ok(salt) = entropy::draw()
    {
        add_digests(
            record,
            salt,
            outcome.request_digest,
            outcome.response_digest,
        );
    }
}

pub(crate) fn aborted(record: &mut Record, at: Timestamp) {
    record.at = at;
    record.outcome = Some(OutcomeName::Aborted);
}

pub(crate) fn refusal(facts: RefusalFacts) -> Record {
    let decision = match facts.reason {
        Reason::ApprovalRequired => DecisionName::Hold,
        _ => DecisionName::Deny,
    };
    Record {
        agent: facts.agent,
        capability: facts.capability,
        decision: Some(decision),
        reason: Some(facts.reason),
        policies: facts.policies,
        approval: facts.approval,
        connection: facts.connection,
        params: params(&facts.params),
        policy_version: facts.policy_version,
        method: facts.method.map(bounded),
        host: facts.host.map(host),
        path: facts.path.map(path),
        workload: facts.workload.map(workload),
        trace: text(facts.trace_id),
        detail: text(facts.detail),
        ..Record::new(facts.tenant, Kind::Refusal, facts.at)
    }
}

pub(crate) fn approval(event: ApprovalEvent, approval: &Approval, at: Timestamp) -> Record {
    Record {
        agent: Some(approval.agent.clone()),
        capability: Some(approval.capability.clone()),
        decision: Some(DecisionName::Hold),
        policies: approval.policies.clone(),
        approval: Some(approval.id),
        event: Some(match event {
            ApprovalEvent::Answered => Event::Answered,
            ApprovalEvent::Expired => Event::Expired,
            ApprovalEvent::Requested => Event::Requested,
        }),
        owner: Some(approval.owner.clone()),
        connection: Some(approval.connection.clone()),
        params: params(&approval.params),
        policy_version: Some(approval.policy_version),
        held: Some(HeldRecord {
            digest: approval.digest,
            groups: approval.groups.clone(),
            quorum: approval.quorum,
            requested_at: approval.requested_at,
            expires_at: approval.expires_at,
            state: approval.state,
        }),
        answers: answers(&approval.answers),
        ..Record::new(approval.agent.tenant.clone(), Kind::Approval, at)
    }
}

pub(crate) fn answers(answers: &[Answer]) -> Vec<AnswerRecord> {
    let record = |answer: &Answer| AnswerRecord {
        approver: answer.approver.clone(),
        groups: answer.groups.clone(),
        verdict: answer.verdict,
        at: answer.at,
        note: answer.note.clone().map(bounded),
    };
    answers.iter().map(record).collect()
}

pub(crate) fn event(tenant: Tenant, event: HostEvent, at: Timestamp) -> Record {
    let record = Record::new(tenant, Kind::Event, at);
    let named = |event| Record {
        event: Some(event),
        ..record.clone()
    };
    match event {
        HostEvent::AgentDisabled { agent, by } => Record {
            agent: Some(agent),
            by: text(by),
            ..named(Event::AgentDisabled)
        },
        HostEvent::AgentEnabled { agent, by } => Record {
            agent: Some(agent),
            by: text(by),
            ..named(Event::AgentEnabled)
        },
        HostEvent::BundleLoaded { version } => Record {
            policy_version: Some(version),
            ..named(Event::BundleLoaded)
        },
        HostEvent::BundleRejected { detail } => Record {
            detail: text(detail),
            ..named(Event::BundleRejected)
        },
        HostEvent::CaRotationFinished {
            generation,
            by,
            abandoned,
        } => Record {
            by: text(by),
            detail: text(format!(
                "root {generation} is left; {abandoned} workloads trusted the former alone"
            )),
            ..named(Event::CaRotationFinished)
        },
        HostEvent::CaRotated { generation, by } => Record {
            by: text(by),
            detail: text(format!("root {generation}")),
            ..named(Event::CaRotated)
        },
        HostEvent::DaemonStarted { version } => Record {
            detail: text(version),
            ..named(Event::DaemonStarted)
        },
        HostEvent::ControlRefused {
            workload: from,
            by,
            detail,
        } => Record {
            decision: Some(DecisionName::Deny),
            workload: from.map(workload),
            by: text(by),
            detail: text(detail),
            ..named(Event::ControlRefused)
        },
        HostEvent::DaemonStopped => named(Event::DaemonStopped),
        HostEvent::EnforcementFault { faults, outcome } => Record {
            decision: Some(DecisionName::Deny),
            reason: Some(Reason::EnforcementBroken),
            detail: text(format!("{faults}: {outcome}")),
            ..named(Event::EnforcementFault)
        },
        HostEvent::KernelRefusal {
            agent,
            workload: from,
            kind,
            destination,
            detail,
        } => Record {
            agent,
            decision: Some(DecisionName::Deny),
            reason: Some(Reason::KernelRefused),
            host: destination.map(|address| address.to_string()),
            workload: from.map(workload),
            detail: text(if detail.is_empty() {
                kind
            } else {
                format!("{kind}: {detail}")
            }),
            ..named(Event::KernelRefusal)
        },
        HostEvent::PanicEngaged { by, detail } => Record {
            decision: Some(DecisionName::Deny),
            reason: Some(Reason::Panic),
            by: text(by),
            detail: text(detail),
            ..named(Event::PanicEngaged)
        },
        HostEvent::PanicLifted { by, detail } => Record {
            by: text(by),
            detail: text(detail),
            ..named(Event::PanicLifted)
        },
        HostEvent::SecretPut {
            credential,
            version,
            by,
        } => Record {
            credential: Some(credential),
            credential_version: Some(version),
            by: text(by),
            ..named(Event::SecretPut)
        },
        HostEvent::SecretRevoked { credential, by } => Record {
            credential: Some(credential),
            by: text(by),
            ..named(Event::SecretRevoked)
        },
        HostEvent::SecretRotated {
            credential,
            version,
            by,
        } => Record {
            credential: Some(credential),
            credential_version: Some(version),
            by: text(by),
            ..named(Event::SecretRotated)
        },
        HostEvent::WorkloadEnded {
            agent,
            workload: tree,
        } => Record {
            agent: Some(agent),
            workload: Some(workload(tree)),
            ..named(Event::WorkloadEnded)
        },
        HostEvent::WorkloadStarted {
            agent,
            workload: tree,
        } => Record {
            agent: Some(agent),
            workload: Some(workload(tree)),
            ..named(Event::WorkloadStarted)
        },
    }
}

/// SHA-256(salt ‖ digest): the salt stands beside it, so a body can be checked against it;
/// equal bodies of different calls do not show as equal, and precomputed tables are of no use.
fn add_digests(
    record: &mut Record,
    salt: [u8; 16],
    request: Option<Digest>,
    response: Option<Digest>,
) {
    let salted = |digest: Digest| Digest::of(&[&salt[..], digest.as_bytes()].concat());
    record.salt = Some(format!("{:032x}", u128::from_be_bytes(salt)));
    record.request_digest = request.map(salted);
    record.response_digest = response.map(salted);
}

/// Whether the record of this permit is sure to be smaller than [`crate::record::MAX_RECORD`], so that it is never refused for
/// its size: every byte could become six when it is escaped, and all other texts together are bounded.
pub(crate) fn is_small(permit: &Permit) -> bool {
    fn size(value: &Value) -> usize {
        match value {
            Value::Bool(_) | Value::Integer(_) => 20,
            Value::Text(text) => text.len(),
            Value::List(values) => values.iter().map(|value| 4 + size(value)).sum(),
        }
    }
    let params = permit.call().params().iter();
    let sizes = params.map(|(name, value)| 8 + name.len() + size(value));
    sizes.sum::<usize>() <= MAX_TEXT && permit.policies().len() <= 64
}

fn params(params: &BTreeMap<String, Value>) -> Option<BTreeMap<String, Value>> {
    (!params.is_empty()).then(|| params.clone())
}

fn workload(facts: WorkloadFacts) -> WorkloadFacts {
    WorkloadFacts {
        id: facts.id,
        pid: facts.pid,
        exe: facts.exe.map(bounded),
        cgroup: facts.cgroup.map(bounded),
    }
}

fn path(raw: String) -> String {
    bounded(raw.split(['?', '#']).next().unwrap_or_default().to_owned())
}

/// Names are recorded without the root's dot, however they were asked for.
fn host(mut name: String) -> String {
    if name.ends_with('.') {
        name.pop();
    }
    bounded(name)
}

fn text(text: String) -> Option<String> {
    (!text.is_empty()).then(|| bounded(text))
}

/// Cuts a text that somebody else chose, so that no record can be made too large by it.
fn bounded(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT - '…'.len_utf8()));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_never_recorded() {
        assert_eq!(path("/v1/charges?api_key=secret".to_owned()), "/v1/charges");
        assert_eq!(
            path("/v1/charges#?api_key=secret".to_owned()),
            "/v1/charges"
        );
    }

    #[test]
    fn a_name_is_recorded_without_its_trailing_dot() {
        assert_eq!(host("evil.example.com.".to_owned()), "evil.example.com");
        assert_eq!(host("evil.example.com".to_owned()), "evil.example.com");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let cut = bounded("ä".repeat(MAX_TEXT));
        assert!(cut.len() <= MAX_TEXT && cut.ends_with("ä…"));
        assert_eq!(bounded("short".to_owned()), "short");
    }

    #[test]
    fn equal_bodies_have_different_digests_and_both_can_be_checked() {
        let at = Timestamp::from_millis(0);
        let body = Digest::of(b"amount=1");
        let record = || {
            let mut record = Record::new("acme".parse().unwrap(), Kind::Outcome, at);
            outcome(
                &mut record,
                Outcome {
                    request_digest: Some(body),
                    ..Outcome::new(at)
                },
            );
            record
        };
        let (one, two) = (record(), record());
        assert_ne!(one.request_digest, two.request_digest);
        let salt = u128::from_str_radix(one.salt.as_deref().unwrap(), 16)
            .unwrap()
            .to_be_bytes();
        let expected = Digest::of(&[&salt[..], body.as_bytes()].concat());
        assert_eq!(one.request_digest, Some(expected));
    }
}
