//! `cargo xtask clients`: installs the clients of the matrix, runs it, and writes the table of the README.
//! The matrix itself is `vm-tests/src/clients`; here is what must be there before it runs.
//! Invariant: a client that cannot be installed is a row that says why, not an error and not a gap.

pub(crate) mod kits;
mod table;

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{setup, shell};

/// Arguments of `cargo xtask clients`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Only clients whose name contains this (may be repeated)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// What to print: a table for people, or one JSON object a client
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Put the result into the README's table; a client that is not asked for keeps what its last such run gave
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
        let mut this = std::process::Command::new(std::env::current_exe()?);
        this.args(["clients", "--install-only"]);
        for only in &args.only {
            this.args(["--only", only]);
        }
        if !this.stdout(std::io::stderr()).status()?.success() {
            bail!("clients: not everything could be built");
        }
    } else {
        install(args, &place)?;
    }
    if args.install_only {
        return Ok(());
    }
    if args.write {
        return write(args, &place);
    }
    let status = harness(args, &place, &args.format).status()?;
    if !status.success() {
        bail!("clients: not every cell is ok or explained");
    }
    Ok(())
}

/// Builds Sluice and the matrix, and installs the clients that are asked for.
fn install(args: &Args, place: &Path) -> Result<()> {
    setup::quiet()?;
    shell::run(shell::cargo().args(["build", "--package=agent-userspace", "--package=vm-tests"]))?;
    std::fs::create_dir_all(place)?;
    let list = shell::capture(harness(args, place, "json").arg("--list"))?;
    for kit in wanted(&list)? {
        kits::install(&kit, place)?;
    }
    Ok(())
}

/// A run, into the README: with what the last runs of the other clients gave.
fn write(args: &Args, place: &Path) -> Result<()> {
    let output = harness(args, place, "json")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let kept = place.join("results.jsonl");
    let mut rows = objects(&std::fs::read_to_string(&kept).unwrap_or_default())?;
    for row in objects(&String::from_utf8_lossy(&output.stdout))? {
        rows.retain(|old| old.get("client") != row.get("client"));
        rows.push(row);
    }
    let text: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&kept, text.join("\n") + "\n")?;
    // In the matrix's own order; what is no row any more goes.
    let all = shell::capture(harness(&Args::default(), place, "json").arg("--list"))?;
    let ordered: Vec<Value> = objects(&all)?
        .iter()
        .filter_map(|listed| {
            let same = |row: &&Value| row.get("client") == listed.get("client");
            rows.iter().find(same).cloned()
        })
        .collect();
    print!("{}", table::markdown(&ordered));
    table::write(&ordered)?;
    println!("clients: the table of README.md is written");
    if !output.status.success() {
        bail!("clients: not every cell is ok or explained");
    }
    Ok(())
}

fn objects(lines: &str) -> Result<Vec<Value>> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

fn harness(args: &Args, place: &Path, format: &str) -> std::process::Command {
    let mut harness = shell::as_root(shell::target_dir().join("debug/harness"));
    harness.arg("clients").arg("--kits").arg(place);
    harness.args(["--format", format]);
    for only in &args.only {
        harness.args(["--only", only]);
    }
    if args.keep {
        harness.arg("--keep");
    }
    harness
}

/// The kits that these rows come from, each once. Servers of ours for further protocols come from the Python kit.
fn wanted(list: &str) -> Result<Vec<String>> {
    let mut kits = vec!["system".to_owned()];
    for row in objects(list)? {
        let word = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default();
        let spoken = ["grpc", "ws", "WebSocket"];
        if spoken.iter().any(|name| word("client").contains(name)) {
            kits.push("python".to_owned());
        }
        kits.push(word("kit").to_owned());
    }
    kits.sort();
    kits.dedup();
    Ok(kits)
}
