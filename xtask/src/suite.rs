//! `cargo xtask test`: set-up, build, every test, the doctests, the demo, the virtual machine; then one line that counts them.
//! What CI trusts: green means that all of it ran, and what did not run is listed with its reason.
//! Invariant: starts by removing what runs that died have left, so a run never depends on how the last one ended.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{demo, escape, setup, shell, tidy, vm};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct Args {
    /// Leave out the demo
    #[arg(long)]
    no_demo: bool,
    /// Leave out the virtual machine
    #[arg(long)]
    no_vm: bool,
}

/// What one part counted.
struct Part {
    name: &'static str,
    passed: u32,
    failed: u32,
    skipped: u32,
    seconds: f32,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::tests()?;
    println!("test: building");
    shell::run(shell::cargo().args(["build", "--all-targets"]))?;
    demo::remove_leftovers()?;

    let mut parts = vec![measured("tests", nextest)?, measured("doctests", doctests)?];
    parts.push(measured("escape", escape::counted)?);
    if !args.no_vm {
        parts.push(measured("vm", || {
            let counts = vm::run(&vm::Args::plain())?;
            Ok((counts.passed, counts.failed, counts.ignored))
        })?);
    }
    if !args.no_demo {
        parts.push(measured("demo", demo::counted)?);
    }
    summary(&parts)
}

/// A part that does not even come to an end counts as one failure, and the others still run.
fn measured(name: &'static str, part: impl FnOnce() -> Result<(u32, u32, u32)>) -> Result<Part> {
    println!("\n== {name}");
    let started = Instant::now();
    let (passed, failed, skipped) = part().unwrap_or_else(|error| {
        eprintln!("error: {name}: {error:#}");
        (0, 1, 0)
    });
    Ok(Part {
        name,
        passed,
        failed,
        skipped,
        seconds: started.elapsed().as_secs_f32(),
    })
}

fn summary(parts: &[Part]) -> Result<()> {
    println!();
    let ignored = tidy::ignored_tests()?;
    for test in &ignored {
        println!("not run: {} ({}): {}", test.test, test.path, test.reason);
    }
    for part in parts {
        println!(
            "{:<9} {:>4} passed {:>3} failed {:>3} skipped  {:>4.0} s",
            part.name, part.passed, part.failed, part.skipped, part.seconds
        );
    }
    let sum = |count: fn(&Part) -> u32| parts.iter().map(count).sum::<u32>();
    let failed = sum(|part| part.failed);
    println!(
        "{} passed, {failed} failed, {} skipped",
        sum(|part| part.passed),
        sum(|part| part.skipped)
    );
    if failed > 0 {
        bail!("{failed} failed");
    }
    Ok(())
}

/// Every test of the workspace. As root, since the kernel tests load programs and the end-to-end tests start the daemon.
fn nextest() -> Result<(u32, u32, u32)> {
    let mut command = shell::cargo();
    command.args(["nextest", "run", "--color=never", "--no-fail-fast"]);
    if !shell::is_root() {
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    }
    let told = shell::tee(&mut command)?;
    let counts = nextest_counts(&told.text).context("nextest printed no summary")?;
    if !told.success && counts.1 == 0 {
        bail!("nextest failed without a failed test");
    }
    Ok(counts)
}

/// The last `Summary [ 1.2s] 3 tests run: 2 passed (1 slow), 1 failed, 1 skipped`.
fn nextest_counts(text: &str) -> Option<(u32, u32, u32)> {
    let line = text
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("Summary ["))?;
    let counts = line.split_once(" run: ")?.1;
    let mut found = (0, 0, 0);
    // What stands in brackets tells of tests that are counted already.
    let counts = counts.split(['(', ')']).step_by(2).collect::<String>();
    for part in counts.split(',') {
        let mut words = part.split_whitespace();
        let number: u32 = words.next()?.parse().ok()?;
        match words.next()? {
            "passed" => found.0 += number,
            "skipped" => found.2 += number,
            // failed, timed out, exec failed
            _ => found.1 += number,
        }
    }
    Some(found)
}

fn doctests() -> Result<(u32, u32, u32)> {
    let told = shell::tee(shell::cargo().args([
        "test",
        "--doc",
        "--no-fail-fast",
        "--",
        "--color=never",
    ]))?;
    let counts = libtest_counts(&told.text);
    if !told.success && counts.1 == 0 {
        bail!("the doctests did not build");
    }
    Ok(counts)
}

/// Sums every `test result: ok. 4 passed; 0 failed; 1 ignored; ..`.
fn libtest_counts(text: &str) -> (u32, u32, u32) {
    let mut sum = (0, 0, 0);
    for line in text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("test result: "))
    {
        for part in line.split(['.', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(kind)) = (words.next(), words.next()) else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match kind {
                "passed" => sum.0 += number,
                "failed" => sum.1 += number,
                "ignored" => sum.2 += number,
                _ => {}
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_nextest_is_read() {
        let text = "x\n     Summary [   1.2s] 7 tests run: 4 passed (1 slow, 1 flaky), 2 failed, 1 timed out, 3 skipped\n";
        assert_eq!(nextest_counts(text), Some((4, 3, 3)));
        assert_eq!(nextest_counts("nothing"), None);
    }

    #[test]
    fn the_summaries_of_libtest_are_summed() {
        let text = "test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(libtest_counts(text), (5, 2, 1));
    }
}
