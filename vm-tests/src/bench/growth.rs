//! What a call costs as an installation grows: agents, policies, connectors, and the log, each by itself beside one that has none of it.
//! Place: after the rounds of the other systems; instances of its own, measured in turns.
//! Invariant: ratios are made of medians of one run; the counts that they stand for are in the report, those of the logs as they were.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::far::Far;
use super::load::{Measured, Mode};
use super::report::median;
use super::sluice::{Flavour, Sluice};
use super::{Bench, Found, PLAIN, VENDOR, cpu_time, on_cpu};
use crate::output;
use crate::pki::Authority;

/// What grows, in the order of the table; the first is what the others are compared with.
const GROWN: [(&str, Flavour); 5] = [
    ("an agent, 10 policies", Flavour::Small),
    ("1,000 agents", Flavour::Agents),
    ("2,000 policies", Flavour::Policies),
    ("200 connectors", Flavour::Connectors),
    ("a long log", Flavour::Small),
];
/// For one turn of the generator, with what comes before and after it.
const PATIENCE: Duration = Duration::from_secs(120);

/// One installation, and what its turns gave.
struct Grown {
    what: &'static str,
    sluice: Sluice,
    cpu_us: Vec<f64>,
    per_second: Vec<f64>,
}

pub(super) fn measure(bench: &Bench) -> Result<Found> {
    let rounds = if bench.quick { 3 } else { 7 };
    let milliseconds = if bench.quick { 500 } else { 2_000 };
    let records = bench
        .records
        .unwrap_or(if bench.quick { 100_000 } else { 1_000_000 });
    let authority = Authority::new()?;
    on_cpu(0)?;
    let far = Far::start(authority.leaf(&[VENDOR, PLAIN])?.server(&["http/1.1"])?)?;
    on_cpu(1)?;
    let upstreams = BTreeMap::from([(VENDOR, far.address), (PLAIN, far.address)]);
    let mut all = Vec::new();
    for (what, flavour) in GROWN {
        all.push(Grown {
            what,
            sluice: Sluice::start(flavour, &authority, &upstreams)?,
            cpu_us: Vec::new(),
            per_second: Vec::new(),
        });
    }
    on_cpu(0)?;
    if let Some(long) = all.last() {
        fill(long, records)?;
    }
    for _ in 0..rounds {
        for one in &mut all {
            turn(one, milliseconds)?;
        }
    }
    report(&all, rounds, milliseconds)
}

/// Calls until the log is so long.
fn fill(one: &Grown, records: u64) -> Result<()> {
    let mut before = one.sluice.records()?;
    while before < records {
        load(one, 10_000)?;
        let after = one.sluice.records()?;
        eprintln!("growth: {after} of {records} records");
        if after == before {
            anyhow::bail!("the log does not grow");
        }
        before = after;
    }
    Ok(())
}

fn load(one: &Grown, milliseconds: u64) -> Result<Measured> {
    let arguments = [
        "load",
        "--mode",
        Mode::REQUESTS,
        "--name",
        VENDOR,
        "--milliseconds",
        &milliseconds.to_string(),
    ]
    .map(str::to_owned);
    let output = output::run(&mut one.sluice.agent(&arguments)?, PATIENCE)?.ok()?;
    let measured: Measured =
        serde_json::from_value(output.json()?).context("the load generator's numbers")?;
    if let Some(error) = &measured.first_error {
        anyhow::bail!("{}: {error}", one.what);
    }
    Ok(measured)
}

fn turn(one: &mut Grown, milliseconds: u64) -> Result<()> {
    let pid = one.sluice.pid().context("no daemon")?;
    let before = cpu_time(pid)?;
    let measured = load(one, milliseconds)?;
    let used = cpu_time(pid)?.saturating_sub(before);
    // The generator's warm-up is a tenth more work than it counts.
    let requests = measured.requests.max(1) as f64;
    one.cpu_us.push(used.as_secs_f64() * 1e6 / (requests * 1.1));
    one.per_second.push(requests / measured.seconds.max(1e-9));
    Ok(())
}

fn report(all: &[Grown], rounds: u32, milliseconds: u64) -> Result<Found> {
    let mut lines = vec![
        String::new(),
        format!(
            "as an installation grows: medians of {rounds} turns of {milliseconds} ms, 32 loops; the ratio is that of the CPU time"
        ),
        format!(
            "{:<24}{:>14}{:>22}{:>8}{:>12}",
            "", "requests/s", "CPU us per request", "ratio", "records"
        ),
    ];
    let mut rows = Vec::new();
    let base = all
        .first()
        .and_then(|one| median(one.cpu_us.clone()))
        .context("nothing was measured")?;
    for one in all {
        let cpu = median(one.cpu_us.clone()).unwrap_or_default();
        let rate = median(one.per_second.clone()).unwrap_or_default();
        let records = one.sluice.records()?;
        let ratio = cpu / base;
        lines.push(format!(
            "{:<24}{rate:>14.0}{cpu:>22.1}{ratio:>8.2}{records:>12}",
            one.what
        ));
        rows.push(json!({
            "what": one.what, "per_second": rate, "cpu_us": cpu, "ratio": ratio, "records": records,
            "cpu_us_of_each_turn": one.cpu_us,
        }));
    }
    Ok(Found {
        text: lines.join("\n"),
        json: json!(rows),
    })
}
