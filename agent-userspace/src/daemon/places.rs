//! The daemon's directories, lock and sockets, with the owners and modes they must have.
//! Prepared by the enforcer before anything else; the sockets stay its own.
//! INVARIANT: two daemons never share a runtime directory; what the proxy process may write, only it and root may.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::protocol::WorkerAccount;
use super::{Channel, DaemonError};
use crate::config::{Paths, adopt_owner};

/// The directories, locked for this process as long as the value lives.
#[derive(Debug)]
pub(super) struct Places {
    _lock: File,
}

impl Places {
    /// Makes the directories and takes the lock.
    pub(super) fn prepare(paths: &Paths, account: &WorkerAccount) -> Result<Places, DaemonError> {
        directory(&paths.runtime, 0o755, 0, 0)?;
        let lock = lock(paths)?;
        directory(&paths.ca_dir(), 0o755, account.uid, account.gid)?;
        directory(&paths.state, 0o700, account.uid, account.gid)?;
        // What `sluice vault put` made as root before the first start belongs to the proxy process, too.
        adopt_owner(paths).map_err(DaemonError::io(paths.state.display().to_string()))?;
        Ok(Places { _lock: lock })
    }
}

/// The socket that the command line talks to; the proxy process accepts on it and checks its peers.
pub(super) fn control_socket(
    paths: &Paths,
    for_a_group: bool,
) -> Result<UnixListener, DaemonError> {
    let path = paths.control_socket();
    let failed = || DaemonError::io(path.display().to_string());
    remove_stale(&path).map_err(failed())?;
    let listener = with_private_umask(|| UnixListener::bind(&path)).map_err(failed())?;
    if for_a_group {
        // Who of those that may connect is served, the proxy process decides by SO_PEERCRED.
        fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(failed())?;
    }
    Ok(listener)
}

/// The enforcer's own socket, for `sluice run`.
pub(super) fn enforcer_socket(paths: &Paths) -> Result<OwnedFd, DaemonError> {
    let path = paths.enforcer_socket();
    let failed = || DaemonError::io(path.display().to_string());
    remove_stale(&path).map_err(failed())?;
    let bind = || -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
        rustix::net::listen(&socket, 64)?;
        Ok(socket)
    };
    with_private_umask(bind).map_err(failed())
}

/// Connects to the enforcer of this runtime directory.
///
/// # Errors
/// No daemon runs there, or the caller is not root.
pub fn connect_to_enforcer(paths: &Paths) -> io::Result<Channel> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(paths.enforcer_socket())?)?;
    Ok(Channel::from(socket))
}

fn lock(paths: &Paths) -> Result<File, DaemonError> {
    let path = paths.runtime.join("lock");
    let failed = || DaemonError::io(path.display().to_string());
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(DaemonError::AlreadyRunning(paths.runtime.clone()))
        }
        Err(errno) => Err(failed()(errno.into())),
    }
}

fn directory(path: &Path, mode: u32, uid: u32, gid: u32) -> Result<(), DaemonError> {
    let failed = || DaemonError::io(path.display().to_string());
    fs::create_dir_all(path).map_err(failed())?;
    let found = fs::metadata(path).map_err(failed())?;
    if (found.uid(), found.gid()) != (uid, gid) {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed())?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed())
}

/// A socket that a former daemon left; under the lock, nobody else's.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// A socket file takes its mode from the umask. The process has one thread at this time.
fn with_private_umask<T>(make: impl FnOnce() -> T) -> T {
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let made = make();
    rustix::process::umask(before);
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(place: &Path) -> Paths {
        Paths {
            config: place.join("etc"),
            state: place.join("state"),
            runtime: place.join("run"),
        }
    }

    #[test]
    fn a_second_daemon_on_the_same_runtime_directory_refuses() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("run")).unwrap();
        let paths = paths(place.path());
        let first = lock(&paths).unwrap();
        assert!(matches!(lock(&paths), Err(DaemonError::AlreadyRunning(_))));
        drop(first);
        lock(&paths).unwrap();
    }

    #[test]
    fn sockets_are_for_root_alone_unless_a_group_may_connect() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("run")).unwrap();
        let paths = paths(place.path());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let _control = control_socket(&paths, false).unwrap();
        assert_eq!(mode(&paths.control_socket()), 0o600);
        let _enforcer = enforcer_socket(&paths).unwrap();
        assert_eq!(mode(&paths.enforcer_socket()), 0o600);
        let _again = control_socket(&paths, true).unwrap();
        assert_eq!(mode(&paths.control_socket()), 0o666);
        connect_to_enforcer(&paths).unwrap();
    }
}
