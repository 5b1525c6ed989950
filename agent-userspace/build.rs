//! Builds the kernel side from source and puts the object where `enforce::object` embeds it.
//! On the path: at build time only.
//! INVARIANT: no object is ever downloaded or committed; without the toolchain the build fails and says how to get it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

#[path = "../agent-ebpf/recipe.rs"]
mod recipe;

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), Box<dyn std::error::Error>> {
    let manifest =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let workspace = manifest
        .parent()
        .ok_or("agent-userspace lies in no workspace")?;

    let toolchain = recipe::Toolchain::place()?;
    println!("cargo::rerun-if-env-changed=SLUICE_TOOLCHAIN");
    println!("cargo::rerun-if-changed={}", toolchain.linker().display());
    for input in [
        "agent-ebpf/src",
        "agent-ebpf/abi",
        "agent-ebpf/Cargo.toml",
        "agent-ebpf/recipe.rs",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }

    let object = toolchain.build(workspace, &target_dir(&out))?;
    replace_if_changed(&object, &out.join("agent-ebpf.o"))?;
    Ok(())
}

/// `ebpf/` in cargo's target directory, shared by all profiles and targets of the host.
fn target_dir(out: &Path) -> PathBuf {
    let root = out
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").exists());
    root.unwrap_or(out).join("ebpf")
}

fn replace_if_changed(from: &Path, to: &Path) -> io::Result<()> {
    let bytes = fs::read(from)?;
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    fs::write(to, bytes)
}
