//! The small files that Sluice writes beside its databases: the switched-off agents and the tenants' certificates.
//! Read at start, written on change, replaced as a whole.
//! INVARIANT: a reader sees the old file or the new one; a crash between leaves the old one and a stray temporary.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use policies::AgentId;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchown, fstat, openat,
};
use rustix::io::Errno;

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
    let agent = |line: &str| {
        line.parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}")))
    };
    text.lines()
        .filter(|line| !line.is_empty())
        .map(agent)
        .collect()
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
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
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
    let state = open_directory(rustix::fs::CWD, &paths.state)?;
    let owner = fstat(&state)?;
    // No other level is ours, so no other is walked.
    give_files(&state, &owner)?;
    match open_directory(&state, "audit") {
        Ok(audit) => {
            if fstat(&audit)?.st_uid != owner.st_uid {
                fchown(
                    &audit,
                    Some(Uid::from_raw(owner.st_uid)),
                    Some(Gid::from_raw(owner.st_gid)),
                )?;
            }
            give_files(&audit, &owner)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// INVARIANT: the owner of the directory is not trusted: no link is followed, and a file that has another name
/// elsewhere is left alone, since it may be somebody else's.
fn give_files(directory: &OwnedFd, owner: &Stat) -> io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let found = match openat(
            directory,
            entry.file_name(),
            OFlags::NOFOLLOW | OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(found) => found,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let facts = fstat(&found)?;
        let theirs = facts.st_uid == owner.st_uid && facts.st_gid == owner.st_gid;
        if theirs || !FileType::from_raw_mode(facts.st_mode).is_file() || facts.st_nlink != 1 {
            continue;
        }
        let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        chownat(&found, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

fn open_directory(at: impl AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

/// Makes a directory that only its owner may look into, unless it is there.
///
/// # Errors
/// It cannot be made.
pub fn private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Makes a directory that everybody may look into, unless it is there.
///
/// # Errors
/// It cannot be made.
pub fn public_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(state: &Path) -> Paths {
        Paths {
            config: state.join("etc"),
            state: state.to_owned(),
            runtime: state.join("run"),
        }
    }

    #[test]
    fn the_kill_switch_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        assert!(read_disabled(&paths).unwrap().is_empty());
        let disabled: BTreeSet<AgentId> =
            ["acme/support".parse().unwrap(), "acme/bot".parse().unwrap()].into();
        write_disabled(&paths, &disabled).unwrap();
        assert_eq!(read_disabled(&paths).unwrap(), disabled);
    }

    #[test]
    fn what_root_made_belongs_to_the_owner_and_links_are_left_alone() {
        use std::os::unix::fs::{MetadataExt as _, chown, symlink};
        if !rustix::process::getuid().is_root() {
            panic!("this test gives files away and needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        fs::create_dir_all(state.join("audit")).unwrap();
        chown(&state, Some(4711), Some(4712)).unwrap();
        fs::write(state.join("vault.redb"), "v").unwrap();
        fs::write(state.join("audit/acme.redb"), "a").unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "not theirs").unwrap();
        symlink(&outside, state.join("link")).unwrap();
        fs::hard_link(&outside, state.join("second-name")).unwrap();
        adopt_owner(&paths(&state)).unwrap();
        let uid = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!(uid(&state.join("vault.redb")), 4711);
        assert_eq!(uid(&state.join("audit")), 4711);
        assert_eq!(uid(&state.join("audit/acme.redb")), 4711);
        assert_eq!(uid(&outside), 0);
    }

    #[test]
    fn a_damaged_kill_switch_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(dir.path());
        fs::write(paths.disabled_file(), "acme/support\nnonsense\n").unwrap();
        assert!(read_disabled(&paths).is_err());
    }
}
