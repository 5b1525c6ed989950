//! `cargo xtask escape`: every known way around Sluice, tried here or on Debian's kernels, each first shown to work without it.
//! The suite is a program of `vm-tests`; here is the build, the choice of machine, and SECURITY.md's table.
//! Invariant: the exit code is non-zero if one case leaked, or if a kernel that must be complete or refused is not.

mod table;

pub(crate) use table::{BEGIN, END};

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{demo, setup, shell, vm};

/// Arguments of `cargo xtask escape`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// In a test machine instead of here
    #[arg(long)]
    vm: bool,
    /// With --vm: a line of vm-tests/kernels.lock, or `all`: every line, with and without `bpf` in `lsm=`, which also writes
    /// the table of SECURITY.md; the first line if not given
    #[arg(long, requires = "vm")]
    kernel: Option<String>,
    /// With --vm: boot without BPF LSM in the kernel's list, as an unprepared host would
    #[arg(long, requires = "vm")]
    no_lsm: bool,
    /// Only write SECURITY.md's table, from the last run of each kernel on this machine
    #[arg(long, conflicts_with_all = ["vm", "filter"])]
    table: bool,
    /// Only cases whose number, name or class contains this
    #[arg(long)]
    filter: Option<String>,
    /// What to print: a table for people, or one JSON object per line
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.table {
        return write_table();
    }
    setup::quiet()?;
    if !args.vm {
        return here(args);
    }
    if args.kernel.as_deref() == Some("all") {
        return everywhere(args);
    }
    let (line, told) = vm::escape(args.kernel.as_deref(), args.filter.as_deref(), args.no_lsm)?;
    keep(args, &line, args.no_lsm, &told)?;
    show(args, &told)?;
    let (_, failed, _) = counts(&told)?;
    if failed > 0 {
        bail!("escape: not all is closed");
    }
    Ok(())
}

fn here(args: &Args) -> Result<()> {
    let json = args.format == "json";
    let mut build = shell::cargo();
    build.args(["build", "--package=agent-userspace", "--package=vm-tests"]);
    if json {
        // Nothing but JSON on standard output.
        shell::capture(&mut build)?;
    } else {
        shell::run(&mut build)?;
        demo::remove_leftovers()?;
    }
    let mut suite = shell::as_root(shell::target_dir().join("debug/escape"));
    suite.args(["--format", &args.format]);
    if let Some(filter) = &args.filter {
        suite.args(["--filter", filter]);
    }
    if !suite.status()?.success() {
        bail!("escape: not all is closed");
    }
    Ok(())
}

/// The same for `cargo xtask test`, which has built everything: closed or named, neither, not applicable.
pub(crate) fn counted() -> Result<(u32, u32, u32)> {
    let mut suite = shell::as_root(shell::target_dir().join("debug/escape"));
    let output = suite.args(["--format", "json"]).output()?;
    let told = vm::Escape {
        lines: String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect(),
        code: output.status.code(),
    };
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let run = table::Run::read("", true, &told.lines)?;
    print!("{}", table::of_run(&run));
    counts(&told)
}

/// Every kernel of the lock file, as a host with BPF LSM has it and as one without; then the table, from what was just seen.
fn everywhere(args: &Args) -> Result<()> {
    let programs = vm::Programs::build(true)?;
    let lines = vm::lines()?;
    // What a prepared host has comes first.
    let wanted: Vec<(&str, bool)> = [false, true]
        .into_iter()
        .flat_map(|no_lsm| lines.iter().map(move |line| (line.as_str(), no_lsm)))
        .collect();
    let next = AtomicUsize::new(0);
    let told = Mutex::new(BTreeMap::new());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((line, no_lsm)) = wanted.get(number) else {
                return;
            };
            let ended = vm::escape_with(&programs, Some(line), args.filter.as_deref(), *no_lsm)
                .and_then(|told| keep(args, line, *no_lsm, &told).map(|()| told));
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(number, ended);
        }
    };
    // A machine has one processor.
    let machines = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..machines.min(wanted.len()) {
            scope.spawn(work);
        }
    });
    let mut runs = Vec::new();
    let mut failed = 0;
    for ((line, no_lsm), ended) in wanted.iter().zip(
        told.into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .into_values(),
    ) {
        let told = match ended {
            Ok(told) => told,
            Err(error) => {
                eprintln!("error: {line}: {error:#}");
                failed += 1;
                continue;
            }
        };
        show(args, &told)?;
        failed += counts(&told)?.1;
        runs.push(table::Run::read(line, !no_lsm, &told.lines)?);
    }
    if args.format == "table" {
        print!("{}", table::summary(&runs));
    }
    if args.filter.is_none() && runs.len() == wanted.len() {
        write_table()?;
    }
    if failed > 0 {
        bail!("escape: {failed} are neither closed nor named");
    }
    Ok(())
}

/// Keeps a whole run, for the table.
fn keep(args: &Args, line: &str, no_lsm: bool, told: &vm::Escape) -> Result<()> {
    if args.filter.is_some() {
        return Ok(());
    }
    let file = kept(line, no_lsm);
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(&file, told.lines.join("\n") + "\n")?;
    Ok(())
}

fn kept(line: &str, no_lsm: bool) -> PathBuf {
    let name = if no_lsm { "-without-bpf" } else { "" };
    shell::target_dir()
        .join("escape")
        .join(format!("{line}{name}.jsonl"))
}

/// From the last whole run of each kernel; one that was never run has no column.
fn write_table() -> Result<()> {
    let mut runs = Vec::new();
    for line in vm::lines()? {
        for no_lsm in [false, true] {
            let Ok(text) = std::fs::read_to_string(kept(&line, no_lsm)) else {
                println!(
                    "escape: {line} was not run{}",
                    if no_lsm { " without bpf" } else { "" }
                );
                continue;
            };
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            runs.push(table::Run::read(&line, !no_lsm, &lines)?);
        }
    }
    table::write(&runs)
}

fn show(args: &Args, told: &vm::Escape) -> Result<()> {
    if args.format == "json" {
        for line in &told.lines {
            println!("{line}");
        }
        return Ok(());
    }
    print!(
        "{}",
        table::of_run(&table::Run::read("", true, &told.lines)?)
    );
    Ok(())
}

/// Closed or named, neither, not applicable: of the walls that an agent has before it.
pub(crate) fn counts(told: &vm::Escape) -> Result<(u32, u32, u32)> {
    let (mut well, mut not, mut absent) = (0, 0, 0);
    for line in &told.lines {
        let row: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let word = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        if word("mode") == "refused" {
            well += 1;
            continue;
        }
        match (word("governed"), word("mode")) {
            ("closed" | "launcher_only", _) | ("open", "reduced") => well += 1,
            ("not_applicable", _) => absent += 1,
            _ => not += 1,
        }
    }
    if well + not + absent == 0 || !matches!(told.code, Some(0..=2)) {
        bail!(
            "escape: the suite told nothing (it ended with {:?})",
            told.code
        );
    }
    // What it could not count is a failure all the same.
    if told.code == Some(1) && not == 0 {
        not = 1;
    }
    Ok((well, not, absent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: &[&str], code: i32) -> vm::Escape {
        vm::Escape {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            code: Some(code),
        }
    }

    fn row(mode: &str, governed: &str) -> String {
        format!(r#"{{"case":"E01","mode":"{mode}","governed":"{governed}"}}"#)
    }

    #[test]
    fn open_counts_as_well_in_reduced_mode_only() {
        let one = |mode, governed| counts(&told(&[&row(mode, governed)], 0)).unwrap();
        assert_eq!(one("full", "closed"), (1, 0, 0));
        assert_eq!(one("reduced", "open"), (1, 0, 0));
        assert_eq!(one("full", "open"), (0, 1, 0));
        assert_eq!(one("reduced", "leak"), (0, 1, 0));
        assert_eq!(one("full", "a word of tomorrow"), (0, 1, 0));
        assert_eq!(one("full", "not_applicable"), (0, 0, 1));
    }

    #[test]
    fn a_suite_that_broke_off_is_a_failure() {
        assert!(counts(&told(&[], 0)).is_err());
        assert!(counts(&vm::Escape::default()).is_err());
        let broke_off = told(&[&row("full", "closed")], 1);
        assert_eq!(counts(&broke_off).unwrap(), (1, 1, 0));
        assert!(counts(&told(&["{"], 0)).is_err());
    }
}
