//! The cgroup tree of an instance: `<cgroup2>/<instance>/{proxy,agents}`, and one directory per workload under `agents`.
//! Place on the path: a process is governed because it lies under `agents`; the kernel's id of its directory is the workload's id.
//! INVARIANT: ids come from the kernel (the inode of the directory), levels from the hierarchy's own root.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::error::EnforceError;
use super::instance::{Instance, WorkloadName};
use super::mounts;

/// The directories of one instance.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    base: PathBuf,
    agents: PathBuf,
    proxy: PathBuf,
    /// The directory of the hierarchy that is mounted at `root`; empty for the whole of it.
    mounted: String,
    /// The level of `root`, as the kernel counts.
    depth: u32,
}

/// A cgroup's directory, opened: it stays this one whatever happens to its name.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: File,
    pub(super) id: u64,
}

/// A workload's directory, as it was found.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) id: u64,
    pub(super) name: WorkloadName,
    pub(super) path: PathBuf,
    pub(super) populated: bool,
}

impl Tree {
    /// Finds the hierarchy and makes what is missing of the instance's directories.
    pub(super) fn make(instance: &Instance) -> Result<Self, EnforceError> {
        let tree = Self::find(instance)?;
        tree.restore()?;
        Ok(tree)
    }

    /// Finds the hierarchy; the instance's directories may not be there.
    pub(super) fn find(instance: &Instance) -> Result<Self, EnforceError> {
        let mount = mounts::cgroup2()?;
        let base = mount.point.join(instance.as_str());
        Ok(Self {
            agents: base.join("agents"),
            proxy: base.join("proxy"),
            depth: mount.depth(),
            mounted: mount.root.trim_end_matches('/').to_owned(),
            root: mount.point,
            base,
        })
    }

    /// Makes what is missing of the instance's directories.
    pub(super) fn restore(&self) -> Result<(), EnforceError> {
        for directory in [&self.base, &self.agents, &self.proxy] {
            make_dir(directory)?;
        }
        Ok(())
    }

    /// The top of the hierarchy as far as it is mounted: everybody that this daemon can see lies under it.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn agents(&self) -> &Path {
        &self.agents
    }

    /// What holds all directories of the instance.
    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    /// Where a tree that runs already is gathered: beside the instance's directories, since no label must stick to it yet.
    pub(super) fn adopted(&self, number: u64) -> PathBuf {
        self.root.join(format!("{}{number}", self.adopted_prefix()))
    }

    /// Whether a directory is such a place.
    pub(super) fn is_adopted(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str());
        path.parent() == Some(&self.root)
            && name.is_some_and(|name| name.starts_with(&self.adopted_prefix()))
    }

    /// All such places.
    pub(super) fn all_adopted(&self) -> Result<Vec<PathBuf>, EnforceError> {
        let list = || EnforceError::io("listing", &self.root);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(list())? {
            let path = entry.map_err(list())?.path();
            if self.is_adopted(&path) && path.is_dir() {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn adopted_prefix(&self) -> String {
        let name = self.base.file_name().and_then(|name| name.to_str());
        format!("{}.adopted.", name.unwrap_or_default())
    }

    /// A directory as `/proc/<pid>/cgroup` shows it to this process, and its level; none if it is not of this hierarchy.
    pub(super) fn in_hierarchy(&self, path: &Path) -> Option<(String, u32)> {
        let below = path.strip_prefix(&self.root).ok()?;
        let level = self.depth + below.components().count() as u32;
        Some((format!("{}/{}", self.mounted, below.to_str()?), level))
    }

    /// The directory that `/proc/<pid>/cgroup` shows so; none if it is not mounted here.
    pub(super) fn path_of(&self, in_hierarchy: &str) -> Option<PathBuf> {
        let below = in_hierarchy
            .strip_prefix(&self.mounted)?
            .strip_prefix('/')?;
        let path = if below.is_empty() {
            self.root.clone()
        } else {
            self.root.join(below)
        };
        // `/..` is how the kernel names what lies outside the namespace.
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        path.components().all(plain).then_some(path)
    }

    pub(super) fn proxy(&self) -> &Path {
        &self.proxy
    }

    /// The ancestor level of a workload's directory, as the kernel counts.
    pub(super) fn workload_level(&self) -> u32 {
        // The root is level 0: the instance's directory under it is level 1, `agents` one below that, and then the workloads.
        self.depth + 3
    }

    /// The workloads' directories. A name that is no workload's is an error: nothing else belongs there.
    pub(super) fn workloads(&self) -> Result<Vec<Directory>, EnforceError> {
        let list = |source| EnforceError::Io {
            what: "listing",
            path: self.agents.clone(),
            source,
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.agents).map_err(list)? {
            let path = entry.map_err(list)?.path();
            if !path.is_dir() {
                continue;
            }
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse().ok());
            let Some(name) = name else {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, "not <tenant>.<agent>.<number>");
                return Err(EnforceError::Io {
                    what: "reading the workload's name of",
                    path,
                    source,
                });
            };
            found.push(Directory {
                id: id(&path)?,
                name,
                populated: is_populated(&path)?,
                path,
            });
        }
        found.sort_by_key(|directory| directory.id);
        Ok(found)
    }

    /// Makes a workload's directory; the descriptor is what clone3 wants.
    pub(super) fn make_workload(
        &self,
        name: &WorkloadName,
    ) -> Result<(Directory, OwnedFd), EnforceError> {
        let path = self.agents.join(name.to_string());
        fs::create_dir(&path).map_err(EnforceError::io("making", &path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(|errno| EnforceError::io("opening", &path)(errno.into()))?;
        Ok((
            Directory {
                id: id(&path)?,
                name: name.clone(),
                path,
                populated: false,
            },
            fd,
        ))
    }

    /// Removes the instance's directories. They must be empty.
    pub(super) fn remove(&self) -> Result<(), EnforceError> {
        for directory in [&self.agents, &self.proxy, &self.base] {
            remove_dir(directory)?;
        }
        Ok(())
    }
}

/// The cgroup id of a directory: its inode number.
pub(super) fn id(path: &Path) -> Result<u64, EnforceError> {
    Ok(fs::metadata(path)
        .map_err(EnforceError::io("reading", path))?
        .ino())
}

/// Opens a cgroup directory for attaching programs to.
pub(super) fn open(path: &Path) -> Result<Open, EnforceError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file: File = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|errno| EnforceError::io("opening", path)(errno.into()))?
        .into();
    let id = file
        .metadata()
        .map_err(EnforceError::io("reading", path))?
        .ino();
    Ok(Open { file, id })
}

/// This process's own cgroup, as the kernel shows it.
pub(super) fn own() -> Result<String, EnforceError> {
    const OWN: &str = "/proc/self/cgroup";
    let text = fs::read_to_string(OWN).map_err(EnforceError::io("reading", OWN))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(own.ok_or(EnforceError::CgroupMissing)?.to_owned())
}

/// Removes a directory and the empty ones that its workload may have made below it.
pub(super) fn remove_tree(path: &Path) -> Result<(), EnforceError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(EnforceError::io("listing", path)(error)),
    };
    for entry in entries {
        let child = entry.map_err(EnforceError::io("listing", path))?.path();
        if child.is_dir() {
            remove_tree(&child)?;
        }
    }
    remove_dir(path)
}

/// Whether any process lives in the directory or below it.
pub(super) fn is_populated(path: &Path) -> Result<bool, EnforceError> {
    let file = path.join("cgroup.events");
    let events = fs::read_to_string(&file).map_err(EnforceError::io("reading", &file))?;
    Ok(!events.lines().any(|line| line == "populated 0"))
}

fn make_dir(path: &Path) -> Result<(), EnforceError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(EnforceError::io("making", path)(error)),
    }
}

fn remove_dir(path: &Path) -> Result<(), EnforceError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(EnforceError::io("removing", path)(error)),
    }
}
