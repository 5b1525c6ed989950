//! `cargo xtask bench`: direct, through Sluice and through nginx, in interleaved rounds of one run, as ratios.
//! Load generator and upstream share CPU 0; the system under test has CPU 1 for itself.
//! Invariant: a round with errors is reported as such; the report names the machine, the build and the method.

pub mod load;
mod nginx;
mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::demo::Stage;
use crate::demo::stage::AGENT;
use crate::instance::children;
use crate::leftovers;
use crate::output;
use load::{Measured, Mode};
use report::{Report, Round, System};

const NAME: &str = "api.stripe.com";

/// How the benchmark is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Bench {
    /// Short rounds
    #[arg(long)]
    quick: bool,
    /// Where the numbers go, as JSON
    #[arg(long)]
    out: PathBuf,
}

/// Runs the benchmark.
///
/// # Errors
/// If a system does not start or does not answer.
pub fn run(bench: &Bench) -> Result<()> {
    let _removed = leftovers::clean();
    let (rounds, milliseconds) = if bench.quick { (3, 2_000) } else { (5, 6_000) };
    on_cpu(0)?;
    let mut stage = Stage::set_forgetful("10s")?;
    let upstream = stage.upstream.address();
    on_cpu(1)?;
    stage.open()?;
    let nginx = nginx::Nginx::start(
        &stage.instance.root().join("nginx"),
        stage.authority(),
        NAME,
        upstream,
    )?;
    on_cpu(0)?;

    let mut report = Report::new(rounds, milliseconds, stage.instance.is_reduced())?;
    for round in 0..rounds {
        for mode in [Mode::Requests, Mode::Connections] {
            for system in [System::Direct, System::Sluice, System::Nginx] {
                let pid = match system {
                    System::Direct => None,
                    System::Nginx => Some(nginx.pid()),
                    System::Sluice => stage.instance.daemon_pid(),
                };
                let before = pid.map(cpu_time).transpose()?;
                let measured = match system {
                    System::Direct => outside(&stage, mode, milliseconds, upstream)?,
                    System::Nginx => outside(&stage, mode, milliseconds, nginx.address)?,
                    System::Sluice => inside(&stage, mode, milliseconds)?,
                };
                let cpu = match (before, pid.map(cpu_time).transpose()?) {
                    (Some(before), Some(after)) => Some(after.saturating_sub(before)),
                    _ => None,
                };
                eprintln!(
                    "round {}: {mode:?} {system:?}: {} requests, {} errors",
                    round + 1,
                    measured.requests,
                    measured.errors
                );
                report.rounds.push(Round::new(system, mode, measured, cpu));
            }
        }
    }
    std::fs::write(&bench.out, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", bench.out.display()))?;
    println!("{}", report.table());
    println!("numbers: {}", bench.out.display());
    Ok(())
}

/// The generator on its own, towards an address.
fn outside(stage: &Stage, mode: Mode, milliseconds: u64, address: SocketAddr) -> Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments(mode, milliseconds))
        .arg("--address")
        .arg(address.to_string())
        .env("SSL_CERT_FILE", stage.instance.root().join("config/ca.pem"));
    measured(&mut command, milliseconds)
}

/// The generator as an agent, which knows nothing of Sluice: it resolves the name and trusts what its environment says.
fn inside(stage: &Stage, mode: Mode, milliseconds: u64) -> Result<Measured> {
    let own = std::env::current_exe()?;
    let arguments = arguments(mode, milliseconds);
    let own = own.to_string_lossy();
    let mut all = vec![&*own];
    all.extend(arguments.iter().map(String::as_str));
    measured(&mut stage.instance.agent(AGENT, &all), milliseconds)
}

fn arguments(mode: Mode, milliseconds: u64) -> Vec<String> {
    let mode = match mode {
        Mode::Connections => "connections",
        Mode::Requests => "requests",
    };
    let milliseconds = milliseconds.to_string();
    [
        "load",
        "--mode",
        mode,
        "--name",
        NAME,
        "--milliseconds",
        &milliseconds,
    ]
    .map(str::to_owned)
    .into()
}

fn measured(command: &mut Command, milliseconds: u64) -> Result<Measured> {
    let patience = Duration::from_millis(milliseconds * 2) + Duration::from_secs(20);
    let output = output::run(command, patience)?.ok()?;
    serde_json::from_value(output.json()?).context("the load generator's numbers")
}

/// This thread, and what it starts from now on, runs on that CPU; where there is only one, anywhere.
fn on_cpu(cpu: usize) -> Result<()> {
    if cpu >= report::cpus()? {
        return Ok(());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).context("cannot pin to a CPU")
}

/// What a process and its descendants have used so far.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = own_cpu_time(pid)?;
    for child in children(pid) {
        total += cpu_time(child.parse()?).unwrap_or_default();
    }
    Ok(total)
}

fn own_cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    // Fields 14 and 15, counted from behind the name, which may hold blanks.
    let fields = stat.rsplit_once(')').context("no name in stat")?.1;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or_default())
        .sum();
    // USER_HZ is 100 on every Linux architecture that we build for.
    Ok(Duration::from_millis(ticks * 10))
}
