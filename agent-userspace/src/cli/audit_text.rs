//! Audit records for people: a line in a list, and one record with its fields.
//! Used by `audit list` and `audit show`.
//! INVARIANT: nothing is left out of `show`; what an agent wrote is cleaned.

use audit::record::{AnswerRecord, Event};
use audit::{Kind, Record};
use policies::Verdict;
use serde_json::Value;

use super::output::{Output, Tone, clean_line};

/// The columns of `audit list`.
pub(super) fn row(record: &Record) -> Vec<String> {
    vec![
        record.tenant.to_string(),
        record.index.to_string(),
        record.at.to_string(),
        kind(record),
        record
            .agent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        what(record),
        result(record),
        why(record),
    ]
}

/// One record, a field per line.
pub(super) fn details(output: Output, record: &Value) -> String {
    let Value::Object(fields) = record else {
        return clean_line(&record.to_string());
    };
    let width = fields
        .keys()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0);
    let shown = |value: &Value| match value {
        Value::String(text) => clean_line(text),
        other => clean_line(&other.to_string()),
    };
    let lines = fields
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| {
            format!(
                "{}  {}",
                output.tone(Tone::Weak, &format!("{name:<width$}")),
                shown(value)
            )
        });
    lines.collect::<Vec<_>>().join("\n")
}

fn kind(record: &Record) -> String {
    match record.kind {
        Kind::Approval => "approval",
        Kind::Event => "event",
        Kind::Intent => "intent",
        Kind::Outcome => "outcome",
        Kind::Refusal => "refusal",
    }
    .to_owned()
}

/// The capability, else what was asked for on the wire, else the event.
fn what(record: &Record) -> String {
    let wire = || {
        let parts = [&record.method, &record.host, &record.path];
        let found: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        (!found.is_empty()).then(|| found.join(" "))
    };
    let event = || record.event.as_ref().and_then(word);
    let credential = || record.credential.as_ref().map(ToString::to_string);
    let named = record
        .capability
        .as_ref()
        .map(ToString::to_string)
        .or_else(wire);
    let text = match (record.kind, event()) {
        (Kind::Event, Some(event)) => {
            let about = credential().or_else(wire);
            Some(about.map_or_else(|| event.clone(), |about| format!("{event} {about}")))
        }
        _ => named,
    };
    short(&text.unwrap_or_default())
}

fn result(record: &Record) -> String {
    // An answer says what was answered: `answered` alone would hide the verdict.
    let event = || match record.kind {
        Kind::Approval => answer(record)
            .map(|answer| match answer.verdict {
                Verdict::Approve => "approved".to_owned(),
                Verdict::Deny => "denied".to_owned(),
            })
            .or_else(|| record.event.as_ref().and_then(word)),
        _ => None,
    };
    let status = || record.status.map(|status| status.to_string());
    let outcome = || record.outcome.as_ref().and_then(word);
    let decision = || record.decision.as_ref().and_then(word);
    status()
        .or_else(outcome)
        .or_else(event)
        .or_else(decision)
        .unwrap_or_default()
}

fn why(record: &Record) -> String {
    let reason = record.reason.map(|reason| reason.as_str().to_owned());
    let policies = record
        .policies
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ");
    let answered = answer(record).map(|answer| answer.approver.as_str());
    let by = record
        .by
        .as_deref()
        .or(answered)
        .map(|by| format!("by {by}"));
    // What the kernel refused has no capability and no policy: its kind stands in the words.
    let kernel = record
        .detail
        .clone()
        .filter(|_| record.event == Some(Event::KernelRefusal));
    let parts = [
        reason,
        kernel,
        (!policies.is_empty()).then_some(policies),
        by,
        record.approval.as_ref().map(ToString::to_string),
    ];
    short(&parts.into_iter().flatten().collect::<Vec<_>>().join("  "))
}

/// The answer that an approval's record is about: the last one.
fn answer(record: &Record) -> Option<&AnswerRecord> {
    (record.event == Some(Event::Answered))
        .then(|| record.answers.last())
        .flatten()
}

/// The word that an enum is written as.
fn word(value: &impl serde::Serialize) -> Option<String> {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
}

/// On one line, and not longer than a column may be.
fn short(text: &str) -> String {
    let line = clean_line(text);
    match line.char_indices().nth(100) {
        Some((end, _)) => format!("{}...", line.get(..end).unwrap_or(&line)),
        None => line,
    }
}
