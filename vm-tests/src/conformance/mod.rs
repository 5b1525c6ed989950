//! Public conformance suites, case by case: once directly, as the control, and once as an agent through Sluice.
//! Started by `cargo xtask conformance`, which installs them; the programs are those of `vm-tests/clients/conformance`.
//! Invariant: a case is `ok` only if it went through Sluice as its suite asks, or exactly as it went directly; no case is left out of the count.

mod known;
mod scene;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;

use scene::Scene;

/// One suite.
struct Suite {
    name: &'static str,
    /// Where its cases come from.
    source: &'static str,
    /// The program that runs them.
    cases: &'static str,
    judged: Judged,
}

/// What makes a case good.
#[derive(Clone, Copy, PartialEq)]
enum Judged {
    /// What the suite says: its cases are about the one who is asked.
    BySuite,
    /// That, or that nothing is different: its cases are about the two ends, which are not ours.
    ByControl,
}

const SUITES: [Suite; 4] = [
    Suite {
        name: "grpc",
        source: "gRPC's interop cases, grpcio on both ends",
        cases: "grpc_cases.py",
        judged: Judged::BySuite,
    },
    Suite {
        name: "websocket",
        source: "Autobahn|Testsuite's cases, against the `websockets` library",
        cases: "autobahn_cases.py",
        judged: Judged::ByControl,
    },
    Suite {
        name: "h2",
        source: "h2spec's cases, sent frame by frame by a peer of ours; tried on nghttpd first",
        cases: "h2_cases.py",
        judged: Judged::BySuite,
    },
    Suite {
        name: "h2-clients",
        source: "nghttp2's clients (nghttp, h2load) in all their ways; tried on nghttpd first",
        cases: "h2_clients.py",
        judged: Judged::BySuite,
    },
];

/// The suites
#[derive(Clone, Debug, clap::Args)]
pub struct Conformance {
    /// Where `cargo xtask conformance` installed them
    #[arg(long)]
    kits: PathBuf,
    /// Only suites whose names contain one of these
    #[arg(long)]
    only: Vec<String>,
    /// Only cases whose numbers begin with this
    #[arg(long, default_value = "")]
    case: String,
    /// As many messages as the suites ask for
    #[arg(long)]
    whole: bool,
    /// What to print: lines for people, or one JSON object a case
    #[arg(long, default_value = "text", value_parser = ["text", "json"])]
    format: String,
    /// Leave the instance's files in place
    #[arg(long)]
    keep: bool,
}

/// What a program tells of one case.
#[derive(Clone, Debug, Deserialize)]
struct Told {
    case: String,
    title: String,
    ok: bool,
    seen: String,
}

/// Runs the suites; true if every case is ok, or not for a reason that is known.
///
/// # Errors
/// If the scene cannot be set, a program ends early, or no suite has such a name.
pub fn run(args: &Conformance) -> Result<bool> {
    let named = |suite: &&Suite| {
        args.only.is_empty() || args.only.iter().any(|only| suite.name.contains(&**only))
    };
    let suites: Vec<&Suite> = SUITES.iter().filter(named).collect();
    if suites.is_empty() {
        bail!("no suite is called {}", args.only.join(" or "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the suites start a daemon that loads eBPF programs: it must be root");
    }
    let scene = Scene::set(&args.kits.canonicalize()?, args.keep)?;
    let mut good = true;
    for suite in suites {
        good &= one(suite, args, &scene)?;
    }
    Ok(good)
}

fn one(suite: &Suite, args: &Conformance, scene: &Scene) -> Result<bool> {
    let started = Instant::now();
    let mut more = vec![format!("--only={}", args.case)];
    if args.whole {
        more.push("--whole".to_owned());
    }
    let direct = cases(scene.directly(suite.name, suite.cases, &more)?, suite)?;
    let direct: BTreeMap<&str, &Told> = direct.iter().map(|it| (&*it.case, it)).collect();
    let through = cases(scene.through(suite.name, suite.cases, &more)?, suite)?;
    let (mut ok, mut explained, mut failed) = (0_u32, 0_u32, 0_u32);
    for told in &through {
        let control = direct.get(&*told.case).context("a case without control")?;
        let (outcome, reason) = judge(suite, told, control);
        match outcome {
            "ok" => ok += 1,
            "explained" => explained += 1,
            _ => failed += 1,
        }
        if args.format == "json" {
            println!(
                "{}",
                json!({
                    "suite": suite.name, "source": suite.source, "case": told.case, "title": told.title,
                    "outcome": outcome, "reason": reason, "seen": told.seen, "directly": control.seen,
                })
            );
        } else if outcome != "ok" {
            let (case, title, seen) = (&told.case, &told.title, &told.seen);
            let word = if outcome == "failed" { "FAILED" } else { "no" };
            println!("{} {case}: {word}: {title}", suite.name);
            println!("  seen: {seen}; directly: {}", control.seen);
            if let Some(reason) = reason {
                println!("  {reason}");
            }
        }
    }
    if through.len() < direct.len() {
        bail!("{} of {} cases were told", through.len(), direct.len());
    }
    if args.format == "text" {
        println!(
            "{}: {} cases ({}): {ok} ok, {explained} not, as explained, {failed} failed ({:.0} s)",
            suite.name,
            through.len(),
            suite.source,
            started.elapsed().as_secs_f32()
        );
    }
    Ok(failed == 0)
}

/// How a case went, and why where that is known.
fn judge(suite: &Suite, told: &Told, control: &Told) -> (&'static str, Option<String>) {
    let same = suite.judged == Judged::ByControl && told.seen == control.seen;
    if told.ok || same {
        return ("ok", None);
    }
    match known::reason(suite.name, &told.case) {
        Some(reason) => ("explained", Some(reason.to_owned())),
        None if !control.ok => ("failed", Some("fails without Sluice, too".to_owned())),
        None => ("failed", None),
    }
}

/// What was told, case by case; a program that fails has told less than it should.
fn cases(output: crate::output::Output, suite: &Suite) -> Result<Vec<Told>> {
    let output = output.ok().with_context(|| suite.cases.to_owned())?;
    let all = output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{}: {line}", suite.cases)));
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ok: bool, seen: &str) -> Told {
        Told {
            case: "no-such-case".to_owned(),
            title: String::new(),
            ok,
            seen: seen.to_owned(),
        }
    }

    #[test]
    fn a_suite_about_the_ends_is_content_where_nothing_is_different() {
        let [asks, compares] = [Judged::BySuite, Judged::ByControl].map(|judged| Suite {
            name: "a-suite",
            source: "",
            cases: "",
            judged,
        });
        let outcome = |suite: &Suite, one: &Told, other: &Told| judge(suite, one, other).0;
        let (good, bad) = (told(true, "1000"), told(false, "1002"));
        assert_eq!(outcome(&compares, &bad, &bad), "ok");
        assert_eq!(outcome(&compares, &bad, &good), "failed");
        assert_eq!(outcome(&asks, &good, &bad), "ok");
        assert_eq!(outcome(&asks, &bad, &bad), "failed");
    }
}
