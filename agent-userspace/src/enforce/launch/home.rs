//! An agent's own uid and home, where nobody said whom it runs as: the home's owner is the record of its uid.
//! Asked by `sluice run` before the launch; the daemon says which uids may be given out.
//! INVARIANT: no two agents share a uid, and none has the uid of an account or group; a doubt refuses.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use policies::AgentId;
use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use super::account::{Account, AccountError, is_taken};
use crate::config::UidRange;

/// Why an agent has no uid of its own.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The account database failed.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A home belongs to somebody whom it cannot belong to.
    #[error(
        "uid_foreign: {} belongs to uid {uid}, which is not one of [launch] uids ({range}); remove it, or name a --user",
        home.display()
    )]
    Foreign {
        /// The home.
        home: PathBuf,
        /// Its owner.
        uid: u32,
        /// The uids that agents may have.
        range: UidRange,
    },
    /// The directory of homes, or a home, cannot be made or read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// Every uid of the range is an account's or another agent's.
    #[error("uids_used_up: every uid of [launch] uids ({0}) is taken; widen the range")]
    NoneLeft(UidRange),
    /// Others may write where the homes are.
    #[error("homes_unsafe: {} is not a directory of root's alone; make it root's, mode 755", .0.display())]
    Unsafe(PathBuf),
    /// The uid has become an account's since the agent got it.
    #[error(
        "uid_taken: uid {uid} of {} is now that of an account or group of this host; remove that account, or give the home \
         away (rm or chown) so that the agent gets another uid, or name a --user",
        home.display()
    )]
    Taken {
        /// The home.
        home: PathBuf,
        /// Its owner.
        uid: u32,
    },
}

impl Account {
    /// The agent's own account: always the same uid, with a home that nobody else may enter and `tmp` in it.
    ///
    /// # Errors
    /// No uid is free, the agent's is somebody's account by now, or its home cannot be made.
    pub fn of_agent(agent: &AgentId, homes: &Path, range: UidRange) -> Result<Account, HomeError> {
        let lock = open_homes(homes)?;
        let name = format!("{}.{}", agent.tenant, agent.name);
        let home = homes.join(&name);
        let uid = match owner(&home)? {
            Some(uid) if !range.contains(uid) => {
                return Err(HomeError::Foreign { home, uid, range });
            }
            Some(uid) if is_taken(uid)? => return Err(HomeError::Taken { home, uid }),
            Some(uid) => uid,
            None => settle(homes, &home, &name, range)?,
        };
        drop(lock);
        Ok(Account {
            name: Some(name.into()),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: Some(home),
        })
    }
}

/// The directory of homes, made if need be, locked until the file is dropped.
fn open_homes(homes: &Path) -> Result<File, HomeError> {
    match DirBuilder::new().mode(0o755).create(homes) {
        // The umask may have taken away what the agents need to get to their homes.
        Ok(()) => fs::set_permissions(homes, Permissions::from_mode(0o755)).map_err(at(homes))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(at(homes)(error)),
    }
    let facts = fs::symlink_metadata(homes).map_err(at(homes))?;
    if !facts.is_dir() || facts.uid() != 0 || facts.mode() & 0o022 != 0 {
        return Err(HomeError::Unsafe(homes.to_owned()));
    }
    let lock = File::open(homes).map_err(at(homes))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| at(homes)(errno.into()))?;
    Ok(lock)
}

/// Whose the home is; none while it is root's, which it is until it was made completely.
fn owner(home: &Path) -> Result<Option<u32>, HomeError> {
    match fs::symlink_metadata(home) {
        Ok(facts) if facts.uid() == 0 => Ok(None),
        Ok(facts) if facts.is_dir() => Ok(Some(facts.uid())),
        Ok(_) => Err(HomeError::Unsafe(home.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(home)(error)),
    }
}

/// Finds a uid that nobody has, and makes the home. Where to begin follows from the name, so that an agent whose home
/// was removed mostly gets its uid again.
fn settle(homes: &Path, home: &Path, name: &str, range: UidRange) -> Result<u32, HomeError> {
    let mut given = BTreeSet::new();
    for entry in fs::read_dir(homes).map_err(at(homes))? {
        let facts = entry
            .and_then(|entry| entry.metadata())
            .map_err(at(homes))?;
        given.insert(facts.uid());
    }
    let digest = Sha256::digest(name.as_bytes());
    let offset = digest
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes));
    for uid in range.starting_at(offset) {
        if given.contains(&uid) || is_taken(uid)? {
            continue;
        }
        let tmp = home.join("tmp");
        for directory in [home, &tmp] {
            match DirBuilder::new().mode(0o700).create(directory) {
                // Left by a crash further down.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(at(directory))?,
            }
        }
        // The home last: a crash before leaves it root's, and the next start begins again.
        for directory in [&tmp, home] {
            lchown(directory, Some(uid), Some(uid)).map_err(at(directory))?;
        }
        return Ok(uid);
    }
    Err(HomeError::NoneLeft(range))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |error| HomeError::Io { path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        format!("acme/{name}").parse().unwrap()
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        assert!(rustix::process::getuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let homes = dir.path().join("homes");
        (dir, homes)
    }

    #[test]
    fn an_agent_keeps_its_uid_and_no_other_gets_it() {
        let (_dir, homes) = place();
        let range = UidRange::new(70_100, 70_102).unwrap();
        let uid =
            |name: &str| Account::of_agent(&agent(name), &homes, range).map(|found| found.uid);
        let (one, two) = (uid("one").unwrap(), uid("two").unwrap());
        assert_ne!(one, two);
        assert_eq!(uid("one").unwrap(), one);
        uid("three").unwrap();
        assert!(matches!(uid("four"), Err(HomeError::NoneLeft(_))));
        let home = fs::metadata(homes.join("acme.one")).unwrap();
        assert_eq!(
            (home.uid(), home.gid(), home.mode() & 0o777),
            (one, one, 0o700)
        );
        assert_eq!(fs::metadata(homes.join("acme.one/tmp")).unwrap().uid(), one);
    }

    #[test]
    fn a_uid_that_is_an_accounts_is_neither_given_nor_kept() {
        let (_dir, homes) = place();
        // uid 1 is `daemon` on every Debian.
        let one = UidRange::new(1, 1).unwrap();
        let refused = Account::of_agent(&agent("one"), &homes, one);
        assert!(
            matches!(refused, Err(HomeError::NoneLeft(_))),
            "{refused:?}"
        );
        fs::create_dir(homes.join("acme.two")).unwrap();
        lchown(homes.join("acme.two"), Some(1), Some(1)).unwrap();
        let refused = Account::of_agent(&agent("two"), &homes, one);
        assert!(
            matches!(refused, Err(HomeError::Taken { uid: 1, .. })),
            "{refused:?}"
        );
        let other = UidRange::new(70_000, 70_001).unwrap();
        let refused = Account::of_agent(&agent("two"), &homes, other);
        assert!(
            matches!(refused, Err(HomeError::Foreign { uid: 1, .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_crash_in_the_middle_is_made_good_and_open_directories_are_refused() {
        let (_dir, homes) = place();
        let range = UidRange::default();
        fs::create_dir_all(homes.join("acme.one")).unwrap();
        let account = Account::of_agent(&agent("one"), &homes, range).unwrap();
        assert_eq!(
            fs::metadata(homes.join("acme.one")).unwrap().uid(),
            account.uid
        );
        fs::set_permissions(&homes, Permissions::from_mode(0o777)).unwrap();
        let refused = Account::of_agent(&agent("one"), &homes, range);
        assert!(matches!(refused, Err(HomeError::Unsafe(_))), "{refused:?}");
    }
}
