//! `cargo xtask vm`: the kernel tests, and the escape suite, inside a real Debian kernel, with BPF LSM present.
//! Host side of `vm-tests/src/bin/guest-init.rs`: build the tests, pack them into an initramfs, boot, read the verdict.
//! Invariant: a pass needs the guest's RESULT line with this run's nonce *and* a clean power-off; a panic, a hang and a short read are failures.

mod cpio;
mod kernel;
mod modules;
mod qemu;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{setup, shell};

/// Arguments of `cargo xtask vm`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Which kernel of vm-tests/kernels.lock; the first one if not given
    #[arg(long)]
    kernel: Option<String>,
    /// Only tests whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Boot without BPF LSM in the kernel's list, as an unprepared host would
    #[arg(long)]
    no_lsm: bool,
    /// Give up after this many seconds
    #[arg(long, default_value_t = PATIENCE)]
    timeout: u64,
    /// Look up the newest kernel of the line and write it to the lock file
    #[arg(long)]
    update: bool,
    /// The escape suite in the same machine, after the tests
    #[arg(long)]
    escape: bool,
}

/// Seconds in which even an emulated machine on a busy host is done; a quiet one needs a fraction.
pub(crate) const PATIENCE: u64 = 1800;

impl Args {
    /// What `cargo xtask test` runs: the first kernel, every test, the escape suite.
    pub(crate) fn plain() -> Self {
        Self {
            kernel: None,
            filter: None,
            no_lsm: false,
            timeout: PATIENCE,
            update: false,
            escape: true,
        }
    }
}

/// What the escape suite told in a test machine.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    /// One JSON object a line: a case, or the daemon's refusal.
    pub(crate) lines: Vec<String>,
    /// What the suite ended with: 0 well, 2 refused.
    pub(crate) code: Option<i32>,
}

/// What the guest counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<Counts> {
    setup::quiet()?;
    let kernel = kernel::ensure(&lock_file(), args.kernel.as_deref(), args.update)?;
    let programs = Programs::build(args.escape)?;
    let (tests, sluice) = build_tests()?;
    if tests.is_empty() {
        bail!("no kernel tests: agent-userspace/tests/kernel_*.rs");
    }
    let booted = boot(&kernel, args, &programs, &tests, sluice.as_deref())?;
    let mut verdict = booted.counts;
    println!(
        "vm: {}: {} passed, {} failed, {} skipped ({:.0} s)",
        kernel.release, verdict.passed, verdict.failed, verdict.ignored, booted.seconds
    );
    if args.escape {
        let (passed, failed, ignored) = crate::escape::counts(&booted.escape)?;
        verdict.passed += passed;
        verdict.failed += failed;
        verdict.ignored += ignored;
        println!(
            "vm: {}: escape: {passed} closed or named, {failed} not, {ignored} not applicable",
            kernel.release
        );
    }
    if verdict.failed > 0 {
        bail!("vm: {} tests failed on {}", verdict.failed, kernel.release);
    }
    Ok(verdict)
}

/// The lines of the lock file.
pub(crate) fn lines() -> Result<Vec<String>> {
    kernel::lines(&lock_file())
}

/// The escape suite alone, on one kernel.
pub(crate) fn escape(
    name: Option<&str>,
    filter: Option<&str>,
    no_lsm: bool,
) -> Result<(String, Escape)> {
    let line = match name {
        Some(name) => name.to_owned(),
        None => lines()?.into_iter().next().context("no kernel is locked")?,
    };
    let told = escape_with(&Programs::build(true)?, Some(&line), filter, no_lsm)?;
    Ok((line, told))
}

/// The same with programs that are built.
pub(crate) fn escape_with(
    programs: &Programs,
    name: Option<&str>,
    filter: Option<&str>,
    no_lsm: bool,
) -> Result<Escape> {
    let kernel = kernel::ensure(&lock_file(), name, false)?;
    let args = Args {
        kernel: name.map(str::to_owned),
        filter: filter.map(str::to_owned),
        no_lsm,
        ..Args::plain()
    };
    let sluice = shell::target_dir().join("debug/sluice");
    let booted = boot(&kernel, &args, programs, &[], Some(&sluice))?;
    println!(
        "escape: {} ({}): {:.0} s",
        kernel.name, kernel.release, booted.seconds
    );
    Ok(booted.escape)
}

fn lock_file() -> PathBuf {
    shell::root().join("vm-tests/kernels.lock")
}

/// What one boot told.
struct Booted {
    counts: Counts,
    escape: Escape,
    seconds: f32,
}

fn boot(
    kernel: &kernel::Kernel,
    args: &Args,
    programs: &Programs,
    tests: &[PathBuf],
    sluice: Option<&Path>,
) -> Result<Booted> {
    let initramfs = pack(programs, tests, sluice, &kernel.modules)?;
    let nonce = nonce()?;
    let machine = qemu::Machine {
        kernel: &kernel.image,
        initramfs: initramfs.path(),
        append: append(args, programs.escape.as_ref(), &nonce),
        timeout: Duration::from_secs(args.timeout),
    };
    println!(
        "vm: booting {} ({}{})",
        kernel.release,
        machine.accelerator().name(),
        if args.no_lsm {
            ", without bpf in lsm="
        } else {
            ""
        }
    );
    let started = Instant::now();
    let ended = machine.boot()?;
    let suites = tests.len() + usize::from(args.escape);
    Ok(Booted {
        counts: judge(&ended, suites, &nonce)?,
        escape: told(&ended.serial),
        seconds: started.elapsed().as_secs_f32(),
    })
}

/// The suite's lines among the guest's.
fn told(serial: &str) -> Escape {
    let mut escape = Escape::default();
    for line in serial.lines().map(str::trim_end) {
        if let Some(json) = line.strip_prefix("ESCAPE ") {
            escape.lines.push(json.to_owned());
        } else if let Some(code) = line.strip_prefix("GUEST escape ended with ") {
            escape.code = code.parse().ok();
        }
    }
    escape
}

/// Something that no test can print by accident.
fn nonce() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/uuid")?
        .trim()
        .to_owned())
}

fn append(args: &Args, escape: Option<&[PathBuf; 2]>, nonce: &str) -> String {
    let lsm = if args.no_lsm { "" } else { ",bpf" };
    let mut line = format!(
        "console=ttyS0 quiet panic=-1 no_timer_check lsm=landlock,lockdown,yama,apparmor{lsm} sluice.lsm={} sluice.nonce={nonce}",
        !args.no_lsm
    );
    if let Some(filter) = &args.filter {
        line.push_str(&format!(" sluice.filter={filter}"));
    }
    if let Some([suite, _]) = escape {
        line.push_str(&format!(" sluice.escape={}", suite.display()));
    }
    line
}

/// Reads the guest's lines; everything that is not a whole and explicit verdict is an error.
fn judge(ended: &qemu::Ended, binaries: usize, nonce: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut finished = BTreeSet::new();
    let mut result = None;
    for line in ended.serial.lines() {
        let line = line.trim_end();
        if line.contains("Kernel panic") {
            bail!("vm: {line}");
        }
        if let Some(outcome) = line.strip_prefix("test ") {
            match outcome.rsplit_once(" ... ").map(|(_, verdict)| verdict) {
                Some("ok") => counts.passed += 1,
                Some(verdict) if verdict.starts_with("ignored") => counts.ignored += 1,
                Some(_) => counts.failed += 1,
                None => {}
            }
        } else if let Some(name) = line.strip_prefix("GUEST finished ") {
            finished.insert(name.to_owned());
        } else if let Some(verdict) = line.strip_prefix("GUEST RESULT ") {
            result = verdict.strip_suffix(nonce).map(str::trim_end);
        }
    }
    let Some(result) = result else {
        bail!("vm: the guest ended without a verdict ({})", ended.how);
    };
    // With `-no-reboot`, QEMU exits with 0 when the guest powers off, and when killed with nothing.
    if ended.code != Some(0) {
        bail!("vm: the guest said {result:?}, but {}", ended.how);
    }
    if finished.len() != binaries {
        bail!(
            "vm: {} of {binaries} test binaries finished: {result}",
            finished.len()
        );
    }
    match result {
        "ok" if counts.failed == 0 => Ok(counts),
        // A test binary that dies prints no line of its own.
        "failed" => Ok(Counts {
            failed: counts.failed.max(1),
            ..counts
        }),
        result => bail!(
            "vm: the guest said {result:?} with {} failed tests",
            counts.failed
        ),
    }
}

/// What every guest has: its first process, and the escape suite if it is wanted.
pub(crate) struct Programs {
    init: PathBuf,
    /// The suite and its attacker.
    escape: Option<[PathBuf; 2]>,
}

impl Programs {
    pub(crate) fn build(escape: bool) -> Result<Programs> {
        let mut build = shell::cargo();
        build.args(["build", "--package=vm-tests", "--bins"]);
        if escape {
            build.arg("--package=agent-userspace");
        }
        shell::run(&mut build)?;
        let built = |name: &str| shell::target_dir().join("debug").join(name);
        Ok(Programs {
            init: built("guest-init"),
            escape: escape.then(|| ["escape", "escape-agent"].map(built)),
        })
    }
}

/// The kernel tests, and the `sluice` binary that they start.
fn build_tests() -> Result<(Vec<PathBuf>, Option<PathBuf>)> {
    println!("  $ cargo test --no-run --package agent-userspace --test 'kernel_*'");
    let told = shell::capture(shell::cargo().stderr(std::process::Stdio::inherit()).args([
        "test",
        "--no-run",
        "--quiet",
        "--message-format=json",
        "--package=agent-userspace",
        "--test=kernel_*",
    ]))?;
    let mut tests = Vec::new();
    let mut sluice = None;
    for message in told
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
    {
        let Some(path) = message.get("executable").and_then(|path| path.as_str()) else {
            continue;
        };
        match message
            .pointer("/target/name")
            .and_then(|name| name.as_str())
        {
            Some("sluice") => sluice = Some(PathBuf::from(path)),
            Some(name) if name.starts_with("kernel_") => tests.push(PathBuf::from(path)),
            _ => {}
        }
    }
    tests.sort();
    Ok((tests, sluice))
}

/// An initramfs with the tests, what they start, the libraries that all of them load, and the kernel's modules.
fn pack(
    programs: &Programs,
    tests: &[PathBuf],
    sluice: Option<&Path>,
    modules: &[PathBuf],
) -> Result<tempfile::NamedTempFile> {
    let work = shell::target_dir().join("vm");
    std::fs::create_dir_all(&work)?;
    let mut archive = cpio::Archive::new();
    let mut libraries = BTreeSet::new();
    let mut add = |archive: &mut cpio::Archive, from: &Path, to: &Path| -> Result<()> {
        libraries.extend(shared_libraries(from)?);
        archive.file(to, &stripped(from, &work)?, 0o755);
        Ok(())
    };
    add(&mut archive, &programs.init, Path::new("/init"))?;
    for test in tests {
        let name = test.file_name().context("a test without a name")?;
        add(&mut archive, test, &Path::new("/tests").join(name))?;
    }
    // Programs name the daemon by the path that cargo gave it.
    for program in sluice
        .into_iter()
        .chain(programs.escape.iter().flatten().map(PathBuf::as_path))
    {
        add(&mut archive, program, program)?;
    }
    let tools: &[&str] = match programs.escape {
        Some(_) => &["sh", "sleep", "true", "cat", "ip", "tc"],
        None => &["sh", "sleep", "true", "cat"],
    };
    for tool in tools {
        let path = shell::which(tool).with_context(|| format!("{tool} is not in PATH"))?;
        add(&mut archive, &path, &Path::new("/bin").join(tool))?;
    }
    for library in libraries {
        archive.file(&library, &std::fs::read(&library)?, 0o755);
    }
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        archive.file(
            &Path::new("/modules").join(name),
            &std::fs::read(module)?,
            0o644,
        );
    }
    // Of its own name: two machines may be made at once.
    let file = tempfile::NamedTempFile::new_in(&work)?;
    archive.write(file.path())?;
    Ok(file)
}

/// What the dynamic linker would load, itself included, by the paths it would use.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = shell::capture(std::process::Command::new("ldd").arg(program))?;
    Ok(told
        .split_whitespace()
        .filter(|word| word.starts_with('/') && word.contains(".so"))
        .map(PathBuf::from)
        .collect())
}

/// The program without debug information: the guest's memory is small.
fn stripped(program: &Path, work: &Path) -> Result<Vec<u8>> {
    let out = tempfile::NamedTempFile::new_in(work)?;
    let out = out.path();
    shell::capture(
        std::process::Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(out)
            .arg(program),
    )?;
    std::fs::read(out).with_context(|| format!("cannot read {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: &str = "test a ... ok\ntest b ... ignored, why\r\nGUEST finished kernel_x\nGUEST RESULT ok n0nce\n";

    fn judged(serial: &str, code: Option<i32>, binaries: usize) -> Result<Counts> {
        let ended = qemu::Ended {
            serial: serial.into(),
            code,
            how: "it ended".into(),
        };
        judge(&ended, binaries, "n0nce")
    }

    #[test]
    fn a_whole_pass_is_counted() {
        let counts = judged(PASS, Some(0), 1).unwrap();
        assert_eq!(
            counts,
            Counts {
                passed: 1,
                failed: 0,
                ignored: 1
            }
        );
    }

    #[test]
    fn a_pass_needs_verdict_nonce_power_off_and_every_binary() {
        assert!(judged("test a ... ok\nGUEST finished k\n", Some(0), 1).is_err());
        assert!(judged(&PASS.replace("n0nce", "other"), Some(0), 1).is_err());
        assert!(judged(PASS, None, 1).is_err());
        assert!(judged(PASS, Some(0), 2).is_err());
        // A panic with `panic=-1 -no-reboot` exits with 0 as well.
        assert!(
            judged(
                &format!("{PASS}[ 1.0] Kernel panic - not syncing\n"),
                Some(0),
                1
            )
            .is_err()
        );
    }

    #[test]
    fn a_failure_is_counted_and_a_crash_counts_as_one() {
        let failed = "test a ... FAILED\nGUEST finished k\nGUEST RESULT failed n0nce\n";
        assert_eq!(judged(failed, Some(0), 1).unwrap().failed, 1);
        let crashed = "GUEST finished k\nGUEST RESULT failed n0nce\n";
        assert_eq!(judged(crashed, Some(0), 1).unwrap().failed, 1);
        // An "ok" over a failed line is a broken guest, not a pass.
        assert!(judged(&failed.replace("RESULT failed", "RESULT ok"), Some(0), 1).is_err());
    }
}
