//! How long the kill switches take: from the start of the command until the agent is refused, until its open connection is
//! cut, and until the command returns.
//! Invariant: the agent itself takes the times; every round begins with an agent that is let through.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;

use super::probe::{Over, now, percentile};
use super::talk::{self, AGENT, Talk};
use super::{Found, on_cpu};
use crate::instance::Instance;

/// A synthetic address: the agent is led to the proxy.
const NAME: &str = "198.18.0.77:443";

/// Milliseconds over all rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Spread {
    fn of(mut nanoseconds: Vec<u64>) -> Option<Spread> {
        let last = *nanoseconds.iter().max()?;
        let ms = |ns: u64| (ns as f64 / 1e4).round() / 100.0;
        Some(Spread {
            p50_ms: ms(percentile(&mut nanoseconds, 50)),
            p99_ms: ms(percentile(&mut nanoseconds, 99)),
            max_ms: ms(last),
        })
    }
}

/// One switch.
#[derive(Debug, Serialize)]
struct Switch {
    rounds: usize,
    refused: Option<Spread>,
    /// Nothing where this kernel cuts no sockets.
    cut: Option<Spread>,
    returned: Option<Spread>,
}

/// `sluice agents disable` and `sluice panic`.
pub(super) fn measure(quick: bool) -> Result<Found> {
    let rounds = if quick { 100 } else { 300 };
    on_cpu(1)?;
    let mut instance = talk::instance()?;
    instance.start()?;
    on_cpu(0)?;
    let mut agent = Talk::agent(&instance, &["cut", "--to", NAME])?;
    let disable = switch(
        &instance,
        &mut agent,
        rounds,
        &["agents", "disable", AGENT],
        &["agents", "enable", AGENT],
    )?;
    let panic = switch(
        &instance,
        &mut agent,
        rounds,
        &["panic"],
        &["panic", "--lift"],
    )?;
    agent.end()?;
    instance.stop()?;
    let text = [("agents disable", &disable), ("panic", &panic)]
        .map(|(name, switch)| line(name, switch))
        .join("\n");
    Ok(Found {
        text: format!(
            "milliseconds from the start of the command, p50 / p99 / max of {rounds} rounds{}\n{text}",
            if instance.is_reduced() {
                ", reduced mode"
            } else {
                ""
            }
        ),
        json: json!({ "reduced": instance.is_reduced(), "agents_disable": disable, "panic": panic }),
    })
}

fn switch(
    instance: &Instance,
    agent: &mut Talk,
    rounds: usize,
    off: &[&str],
    on: &[&str],
) -> Result<Switch> {
    let (mut refused, mut cut, mut returned) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        agent.tell("go")?;
        if agent.hear()? != "open" {
            bail!("round {round}: the agent has no connection");
        }
        // At whatever moment the daemon is in.
        std::thread::sleep(std::time::Duration::from_millis(
            3 + (round as u64 * 7) % 40,
        ));
        let begun = now();
        instance.ask(off)?.ok()?;
        returned.push(now() - begun);
        let over: Over = serde_json::from_str(&agent.hear()?).context("the agent's times")?;
        refused.push(over.refused_ns.saturating_sub(begun));
        cut.extend(over.cut_ns.map(|at| at.saturating_sub(begun)));
        instance.ask(on)?.ok()?;
    }
    if !cut.is_empty() && cut.len() != rounds {
        bail!("only {} of {rounds} open connections were cut", cut.len());
    }
    Ok(Switch {
        rounds,
        refused: Spread::of(refused),
        cut: Spread::of(cut),
        returned: Spread::of(returned),
    })
}

fn line(name: &str, switch: &Switch) -> String {
    let show = |spread: &Option<Spread>| match spread {
        Some(spread) => format!(
            "{:.1} / {:.1} / {:.1}",
            spread.p50_ms, spread.p99_ms, spread.max_ms
        ),
        None => "not in this kernel".to_owned(),
    };
    format!(
        "  {name:<15} new connections refused {}; open ones cut {}; command returned {}",
        show(&switch.refused),
        show(&switch.cut),
        show(&switch.returned)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_in_milliseconds() {
        let spread = Spread::of((1..=100).map(|ms| ms * 1_000_000).collect()).unwrap();
        let found = (spread.p50_ms, spread.p99_ms, spread.max_ms);
        assert_eq!(found, (50.0, 99.0, 100.0));
        assert!(Spread::of(Vec::new()).is_none());
    }
}
