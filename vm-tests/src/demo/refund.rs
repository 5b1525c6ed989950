//! Second chapter: a call that moves money waits for a person, and an approval is good for exactly one call.
//! Invariant: what the vendor received is counted after every line, so "sent once" is the vendor's word.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::stage::AGENT;
use super::{Stage, Transcript, wants};
use crate::instance::PATIENCE;
use crate::output::{self, Started};

/// A refund through the official SDK, without retries of its own.
pub(super) const REFUND: &str = "import os, stripe
stripe.api_key = os.environ['STRIPE_API_KEY']
stripe.max_network_retries = 0
try:
    refund = stripe.Refund.create(charge='ch_1', amount=12000)
    print('refunded', refund.id, refund.amount)
except stripe.StripeError as error:
    print('refused', error.http_status, error.http_body)
";

/// Tells the chapter.
pub(super) fn run(stage: &Stage, told: &mut Transcript, venv: &Path) {
    let started = told.check(
        "the stripe SDK asks for a refund of 120.00; the call is held, and nothing left",
        || {
            let started = output::start(&mut stage.python(venv, REFUND))?;
            let held = wait_for_held(stage)?;
            sent(stage, 0)?;
            Ok(((started, id(&held)?), held.to_string()))
        },
    );
    let Some((client, held)) = started else {
        return;
    };
    told.line(
        "an approver sees who asks for what, with the decoded amount",
        || {
            let list = stage.approvals()?;
            let one = list.first().context("no approval")?;
            let expect = [
                ("/agent", AGENT),
                ("/capability", "stripe/refunds.create"),
                ("/id", held.as_str()),
            ];
            for (pointer, wanted) in expect {
                if one.pointer(pointer).and_then(Value::as_str) != Some(wanted) {
                    bail!("{pointer} is not {wanted}: {one}");
                }
            }
            if one.pointer("/params/amount") != Some(&Value::from(12_000)) {
                bail!("the amount is not decoded: {one}");
            }
            Ok(stage
                .instance
                .ask(&["approvals", "show", &held])?
                .ok()?
                .stdout)
        },
    );
    told.line(
        "the agent cannot approve its own call: the control socket is out of its sight",
        || refuses_the_agent(stage, &held, &stage.instance.runtime()),
    );
    told.line("and where somebody left it a way to that socket, the daemon refuses a peer inside a governed cgroup", || {
        let link = stage.instance.root().join("home/run");
        fs::create_dir_all(&link)?;
        fs::hard_link(stage.instance.runtime().join("control.sock"), link.join("control.sock"))?;
        refuses_the_agent(stage, &held, &link)
    });
    told.line(
        "the approver says yes; the held call goes through, once, and the SDK gets its refund",
        || {
            stage
                .instance
                .ask(&["approvals", "approve", &held, "--note", "duplicate charge"])?
                .ok()?;
            let output = wants(client.wait(PATIENCE)?.ok()?, "refunded re_1 12000")?;
            sent(stage, 1)?;
            Ok(output.stdout)
        },
    );
    told.line(
        "the same refund again is held again: an approval is used once",
        || {
            let output = stage.run_python(venv, REFUND)?.ok()?;
            let output = wants(output, "refused 403")?;
            let output = wants(wants(output, "approval_required")?, "apr_")?;
            sent(stage, 1)?;
            let again = id(stage.approvals()?.first().context("no approval is open")?)?;
            if again == held {
                bail!("the used approval was offered again: {again}");
            }
            stage.instance.ask(&["approvals", "deny", &again])?.ok()?;
            Ok(output.stdout)
        },
    );
}

/// A second refund that is held and left so, for the next chapter; gives its approval's id.
pub(super) fn leave_held(stage: &Stage, venv: &Path) -> Result<(Started, String)> {
    let program = REFUND.replace("ch_1", "ch_2");
    let client = output::start(&mut stage.python(venv, &program))?;
    let held = id(&wait_for_held(stage)?)?;
    Ok((client, held))
}

/// As many refunds as that have reached the vendor.
pub(super) fn sent(stage: &Stage, wanted: usize) -> Result<()> {
    let count = stage.upstream.received("POST", "/v1/refunds").len();
    if count != wanted {
        bail!("{count} refunds reached Stripe, not {wanted}");
    }
    Ok(())
}

fn wait_for_held(stage: &Stage) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(held) = stage.approvals()?.into_iter().next() {
            return Ok(held);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("no call was held")
}

pub(super) fn id(approval: &Value) -> Result<String> {
    let id = approval.pointer("/id").and_then(Value::as_str);
    Ok(id.with_context(|| format!("no id: {approval}"))?.to_owned())
}

/// Runs `sluice approvals approve` as the agent; the approval must still be open afterwards.
fn refuses_the_agent(stage: &Stage, held: &str, runtime: &Path) -> Result<String> {
    let sluice = crate::instance::sluice_binary();
    let (sluice, runtime) = (sluice.to_string_lossy(), runtime.to_string_lossy());
    let output = stage.run(&[
        &sluice,
        "--runtime-dir",
        &runtime,
        "approvals",
        "approve",
        held,
    ])?;
    if output.status.success() {
        bail!("the agent approved: {output}");
    }
    let open = stage.approvals()?;
    let state = open
        .iter()
        .find(|one| id(one).is_ok_and(|id| id == held))
        .context("it is no longer open")?;
    if state
        .pointer("/state")
        .and_then(Value::as_str)
        .is_some_and(|state| state != "pending")
    {
        bail!("its state changed: {state}");
    }
    Ok(output.text())
}
