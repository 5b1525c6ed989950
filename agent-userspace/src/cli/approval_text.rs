//! A held call as an approver sees it: everything needed for a yes or a no, in one look.
//! Used by `approvals list`, `show` and `watch`.
//! INVARIANT: what an agent chose is cleaned and stands behind our own labels, so that it cannot pose as them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use policies::{Approval, ApprovalState, Value, Verdict};

use super::money;
use super::output::{Output, Tone, clean_line};
use crate::control::ApprovalView;

/// Params and values longer than this are cut in text; `--format json` has them whole.
const MOST_SHOWN: usize = 300;

/// One approval with its labels, and the commands that answer it. `sluice` is how this instance is called.
pub(super) fn card(output: Output, view: &ApprovalView, sluice: &str) -> String {
    let approval = &view.approval;
    let mut lines = vec![headline(output, view)];
    let mut field = |label: &str, value: String| {
        lines.push(format!(
            "  {}{value}",
            output.tone(Tone::Weak, &format!("{label:<11}"))
        ))
    };
    field(
        "agent",
        format!(
            "{} (owner {})",
            approval.agent,
            clean_line(approval.owner.as_str())
        ),
    );
    field("via", format!("connection {}", approval.connection));
    for (name, value) in &approval.params {
        let note = money::unpriced(&approval.params)
            .filter(|_| name == "amount")
            .map(|note| format!(" {note}"))
            .unwrap_or_default();
        field("with", format!("{name} = {}{note}", cut(&shown(value))));
    }
    for asked in &view.asked_by {
        let why = asked
            .reason
            .as_ref()
            .map(|reason| format!(": {}", clean_line(reason)))
            .unwrap_or_default();
        field(
            "asked by",
            format!("{}{why}", clean_line(asked.policy.as_str())),
        );
    }
    field("from", needed(approval));
    for answer in &approval.answers {
        let verdict = match answer.verdict {
            Verdict::Approve => "approved",
            Verdict::Deny => "denied",
        };
        let note = answer
            .note
            .as_ref()
            .map(|note| format!(": {}", cut(&clean_line(note))))
            .unwrap_or_default();
        field(
            "answered",
            format!(
                "{} {verdict} at {}{note}",
                clean_line(answer.approver.as_str()),
                answer.at
            ),
        );
    }
    field(
        "expires",
        format!("{}{}", approval.expires_at, remaining(approval)),
    );
    if approval.state == ApprovalState::Pending {
        field(
            "approve",
            format!("{sluice} approvals approve {}", approval.id),
        );
        field("deny", format!("{sluice} approvals deny {}", approval.id));
    }
    lines.join("\n")
}

/// The columns of `approvals list --all`.
pub(super) fn row(view: &ApprovalView) -> Vec<String> {
    let approval = &view.approval;
    let groups: Vec<String> = approval.groups.iter().map(ToString::to_string).collect();
    vec![
        approval.id.to_string(),
        approval.state.to_string(),
        approval.agent.to_string(),
        approval.capability.to_string(),
        money::column(&approval.params).unwrap_or_default(),
        groups.join(" "),
        approval.expires_at.to_string(),
    ]
}

fn headline(output: Output, view: &ApprovalView) -> String {
    let approval = &view.approval;
    let amount = money::amount(&approval.params)
        .map(|amount| format!("  {amount}"))
        .unwrap_or_default();
    let risks: Vec<&str> = view.risks.iter().map(|risk| risk.as_str()).collect();
    let risks = if risks.is_empty() {
        String::new()
    } else {
        format!("  [{}]", risks.join(", "))
    };
    let what = output.tone(Tone::Strong, &format!("{}{amount}", approval.capability));
    let state = match approval.state {
        ApprovalState::Pending => String::new(),
        state => format!("  {state}"),
    };
    format!(
        "{}  {what}{}{state}",
        approval.id,
        output.tone(Tone::Warning, &risks)
    )
}

fn needed(approval: &Approval) -> String {
    let groups: Vec<String> = approval.groups.iter().map(ToString::to_string).collect();
    let people = if approval.quorum == 1 {
        "1 person".to_owned()
    } else {
        format!("{} people", approval.quorum)
    };
    match groups.as_slice() {
        [group] => format!("{people} of group {group}"),
        _ => format!("{people} of each group: {}", groups.join(", ")),
    }
}

fn remaining(approval: &Approval) -> String {
    if approval.state != ApprovalState::Pending {
        return String::new();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let end = Duration::from_millis(u64::try_from(approval.expires_at.as_millis()).unwrap_or(0));
    match end.checked_sub(now).map(|left| left.as_secs()) {
        None => " (over)".to_owned(),
        Some(left) if left < 60 => format!(" (in {left} s)"),
        Some(left) => format!(" (in {} min {} s)", left / 60, left % 60),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Text(text) => format!("\"{}\"", clean_line(text)),
        Value::List(values) => format!(
            "[{}]",
            values.iter().map(shown).collect::<Vec<_>>().join(", ")
        ),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_SHOWN) {
        Some((end, _)) => format!(
            "{}... ({} characters; --format json shows all)",
            text.get(..end).unwrap_or(text),
            text.chars().count()
        ),
        None => text.to_owned(),
    }
}
