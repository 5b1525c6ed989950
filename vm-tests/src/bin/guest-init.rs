//! The first process of a test machine: mounts what the tests need, runs each binary of /tests, prints the verdict, ends the machine.
//! Guest side of `cargo xtask vm`, which reads the lines that start with `GUEST` and libtest's own.
//! Invariant: the machine ends by power-off after a verdict that carries the nonce of its command line; every other way out is seen as a failure outside.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use vm_tests::needs;

fn main() {
    let verdict = match run() {
        Ok(true) => "ok",
        Ok(false) => "failed",
        Err(error) => {
            println!("GUEST error: {error}");
            "failed"
        }
    };
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    // A test that prints such a line does not know the nonce.
    println!(
        "GUEST RESULT {verdict} {}",
        parameter(&line, "sluice.nonce=").unwrap_or("none")
    );
    end();
}

/// The value of a word of the kernel's command line.
fn parameter<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name))
}

fn run() -> io::Result<bool> {
    mounts()?;
    let line = fs::read_to_string("/proc/cmdline")?;
    kernel_is_as_wanted(&line)?;
    // The kernel's own way of bringing an interface up; lo then has 127.0.0.1 and ::1.
    fs::write("/sys/class/net/lo/flags", "0x9")?;
    users()?;
    modules()?;

    let filter = parameter(&line, "sluice.filter=");
    let tests = files("/tests")?;
    let escape = parameter(&line, "sluice.escape=");
    let mut passed = !tests.is_empty() || escape.is_some();
    for test in tests {
        passed &= run_one(&test, filter)?;
    }
    if let Some(suite) = escape {
        passed &= run_escape(Path::new(suite), filter)?;
    }
    Ok(passed)
}

/// The files of a directory in order; none if there is none.
fn files(directory: &str) -> io::Result<Vec<PathBuf>> {
    if !Path::new(directory).is_dir() {
        return Ok(Vec::new());
    }
    let mut files = fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Loads what the host has put there, in the order of the names.
fn modules() -> io::Result<()> {
    for path in files("/modules")? {
        let module = fs::File::open(&path)?;
        // One that this kernel has built in, or does not take, is missed by what needs it.
        if let Err(error) = rustix::system::finit_module(&module, c"", 0) {
            println!("GUEST module {}: {error}", path.display());
        }
    }
    Ok(())
}

/// The escape suite: its JSON with a prefix, so that the host can tell it from everything else.
fn run_escape(suite: &Path, filter: Option<&str>) -> io::Result<bool> {
    println!("GUEST running escape");
    let mut command = Command::new(suite);
    command.args(["--format", "json"]);
    if let Some(filter) = filter {
        command.args(["--filter", filter]);
    }
    let mut child = environment(&mut command).spawn()?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            println!("ESCAPE {}", line?);
        }
    }
    let status = child.wait()?;
    println!("GUEST finished escape");
    if let Some(code) = status.code() {
        println!("GUEST escape ended with {code}");
    }
    // 2: the daemon refuses this kernel; whether it may is the host's to say.
    Ok(matches!(status.code(), Some(0 | 2)))
}

fn mounts() -> io::Result<()> {
    for (kind, place) in [
        ("devtmpfs", "/dev"),
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("securityfs", "/sys/kernel/security"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tmpfs", "/var"),
    ] {
        fs::create_dir_all(place)?;
        // Programs lie where cargo put them; a checkout below /tmp is not to be covered. The root is memory, too.
        if kind == "tmpfs" && fs::read_dir(place)?.next().is_some() {
            continue;
        }
        mount(kind, place, kind, MountFlags::empty(), None)
            .map_err(|error| io::Error::other(format!("mounting {kind} on {place}: {error}")))?;
    }
    Ok(())
}

/// BPF LSM is in the kernel's list exactly where the command line says so: a list without it loads and never runs.
fn kernel_is_as_wanted(line: &str) -> io::Result<()> {
    let modules = fs::read_to_string("/sys/kernel/security/lsm")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("GUEST kernel {} lsm {}", release.trim(), modules.trim());
    let wanted = line.contains("sluice.lsm=true");
    let present = modules.trim().split(',').any(|module| module == "bpf");
    if wanted != present {
        return Err(io::Error::other(format!(
            "BPF LSM: wanted {wanted}, present {present}"
        )));
    }
    Ok(())
}

/// The few names that programs ask for.
fn users() -> io::Result<()> {
    fs::create_dir_all("/etc")?;
    fs::write(
        "/etc/passwd",
        "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    )?;
    fs::write("/etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::write("/etc/resolv.conf", "")
}

fn run_one(test: &Path, filter: Option<&str>) -> io::Result<bool> {
    let name = test
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    println!("GUEST running {name}");
    let mut command = Command::new(test);
    command
        .args(["--test-threads=2", "--color=never"])
        .args(filter);
    for needing in needs::ALL {
        let here = name.starts_with(needing.program)
            && filter.is_none_or(|filter| needing.test.contains(filter));
        if let Some(why) = here.then(needing.missing).flatten() {
            // As libtest says it of its own, for whoever counts.
            println!("test {} ... ignored, {why}", needing.test);
            command.args(["--skip", needing.test]);
        }
    }
    let mut child = environment(&mut command).spawn()?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            println!("{}", line?);
        }
    }
    let status = child.wait()?;
    println!("GUEST finished {name}");
    if !status.success() {
        println!("GUEST {name}: {status}");
    }
    Ok(status.success())
}

/// What every program here is started with.
fn environment(command: &mut Command) -> &mut Command {
    command
        .env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin")
        .env("HOME", "/tmp")
        .env("RUST_BACKTRACE", "1")
        // Tests may tell the guest from the host that built them.
        .env("SLUICE_TEST_GUEST", "1")
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
}

/// Ends the machine; the pause lets the serial line drain, since nothing else waits for it.
fn end() {
    drop(io::stdout().flush());
    std::thread::sleep(Duration::from_millis(200));
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        // The first process must not return: the panic that follows is the failure that the host sees.
        println!("GUEST error: cannot power off: {error}");
    }
}
