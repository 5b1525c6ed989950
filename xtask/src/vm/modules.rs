//! The few kernel modules that tests use, taken out of the kernel's package with whatever they need.
//! Beside the image in the cache; the guest's first process loads them in order, since it has no tool for it.
//! Invariant: a module comes after everything that it depends on; one that a kernel does not have is left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What cuts sockets, the wire of the escape suite, and what its cases try to escape by.
const WANTED: &[&str] = &[
    "tcp_diag",
    "udp_diag",
    "veth",
    "tun",
    "sctp",
    "dccp_ipv4",
    "l2tp_ip",
    "tipc",
    "rds_tcp",
    "smc",
    "vsock_loopback",
    "sch_ingress",
    "cls_matchall",
    "act_mirred",
];

/// A name that changes with the list: modules that were kept by an older one are not found.
pub(super) fn edition() -> String {
    let mut sum: u32 = 0;
    for byte in WANTED.iter().flat_map(|name| name.bytes()) {
        sum = sum.wrapping_mul(31).wrapping_add(u32::from(byte));
    }
    format!("{sum:08x}")
}

/// Copies the wanted modules below `unpacked` to `to`, each with its place in the order in front of its name.
pub(super) fn keep(unpacked: &Path, to: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    for root in ["lib/modules", "usr/lib/modules"] {
        collect(&unpacked.join(root), &mut found)?;
    }
    drop(std::fs::remove_dir_all(to));
    std::fs::create_dir_all(to)?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &found, &mut order)?;
    }
    for (number, (name, content)) in order.iter().enumerate() {
        std::fs::write(to.join(format!("{number:03}-{name}.ko")), content)?;
    }
    Ok(())
}

/// What was kept, in order.
pub(super) fn kept(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

/// Module files by name; a name has `_` where a file may have `-`.
fn collect(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, found)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    found: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    // Not there: built in, or this kernel has none.
    let Some(file) = found.get(name) else {
        return Ok(());
    };
    if order.iter().any(|(kept, _)| kept == name) {
        return Ok(());
    }
    let content = read(file)?;
    for needed in depends(&content) {
        add(&needed, found, order)?;
    }
    order.push((name.to_owned(), content));
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(std::fs::read(file)?);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .context("cannot start xz (xz-utils)")?;
    if !output.status.success() {
        bail!("xz cannot read {}", file.display());
    }
    Ok(output.stdout)
}

/// The module's own list: `depends=a,b`, a string among others in its `.modinfo`.
fn depends(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = content.windows(KEY.len()).position(|part| part == KEY) else {
        return Vec::new();
    };
    let list = content.get(at + KEY.len()..).unwrap_or_default();
    let list = list.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(list)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let modules = directory.path().join("usr/lib/modules/6.12/kernel");
        std::fs::create_dir_all(&modules).unwrap();
        for (name, needs) in [
            ("tun", ""),
            ("sctp", "lib-a,lib_b"),
            ("lib-a", "lib_b"),
            ("lib_b", ""),
            ("other", ""),
        ] {
            let info = format!("\u{7f}ELF\0license=GPL\0depends={needs}\0name=x\0");
            std::fs::write(modules.join(format!("{name}.ko")), info).unwrap();
        }
        let to = directory.path().join("kept");
        keep(directory.path(), &to).unwrap();
        let names: Vec<String> = kept(&to)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            names,
            ["000-tun.ko", "001-lib_b.ko", "002-lib_a.ko", "003-sctp.ko"]
        );
    }
}
