//! `cargo xtask fuzz`: the fuzz targets for as long as one likes, each round with another seed and more cases.
//! A target is a proptest whose name begins with `fuzz_`, in any crate; `cargo xtask test` runs each for its few hundred cases.
//! Invariant: a failure ends the run with its seed; proptest keeps the input beside the source, and the next test run tries it first.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Cases of each target in the first round.
const CASES: u32 = 2_000;
/// A round is made longer or shorter until it takes about this long, well below nextest's limit for one test.
const ROUND: Duration = Duration::from_secs(40);

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Begin with this seed, to repeat a round
    #[arg(long)]
    seed: Option<u64>,
    /// Only say which targets there are
    #[arg(long)]
    list: bool,
    /// Only targets whose names contain this
    #[arg(default_value = "")]
    target: String,
}

/// A fuzz target.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Target {
    package: String,
    name: String,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut targets = targets()?;
    targets.retain(|target| target.name.contains(&args.target));
    if targets.is_empty() {
        bail!("no fuzz target is named like `{}`", args.target);
    }
    for target in &targets {
        println!("fuzz: {} ({})", target.name, target.package);
    }
    if args.list {
        return Ok(());
    }
    let end = Instant::now() + Duration::from_secs(60 * args.minutes);
    let mut seed = args.seed.map_or_else(clock, Ok)?;
    let (mut cases, mut total) = (CASES, 0_u64);
    loop {
        let started = Instant::now();
        round(&targets, seed, cases)?;
        total += u64::from(cases);
        if Instant::now() >= end {
            break;
        }
        match started.elapsed() {
            took if took < ROUND / 2 => cases = cases.saturating_mul(2),
            took if took > ROUND * 3 / 2 => cases = (cases / 2).max(1),
            _ => {}
        }
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
    }
    println!("fuzz: {total} cases of each target, nothing found");
    Ok(())
}

fn round(targets: &[Target], seed: u64, cases: u32) -> Result<()> {
    println!("\nfuzz: seed {seed}, {cases} cases of each");
    let packages: BTreeSet<&str> = targets.iter().map(|it| it.package.as_str()).collect();
    let names: Vec<&str> = targets.iter().map(|it| it.name.as_str()).collect();
    let mut command = shell::cargo();
    command.args(["nextest", "run", "--no-fail-fast", "--retries=0"]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    command.args(["-E", &format!("test(/(^|::)({})$/)", names.join("|"))]);
    command.env("PROPTEST_RNG_SEED", seed.to_string());
    command.env("PROPTEST_CASES", cases.to_string());
    shell::run(&mut command)
        .with_context(|| format!("found by `cargo xtask fuzz --seed {seed}`, {cases} cases"))
}

fn clock() -> Result<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// Every `fn fuzz_..` of the tree, with the package that its file belongs to.
fn targets() -> Result<Vec<Target>> {
    let root = shell::root();
    let files = shell::capture(Command::new("git").current_dir(&root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ]))?;
    let mut found = BTreeSet::new();
    for file in files.lines().map(|file| root.join(file)) {
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        for name in names(&text) {
            let manifest = file
                .ancestors()
                .map(|directory| directory.join("Cargo.toml"))
                .find(|manifest| manifest.is_file())
                .context("a source file without a package")?;
            let manifest = std::fs::read_to_string(manifest)?;
            let package = manifest
                .lines()
                .find_map(|line| line.strip_prefix("name = \""))
                .and_then(|rest| rest.split('"').next())
                .context("a package without a name")?;
            found.insert(Target {
                package: package.to_owned(),
                name,
            });
        }
    }
    Ok(found.into_iter().collect())
}

fn names(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix(concat!("fn fu", "zz_"))?;
        let name = rest.split('(').next()?;
        Some(format!("fuzz_{name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_by_their_names() {
        let text =
            "proptest! {\n    #[test]\n    fn fuzz_one(x in 0..1) {}\n}\nfn other_fuzz_two() {}\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["fuzz_one"]);
    }
}
