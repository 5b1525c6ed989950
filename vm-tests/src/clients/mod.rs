//! The client matrix: every client as its users install it, run by `sluice run` against servers of ours, case by case.
//! Started by `cargo xtask clients`, which installs the clients; here they are run and judged.
//! Invariant: a cell is `ok` only if the client said so *and* the far side saw exactly what that case lets through.

mod far;
mod judge;
mod peers;
mod rows;
mod scene;
mod vendors;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use judge::Cell;
use rows::Row;
use scene::Scene;

/// What a client is asked to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Case {
    /// A call that policy allows and that changes nothing.
    Read,
    /// A call that policy allows and that changes something.
    Write,
    /// The same, by an agent for which it is held, and approved meanwhile.
    Held,
    /// An answer in pieces: each must be there before the next is sent.
    Stream,
    /// The same as the write, by an agent that may only read.
    Refused,
}

impl Case {
    const ALL: [Case; 5] = [
        Case::Read,
        Case::Write,
        Case::Held,
        Case::Stream,
        Case::Refused,
    ];

    fn name(self) -> &'static str {
        match self {
            Case::Read => "read",
            Case::Write => "write",
            Case::Held => "held",
            Case::Stream => "stream",
            Case::Refused => "refused",
        }
    }

    /// What the program is told to do: held and refused are the agent's fate, not the client's intention.
    fn asked(self) -> &'static str {
        match self {
            Case::Read => "read",
            Case::Stream => "stream",
            Case::Write | Case::Held | Case::Refused => "write",
        }
    }
}

/// The matrix
#[derive(Clone, Debug, clap::Args)]
pub struct Clients {
    /// Where `cargo xtask clients` installed them
    #[arg(long)]
    kits: PathBuf,
    /// Only rows whose name contains one of these
    #[arg(long)]
    only: Vec<String>,
    /// What to print: a table for people, or one JSON object a client
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Only name the clients and the kits they come from
    #[arg(long)]
    list: bool,
    /// Leave the instance's files in place
    #[arg(long)]
    keep: bool,
}

/// Runs the matrix; true if every cell is ok, explained, or not run with its reason.
///
/// # Errors
/// If the scene cannot be set, or no client has such a name.
pub fn run(args: &Clients) -> Result<bool> {
    let rows: Vec<&Row> = rows::ROWS.iter().filter(|row| row.is(&args.only)).collect();
    if rows.is_empty() {
        bail!("no client is called {}", args.only.join(" or "));
    }
    if args.list {
        for row in rows {
            println!("{}", json!({ "client": row.name, "kit": row.kit.name() }));
        }
        return Ok(true);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the matrix starts a daemon that loads eBPF programs: it must be root");
    }
    let kits = args.kits.canonicalize()?;
    let started = Instant::now();
    let scene = Scene::set(&kits, args.keep)?;
    let mut report = Report::new(args.format == "json");
    for row in rows {
        report.row(row, &version(row, &kits), &cells(row, &scene));
    }
    Ok(report.end(started.elapsed().as_secs()))
}

fn cells(row: &Row, scene: &Scene) -> Vec<(Case, Cell)> {
    let missing = row.kit.missing(&scene.kits);
    Case::ALL
        .into_iter()
        .map(|case| {
            let cell = match (&missing, row.without(case)) {
                (Some(reason), _) => Cell::NotRun(reason.clone()),
                (None, Some(reason)) => Cell::NotRun(reason.to_owned()),
                (None, None) => judge::cell(row, case, scene),
            };
            (case, row.explained(case, cell))
        })
        .collect()
}

/// The client's own word for its version, where it has one.
fn version(row: &Row, kits: &Path) -> String {
    let Some((program, arguments)) = row.version.split_first() else {
        return String::new();
    };
    let words = arguments.iter().map(|word| rows::word(word, kits));
    let output = std::process::Command::new(rows::word(program, kits))
        .args(words)
        .stdin(std::process::Stdio::null())
        .output();
    let text = output.map_or_else(
        |_| String::new(),
        |output| {
            let both = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&both).into_owned()
        },
    );
    // The first word that starts like a number: `curl 7.88.1 (x86_64..)`, `v20.20.2`, `PHP 8.2.29`.
    let number = |word: &&str| {
        let word = word.trim_start_matches(['v', '"', '(']);
        word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.')
    };
    text.split_whitespace()
        .find(number)
        .unwrap_or_default()
        .trim_matches(['v', '"', '(', ')', ','])
        .to_owned()
}

/// Prints as it goes, and counts.
struct Report {
    json: bool,
    ok: u32,
    failed: u32,
    explained: u32,
    not_run: u32,
    notes: Vec<String>,
}

impl Report {
    fn new(json: bool) -> Self {
        if !json {
            println!(
                "{:<34} {:<8} {:<8} {:<8} {:<8} {:<8}",
                "client", "read", "write", "held", "stream", "refused"
            );
        }
        Self {
            json,
            ok: 0,
            failed: 0,
            explained: 0,
            not_run: 0,
            notes: Vec::new(),
        }
    }

    fn row(&mut self, row: &Row, version: &str, cells: &[(Case, Cell)]) {
        let name = format!("{} {version}", row.name);
        let name = name.trim();
        let mut line = format!("{name:<34}");
        let mut members = serde_json::Map::new();
        for (case, cell) in cells {
            match cell {
                Cell::Ok => self.ok += 1,
                Cell::Failed(_) => self.failed += 1,
                Cell::Explained(_) => self.explained += 1,
                Cell::NotRun(_) => self.not_run += 1,
            }
            line.push_str(&format!(" {:<8}", cell.word()));
            let mut member = json!({ "outcome": cell.outcome() });
            if let (Some(reason), Some(member)) = (cell.reason(), member.as_object_mut()) {
                self.notes.push(format!(
                    "{name}, {}: {}: {reason}",
                    case.name(),
                    cell.word()
                ));
                member.insert("reason".to_owned(), reason.into());
            }
            members.insert(case.name().to_owned(), member);
        }
        if self.json {
            let row = json!({
                "client": row.name, "version": version, "kit": row.kit.name(), "cells": Value::Object(members),
            });
            println!("{row}");
        } else {
            println!("{}", line.trim_end());
        }
    }

    fn end(self, seconds: u64) -> bool {
        if !self.json {
            println!();
            let mut notes = self.notes;
            // What is the same for a whole row is said once.
            notes.dedup_by(|a, b| {
                a.split_once(", ").map(|n| n.0) == b.split_once(", ").map(|n| n.0)
                    && a.split_once(": ").map(|n| n.1) == b.split_once(": ").map(|n| n.1)
            });
            for note in notes {
                println!("{note}");
            }
            println!(
                "clients: {} ok, {} failed, {} failed as explained, {} not run ({seconds} s)",
                self.ok, self.failed, self.explained, self.not_run
            );
        }
        self.failed == 0
    }
}
