//! What the kernel side costs: socket() and connect() of an agent, of somebody else beside it, and on a host without Sluice.
//! No daemon runs while an agent is measured: its programs are pinned, and a plain server stands at the proxy's door.
//! Invariant: all worlds are measured in every round, on one CPU, towards servers that do the same on the other.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::probe::Cost;
use super::talk::{self, Talk};
use super::{Found, on_cpu};
use crate::instance::Instance;
use crate::leftovers;

/// A synthetic address: the agent is led to the proxy's port.
const NAME: &str = "198.18.0.77:443";

/// In whose place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum World {
    /// Nothing of Sluice is loaded.
    Without,
    /// The same once more: what this machine makes of nothing at all.
    WithoutAgain,
    /// Sluice is loaded, and the process is nobody's.
    Bystander,
    /// An agent's process.
    Governed,
}

const WORLDS: [(World, &str); 4] = [
    (World::Without, "without Sluice"),
    (World::WithoutAgain, "without Sluice, again"),
    (World::Bystander, "not an agent, beside Sluice"),
    (World::Governed, "an agent"),
];

#[derive(Debug, Serialize)]
struct Sample {
    round: u32,
    world: World,
    #[serde(flatten)]
    cost: Cost,
}

/// The measurement.
pub(super) fn measure(quick: bool) -> Result<Found> {
    let (rounds, count) = if quick { (7, 1_000) } else { (15, 4_000) };
    on_cpu(1)?;
    let server = Talk::plain(&["serve", "--at", "127.0.0.1:0"])?;
    on_cpu(0)?;
    let mut nobody = Talk::plain(&["connect", "--to", &server.first])?;
    let mut instance = talk::instance()?;
    let mut samples = Vec::new();
    for round in 0..rounds {
        let mut take = |world, probe: &mut Talk| -> Result<()> {
            let cost = probe.ask(&count.to_string())?;
            samples.push(Sample { round, world, cost });
            Ok(())
        };
        take(World::Without, &mut nobody)?;
        take(World::WithoutAgain, &mut nobody)?;
        let loaded = Loaded::load(&mut instance)?;
        let (mut agent, door) = (loaded.agent, loaded.door);
        // Which comes first alternates.
        if round % 2 == 0 {
            take(World::Bystander, &mut nobody)?;
            take(World::Governed, &mut agent)?;
        } else {
            take(World::Governed, &mut agent)?;
            take(World::Bystander, &mut nobody)?;
        }
        agent.end()?;
        door.end()?;
        // With nobody left to govern, a daemon that stops takes everything back.
        instance.start()?;
        instance.stop()?;
    }
    let text = text(&samples, rounds, count, instance.is_reduced());
    let foreign = others();
    Ok(Found {
        text: if foreign == 0 {
            text
        } else {
            format!(
                "{text}\n  NOTE: {foreign} other instances of Sluice run on this host; their programs are part of every world"
            )
        },
        json: json!({
            "reduced": instance.is_reduced(), "rounds": rounds, "connects_per_round": count,
            "other_instances": foreign, "ratios": ratios(&samples), "samples": samples,
        }),
    })
}

/// Sluice in force, with an agent and without a daemon.
struct Loaded {
    agent: Talk,
    door: Talk,
}

impl Loaded {
    fn load(instance: &mut Instance) -> Result<Loaded> {
        on_cpu(1)?;
        instance.start()?;
        on_cpu(0)?;
        let agent = Talk::agent(instance, &["connect", "--to", NAME])?;
        let port = proxy_port(instance)?;
        instance.kill()?;
        let cgroup = leftovers::proxy_cgroup(instance.root()).context("no cgroup of the proxy")?;
        on_cpu(1)?;
        let door = Talk::plain(&[
            "serve",
            "--at",
            &format!("127.0.0.1:{port}"),
            "--cgroup",
            &cgroup.to_string_lossy(),
        ])?;
        on_cpu(0)?;
        // The daemon's end is over, and so is what it set going.
        std::thread::sleep(Duration::from_millis(50));
        Ok(Loaded { agent, door })
    }
}

/// The port that the daemon said last.
fn proxy_port(instance: &Instance) -> Result<u16> {
    let log = std::fs::read_to_string(instance.log())?;
    let said = log
        .rsplit_once("proxy=")
        .context("the daemon names no port")?
        .1;
    let digits: String = said.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}

/// Instances of Sluice that others run on this host.
fn others() -> usize {
    let pins = std::fs::read_dir("/sys/fs/bpf")
        .into_iter()
        .flatten()
        .flatten();
    pins.filter(|entry| entry.file_name().to_string_lossy().starts_with("sluice"))
        .count()
}

fn median(samples: &[Sample], world: World, pick: fn(&Cost) -> u64) -> u64 {
    let of_world = samples.iter().filter(|sample| sample.world == world);
    let mut values: Vec<u64> = of_world.map(|sample| pick(&sample.cost)).collect();
    super::probe::percentile(&mut values, 50)
}

/// Of one round each, against the first measurement of that round: smallest, median, largest.
fn ratio(samples: &[Sample], world: World, pick: fn(&Cost) -> u64) -> [f64; 3] {
    let find = |round, world| {
        let found = samples
            .iter()
            .find(|sample| sample.round == round && sample.world == world);
        found.map(|sample| pick(&sample.cost) as f64)
    };
    let rounds = samples.iter().filter(|sample| sample.world == world);
    let mut ratios: Vec<f64> = rounds
        .filter_map(|sample| Some(pick(&sample.cost) as f64 / find(sample.round, World::Without)?))
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |index: usize| ratios.get(index).copied().unwrap_or_default();
    [0, ratios.len() / 2, ratios.len().saturating_sub(1)].map(at)
}

fn ratios(samples: &[Sample]) -> serde_json::Value {
    let all = WORLDS.map(|(world, _)| {
        json!({
            "world": world,
            "socket_ns": median(samples, world, |cost| cost.socket_ns),
            "connect_ns": median(samples, world, |cost| cost.connect_ns),
            "connect_p99_ns": median(samples, world, |cost| cost.connect_p99_ns),
            "socket_ratio": ratio(samples, world, |cost| cost.socket_ns),
            "connect_ratio": ratio(samples, world, |cost| cost.connect_ns),
        })
    });
    json!(all)
}

fn text(samples: &[Sample], rounds: u32, count: usize, reduced: bool) -> String {
    let mut lines = vec![format!(
        "kernel side{}: medians of {rounds} interleaved rounds of {count} connections over loopback, each reset at once; ratios to the same \
         round without Sluice: median (smallest - largest)",
        if reduced { ", reduced mode" } else { "" }
    )];
    for (world, name) in WORLDS {
        let show = |pick: fn(&Cost) -> u64| {
            let [low, middle, high] = ratio(samples, world, pick);
            let microseconds = median(samples, world, pick) as f64 / 1e3;
            format!("{microseconds:6.2} us  {middle:.2} ({low:.2} - {high:.2})")
        };
        lines.push(format!(
            "  {name:<28} connect() {}   socket() {}",
            show(|cost| cost.connect_ns),
            show(|cost| cost.socket_ns)
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_compare_within_a_round() {
        let sample = |round, world, connect_ns| Sample {
            round,
            world,
            cost: Cost {
                connect_ns,
                ..Cost::default()
            },
        };
        // The second round is on a machine that is ten times slower.
        let samples = [
            sample(0, World::Without, 100),
            sample(0, World::Governed, 150),
            sample(1, World::Without, 1_000),
            sample(1, World::Governed, 1_700),
        ];
        let found = ratio(&samples, World::Governed, |cost| cost.connect_ns);
        assert_eq!(found, [1.5, 1.7, 1.7]);
        assert_eq!(
            median(&samples, World::Without, |cost| cost.connect_ns),
            100
        );
    }
}
