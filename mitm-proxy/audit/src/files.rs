//! Files of the audit directory: made private, and durable by name as well as by content.
//! Used when a log or the signing key is first made; never on the path of a call.
//! INVARIANT: a file this module made is mode 0600, and its directory entry is on disk before it is relied on.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, DatabaseError};

use crate::error::OpenError;
use crate::log::Opened;

/// Bytes of pages that redb may keep per log. The writer touches the right edge of its tables only.
const CACHE: usize = 8 * 1024 * 1024;

pub(crate) fn make_dir(dir: &Path) -> Result<(), OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| io(dir, source))
}

/// Opens a log's database and the journal beside it, making them where they are not there yet.
///
/// redb checks every page of the file now: an altered file is an error here, not a surprise later.
/// A crash after the files were made leaves empty files, which are a new log the next time.
pub(crate) fn open_log(database: &Path) -> Result<Opened, OpenError> {
    let beside = database.with_extension("journal");
    let (file, journal) = (open(database)?, open(&beside)?);
    sync_parent(database)?;
    let db = FileBackend::new(file)
        .and_then(|backend| {
            Builder::new()
                .set_cache_size(CACHE)
                .set_check_integrity_on_open(true)
                .create_with_backend(backend)
        })
        .map_err(|error| unopened(database, error))?;
    let journal = FileBackend::new(journal).map_err(|error| unopened(&beside, error))?;
    Ok(Opened {
        db,
        journal: Box::new(journal),
    })
}

fn open(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| io(path, source))
}

fn unopened(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
        other => OpenError::Database {
            path,
            source: Box::new(other.into()),
        },
    }
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
