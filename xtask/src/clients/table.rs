//! The client matrix as Markdown, between its markers in the README.
//! Invariant: generated from a run's own output, never edited; what is not `ok` has a footnote that says why.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell;

const BEGIN: &str = "<!-- client table: written by `cargo xtask clients --write` -->";
const END: &str = "<!-- end of the client table -->";
const CASES: [&str; 5] = ["read", "write", "held", "stream", "refused"];

/// Puts the table between its markers in the README.
pub(super) fn write(rows: &[Value]) -> Result<()> {
    let file = shell::root().join("README.md");
    let text = std::fs::read_to_string(&file)?;
    let (before, rest) = text
        .split_once(BEGIN)
        .context("README.md has no place for the table")?;
    let (_, after) = rest
        .split_once(END)
        .context("README.md's table has no end")?;
    let table = markdown(rows);
    std::fs::write(&file, format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))?;
    Ok(())
}

pub(super) fn markdown(rows: &[Value]) -> String {
    let mut out = String::from(
        "| client | read | write | held, approved | streamed | refused |\n|---|---|---|---|---|---|\n",
    );
    let mut notes: Vec<String> = Vec::new();
    for row in rows {
        let word = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        let name = format!("{} {}", word("client"), word("version"));
        let _infallible = write!(out, "| {} |", name.trim());
        for case in CASES {
            let cell = |name: &str| {
                row.pointer(&format!("/cells/{case}/{name}"))
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let shown = match cell("outcome") {
                "ok" => "ok",
                "explained" => "no",
                "not_run" => "-",
                _ => "**failed**",
            };
            let reason = cell("reason");
            if reason.is_empty() {
                let _infallible = write!(out, " {shown} |");
                continue;
            }
            // What was seen in this run is told on a terminal; here only why.
            let reason = reason.split(" (seen: ").next().unwrap_or(reason).to_owned();
            let at = notes.iter().position(|note| *note == reason);
            let number = at.unwrap_or_else(|| {
                notes.push(reason);
                notes.len() - 1
            });
            let _infallible = write!(out, " {shown} ({}) |", number + 1);
        }
        out.push('\n');
    }
    if !notes.is_empty() {
        out.push('\n');
    }
    for (number, note) in notes.iter().enumerate() {
        let _infallible = writeln!(out, "{}. {note}", number + 1);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_ok_has_one_footnote_a_reason() {
        let cells = json!({
            "read": { "outcome": "ok" }, "write": { "outcome": "failed", "reason": "it broke" },
            "held": { "outcome": "explained", "reason": "known (seen: x)" },
            "stream": { "outcome": "not_run", "reason": "known" }, "refused": { "outcome": "ok" },
        });
        let rows = [json!({ "client": "curl", "version": "8", "cells": cells })];
        let table = markdown(&rows);
        assert!(
            table.contains("| curl 8 | ok | **failed** (1) | no (2) | - (2) | ok |\n"),
            "{table}"
        );
        assert!(table.ends_with("\n\n1. it broke\n2. known\n"), "{table}");
    }
}
