//! The eBPF toolchain: the pinned compiler with its standard library's source, and a linker built against its own LLVM.
//! Installed once per user into `$SLUICE_TOOLCHAIN` or `~/.cache/sluice/toolchain`; the build script finds it there.
//! Invariant: idempotent, nothing system-wide is touched, and every part is made under another name and then renamed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{debian, shell};

#[path = "../../agent-ebpf/recipe.rs"]
mod recipe;

pub(crate) use recipe::Toolchain;

const LINKER_VERSION: &str = "0.13.0";
/// The LLVM that rustc 1.95 ships, as bpf-linker's feature names it.
const LLVM_FEATURE: &str = "llvm-22";

const DEBIAN_SUITE: &str = "trixie-backports";
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Debian's source of exactly our compiler's standard library.
const RUST_SRC: &str = "rust-src";
const RUST_SRC_VERSION: &str = "1.95.0+dfsg1-2~bpo13+1";
const RUST_SRC_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
/// Where the package keeps it; the depth is what tar strips.
const RUST_SRC_LIBRARY: &str = "./usr/src/rustc-1.95.0/library";

/// rustup answers within seconds where it can reach its server, and otherwise hangs.
const RUSTUP_PATIENCE: Duration = Duration::from_secs(20);

/// Finds the toolchain, or installs what is missing of it. `steps` hears what is about to happen.
pub(crate) fn ensure(steps: &mut dyn FnMut(&str)) -> Result<Toolchain> {
    let toolchain = Toolchain::place()?;
    if is_ready(&toolchain) {
        return Ok(toolchain);
    }
    fs::create_dir_all(&toolchain.root)
        .with_context(|| format!("cannot make {}", toolchain.root.display()))?;
    let lock = File::create(toolchain.root.join("lock"))?;
    lock.lock()
        .context("cannot lock the toolchain's directory")?;
    if is_ready(&toolchain) {
        return Ok(toolchain);
    }
    steps(&format!(
        "the eBPF toolchain is missing or incomplete; installing it into {}",
        toolchain.root.display()
    ));
    sysroot(&toolchain, steps)?;
    llvm(&toolchain)?;
    linker(&toolchain, steps)?;
    ensure!(
        is_ready(&toolchain),
        "the eBPF toolchain was installed but does not run"
    );
    Ok(toolchain)
}

/// All parts are there, of the versions that this checkout wants, and run.
fn is_ready(toolchain: &Toolchain) -> bool {
    toolchain.check().is_ok() && is_our_sysroot(toolchain) && is_our_linker(toolchain)
}

fn is_our_sysroot(toolchain: &Toolchain) -> bool {
    let own = shell::capture(
        Command::new(toolchain.rustc())
            .arg("-vV")
            .env_remove("LD_LIBRARY_PATH"),
    );
    let pinned = shell::capture(rustc().arg("-vV"));
    toolchain.rust_src().exists() && matches!((own, pinned), (Ok(own), Ok(pinned)) if own == pinned)
}

fn is_our_linker(toolchain: &Toolchain) -> bool {
    let mut command = Command::new(toolchain.linker());
    let version = shell::capture(
        command
            .arg("--version")
            .env("LD_LIBRARY_PATH", toolchain.llvm()),
    );
    version.is_ok_and(|version| version.trim().ends_with(LINKER_VERSION))
}

/// The pinned compiler: `rust-toolchain.toml` decides, in the workspace.
fn rustc() -> Command {
    let mut command = Command::new("rustc");
    command.current_dir(shell::root());
    command
}

/// A private copy of the compiler's sysroot, hard-linked where the file system allows it, with rust-src in it.
fn sysroot(toolchain: &Toolchain, steps: &mut dyn FnMut(&str)) -> Result<()> {
    if is_our_sysroot(toolchain) {
        return Ok(());
    }
    let host = PathBuf::from(shell::capture(rustc().args(["--print", "sysroot"]))?.trim());
    if !has_source(&host) {
        steps("rust-src: asking rustup for it");
        if !rustup_adds_source(&host) {
            steps("rust-src: rustup cannot; Debian's package of the same version will do");
        }
    }
    let (sysroot, next) = (
        toolchain.root.join("sysroot"),
        toolchain.root.join("sysroot.next"),
    );
    steps("compiler: a private copy (hard links) that may hold more than rustup put there");
    remove(&next)?;
    let linked = shell::capture(Command::new("cp").arg("-al").arg(&host).arg(&next));
    if linked.is_err() {
        // Another file system: the copy costs some disk.
        remove(&next)?;
        shell::capture(Command::new("cp").arg("-a").arg(&host).arg(&next))?;
    }
    if !has_source(&next) {
        debian_source(&next, steps)?;
    }
    ensure!(
        has_source(&next),
        "rust-src was unpacked, but core's source is not where it belongs"
    );
    remove(&sysroot)?;
    fs::rename(&next, &sysroot).context("cannot put the sysroot in its place")
}

fn has_source(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .exists()
}

/// Whether rustup could add the component within its patience.
fn rustup_adds_source(host: &Path) -> bool {
    let mut command = Command::new("rustup");
    command
        .args(["component", "add", "rust-src"])
        .current_dir(shell::root());
    let Ok(mut child) = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
    else {
        return false;
    };
    let started = Instant::now();
    while started.elapsed() < RUSTUP_PATIENCE {
        match child.try_wait() {
            Ok(Some(status)) => return status.success() && has_source(host),
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(_gone) => return false,
        }
    }
    let _already_ended = child.kill();
    let _already_reaped = child.wait();
    false
}

/// Downloads Debian's package (not installing it), checks it twice (apt's signature, our digest), and unpacks the library.
fn debian_source(sysroot: &Path, steps: &mut dyn FnMut(&str)) -> Result<()> {
    steps(&format!(
        "rust-src: downloading Debian's {RUST_SRC} {RUST_SRC_VERSION} ({DEBIAN_SUITE})"
    ));
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let package = debian_download(scratch.path())?;
    let bytes = fs::read(&package)?;
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(
        digest == RUST_SRC_SHA256,
        "{} has SHA-256 {digest}, expected {RUST_SRC_SHA256}",
        package.display()
    );
    let library = sysroot.join("lib/rustlib/src/rust/library");
    fs::create_dir_all(&library)?;
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let stream = unpack.stdout.take().context("dpkg-deb has no output")?;
    let strip = RUST_SRC_LIBRARY.split('/').count();
    let extracted = Command::new("tar")
        .args(["x", &format!("--strip-components={strip}"), "-C"])
        .arg(&library)
        .arg(RUST_SRC_LIBRARY)
        .stdin(stream)
        .status()
        .context("cannot start tar")?;
    ensure!(
        extracted.success() && unpack.wait()?.success(),
        "cannot unpack {}",
        package.display()
    );
    Ok(())
}

/// apt with directories of its own: no root, and the system's sources and lists stay as they are.
fn debian_download(scratch: &Path) -> Result<PathBuf> {
    if !Path::new(DEBIAN_KEYRING).exists() {
        bail!("{DEBIAN_KEYRING} is missing: install the package debian-archive-keyring");
    }
    for directory in ["lists/partial", "cache/archives/partial", "etc"] {
        fs::create_dir_all(scratch.join(directory))?;
    }
    let sources = scratch.join("sources.list");
    let archive = debian::archive("debian")?;
    fs::write(
        &sources,
        format!("deb [signed-by={DEBIAN_KEYRING}] {archive} {DEBIAN_SUITE} main\n"),
    )?;
    let apt = || {
        let mut command = Command::new("apt-get");
        let option = |name: &str, path: &Path| format!("-o{name}={}", path.display());
        command
            .arg("-q")
            .arg(option("Dir::Etc::sourcelist", &sources))
            .arg(option("Dir::Etc::sourceparts", &scratch.join("etc")))
            .arg(option("Dir::State::Lists", &scratch.join("lists")))
            .arg(option("Dir::State::status", Path::new("/dev/null")))
            .arg(option("Dir::Cache", &scratch.join("cache")))
            .current_dir(scratch);
        command
    };
    shell::capture(apt().arg("update")).context("cannot read Debian's package lists")?;
    shell::capture(
        apt()
            .arg("download")
            .arg(format!("{RUST_SRC}={RUST_SRC_VERSION}")),
    )
    .context("cannot download Debian's rust-src")?;
    let mut found = fs::read_dir(scratch)?.flatten().map(|entry| entry.path());
    found
        .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
        .context("apt downloaded no package")
}

/// The compiler's LLVM under the two names that a linker looks for: when it is built, and when it runs.
fn llvm(toolchain: &Toolchain) -> Result<()> {
    let libraries = toolchain.root.join("sysroot/lib");
    let names = fs::read_dir(&libraries)?
        .flatten()
        .map(|entry| entry.file_name());
    let versioned = names
        .filter_map(|name| name.into_string().ok())
        .find(|name| name.starts_with("libLLVM.so."))
        .with_context(|| {
            format!(
                "{} holds no libLLVM.so: rustc links it statically",
                libraries.display()
            )
        })?;
    let directory = toolchain.llvm();
    fs::create_dir_all(&directory)?;
    for name in ["libLLVM.so", &versioned] {
        let link = directory.join(name);
        remove(&link)?;
        std::os::unix::fs::symlink(Path::new("../../sysroot/lib").join(&versioned), &link)?;
    }
    Ok(())
}

fn linker(toolchain: &Toolchain, steps: &mut dyn FnMut(&str)) -> Result<()> {
    if is_our_linker(toolchain) {
        return Ok(());
    }
    steps(&format!(
        "bpf-linker {LINKER_VERSION}: building it against the compiler's own LLVM (about a minute)"
    ));
    let root = toolchain.root.join("bpf-linker");
    let next = toolchain.root.join("bpf-linker.next");
    remove(&next)?;
    let scratch = tempfile::tempdir()?;
    shell::run(
        shell::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
                "--quiet",
            ])
            .args([
                "--no-default-features",
                "--features",
                LLVM_FEATURE,
                "--root",
            ])
            .arg(&next)
            .env("CARGO_TARGET_DIR", scratch.path())
            .env("LLVM_PREFIX", toolchain.root.join("llvm")),
    )?;
    remove(&root)?;
    fs::rename(&next, &root).context("cannot put the linker in its place")
}

/// Removes a file, a link or a tree; nothing there is fine.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_absent) => return Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
