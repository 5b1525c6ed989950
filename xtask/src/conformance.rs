//! `cargo xtask conformance`: installs public conformance suites, runs them through Sluice, and writes the table of the README.
//! The suites' programs are `vm-tests/clients/conformance`, and what runs them is `vm-tests/src/conformance`.
//! Invariant: the table is generated from a run's own output; every case that is not ok is in it, with what was seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::clients::kits;
use crate::{setup, shell};

const BEGIN: &str = "<!-- conformance table: written by `cargo xtask conformance --write` -->";
const END: &str = "<!-- end of the conformance table -->";

/// Arguments of `cargo xtask conformance`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Only suites whose name contains this (may be repeated)
    #[arg(long, value_name = "SUITE")]
    only: Vec<String>,
    /// Only cases whose numbers begin with this
    #[arg(long, default_value = "")]
    case: String,
    /// As many messages as the suites ask for: much longer
    #[arg(long)]
    whole: bool,
    /// What to print: what is not ok, for people, or one JSON object a case
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Put the result of a run of all suites into the README's table
    #[arg(long)]
    write: bool,
    /// Leave the instance's files in place at the end
    #[arg(long)]
    keep: bool,
    /// Only install
    #[arg(long, hide = true)]
    install_only: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let place = shell::target_dir().join("clients");
    if args.format == "json" {
        // Nothing but JSON on standard output: what installs talks to standard error.
        let mut this = Command::new(std::env::current_exe()?);
        this.args(["conformance", "--install-only"]);
        if !this.stdout(std::io::stderr()).status()?.success() {
            bail!("conformance: not everything could be built");
        }
    } else {
        setup::quiet()?;
        setup::suites()?;
        shell::run(shell::cargo().args([
            "build",
            "--package=agent-userspace",
            "--package=vm-tests",
        ]))?;
        std::fs::create_dir_all(&place)?;
        kits::install("conformance", &place)?;
    }
    if args.install_only {
        return Ok(());
    }
    let good = if args.write {
        if !args.only.is_empty() || !args.case.is_empty() {
            bail!("--write is for a run of all suites");
        }
        let output = harness(args, &place, "json")
            .stderr(std::process::Stdio::inherit())
            .output()?;
        let table = markdown(&objects(&String::from_utf8_lossy(&output.stdout))?);
        print!("{table}");
        write(&table)?;
        output.status.success()
    } else {
        harness(args, &place, &args.format).status()?.success()
    };
    if !good {
        bail!("conformance: not every case is ok or explained");
    }
    Ok(())
}

fn harness(args: &Args, place: &Path, format: &str) -> Command {
    let mut harness = shell::as_root(shell::target_dir().join("debug/harness"));
    harness.arg("conformance").arg("--kits").arg(place);
    harness.args(["--format", format, "--case", &args.case]);
    for only in &args.only {
        harness.args(["--only", only]);
    }
    for (flag, wanted) in [("--whole", args.whole), ("--keep", args.keep)] {
        if wanted {
            harness.arg(flag);
        }
    }
    harness
}

fn objects(lines: &str) -> Result<Vec<Value>> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// Puts the table between its markers in the README.
fn write(table: &str) -> Result<()> {
    let file = shell::root().join("README.md");
    let text = std::fs::read_to_string(&file)?;
    let place = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = place.context("README.md has no place for the table")?;
    std::fs::write(&file, format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))?;
    println!("conformance: the table of README.md is written");
    Ok(())
}

/// The suites in the order in which they ran, then what is not ok.
fn markdown(cases: &[Value]) -> String {
    let word = |case: &Value, name: &str| {
        let text = case.get(name).and_then(Value::as_str).unwrap_or_default();
        text.replace('|', "\\|")
    };
    let mut suites: Vec<(String, String, BTreeMap<String, u32>)> = Vec::new();
    for case in cases {
        let (name, outcome) = (word(case, "suite"), word(case, "outcome"));
        if suites.last().is_none_or(|(last, ..)| *last != name) {
            suites.push((name, word(case, "source"), BTreeMap::new()));
        }
        if let Some((_, _, counts)) = suites.last_mut() {
            *counts.entry(outcome).or_default() += 1;
        }
    }
    let mut out = String::from("| suite | cases | ok | not ok |\n|---|---|---|---|\n");
    for (_, source, counts) in &suites {
        let all: u32 = counts.values().sum();
        let ok = counts.get("ok").copied().unwrap_or_default();
        let _infallible = writeln!(out, "| {source} | {all} | {ok} | {} |", all - ok);
    }
    let not: Vec<&Value> = cases
        .iter()
        .filter(|case| word(case, "outcome") != "ok")
        .collect();
    if !not.is_empty() {
        out.push_str("\n| not ok | the case | seen | why |\n|---|---|---|---|\n");
    }
    for case in not {
        let [suite, number, title, seen, why] =
            ["suite", "case", "title", "seen", "reason"].map(|name| word(case, name));
        let why = if why.is_empty() { "not known" } else { &why };
        let _infallible = writeln!(out, "| {suite} {number} | {title} | {seen} | {why} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_case_that_is_not_ok_is_a_line_of_the_table() {
        let case = |number, outcome: &str| json!({ "suite": "s", "source": "S", "case": number, "title": "t", "outcome": outcome, "seen": "x", "reason": null });
        let table = markdown(&[case("1", "ok"), case("2", "failed"), case("3", "explained")]);
        assert!(table.contains("| S | 3 | 1 | 2 |\n"), "{table}");
        assert!(table.contains("| s 2 | t | x | not known |\n"), "{table}");
        assert!(table.contains("| s 3 |"), "{table}");
    }
}
