//! Last chapter: the log tells the whole story, cannot be changed quietly, and agrees with the metrics.
//! Invariant: the tampered export differs from the good one in exactly one byte.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::stage::{AGENT, GITHUB_TOKEN, SLACK_TOKEN, STRIPE_KEY};
use super::{Stage, Transcript};
use crate::instance::PATIENCE;

/// Tells the chapter.
pub(super) fn run(stage: &Stage, told: &mut Transcript) {
    told.line(
        "the log has both refunds, each with who approved it, and no secret",
        || story(stage),
    );
    let export = stage.instance.root().join("acme.log");
    let key = stage.instance.root().join("acme.key");
    let exported = told.check(
        "an export of the log verifies offline against the public key",
        || {
            let public = stage.instance.ask(&["audit", "key"])?.ok()?.stdout;
            fs::write(&key, &public)?;
            fs::write(
                &export,
                stage
                    .instance
                    .ask(&["audit", "export", "--tenant", "acme"])?
                    .ok()?
                    .stdout,
            )?;
            let output = verify(stage, &export, public.trim())?.ok()?;
            Ok((public.trim().to_owned(), output.text()))
        },
    );
    let Some(key) = exported else { return };
    told.line("with one byte of it changed, it does not", || {
        let mut bytes = fs::read(&export)?;
        // A digit of the amount in the last refund: what one would want to change.
        let needle = b"12000";
        let at = bytes
            .windows(needle.len())
            .rposition(|w| w == needle)
            .context("no amount in the export")?;
        *bytes.get_mut(at).context("no such byte")? = b'9';
        let tampered = export.with_extension("tampered");
        fs::write(&tampered, bytes)?;
        let output = verify(stage, &tampered, &key)?;
        if output.status.success() {
            bail!("it verifies: {output}");
        }
        Ok(output.text())
    });
    told.line(
        "the metrics agree with what was done since the restart",
        || metrics(stage, SINCE_THE_RESTART),
    );
}

fn verify(stage: &Stage, file: &std::path::Path, key: &str) -> Result<crate::output::Output> {
    stage
        .instance
        .ask(&["audit", "verify", &file.to_string_lossy(), "--key", key])
}

fn story(stage: &Stage) -> Result<String> {
    let records = stage.audit()?;
    let text = |record: &Value, pointer: &str| {
        record
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let sent: Vec<&Value> = records
        .iter()
        .filter(|record| {
            text(record, "/kind") == "intent"
                && text(record, "/capability") == "stripe/refunds.create"
        })
        .collect();
    if sent.len() != 2 {
        bail!("{} refunds in the log, not 2", sent.len());
    }
    if sent
        .iter()
        .any(|record| !text(record, "/approval").starts_with("apr_"))
    {
        bail!("a refund without its approval: {sent:?}");
    }
    if sent.iter().any(|record| text(record, "/agent") != AGENT) {
        bail!("a refund of somebody else: {sent:?}");
    }
    let all = serde_json::to_string(&records)?;
    if [STRIPE_KEY, SLACK_TOKEN, GITHUB_TOKEN]
        .iter()
        .any(|secret| all.contains(secret))
    {
        bail!("a secret is in the log");
    }
    let mut kinds = std::collections::BTreeMap::<String, u32>::new();
    for record in &records {
        *kinds.entry(text(record, "/kind")).or_default() += 1;
    }
    Ok(format!("{} records: {kinds:?}", records.len()))
}

/// Samples of a family, with some of its labels, and what they must add up to.
type Number = (&'static str, &'static [&'static str], f64);

/// What the chapters before the kill did, in numbers.
const BEFORE_THE_KILL: &[Number] = &[
    (
        "sluice_calls_total",
        &["capability=\"refunds.create\"", "decision=\"allow\""],
        1.0,
    ),
    (
        "sluice_calls_total",
        &["capability=\"refunds.create\"", "decision=\"hold\""],
        2.0,
    ),
    (
        "sluice_calls_total",
        &["capability=\"customers.delete\"", "decision=\"deny\""],
        1.0,
    ),
    (
        "sluice_refusals_total",
        &["reason=\"authority_mismatch\""],
        1.0,
    ),
    ("sluice_refusals_total", &["reason=\"policy_denied\""], 1.0),
    ("sluice_refusals_total", &["reason=\"unmapped\""], 1.0),
];

/// The same since the restart: a new process counts from zero.
const SINCE_THE_RESTART: &[Number] = &[
    (
        "sluice_calls_total",
        &["capability=\"refunds.create\"", "decision=\"allow\""],
        1.0,
    ),
    (
        "sluice_calls_total",
        &["capability=\"balance.read\"", "decision=\"allow\""],
        1.0,
    ),
    ("sluice_approvals_pending", &[], 0.0),
];

/// Tells the numbers of the time before the kill.
pub(super) fn numbers(stage: &Stage, told: &mut Transcript) {
    told.line("the metrics agree with what was done so far", || {
        metrics(stage, BEFORE_THE_KILL)
    });
    told.line(
        "and the kernel's own refusals are counted there too, by kind",
        || {
            // The daemon reads the kernel's counters every few seconds.
            let deadline = Instant::now() + PATIENCE;
            loop {
                let text = stage.instance.metrics()?;
                let lines: Vec<&str> = samples(&text, "sluice_kernel_refusals", &[])
                    .filter(|line| !line.ends_with(" 0"))
                    .collect();
                let counted = |kind| lines.iter().any(|line| line.contains(kind));
                if ["\"datagram\"", "\"destination_unknown\""]
                    .into_iter()
                    .all(counted)
                {
                    return Ok(lines.join("\n"));
                }
                if Instant::now() > deadline {
                    bail!("not both are counted:\n{}", lines.join("\n"));
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        },
    );
}

fn metrics(stage: &Stage, wanted: &[Number]) -> Result<String> {
    let text = stage.instance.metrics()?;
    let mut lines = Vec::new();
    for (family, labels, number) in wanted {
        let found: Vec<&str> = samples(&text, family, labels).collect();
        let sum: f64 = found
            .iter()
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum();
        if found.is_empty() || sum != *number {
            let all: Vec<&str> = samples(&text, family, &[]).collect();
            bail!(
                "{family} {labels:?} is {sum}, not {number}:\n{}",
                all.join("\n")
            );
        }
        lines.extend(found);
    }
    Ok(lines.join("\n"))
}

/// The samples whose name starts so and that have these labels.
fn samples<'a>(
    text: &'a str,
    family: &'a str,
    labels: &'a [&str],
) -> impl Iterator<Item = &'a str> {
    text.lines()
        .filter(move |line| line.starts_with(family))
        .filter(move |line| labels.iter().all(|label| line.contains(label)))
}
