//! Workloads whose cgroup lies elsewhere in the hierarchy (a unit, a container, a pod), and the records by which a new daemon finds them.
//! Place on the path: beside `cgroup`, whose workloads are all children of one directory; these have a set of programs each.
//! INVARIANT: no two workloads overlap, and none holds the daemon or Sluice's own cgroups; a record is written before and removed after its set of programs.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use agent_abi::MAX_OUTSIDE_LEVELS;
use policies::{AgentId, WorkloadId};

use super::cgroup::{self, Open, Tree};
use super::error::EnforceError;
use super::instance::{Instance, WorkloadName};
use super::pins::{self, Pins};
use super::{attach, mounts};

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// The directory of a workload's pins is this and its id (the file system of pins allows no dot in a name).
const PREFIX: &str = "outside_";
/// A symbolic link, which is never followed: `<name of the workload>/<path in the hierarchy>`. One call writes all of it.
const RECORD: &str = "workload";

/// Why a cgroup cannot become a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The daemon's own.
    #[error("the daemon itself lives in it, above it or below it")]
    Daemon,
    /// Not a cgroup of version 2.
    #[error("it is not a directory of the cgroup v2 hierarchy that the daemon uses")]
    Hierarchy,
    /// More levels than the kernel side looks at.
    #[error("workloads lie at {MAX_OUTSIDE_LEVELS} other depths of the hierarchy already")]
    Levels,
    /// Everybody.
    #[error("it is the root of the hierarchy")]
    Root,
    /// An instance's directories, or what they lie in.
    #[error("it holds Sluice's own cgroups, or lies in them")]
    Sluice,
    /// Threads, the rest of whose process may lie elsewhere.
    #[error("it is a threaded cgroup; name the domain that it belongs to")]
    Threaded,
    /// Another workload.
    #[error("it is workload {0}, holds it, or lies in it")]
    Workload(WorkloadId),
}

/// A workload whose cgroup was there before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    pub(super) id: u64,
    pub(super) name: WorkloadName,
    /// As `/proc/<pid>/cgroup` shows it.
    pub(super) in_hierarchy: String,
    pub(super) path: PathBuf,
    pub(super) level: u32,
    /// The instance's own directory: while it is not in sight, nothing counts as gone.
    witness: PathBuf,
}

/// A workload whose cgroup is there no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// What the kernel's id of the cgroup was; it is never given again.
    pub id: WorkloadId,
    /// The workload's name.
    pub name: WorkloadName,
    /// Where the cgroup was.
    pub path: PathBuf,
    /// Whether there is another one of that name now, which is not governed.
    pub made_anew: bool,
}

impl Outside {
    /// Finds out whether a directory can become a workload; it comes opened, so that it stays the one that was judged.
    pub(super) fn examine(
        path: &Path,
        name: WorkloadName,
        tree: &Tree,
        others: &[Outside],
    ) -> Result<(Self, Open), EnforceError> {
        let unfit = |why| EnforceError::CgroupUnfit {
            path: path.to_owned(),
            why,
        };
        let path = fs::canonicalize(path).map_err(EnforceError::io("finding", path))?;
        let (in_hierarchy, level) = tree
            .in_hierarchy(&path)
            .ok_or_else(|| unfit(Unfit::Hierarchy))?;
        let open = cgroup::open(&path)?;
        if !is_cgroup2(&open, &path)? {
            return Err(unfit(Unfit::Hierarchy));
        }
        let daemon = tree.path_of(&cgroup::own()?);
        clash(&path, tree.root(), tree.base(), daemon.as_deref(), others).map_err(unfit)?;
        if is_threaded(&path)? {
            return Err(unfit(Unfit::Threaded));
        }
        let levels = others.iter().map(|other| other.level).chain([level]);
        if pack(levels).is_none() {
            return Err(unfit(Unfit::Levels));
        }
        let outside = Self {
            id: open.id,
            name,
            in_hierarchy,
            path,
            level,
            witness: tree.agents().to_owned(),
        };
        Ok((outside, open))
    }

    /// The directory, opened, if it is still the same.
    pub(super) fn open(&self) -> Result<Option<Open>, EnforceError> {
        let opened = cgroup::open(&self.path);
        // A hierarchy that is out of sight (unmounted, say) is no proof that a cgroup is gone.
        cgroup::id(&self.witness)?;
        match opened {
            Ok(open) => Ok((open.id == self.id).then_some(open)),
            Err(EnforceError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound
                    || source.raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether any process lives in it; none if the cgroup is gone.
    pub(super) fn populated(&self) -> Result<Option<bool>, EnforceError> {
        if self.open()?.is_none() {
            return Ok(None);
        }
        match cgroup::is_populated(&self.path) {
            Ok(populated) => Ok(Some(populated)),
            // It went away in between.
            Err(_) if self.open()?.is_none() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How it is reported when its cgroup is gone.
    pub(super) fn gone(&self) -> Gone {
        Gone {
            id: WorkloadId(self.id),
            name: self.name.clone(),
            path: self.path.clone(),
            made_anew: self.path.exists(),
        }
    }

    /// Where the links of its programs are pinned.
    pub(super) fn pins(&self, pins: &Pins) -> PathBuf {
        pins.path(&format!("{PREFIX}{}", self.id))
    }

    /// Writes down that this is a workload. A crash after this leaves a record, which the next start puts in force.
    pub(super) fn record(&self, pins: &Pins) -> Result<(), EnforceError> {
        let directory = self.pins(pins);
        pins::make_dir(&directory)?;
        let record = directory.join(RECORD);
        let text = format!("{}{}", self.name, self.in_hierarchy);
        match std::os::unix::fs::symlink(text, &record) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(EnforceError::io("recording a workload in", record)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes the links, and only then the record.
    pub(super) fn forget(&self, pins: &Pins) -> Result<(), EnforceError> {
        let directory = self.pins(pins);
        pins::remove_files(&directory, |name| name != RECORD)?;
        pins::remove_pins(&directory)
    }
}

/// The workloads that are recorded in a pin directory, those included whose cgroup is gone.
pub(super) fn recorded(version: &Path, tree: &Tree) -> Result<Vec<Outside>, EnforceError> {
    let list = |source| EnforceError::Io {
        what: "listing",
        path: version.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(version).map_err(list)? {
        let directory = entry.map_err(list)?.path();
        let id = directory
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(PREFIX));
        let Some(id) = id else { continue };
        let record = directory.join(RECORD);
        let text = match fs::read_link(&record) {
            Ok(text) => text,
            // A crash before the record, or after it was removed: nothing hangs on the cgroup.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                pins::remove_pins(&directory)?;
                continue;
            }
            Err(error) => return Err(EnforceError::io("reading", record)(error)),
        };
        let outside = parse(id, &text, tree).ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not a workload's record");
            EnforceError::io("reading", record)(source)
        })?;
        found.push(outside);
    }
    found.sort_by_key(|outside| outside.id);
    Ok(found)
}

/// Where the workloads lie that are recorded in a pin directory, for a reader beside a daemon: nothing is changed, and what
/// cannot be read is left out.
pub(super) fn places(version: &Path, tree: &Tree) -> Vec<PathBuf> {
    let there = seen(version, tree).into_iter();
    there.map(|workload| workload.path).collect()
}

fn seen(version: &Path, tree: &Tree) -> Vec<Outside> {
    let entries = fs::read_dir(version).into_iter().flatten().flatten();
    let records = entries.filter_map(|entry| {
        let directory = entry.file_name();
        let id = directory.to_str()?.strip_prefix(PREFIX)?.to_owned();
        let record = fs::read_link(entry.path().join(RECORD)).ok()?;
        parse(&id, &record, tree)
    });
    records
        .filter(|workload| matches!(workload.open(), Ok(Some(_))))
        .collect()
}

/// Whom a cgroup elsewhere, as `/proc/<pid>/cgroup` shows it, is governed as, found out without a daemon: by its record, and
/// only if every program is pinned.
pub fn governed_as(
    instance: &Instance,
    in_hierarchy: &str,
) -> Result<Option<AgentId>, EnforceError> {
    let version = pins::version_of(&mounts::bpffs()?, instance);
    let found = seen(&version, &Tree::find(instance)?)
        .into_iter()
        .find(|workload| workload.in_hierarchy == in_hierarchy);
    Ok(found.and_then(|workload| {
        let pins = version.join(format!("{PREFIX}{}", workload.id));
        let complete =
            attach::of_workloads().all(|(name, _)| pins.join(attach::link_name(name)).exists());
        complete.then_some(workload.name.agent)
    }))
}

fn parse(id: &str, text: &Path, tree: &Tree) -> Option<Outside> {
    let (name, _) = text.to_str()?.split_once('/')?;
    let in_hierarchy = text.to_str()?.strip_prefix(name)?;
    let path = tree.path_of(in_hierarchy)?;
    let (in_hierarchy, level) = tree.in_hierarchy(&path)?;
    Some(Outside {
        id: id.parse().ok()?,
        name: name.parse().ok()?,
        in_hierarchy,
        path,
        level,
        witness: tree.agents().to_owned(),
    })
}

/// What a workload at `path` would overlap with.
fn clash(
    path: &Path,
    root: &Path,
    base: &Path,
    daemon: Option<&Path>,
    others: &[Outside],
) -> Result<(), Unfit> {
    if path == root {
        return Err(Unfit::Root);
    }
    let overlaps = |other: &Path| path.starts_with(other) || other.starts_with(path);
    if overlaps(base) {
        return Err(Unfit::Sluice);
    }
    if let Some(other) = others.iter().find(|other| overlaps(&other.path)) {
        return Err(Unfit::Workload(WorkloadId(other.id)));
    }
    match daemon {
        // A daemon at the very top has everybody below it.
        Some(daemon) if daemon != root && overlaps(daemon) => Err(Unfit::Daemon),
        _ => Ok(()),
    }
}

/// The levels as the kernel side reads them: each once, the deepest first; none if there are too many.
pub(super) fn pack(levels: impl Iterator<Item = u32>) -> Option<[u8; MAX_OUTSIDE_LEVELS]> {
    let mut levels: Vec<u8> = levels
        .map(|level| u8::try_from(level).ok())
        .collect::<Option<_>>()?;
    levels.sort_unstable_by(|one, other| other.cmp(one));
    levels.dedup();
    let mut packed = [0; MAX_OUTSIDE_LEVELS];
    packed.get_mut(..levels.len())?.copy_from_slice(&levels);
    Some(packed)
}

fn is_cgroup2(open: &Open, path: &Path) -> Result<bool, EnforceError> {
    let facts = rustix::fs::fstatfs(open.file.as_fd())
        .map_err(|errno| EnforceError::io("reading", path)(errno.into()))?;
    Ok(facts.f_type == CGROUP2_MAGIC)
}

/// `domain` and `domain threaded` hold whole processes.
fn is_threaded(path: &Path) -> Result<bool, EnforceError> {
    let file = path.join("cgroup.type");
    let kind = fs::read_to_string(&file).map_err(EnforceError::io("reading", &file))?;
    Ok(!kind.trim_end().starts_with("domain") || kind.trim_end() == "domain invalid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_overlaps_with_nothing() {
        let at = |id, path: &str| Outside {
            id,
            name: "acme.support.1".parse().unwrap(),
            in_hierarchy: String::new(),
            path: path.into(),
            level: 1,
            witness: PathBuf::new(),
        };
        let others = [at(7, "/cg/system.slice/one.service")];
        let check = |path: &str, daemon: &str| {
            clash(
                Path::new(path),
                Path::new("/cg"),
                Path::new("/cg/sluice"),
                Some(Path::new(daemon)),
                &others,
            )
        };
        let daemon = "/cg/system.slice/sluice.service";
        let workload = Err(Unfit::Workload(WorkloadId(7)));
        for (path, expected) in [
            ("/cg", Err(Unfit::Root)),
            ("/cg/sluice", Err(Unfit::Sluice)),
            ("/cg/sluice/agents/acme.support.1", Err(Unfit::Sluice)),
            ("/cg/system.slice", workload),
            ("/cg/system.slice/one.service", workload),
            ("/cg/system.slice/one.service/below", workload),
            (daemon, Err(Unfit::Daemon)),
            ("/cg/system.slice/sluice.service/below", Err(Unfit::Daemon)),
            ("/cg/system.slice/one.service2", Ok(())),
            ("/cg/machine.slice", Ok(())),
        ] {
            assert_eq!(check(path, daemon), expected, "{path}");
        }
        assert_eq!(
            check("/cg/machine.slice", "/cg/machine.slice/a"),
            Err(Unfit::Daemon)
        );
        assert_eq!(check("/cg/machine.slice", "/cg"), Ok(()));
    }

    #[test]
    fn levels_are_packed_once_each_and_end_with_zero() {
        assert_eq!(pack([].into_iter()), Some([0; MAX_OUTSIDE_LEVELS]));
        assert_eq!(
            pack([2, 4, 2, 3].into_iter()),
            Some([4, 3, 2, 0, 0, 0, 0, 0])
        );
        assert_eq!(pack(1..=8), Some([8, 7, 6, 5, 4, 3, 2, 1]));
        assert_eq!(pack(1..=9), None);
        assert_eq!(pack([256].into_iter()), None);
    }
}
