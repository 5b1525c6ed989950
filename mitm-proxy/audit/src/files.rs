//! Files of the audit directory: made private, and durable by name as well as by content.
//! Used when a log or the signing key is first made; never on the path of a call.
//! INVARIANT: a file this module made is mode 0600, and its directory entry is on disk before it is relied on.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError};

use crate::error::OpenError;

/// Bytes of pages that redb may keep per log. The writer touches the right edge of its tables only.
const CACHE: usize = 8 * 1024 * 1024;

pub(crate) fn make_dir(dir: &Path) -> Result<(), OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| io(dir, source))
}

/// Opens a log's database, making it where it is not there yet.
///
/// redb checks every page of the file now: an altered file is an error here, not a surprise later.
/// A crash after the file was made leaves an empty file, which is a new log the next time.
pub(crate) fn open_database(path: &Path) -> Result<Database, OpenError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| io(path, source))?;
    sync_parent(path)?;
    FileBackend::new(file)
        .and_then(|backend| {
            Builder::new()
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(true)
                .create_with_backend(backend)
        })
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::Locked {
                path: path.to_owned(),
            },
            other => OpenError::Database {
                path: path.to_owned(),
                source: Box::new(other.into()),
            },
        })
}

/// Writes a small private file whole: a crash leaves the complete file or none under that name.
pub(crate) fn create_private(path: &Path, content: &[u8]) -> Result<(), OpenError> {
    let partial = path.with_extension("partial");
    match std::fs::remove_file(&partial) {
        Err(source) if source.kind() != ErrorKind::NotFound => return Err(io(&partial, source)),
        _ => {}
    }
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|source| io(path, source))?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> Result<(), OpenError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| io(parent, source))
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        source,
    }
}
