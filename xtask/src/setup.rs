//! `cargo xtask setup`: from a fresh Debian or Ubuntu machine with rustup to one that can build and test Sluice.
//! First step of everything else here; also called by `test`, `demo`, `vm` and `bench`, where it is silent when nothing is missing.
//! Invariant: it looks before it installs, says what and why before it does it, and changes nothing when run again.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{ebpf, shell, toolchain, venv};

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct Args {
    /// Only say what is missing
    #[arg(long)]
    dry_run: bool,
}

/// One system package, how to see that it is there, and what it is for.
struct Package {
    name: &'static str,
    why: &'static str,
    present: fn() -> bool,
}

const PACKAGES: &[Package] = &[
    Package {
        name: "build-essential",
        why: "the C compiler and linker behind rustc and aws-lc",
        present: || has("cc") && has("make"),
    },
    Package {
        name: "ca-certificates",
        why: "the system's certificate roots",
        present: || std::path::Path::new("/etc/ssl/certs/ca-certificates.crt").is_file(),
    },
    Package {
        name: "curl",
        why: "a client of the demo; downloads of the kernel lock file",
        present: || has("curl"),
    },
    Package {
        name: "git",
        why: "a client of the demo, and its server",
        present: || has("git"),
    },
    Package {
        name: "iproute2",
        why: "makes the wire of the escape suite",
        present: || has("ip"),
    },
    Package {
        name: "nginx-light",
        why: "what the benchmark compares Sluice with",
        present: || has("nginx"),
    },
    Package {
        name: "nodejs",
        why: "a client of the demo (fetch needs 18 or newer)",
        present: || has("node"),
    },
    Package {
        name: "pkg-config",
        why: "finds libraries for the eBPF linker's build",
        present: || has("pkg-config"),
    },
    Package {
        name: "python3-venv",
        why: "the Python clients of the demo, in an environment of their own",
        present: || python("import venv, ensurepip"),
    },
    Package {
        name: "qemu-system-x86",
        why: "boots Debian kernels for the kernel tests",
        present: || has("qemu-system-x86_64"),
    },
    Package {
        name: "runc",
        why: "the container runtime that the tests govern",
        present: || has("runc"),
    },
    Package {
        name: "systemd",
        why: "the service manager whose units the tests govern",
        present: || std::path::Path::new("/usr/lib/systemd/systemd").is_file(),
    },
    Package {
        name: "xz-utils",
        why: "unpacks kernel modules for the test machines",
        present: || has("xz"),
    },
    Package {
        name: "zlib1g-dev",
        why: "the eBPF linker is linked with it, as rustc's LLVM is",
        present: || std::path::Path::new("/usr/include/zlib.h").is_file(),
    },
];

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    if args.dry_run {
        return packages(true);
    }
    tests()?;
    println!("setup: ready ({:.0} s)", started.elapsed().as_secs_f32());
    Ok(())
}

/// The same for `cargo xtask test`: silent when nothing is missing.
pub(crate) fn tests() -> Result<()> {
    quiet()?;
    nextest()
}

/// What every other command needs: the test runner takes longer to build than all of Sluice, and they do without.
pub(crate) fn quiet() -> Result<()> {
    packages(false)?;
    ebpf_toolchain()?;
    venv::ensure()
}

/// The kernel side alone: where its object lies.
pub(crate) fn kernel_side() -> Result<std::path::PathBuf> {
    packages(false)?;
    ebpf::build(&ebpf_toolchain()?)
}

/// What the benchmark compares Sluice with, beside nginx.
const PEERS: &[Package] = &[
    Package {
        name: "haproxy",
        why: "what the benchmark compares Sluice with",
        present: || has("haproxy"),
    },
    Package {
        name: "squid-openssl",
        why: "what the benchmark compares Sluice with: it intercepts TLS, too",
        present: || std::path::Path::new("/usr/lib/squid/security_file_certgen").is_file(),
    },
];

/// The other proxies of the benchmark.
pub(crate) fn peers() -> Result<()> {
    install(PEERS, false)
}

/// Clients of the matrix that distributions package.
const CLIENTS: &[Package] = &[
    Package {
        name: "npm",
        why: "installs the JavaScript clients",
        present: || has("npm"),
    },
    Package {
        name: "openjdk-17-jdk-headless",
        why: "a client of the matrix: Java",
        present: || has("java") && has("javac"),
    },
    Package {
        name: "php-cli",
        why: "a client of the matrix: PHP",
        present: || has("php"),
    },
    Package {
        name: "php-curl",
        why: "PHP's curl extension",
        present: || {
            let mut php = Command::new("php");
            let asked = php.args(["-r", "exit(extension_loaded('curl') ? 0 : 1);"]);
            asked.output().is_ok_and(|output| output.status.success())
        },
    },
    Package {
        name: "ruby",
        why: "a client of the matrix: Ruby",
        present: || has("ruby"),
    },
    Package {
        name: "wget",
        why: "a client of the matrix",
        present: || has("wget"),
    },
];

/// Those of them that these names are.
pub(crate) fn clients(names: &[&str]) -> Result<()> {
    let wanted = CLIENTS
        .iter()
        .filter(|package| names.contains(&package.name));
    install(wanted, false)
}

/// What the conformance suites need of distributions.
const SUITES: &[Package] = &[
    Package {
        name: "nghttp2-client",
        why: "HTTP/2 clients of the conformance suites (nghttp, h2load)",
        present: || has("nghttp") && has("h2load"),
    },
    Package {
        name: "nghttp2-server",
        why: "the HTTP/2 server that the conformance suites are tried on first",
        present: || has("nghttpd"),
    },
];

/// What the conformance suites need.
pub(crate) fn suites() -> Result<()> {
    install(SUITES, false)
}

fn packages(dry_run: bool) -> Result<()> {
    install(PACKAGES, dry_run)
}

fn install<'a>(packages: impl IntoIterator<Item = &'a Package>, dry_run: bool) -> Result<()> {
    let missing: Vec<&Package> = packages
        .into_iter()
        .filter(|package| !(package.present)())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("setup: system packages that are missing here:");
    for package in &missing {
        println!("  {:<18} {}", package.name, package.why);
    }
    if dry_run {
        return Ok(());
    }
    if !has("apt-get") {
        bail!("this machine has no apt-get; install these by its own means, then run this again");
    }
    println!("setup: installing them with apt-get (as root)");
    shell::run(apt().arg("update"))?;
    shell::run(
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(missing.iter().map(|package| package.name)),
    )
}

fn apt() -> Command {
    // sudo drops the environment unless told otherwise, so the variable travels as an argument of env(1).
    let mut command = shell::as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
    command
}

fn nextest() -> Result<()> {
    if has("cargo-nextest") {
        return Ok(());
    }
    println!("setup: cargo-nextest is missing; it runs the tests. Building it takes some minutes");
    shell::run(shell::cargo().args(["install", "--locked", "cargo-nextest"]))
}

fn ebpf_toolchain() -> Result<toolchain::Toolchain> {
    toolchain::ensure(&mut |step| println!("setup: {step}"))
}

fn has(program: &str) -> bool {
    shell::which(program).is_some()
}

fn python(code: &str) -> bool {
    Command::new("python3")
        .args(["-c", code])
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
