//! The Python environment of the demo: `requests` and the official `stripe` SDK, as their users install them.
//! Invariant: lives under the target directory, at the versions of `vm-tests/requirements.txt`, and nothing else on the machine changes.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// Where the environment is.
pub(crate) fn dir() -> PathBuf {
    shell::target_dir().join("demo-venv")
}

/// Makes the environment unless it is there with these very requirements.
pub(crate) fn ensure() -> Result<()> {
    let wanted_file = shell::root().join("vm-tests/requirements.txt");
    let wanted = std::fs::read_to_string(&wanted_file)
        .with_context(|| format!("cannot read {}", wanted_file.display()))?;
    // Written last, so an interrupted installation is seen as none.
    let stamp = dir().join("installed.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    println!("setup: Python clients for the demo, in {}", dir().display());
    shell::run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(dir()),
    )?;
    shell::run(
        Command::new(dir().join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&wanted_file),
    )?;
    std::fs::write(&stamp, wanted).context("cannot note what was installed")
}
