//! What came of the cases: a line each, a table for people, JSON for programs, and one verdict.
//! The last part of the suite.
//! Invariant: a leak that no layer's own words cover is a leak, whatever the mode; in full mode nothing is open.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What was in front of the attempt.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Walls {
    /// As an agent is started: by `sluice run`.
    #[serde(rename = "launcher+kernel")]
    Both,
    /// A process that joined a workload's cgroup, with whatever privileges the case needs.
    #[serde(rename = "kernel")]
    Kernel,
}

/// What the attempt did without Sluice.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// It got out: the case says something here.
    Leaks,
    /// It did not; `detail` says why.
    NotApplicable,
}

/// What it did in a workload.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Governed {
    /// No attempt was made: nothing was shown.
    Broken,
    /// Nothing left.
    Closed,
    /// It got out of a task that the launcher did not start; the launcher is the wall, and stands.
    LauncherOnly,
    /// It got out, and nothing said that it might.
    Leak,
    /// The baseline did not leak.
    NotApplicable,
    /// It got out, and a layer that is not live says so.
    Open,
}

impl Governed {
    fn word(self) -> &'static str {
        match self {
            Self::Broken => "BROKEN",
            Self::Closed => "closed",
            Self::LauncherOnly => "launcher",
            Self::Leak => "LEAK",
            Self::NotApplicable => "n/a",
            Self::Open => "open",
        }
    }
}

/// One case behind one set of walls on one kernel.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// `E01`
    pub case: String,
    /// For people.
    pub name: String,
    /// Its group.
    pub class: String,
    /// `6.12.117+deb13-cloud-amd64`
    pub kernel: String,
    /// Whether BPF LSM is among the kernel's active modules.
    pub bpf_lsm: bool,
    /// `full` or `reduced`, as the daemon runs.
    pub mode: String,
    /// What was in front of it.
    pub walls: Walls,
    /// Without Sluice.
    pub baseline: Baseline,
    /// With it.
    pub governed: Governed,
    /// What was seen, or what stopped it.
    pub detail: String,
    /// Where it is open: the layer that says so.
    pub layer: Option<String>,
}

/// A kernel on which the daemon does not run at all.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Refused {
    /// The kernel's release.
    pub kernel: String,
    /// Whether BPF LSM is among the kernel's active modules.
    pub bpf_lsm: bool,
    /// Always `refused`.
    pub mode: String,
    /// The daemon's words.
    pub refusal: String,
}

/// The table for people, totals last.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let mut seen: Vec<&str> = Vec::new();
    let width = rows
        .iter()
        .map(|row| row.name.chars().count())
        .max()
        .unwrap_or(0);
    let _infallible = writeln!(
        out,
        "{:<4} {:<16} {:<width$}  {:<8} {:<10} {:<10} detail",
        "case", "class", "", "baseline", "launched", "kernel"
    );
    for row in rows {
        if seen.contains(&row.case.as_str()) {
            continue;
        }
        seen.push(&row.case);
        let of = |walls: Walls| {
            rows.iter()
                .find(|other| other.case == row.case && other.walls == walls)
        };
        let word = |walls: Walls| of(walls).map_or("-", |row| row.governed.word());
        let baseline = match row.baseline {
            Baseline::Leaks => "leaks",
            Baseline::NotApplicable => "n/a",
        };
        let mut details: Vec<String> = [of(Walls::Both), of(Walls::Kernel)]
            .into_iter()
            .flatten()
            .map(|row| short(&row.detail))
            .collect();
        details.dedup();
        let _infallible = writeln!(
            out,
            "{:<4} {:<16} {:<width$}  {:<8} {:<10} {:<10} {}",
            row.case,
            row.class,
            row.name,
            baseline,
            word(Walls::Both),
            word(Walls::Kernel),
            details.join(" | ")
        );
    }
    for layer in open_layers(rows) {
        let _infallible = writeln!(out, "open: {layer}");
    }
    out.push_str(&totals(rows));
    out
}

/// The first words of an account.
fn short(detail: &str) -> String {
    let first = detail.split("; ").next().unwrap_or_default();
    let mut text: String = first.chars().take(60).collect();
    if text.len() < first.len() {
        text.push_str("..");
    }
    text
}

/// What the layers that are not live say, once each.
fn open_layers(rows: &[Row]) -> Vec<&str> {
    let mut said: Vec<&str> = rows.iter().filter_map(|row| row.layer.as_deref()).collect();
    said.sort_unstable();
    said.dedup();
    said
}

/// One line per set of walls.
#[must_use]
pub fn totals(rows: &[Row]) -> String {
    let mut out = String::new();
    for (walls, name) in [(Walls::Both, "launcher+kernel"), (Walls::Kernel, "kernel")] {
        let count = |governed: Governed| {
            rows.iter()
                .filter(|row| row.walls == walls && row.governed == governed)
                .count()
        };
        let of: Vec<&Row> = rows.iter().filter(|row| row.walls == walls).collect();
        let mode = of.first().map_or("", |row| row.mode.as_str());
        let _infallible = writeln!(
            out,
            "{name:<16} {mode}: {} cases, {} closed, {} open, {} launcher only, {} leaks, {} broken, {} not applicable",
            of.len(),
            count(Governed::Closed),
            count(Governed::Open),
            count(Governed::LauncherOnly),
            count(Governed::Leak),
            count(Governed::Broken),
            count(Governed::NotApplicable),
        );
    }
    out
}

/// Whether all is as it must be: no leak, and in full mode nothing open.
#[must_use]
pub fn well(rows: &[Row]) -> bool {
    !rows.is_empty()
        && rows.iter().all(|row| match row.governed {
            Governed::Broken | Governed::Leak => false,
            Governed::Open => row.mode != "full",
            Governed::Closed | Governed::LauncherOnly | Governed::NotApplicable => true,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mode: &str, governed: Governed) -> Row {
        Row {
            case: "E01".into(),
            name: "a".into(),
            class: "tcp".into(),
            kernel: "6.12".into(),
            bpf_lsm: true,
            mode: mode.into(),
            walls: Walls::Both,
            baseline: Baseline::Leaks,
            governed,
            detail: String::new(),
            layer: None,
        }
    }

    #[test]
    fn a_leak_is_never_well_and_open_is_only_in_reduced_mode() {
        assert!(!well(&[]));
        assert!(well(&[row("full", Governed::Closed)]));
        assert!(well(&[row("reduced", Governed::Open)]));
        assert!(!well(&[row("full", Governed::Open)]));
        for mode in ["full", "reduced"] {
            assert!(!well(&[row(mode, Governed::Leak)]));
        }
    }

    #[test]
    fn the_words_of_json_are_stable() {
        let json = serde_json::to_value(row("full", Governed::LauncherOnly)).unwrap();
        assert_eq!(json["walls"], "launcher+kernel");
        assert_eq!(json["baseline"], "leaks");
        assert_eq!(json["governed"], "launcher_only");
    }
}
