//! The pin directory of an instance, `<bpffs>/<instance>/v<ABI>/`, and the lock that only one daemon holds.
//! Place on the path: what is pinned here outlives the daemon; that is what keeps a workload governed when the daemon dies.
//! INVARIANT: pins of another ABI version are removed only when no workload is left under them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use agent_abi::ABI_VERSION;
use rustix::fs::FlockOperation;

use super::error::EnforceError;
use super::instance::Instance;
use super::sys;

/// Where this version's pins of an instance lie.
pub(super) fn version_of(bpffs: &Path, instance: &Instance) -> PathBuf {
    bpffs
        .join(instance.as_str())
        .join(format!("v{ABI_VERSION}"))
}

/// The pin directory, held by this process until it is dropped.
#[derive(Debug)]
pub(super) struct Pins {
    base: PathBuf,
    version: PathBuf,
    /// The lock lives as long as this descriptor.
    _lock: File,
}

impl Pins {
    /// Makes the directory if need be, and takes the instance's lock.
    pub(super) fn hold(bpffs: &Path, instance: &Instance) -> Result<Self, EnforceError> {
        let base = bpffs.join(instance.as_str());
        let version = version_of(bpffs, instance);
        let lock = loop {
            make_dir(&base)?;
            let lock = match File::open(&base) {
                Ok(lock) => lock,
                // A daemon that stops removes the directory; then it is ours to make again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(EnforceError::io("opening", &base)(error)),
            };
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_held| EnforceError::InUse(instance.to_string()))?;
            if is_same(&lock, &base) {
                break lock;
            }
        };
        make_dir(&version)?;
        Ok(Self {
            base,
            version,
            _lock: lock,
        })
    }

    /// Makes the directories again that somebody removed, and takes the lock again where it went with them.
    pub(super) fn restore(&mut self) -> Result<(), EnforceError> {
        make_dir(&self.base)?;
        if !is_same(&self._lock, &self.base) {
            let lock = File::open(&self.base).map_err(EnforceError::io("opening", &self.base))?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_held| EnforceError::InUse(self.base.display().to_string()))?;
            self._lock = lock;
        }
        make_dir(&self.version)
    }

    /// Where the map or link of this name is pinned.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.version.join(name)
    }

    /// The directory of this version's pins.
    pub(super) fn version(&self) -> &Path {
        &self.version
    }

    /// Pin directories that another version left.
    pub(super) fn other_versions(&self) -> Result<Vec<PathBuf>, EnforceError> {
        let list = |source| EnforceError::Io {
            what: "listing",
            path: self.base.clone(),
            source,
        };
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.base).map_err(list)? {
            let path = entry.map_err(list)?.path();
            if path != self.version {
                others.push(path);
            }
        }
        Ok(others)
    }

    /// Removes every pin; links that nobody else holds are detached by it.
    pub(super) fn remove(self) -> Result<(), EnforceError> {
        remove_pins(&self.version)?;
        fs::remove_dir(&self.base).map_err(EnforceError::io("removing", &self.base))
    }
}

/// Removes one pin directory with all that is pinned in it and below.
pub(super) fn remove_pins(directory: &Path) -> Result<(), EnforceError> {
    for entry in fs::read_dir(directory).map_err(EnforceError::io("listing", directory))? {
        let entry = entry.map_err(EnforceError::io("listing", directory))?;
        let kind = entry
            .file_type()
            .map_err(EnforceError::io("reading", entry.path()))?;
        if kind.is_dir() {
            remove_pins(&entry.path())?;
        } else {
            remove_file(&entry.path())?;
        }
    }
    fs::remove_dir(directory).map_err(EnforceError::io("removing", directory))
}

/// Removes those files of a pin directory whose name is meant.
pub(super) fn remove_files(
    directory: &Path,
    meant: impl Fn(&str) -> bool,
) -> Result<(), EnforceError> {
    for entry in fs::read_dir(directory).map_err(EnforceError::io("listing", directory))? {
        let entry = entry.map_err(EnforceError::io("listing", directory))?;
        if entry.file_name().to_str().is_some_and(&meant) {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), EnforceError> {
    // The kernel lets go of a link some time after its last pin is gone; detached, it is without effect at once.
    // What is no link, or cannot be detached, just goes.
    if let Ok(object) = sys::obj_get(path) {
        let _not_a_link = sys::link_detach(object.as_fd());
    }
    fs::remove_file(path).map_err(EnforceError::io("removing", path))
}

/// Makes a directory for pins, if it is not there.
pub(super) fn make_dir(path: &Path) -> Result<(), EnforceError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(EnforceError::io("making", path)(error)),
    }
}

/// Whether the path still names the directory that was opened.
fn is_same(open: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (open.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => open.ino() == named.ino() && open.dev() == named.dev(),
        _ => false,
    }
}
