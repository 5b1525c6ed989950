//! The markers of a panic: files that say that every agent is stopped, for every daemon that starts.
//! Written by `sluice panic`, with or without a daemon; read by the enforcer at its start and every second.
//! INVARIANT: one marker is enough; what cannot be read counts as a marker; no link is followed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Paths, public_directory, replace};

/// A marker longer than this is none of ours.
const MAX: u64 = 64 * 1024;

/// Who pulled or lifted the big switch, and when.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PanicNote {
    /// True for pulled.
    pub engaged: bool,
    /// By whom.
    pub by: String,
    /// When, and what it did, for a person.
    pub detail: String,
}

/// Writes the markers, and the note for the log.
///
/// # Errors
/// A marker could not be written. The other may be there.
pub fn engage_panic(paths: &Paths, note: &PanicNote) -> io::Result<()> {
    public_directory(&paths.runtime)?;
    let text = serde_json::to_vec(note)?;
    let first = replace(&paths.panic_file(), &text, 0o600);
    // Without a state directory there was no daemon yet, and there is nothing to keep it in.
    let lasting = match paths.state.is_dir() {
        true => replace(&paths.lasting_panic_file(), &text, 0o600),
        false => Ok(()),
    };
    first.and(lasting).and(append(paths, note))
}

/// Removes the markers, and writes the note for the log.
///
/// # Errors
/// A marker could not be removed: the panic goes on.
pub fn lift_panic(paths: &Paths, note: &PanicNote) -> io::Result<()> {
    for path in [paths.panic_file(), paths.lasting_panic_file()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    append(paths, note)
}

/// What the markers say; none where there is none.
#[must_use]
pub fn panic_mark(paths: &Paths) -> Option<PanicNote> {
    let marks = [paths.panic_file(), paths.lasting_panic_file()];
    marks.iter().find_map(|path| {
        let unreadable = |error: &dyn std::fmt::Display| PanicNote {
            engaged: true,
            by: "somebody".to_owned(),
            detail: format!("{} is there and cannot be read: {error}", path.display()),
        };
        match read(path) {
            Ok(text) => {
                Some(serde_json::from_slice(&text).unwrap_or_else(|error| unreadable(&error)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(unreadable(&error)),
        }
    })
}

/// What has yet to be written into the log, oldest first. They are forgotten here: a crash before they are written loses them.
pub fn take_panic_notes(paths: &Paths) -> Vec<PanicNote> {
    let path = paths.panic_notes_file();
    let Ok(text) = read(&path) else {
        return Vec::new();
    };
    let _read_again_otherwise = fs::remove_file(&path);
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect()
}

fn append(paths: &Paths, note: &PanicNote) -> io::Result<()> {
    public_directory(&paths.runtime)?;
    let mut line = serde_json::to_vec(note)?;
    line.push(b'\n');
    options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(paths.panic_notes_file())?
        .write_all(&line)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file: File = options().read(true).open(path)?;
    let mut text = Vec::new();
    file.take(MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// The state directory is the proxy process's: a link or a pipe in it leads nowhere.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(place: &Path) -> Paths {
        let state = place.join("state");
        fs::create_dir(&state).unwrap();
        Paths {
            config: place.join("etc"),
            state,
            runtime: place.join("run"),
        }
    }

    fn note(engaged: bool) -> PanicNote {
        PanicNote {
            engaged,
            by: "root".to_owned(),
            detail: "now".to_owned(),
        }
    }

    #[test]
    fn one_marker_is_enough_and_lifting_removes_both() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        assert_eq!(panic_mark(&paths), None);
        engage_panic(&paths, &note(true)).unwrap();
        assert_eq!(panic_mark(&paths), Some(note(true)));
        // The host starts anew: what lies in /run is gone.
        fs::remove_dir_all(&paths.runtime).unwrap();
        assert_eq!(panic_mark(&paths), Some(note(true)));
        engage_panic(&paths, &note(true)).unwrap();
        fs::remove_file(paths.lasting_panic_file()).unwrap();
        assert!(panic_mark(&paths).is_some());
        lift_panic(&paths, &note(false)).unwrap();
        assert_eq!(panic_mark(&paths), None);
        assert_eq!(take_panic_notes(&paths), [note(true), note(false)]);
        assert!(take_panic_notes(&paths).is_empty());
    }

    #[test]
    fn a_marker_that_cannot_be_read_is_a_marker() {
        let place = tempfile::tempdir().unwrap();
        let paths = paths(place.path());
        fs::write(paths.lasting_panic_file(), "nonsense").unwrap();
        assert!(panic_mark(&paths).is_some());
        fs::remove_file(paths.lasting_panic_file()).unwrap();
        std::os::unix::fs::symlink("/etc/shadow", paths.lasting_panic_file()).unwrap();
        assert!(
            panic_mark(&paths)
                .unwrap()
                .detail
                .contains("cannot be read")
        );
    }
}
