//! `cargo xtask rounds`: a daemon that dies and comes back at random moments, under an agent that never stops dialling.
//! An agent dials a server outside, which it must never reach, and a name, which it reaches whenever a daemon runs; an ungoverned process dials, too.
//! Invariant: the server outside counts in a network namespace of its own, and is first seen to count somebody ungoverned.

pub mod dial;
mod links;
mod other;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::instance::{self, Instance};
use crate::leftovers;
use dial::{Dialled, Dialler};
use links::{Builds, Upgrades};
use world::World;

const AGENT: &str = "acme/rounds";
const AGENT_FILE: &str =
    "tenant = \"acme\"\nname = \"rounds\"\nowner = \"the rounds\"\nstage = \"write\"\n";
/// A synthetic address: the agent is led to the proxy.
const NAME: &str = "198.18.0.77:443";
/// Two builds of `sluice`, by the names of their files.
const BUILDS: [&str; 2] = ["sluice-0", "sluice-1"];
/// How long a daemon may take to be killed in its start, and how long none runs between two.
const LONGEST: u64 = 300;

/// How the rounds are run.
#[derive(Clone, Debug, clap::Args)]
pub struct Rounds {
    /// How many
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Where the random moments come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to print: lines for people, or one JSON object
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
}

/// What is done to the daemon in one round. A daemon runs and serves at the end of each.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
enum Act {
    /// `kill -9` of the enforcer, whose proxy process goes with it.
    Kill,
    /// `kill -9` while it starts and adopts; then another start.
    KillInStart,
    /// `kill -9` of the proxy process alone.
    KillProxy,
    /// SIGTERM and a start, as `systemctl restart` does.
    Restart,
    /// The same, or after a `kill -9`, with the other build, whose kernel side is other programs.
    Upgrade,
}

const ACTS: [Act; 5] = [
    Act::Kill,
    Act::KillInStart,
    Act::KillProxy,
    Act::Restart,
    Act::Upgrade,
];

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    rounds: u32,
    seed: u64,
    acts: BTreeMap<Act, u32>,
    seconds: f64,
    reduced: bool,
    /// Connections that reached the server outside without a governed one being among the allowed: must be 0.
    reached_ungoverned: u64,
    /// What the control counted: must not be 0.
    reached_by_control: u64,
    /// Pins that were missing after an act: must be 0.
    pins_lost: u64,
    pins: usize,
    upgrades: Upgrades,
    agent_outside: Dialled,
    agent_name: Dialled,
    ungoverned: Dialled,
}

impl Report {
    fn is_good(&self) -> bool {
        self.reached_ungoverned == 0
            && self.reached_by_control > 0
            && self.pins_lost == 0
            && self.upgrades.replaced == 0
            && self.upgrades.foreign == 0
            && (self.upgrades.done > 0 || !self.acts.contains_key(&Act::Upgrade))
            && self.agent_outside.connected == 0
            && self.agent_outside.tried > 0
            && self.agent_name.connected > 0
            && self.ungoverned.connected > 0
            && self.ungoverned.failed == 0
    }
}

/// Runs them.
///
/// # Errors
/// If the world or a daemon cannot be made. That something leaked is in the answer: false.
pub fn run(rounds: &Rounds) -> Result<bool> {
    let _removed = leftovers::clean();
    let world = World::make()?;
    let begun = Instant::now();
    let mut chance = Chance(rounds.seed.wrapping_mul(2).wrapping_add(1));
    let mut report = Report {
        rounds: rounds.rounds,
        seed: rounds.seed,
        ..Report::default()
    };
    let mut instance = set_up()?;
    instance.use_binary(instance.root().join("bin").join(BUILDS[0]));
    let program = instance.root().join("bin/harness");
    let plain = |to: &str| {
        let mut command = Command::new(&program);
        command.args(["dial", "--to", to]);
        Dialler::start(&mut command)
    };

    // The control: somebody ungoverned reaches what the agent must not.
    let control = plain(world::FORBIDDEN)?;
    std::thread::sleep(Duration::from_millis(200));
    control.stop()?;
    report.reached_by_control = world.reached();

    instance.start()?;
    report.reduced = instance.is_reduced();
    let mut runs = Runs::new(&instance)?;
    let pins = Pins::of(&instance)?;
    report.pins = pins.names.len();
    let agent = |to: &str| {
        let program = program.to_string_lossy();
        let mut command = instance.sluice(&["run", "--agent", AGENT, "--user", "root", "--"]);
        command.args([&program, "dial", "--to", to]);
        Dialler::start(&mut command)
    };
    let outside = agent(world::FORBIDDEN)?;
    let name = agent(NAME)?;
    let ungoverned = plain(world::ALLOWED)?;
    let before = world.reached();

    for round in 0..rounds.rounds {
        let act = *ACTS
            .get(chance.below(ACTS.len() as u64) as usize)
            .unwrap_or(&Act::Kill);
        *report.acts.entry(act).or_default() += 1;
        perform(
            act,
            &mut instance,
            &mut runs,
            &mut chance,
            &pins,
            &mut report.pins_lost,
        )
        .and_then(|()| runs.look(&instance))
        .with_context(|| format!("round {round} of seed {}: {act:?}", rounds.seed))?;
        report.reached_ungoverned = world.reached() - before;
        if rounds.format == "text" && (round + 1) % 25 == 0 {
            println!(
                "{:>5} rounds, {:>5.0} s: {} reached the outside, {} pins lost",
                round + 1,
                begun.elapsed().as_secs_f64(),
                report.reached_ungoverned,
                report.pins_lost
            );
        }
    }
    // The last daemon serves the agent, too.
    std::thread::sleep(Duration::from_millis(300));
    report.agent_outside = outside.stop()?;
    report.agent_name = name.stop()?;
    report.ungoverned = ungoverned.stop()?;
    report.reached_ungoverned = world.reached() - before;
    report.upgrades = runs.upgrades;
    report.seconds = begun.elapsed().as_secs_f64();
    instance.stop()?;
    if rounds.format == "json" {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", text(&report));
    }
    Ok(report.is_good())
}

fn set_up() -> Result<Instance> {
    let instance = Instance::new()?;
    instance.configure("config.toml", "[proxy]\nuser = \"65534\"\n")?;
    instance.configure("agents.d/rounds.toml", AGENT_FILE)?;
    let bin = instance.root().join("bin");
    fs::create_dir_all(&bin)?;
    let binary = instance::sluice_binary();
    for (from, to) in [(&std::env::current_exe()?, "harness"), (&binary, BUILDS[0])] {
        fs::copy(from, bin.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let mut program = fs::read(&binary)?;
    other::make(&mut program).context("making another build")?;
    let place = bin.join(BUILDS[1]);
    fs::write(&place, program)?;
    fs::set_permissions(&place, fs::metadata(&binary)?.permissions())?;
    Ok(instance)
}

/// Which build runs, and what its upgrades did to the links.
struct Runs {
    build: usize,
    builds: Builds,
    upgrades: Upgrades,
}

impl Runs {
    fn new(instance: &Instance) -> Result<Runs> {
        let mut runs = Runs {
            build: 0,
            builds: Builds::default(),
            upgrades: Upgrades::default(),
        };
        runs.look(instance)?;
        Ok(runs)
    }

    /// The links of the daemon that serves now.
    fn look(&mut self, instance: &Instance) -> Result<()> {
        let pid = instance.daemon_pid().context("no daemon")?;
        self.builds.see(pid, self.build, &mut self.upgrades)
    }

    /// From now on it is the other build.
    fn upgrade(&mut self, instance: &mut Instance) {
        self.build = 1 - self.build;
        let name = BUILDS.get(self.build).copied().unwrap_or(BUILDS[0]);
        instance.use_binary(instance.root().join("bin").join(name));
    }
}

/// One act, from a daemon that serves to a daemon that serves.
fn perform(
    act: Act,
    instance: &mut Instance,
    runs: &mut Runs,
    chance: &mut Chance,
    pins: &Pins,
    lost: &mut u64,
) -> Result<()> {
    // At whatever moment it is in.
    std::thread::sleep(Duration::from_millis(chance.below(40)));
    match act {
        Act::Kill => drop(instance.kill()?),
        Act::KillInStart => {
            instance.kill()?;
            *lost += pins.missing();
            instance.crash_in_start(Duration::from_millis(chance.below(LONGEST)))?;
        }
        Act::KillProxy => {
            instance.kill_proxy()?;
            *lost += pins.missing();
            return instance.until_it_answers();
        }
        Act::Restart => instance.stop()?,
        Act::Upgrade => {
            runs.upgrade(instance);
            if chance.below(2) == 0 {
                instance.stop()?;
            } else {
                instance.kill()?;
            }
        }
    }
    *lost += pins.missing();
    std::thread::sleep(Duration::from_millis(chance.below(40)));
    instance.start()?;
    *lost += pins.missing();
    Ok(())
}

/// The pins of an instance as its first daemon made them.
struct Pins {
    directory: PathBuf,
    names: Vec<String>,
}

impl Pins {
    fn of(instance: &Instance) -> Result<Pins> {
        let base = leftovers::pins_of(instance.root()).context("nothing is pinned")?;
        let versions: Vec<PathBuf> = fs::read_dir(&base)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let [directory] = versions.as_slice() else {
            bail!("pins of several versions: {versions:?}");
        };
        let mut names: Vec<String> = fs::read_dir(directory)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        Ok(Pins {
            directory: directory.clone(),
            names,
        })
    }

    fn missing(&self) -> u64 {
        let gone = |name: &&String| !self.directory.join(name).exists();
        self.names.iter().filter(gone).count() as u64
    }
}

/// A generator of our own: the same seed is the same run on every machine (Marsaglia, "Xorshift RNGs", 2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound.max(1)
    }
}

fn text(report: &Report) -> String {
    let acts: Vec<String> = report
        .acts
        .iter()
        .map(|(act, count)| format!("{act:?} {count}"))
        .collect();
    format!(
        "{} rounds in {:.0} s, seed {} ({}){}\n\
         agent to the outside:  {} tried, {} connected; the server outside counted {} (the control: {})\n\
         agent to a name:       {} tried, {} connected, {} refused while no daemon ran, longest {} ms\n\
         ungoverned:            {} tried, {} failed, longest {} ms\n\
         pins:                  {} of {} lost\n\
         upgrades:              {} to the other build, {} links got another program in place, {} were made anew, {} programs of neither build",
        report.rounds,
        report.seconds,
        report.seed,
        acts.join(", "),
        if report.reduced { ", reduced mode" } else { "" },
        report.agent_outside.tried,
        report.agent_outside.connected,
        report.reached_ungoverned,
        report.reached_by_control,
        report.agent_name.tried,
        report.agent_name.connected,
        report.agent_name.failed,
        report.agent_name.longest_ms,
        report.ungoverned.tried,
        report.ungoverned.failed,
        report.ungoverned.longest_ms,
        report.pins_lost,
        report.pins,
        report.upgrades.done,
        report.upgrades.updated,
        report.upgrades.replaced,
        report.upgrades.foreign,
    )
}
