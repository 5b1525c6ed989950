//! The small files that Sluice writes beside its databases: the switched-off agents and the tenants' certificates.
//! Read at start, written on change, replaced as a whole.
//! INVARIANT: a reader sees the old file or the new one; a crash between leaves the old one and a stray temporary.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use policies::AgentId;

use super::Paths;

/// The agents that are switched off.
///
/// # Errors
/// The file cannot be read, or says something else than agents: starting without it would switch them on again.
pub fn read_disabled(paths: &Paths) -> io::Result<BTreeSet<AgentId>> {
    let path = paths.disabled_file();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let agent = |line: &str| line.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}")));
    text.lines().filter(|line| !line.is_empty()).map(agent).collect()
}

/// Stores the agents that are switched off.
///
/// # Errors
/// The file cannot be written; the old one stays.
pub fn write_disabled(paths: &Paths, disabled: &BTreeSet<AgentId>) -> io::Result<()> {
    let lines: String = disabled.iter().map(|agent| format!("{agent}\n")).collect();
    replace(&paths.disabled_file(), lines.as_bytes(), 0o600)
}

/// Writes a file as a whole: temporary beside it, fsync, rename, fsync of the directory.
///
/// # Errors
/// The directory cannot be written.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A crash up to here leaves the old file in force.
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Gives what root made in the state directory to that directory's owner, so that the proxy process can use it.
///
/// # Errors
/// A file cannot be given away.
pub fn adopt_owner(paths: &Paths) -> io::Result<()> {
    let owner = fs::metadata(&paths.state)?;
    let mut pending = vec![paths.state.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path: PathBuf = entry?.path();
            let found = fs::symlink_metadata(&path)?;
            let theirs = found.uid() == owner.uid() && found.gid() == owner.gid();
            if !theirs && (found.is_file() || found.is_dir()) {
                std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
            }
            if found.is_dir() {
                pending.push(path);
            }
        }
    }
    Ok(())
}

/// Makes a directory that only its owner may look into, unless it is there.
///
/// # Errors
/// It cannot be made.
pub fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a directory that everybody may look into, unless it is there.
///
/// # Errors
/// It cannot be made.
pub fn public_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(state: &Path) -> Paths {
        Paths { config: state.join("etc"), state: state.to_owned(), runtime: state.join("run") }
    }

    #[test]
    fn the_kill_switch_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(read_disabled(&paths).unwrap().is_empty());
        let disabled: BTreeSet<AgentId> = ["acme/support".parse().unwrap(), "acme/bot".parse().unwrap()].into();
        write_disabled(&paths, &disabled).unwrap();
        assert_eq!(read_disabled(&paths).unwrap(), disabled);
    }

    #[test]
    fn a_damaged_kill_switch_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        fs::write(paths.disabled_file(), "acme/support\nnonsense\n").unwrap();
        assert!(read_disabled(&paths).is_err());
    }
}
