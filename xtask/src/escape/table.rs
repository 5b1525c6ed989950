//! What the suite told, as tables: one run for a terminal, all kernels for SECURITY.md.
//! Behind `cargo xtask escape`; `tidy` looks that the table in SECURITY.md names every case.
//! Invariant: every word comes from a run's own JSON; a kernel that was not run has no column.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell;

/// Where the table lies between.
pub(crate) const BEGIN: &str =
    "<!-- escape table: written by `cargo xtask escape --vm --kernel all` -->";
/// The other end.
pub(crate) const END: &str = "<!-- end of the escape table -->";

/// One kernel, with or without BPF LSM.
pub(super) struct Run {
    line: String,
    lsm: bool,
    mode: String,
    release: String,
    refusal: Option<String>,
    cases: Vec<Case>,
}

struct Case {
    id: String,
    class: String,
    name: String,
    /// By walls: what came of it, and what was seen.
    governed: BTreeMap<String, (String, String)>,
    layers: Vec<String>,
}

impl Run {
    pub(super) fn read(line: &str, lsm: bool, told: &[String]) -> Result<Run> {
        let mut run = Run {
            line: line.to_owned(),
            lsm,
            mode: String::new(),
            release: String::new(),
            refusal: None,
            cases: Vec::new(),
        };
        for text in told {
            let row: Value =
                serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))?;
            let word = |name: &str| {
                row.get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            run.mode = word("mode");
            run.release = word("kernel");
            if run.mode == "refused" {
                run.refusal = Some(word("refusal"));
                continue;
            }
            let id = word("case");
            if run.cases.last().is_none_or(|last| last.id != id) {
                run.cases.push(Case {
                    id,
                    class: word("class"),
                    name: word("name"),
                    governed: BTreeMap::new(),
                    layers: Vec::new(),
                });
            }
            if let Some(case) = run.cases.last_mut() {
                case.layers
                    .extend(row.get("layer").and_then(Value::as_str).map(str::to_owned));
                case.governed
                    .insert(word("walls"), (word("governed"), word("detail")));
            }
        }
        Ok(run)
    }

    fn word(&self, id: &str, walls: &str) -> &'static str {
        let found = self.cases.iter().find(|case| case.id == id);
        let Some((governed, _)) = found.and_then(|case| case.governed.get(walls)) else {
            return "";
        };
        match governed.as_str() {
            "closed" => "closed",
            "launcher_only" => "launcher",
            "not_applicable" => "n/a",
            "open" => "open",
            "leak" => "**LEAK**",
            _ => "**broken**",
        }
    }

    fn count(&self, walls: &str, word: &str) -> usize {
        self.cases
            .iter()
            .filter(|case| self.word(&case.id, walls) == word)
            .count()
    }

    fn title(&self) -> String {
        let lsm = if self.lsm { "" } else { " no bpf" };
        format!("{}{lsm}", self.line)
    }
}

const BOTH: &str = "launcher+kernel";
const KERNEL: &str = "kernel";

/// One run, for a terminal.
pub(super) fn of_run(run: &Run) -> String {
    let mut out = String::new();
    if let Some(refusal) = &run.refusal {
        let _infallible = writeln!(out, "{}: refused: {refusal}", run.release);
    }
    let width = run
        .cases
        .iter()
        .map(|case| case.name.chars().count())
        .max()
        .unwrap_or(0);
    for case in &run.cases {
        let mut details: Vec<&str> = case
            .governed
            .values()
            .map(|(_, detail)| detail.as_str())
            .collect();
        details.dedup();
        let _infallible = writeln!(
            out,
            "{:<4} {:<16} {:<width$}  {:<10} {:<10} {}",
            case.id,
            case.class,
            case.name,
            run.word(&case.id, BOTH),
            run.word(&case.id, KERNEL),
            details.join(" | ")
        );
    }
    out.push_str(&summary(std::slice::from_ref(run)));
    out
}

/// One line a run and set of walls.
pub(super) fn summary(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs.iter().filter(|run| run.refusal.is_none()) {
        for walls in [BOTH, KERNEL] {
            let count = |word| run.count(walls, word);
            let _infallible = writeln!(
                out,
                "{} {} {walls}: {} cases, {} closed, {} open, {} launcher only, {} leaks, {} broken, {} not applicable",
                run.release,
                run.mode,
                run.cases.len(),
                count("closed"),
                count("open"),
                count("launcher"),
                count("**LEAK**"),
                count("**broken**"),
                count("n/a"),
            );
        }
    }
    out
}

/// Puts the table between its markers in SECURITY.md.
pub(super) fn write(runs: &[Run]) -> Result<()> {
    let file = shell::root().join("SECURITY.md");
    let text = std::fs::read_to_string(&file)?;
    let (before, rest) = text
        .split_once(BEGIN)
        .context("SECURITY.md has no place for the table")?;
    let (_, after) = rest
        .split_once(END)
        .context("SECURITY.md's table has no end")?;
    std::fs::write(
        &file,
        format!("{before}{BEGIN}\n\n{}\n{END}{after}", markdown(runs)),
    )?;
    println!("escape: the table of SECURITY.md is written");
    Ok(())
}

fn markdown(runs: &[Run]) -> String {
    let mut out = String::new();
    let _infallible = write!(out, "| case | way out |");
    for run in runs {
        let _infallible = write!(out, " {} |", run.title());
    }
    let _infallible = writeln!(out, "\n|---|---|{}", "---|".repeat(runs.len()));
    let _infallible = write!(out, "| | kernel |");
    for run in runs {
        let release = run.release.split('-').next().unwrap_or_default();
        let _infallible = write!(out, " {release} |");
    }
    let _infallible = write!(out, "\n| | mode |");
    for run in runs {
        let _infallible = write!(out, " {} |", run.mode);
    }
    out.push('\n');
    let fullest = runs.iter().max_by_key(|run| run.cases.len());
    for case in fullest.into_iter().flat_map(|run| &run.cases) {
        let _infallible = write!(out, "| {} | {}: {} |", case.id, case.class, case.name);
        for run in runs {
            if run.refusal.is_some() {
                out.push_str(" refused |");
                continue;
            }
            let (both, kernel) = (run.word(&case.id, BOTH), run.word(&case.id, KERNEL));
            let text = if both == kernel {
                both.to_owned()
            } else {
                format!("{both} / {kernel}")
            };
            let _infallible = write!(out, " {text} |");
        }
        out.push('\n');
    }
    let mut layers: Vec<&String> = runs
        .iter()
        .flat_map(|run| &run.cases)
        .flat_map(|case| &case.layers)
        .collect();
    layers.sort();
    layers.dedup();
    out.push('\n');
    for refused in runs
        .iter()
        .filter_map(|run| run.refusal.as_ref().map(|why| (run, why)))
    {
        let _infallible = writeln!(
            out,
            "- {} refuses: {}",
            refused.0.title(),
            refused.1.replace('\n', " ")
        );
    }
    for layer in layers {
        let _infallible = writeln!(out, "- open by {layer}");
    }
    out
}
