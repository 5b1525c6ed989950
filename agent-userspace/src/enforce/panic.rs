//! The big switch: everything that is governed is denied everything, by one word in the pinned configuration.
//! Beside the path: `sluice panic` calls it, with a daemon or without one; the daemon keeps to what stands there.
//! INVARIANT: it needs no daemon, no proxy process and no program of this version; a daemon never publishes over it.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use super::cgroup::Tree;
use super::cut::{self, Cut};
use super::error::EnforceError;
use super::instance::Instance;
use super::{attach, mounts, outside, sys};

/// Where `enabled` lies in the configuration of every version, and what it says in a panic.
const ENABLED: std::ops::Range<usize> = 4..8;

/// What a panic without the daemon's help has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked {
    /// Pinned configurations that deny everything now; none where no daemon ever started.
    pub configurations: usize,
    /// The sockets that were cut.
    pub cut: Cut,
}

/// Denies everything to every workload of every tenant of this instance, then cuts their sockets.
pub fn engage(instance: &Instance) -> Result<Panicked, EnforceError> {
    let configurations = write(instance, agent_abi::PANIC)?;
    let tree = Tree::find(instance)?;
    let mut places = Vec::new();
    if tree.agents().is_dir() {
        places.push(tree.agents().to_owned());
    }
    for configuration in self::configurations(instance)? {
        if let Some(version) = configuration.parent() {
            places.extend(outside::places(version, &tree));
        }
    }
    let cut =
        cut::cut(&places).map_err(EnforceError::io("listing the workloads of", tree.agents()))?;
    Ok(Panicked {
        configurations,
        cut,
    })
}

/// Ends the panic in the kernel. Everything stays denied until a daemon publishes its ports.
pub fn lift(instance: &Instance) -> Result<(), EnforceError> {
    write(instance, 0).map(drop)
}

/// Whether the kernel side of this instance is in a panic.
pub fn is_engaged(instance: &Instance) -> Result<bool, EnforceError> {
    for path in configurations(instance)? {
        let failed = || EnforceError::io("reading the pinned configuration", &path);
        let map = sys::obj_get(&path).map_err(failed())?;
        let mut value = vec![0; sys::map_value_size(map.as_fd()).map_err(failed())?];
        sys::map_get(map.as_fd(), 0, &mut value).map_err(failed())?;
        if value.get(ENABLED) == Some(&agent_abi::PANIC.to_ne_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn write(instance: &Instance, enabled: u32) -> Result<usize, EnforceError> {
    let mut written = 0;
    for path in configurations(instance)? {
        let failed = || attach::bpf_error("writing the pinned configuration", &path);
        let map = sys::obj_get(&path).map_err(failed())?;
        let mut value = vec![0; sys::map_value_size(map.as_fd()).map_err(failed())?];
        sys::map_get(map.as_fd(), 0, &mut value).map_err(failed())?;
        let Some(place) = value.get_mut(ENABLED) else {
            return Err(EnforceError::PinForeign { path });
        };
        place.copy_from_slice(&enabled.to_ne_bytes());
        sys::map_set(map.as_fd(), 0, &value).map_err(failed())?;
        written += 1;
    }
    Ok(written)
}

/// The pinned configurations of this instance, of every version: in all of them the first two words mean the same.
fn configurations(instance: &Instance) -> Result<Vec<PathBuf>, EnforceError> {
    let base = mounts::bpffs()?.join(instance.as_str());
    let entries = match fs::read_dir(&base) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(EnforceError::io("listing", base)(error)),
    };
    let found = entries.flatten().map(|entry| entry.path().join("CONFIG"));
    Ok(found.filter(|path| path.exists()).collect())
}
