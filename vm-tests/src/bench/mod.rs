//! `cargo xtask bench`: direct, through Sluice and through other proxies, in interleaved rounds of one run, as ratios.
//! Load generator and far end share CPU 0; the systems under test have CPU 1 for themselves.
//! Invariant: a round with errors is reported as such; the report names the machine, the build and the method.

mod far;
mod growth;
mod intercepting;
mod kernel;
pub mod load;
mod peers;
mod plot;
pub mod probe;
pub mod relay;
mod report;
mod sluice;
mod switch;
mod talk;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::instance::children;
use crate::leftovers;
use crate::output;
use crate::pki::Authority;
use far::Far;
use load::{Measured, Mode};
use peers::Peer;
use report::{Report, Round, System};
use sluice::{Flavour, Sluice};

/// A vendor with a connector of its own: what requests are made to.
const VENDOR: &str = "api.stripe.com";
/// A host without one: long bodies and events.
const PLAIN: &str = "bench.example.com";
/// The same, where upstream speaks HTTP/2.
const H2: &str = "h2.example.com";

/// Measurements that are not rounds of the load generator, by the name of their member in the JSON. Each has what it needs of its
/// own, and runs after the rounds, when nothing else does.
const FURTHER: &[(&str, Further)] = &[
    ("disable", |bench| switch::measure(bench.quick)),
    ("growth", growth::measure),
    ("kernel", |bench| kernel::measure(bench.quick)),
];
type Further = fn(&Bench) -> Result<Found>;

/// What such a measurement found.
struct Found {
    /// For people.
    text: String,
    json: serde_json::Value,
}

/// One measurement by its name.
#[derive(Clone, Copy, Debug)]
enum Only {
    Load(Mode),
    Further(&'static str),
}

fn only(name: &str) -> Result<Only, String> {
    let further = FURTHER.iter().find(|(further, _)| *further == name);
    match further {
        Some((further, _)) => Ok(Only::Further(further)),
        None => <Mode as clap::ValueEnum>::from_str(name, false).map(Only::Load),
    }
}

/// How the benchmark is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Bench {
    /// Short rounds, without haproxy, the large installation and 10,000 connections
    #[arg(long)]
    quick: bool,
    /// Only these measurements
    #[arg(long, value_parser = only)]
    only: Vec<Only>,
    /// Only these systems, by the names of the table
    #[arg(long)]
    systems: Vec<String>,
    /// To how many records `growth` lets a log grow; a tenth of a million in a quick run and a million in a long one, where none is given
    #[arg(long)]
    records: Option<u64>,
    /// Where the numbers go, as JSON; the plot lies beside it
    #[arg(long)]
    out: PathBuf,
}

/// Runs the benchmark.
///
/// # Errors
/// If a system does not start or does not answer.
pub fn run(bench: &Bench) -> Result<()> {
    let _removed = leftovers::clean();
    many_files()?;
    let rounds = if bench.quick { 3 } else { 5 };
    let mut report = Report::new(rounds, bench.quick, false)?;
    if !modes(bench).is_empty() {
        compete(bench, rounds, &mut report)?;
    }
    let mut words = Vec::new();
    for (name, further) in further(bench) {
        let found = further(bench).with_context(|| format!("measuring {name}"))?;
        report.further.insert(name, found.json);
        words.push(found.text);
    }
    std::fs::write(&bench.out, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", bench.out.display()))?;
    let plot = bench.out.with_extension("svg");
    std::fs::write(&plot, plot::svg(&report))
        .with_context(|| format!("cannot write {}", plot.display()))?;
    if report.rounds.is_empty() {
        println!("{}", report.heading());
    } else {
        println!("{}", report.table());
    }
    for words in words {
        println!("{words}");
    }
    println!("numbers: {}\nplot: {}", bench.out.display(), plot.display());
    Ok(())
}

/// The systems beside each other, in rounds.
fn compete(bench: &Bench, rounds: u32, report: &mut Report) -> Result<()> {
    let field = Field::set(bench)?;
    report.reduced = field.sluices.iter().any(|(_, sluice)| sluice.is_reduced());
    for round in 0..rounds {
        for mode in modes(bench) {
            // What was freed is not given back: only the first time shows how much a connection needs.
            if matches!(mode, Mode::Idle | Mode::IdleMany) && round > 0 {
                continue;
            }
            for system in field.systems() {
                if let Some(found) = field.measure(mode, system, bench.quick)? {
                    eprintln!("round {}: {mode:?} {}: {found}", round + 1, system.name());
                    report.rounds.push(found);
                }
            }
        }
    }
    report.records = field.records()?;
    Ok(())
}

fn further(bench: &Bench) -> impl Iterator<Item = (&'static str, Further)> {
    let wanted = move |name| {
        let named = |only: &Only| matches!(only, Only::Further(further) if *further == name);
        bench.only.is_empty() || bench.only.iter().any(named)
    };
    FURTHER
        .iter()
        .copied()
        .filter(move |(name, _)| wanted(*name))
}

fn modes(bench: &Bench) -> Vec<Mode> {
    if !bench.only.is_empty() {
        let load = bench.only.iter().filter_map(|only| match only {
            Only::Load(mode) => Some(*mode),
            Only::Further(_) => None,
        });
        return load.collect();
    }
    let mut all = vec![
        Mode::Requests,
        Mode::Connections,
        Mode::Latency,
        Mode::RequestsH2,
        Mode::Download,
        Mode::Upload,
        Mode::Events,
        Mode::Idle,
    ];
    if !bench.quick {
        all.push(Mode::IdleMany);
    }
    all
}

/// How long one round of this takes.
fn milliseconds(mode: Mode, quick: bool) -> u64 {
    match (mode, quick) {
        (Mode::Requests | Mode::Connections | Mode::RequestsH2, true) => 1_000,
        (Mode::Requests | Mode::Connections | Mode::RequestsH2, false) => 6_000,
        (_, true) => 600,
        (_, false) => 3_000,
    }
}

/// Everything that is compared, running.
struct Field {
    root: PathBuf,
    far: Far,
    far_h2: Far,
    peers: Vec<(System, Peer)>,
    sluices: Vec<(System, Sluice)>,
}

impl Field {
    fn set(bench: &Bench) -> Result<Self> {
        // The others are for the long run.
        let quick = |system| !matches!(system, System::Haproxy | System::SluiceLarge);
        let wanted = |system: System| match bench.systems.as_slice() {
            [] => !bench.quick || quick(system),
            named => named.iter().any(|name| name == system.name()),
        };
        let authority = Authority::new()?;
        let leaf = authority.leaf(&[VENDOR, PLAIN, H2])?;
        on_cpu(0)?;
        let far = Far::start(leaf.server(&["http/1.1"])?)?;
        let far_h2 = Far::start(leaf.server(&["h2", "http/1.1"])?)?;
        on_cpu(1)?;
        let upstreams = BTreeMap::from([
            (VENDOR, far.address),
            (PLAIN, far.address),
            (H2, far_h2.address),
        ]);
        let mut sluices = Vec::new();
        for (system, flavour) in [
            (System::Sluice, Flavour::Plain),
            (System::SluiceGrouped, Flavour::Grouped),
            (System::SluiceLarge, Flavour::Large),
        ] {
            if wanted(system) {
                sluices.push((system, Sluice::start(flavour, &authority, &upstreams)?));
            }
        }
        let root = leftovers::base().join(format!("bench-peers-{}", std::process::id()));
        let mut peers = Vec::new();
        for (system, start) in peers::ALL {
            if wanted(system) {
                match start(&root.join(system.name()), &authority, far.address)? {
                    Some(peer) => peers.push((system, peer)),
                    None => eprintln!("{} is not installed: left out", system.name()),
                }
            }
        }
        std::fs::create_dir_all(&root)?;
        std::fs::write(root.join("ca.pem"), authority.pem())?;
        on_cpu(0)?;
        Ok(Self {
            root,
            far,
            far_h2,
            peers,
            sluices,
        })
    }

    fn systems(&self) -> Vec<System> {
        let peers = self.peers.iter().map(|(system, _)| *system);
        let sluices = self.sluices.iter().map(|(system, _)| *system);
        std::iter::once(System::Direct)
            .chain(peers)
            .chain(sluices)
            .collect()
    }

    /// One round of one system; `None` where it does not take part in this.
    fn measure(&self, mode: Mode, system: System, quick: bool) -> Result<Option<Round>> {
        let peer = self.peers.iter().find(|(one, _)| *one == system);
        let sluice = self.sluices.iter().find(|(one, _)| *one == system);
        let name = match mode {
            Mode::RequestsH2 => H2,
            Mode::Download | Mode::Events | Mode::Upload => PLAIN,
            Mode::Connections | Mode::Idle | Mode::IdleMany | Mode::Latency | Mode::Requests => {
                VENDOR
            }
        };
        let mut arguments = vec![
            "load".to_owned(),
            "--mode".to_owned(),
            clap::ValueEnum::to_possible_value(&mode)
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default(),
            "--name".to_owned(),
            name.to_owned(),
            "--milliseconds".to_owned(),
            milliseconds(mode, quick).to_string(),
        ];
        let (pid, mut command) = match (peer, sluice) {
            (_, Some((_, sluice))) => (sluice.pid(), sluice.agent(&arguments)?),
            (Some((_, peer)), None) => {
                if mode == Mode::RequestsH2 && !peer.speaks_h2() {
                    return Ok(None);
                }
                if let Some(port) = peer.tunnel() {
                    arguments.extend(["--tunnel".to_owned(), port.to_string()]);
                }
                (
                    Some(peer.pid()),
                    self.outside(&mut arguments, peer.address)?,
                )
            }
            (None, None) => {
                let far = if mode == Mode::RequestsH2 {
                    &self.far_h2
                } else {
                    &self.far
                };
                (None, self.outside(&mut arguments, far.address)?)
            }
        };
        let patience = Duration::from_secs(60);
        if matches!(mode, Mode::Idle | Mode::IdleMany) {
            let Some(pid) = pid else { return Ok(None) };
            let (measured, kib) = idle(&mut command, pid)?;
            return Ok(Some(Round::idle(system, mode, measured, kib)));
        }
        let before = pid.map(cpu_time).transpose()?;
        let output = output::run(&mut command, patience)?.ok()?;
        let measured: Measured =
            serde_json::from_value(output.json()?).context("the load generator's numbers")?;
        let cpu = match (before, pid.map(cpu_time).transpose()?) {
            (Some(before), Some(after)) => Some(after.saturating_sub(before)),
            _ => None,
        };
        Ok(Some(Round::new(system, mode, measured, cpu)))
    }

    /// The generator on its own, towards an address.
    fn outside(&self, arguments: &mut Vec<String>, address: SocketAddr) -> Result<Command> {
        arguments.extend(["--address".to_owned(), address.to_string()]);
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(arguments)
            .env("SSL_CERT_FILE", self.root.join("ca.pem"));
        Ok(command)
    }

    /// How many records the logs have at the end: the cost of a call may not grow with them.
    fn records(&self) -> Result<BTreeMap<&'static str, u64>> {
        let count = |(system, sluice): &(System, Sluice)| Ok((system.name(), sluice.records()?));
        self.sluices.iter().map(count).collect()
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.peers.clear();
        drop(std::fs::remove_dir_all(&self.root));
    }
}

/// Opens the connections, and says by how many KiB the system under test grew for each.
fn idle(command: &mut Command, pid: u32) -> Result<(Measured, f64)> {
    let before = resident_kib(pid)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
    let opened = lines.next().transpose()?;
    if opened.as_deref() != Some("open") {
        drop(child.wait());
        bail!("the connections could not be opened: {opened:?}");
    }
    let after = resident_kib(pid)?;
    let measured: Measured = match lines.next().transpose()? {
        Some(line) => serde_json::from_str(&line)?,
        None => bail!("the load generator said nothing"),
    };
    child.wait()?;
    let grown = after.saturating_sub(before) as f64;
    Ok((measured.clone(), grown / measured.requests.max(1) as f64))
}

/// As many open files as may be: ten thousand connections are as many, or twice.
fn many_files() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the number of open files")
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

/// Resident memory of a process and its descendants.
fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let own = status.lines().find_map(|line| {
        let size = line.strip_prefix("VmRSS:")?.split_whitespace().next()?;
        size.parse::<u64>().ok()
    });
    let mut total = own.unwrap_or_default();
    for child in children(pid) {
        total += resident_kib(child.parse()?).unwrap_or_default();
    }
    Ok(total)
}
