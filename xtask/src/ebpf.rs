//! Builds the kernel side alone: to see its errors, or to look at the object.
//! agent-userspace's build script does the same with the same recipe; both share `target/ebpf`.
//! Invariant: what this builds is what the daemon embeds.

use std::path::PathBuf;

use anyhow::Result;

use crate::shell;
use crate::toolchain::Toolchain;

/// Builds the object and returns where it lies.
pub(crate) fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let target_dir = shell::target_dir().join("ebpf");
    Ok(toolchain.build(&shell::root(), &target_dir)?)
}
