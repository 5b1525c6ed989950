//! cargo-deny: licences, sources, and which crate may be linked by whom (`.deny.toml`).
//! Installed on first use and not by `setup`, since only `check` needs it.
//! Invariant: decides from the lock file alone; the advisory database is a separate, explicit command.

use anyhow::Result;

use crate::shell;

/// Checks `.deny.toml` against the lock file.
pub(crate) fn check() -> Result<()> {
    if shell::which("cargo-deny").is_none() {
        println!("check: cargo-deny is missing; building it takes two to three minutes, once");
        shell::run(shell::cargo().args(["install", "--locked", "cargo-deny@0.20.2"]))?;
    }
    // Offline, cargo-deny wants every crate of the lock file on disk, also those for other systems.
    shell::run(shell::cargo().args(["fetch", "--quiet", "--locked"]))?;
    shell::run(shell::cargo().args([
        "deny",
        "--offline",
        "--log-level=error",
        "--config=.deny.toml",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}
