//! The proxy process's own walls: whoever takes it over through a flaw in parsing finds no program, no process and no
//! file but those it works with. Called by the worker after it gave root up, before its first thread and agent byte.
//! INVARIANT: on return the system call filter holds, or the process must end; a missing Landlock is reported, never silent.

use std::io;
use std::path::{Path, PathBuf};

use super::landlock::{Grant, Listed, Strength};
use super::seccomp::Filter;
use crate::layers::{LayerReport, LayerState};

/// Files by name, and no listing: name resolution reads /etc/resolv.conf, /etc/hosts, /etc/nsswitch.conf and others, and
/// each is replaced by a rename when the host's network changes. A rule on the file would keep to the old one, and names
/// would stop to resolve. What is secret in /etc is guarded by its mode: the process has a uid of its own and no group.
const FILES: &[&str] = &["/etc"];

/// Certificates, and the name service modules that getaddrinfo loads.
const READ: &[&str] = &[
    "/etc/ca-certificates",
    "/etc/pki",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/share/pki",
    "/var/lib/ca-certificates",
];

/// Who a peer of the control socket is. Of other processes only what everybody may read: the domain forbids ptrace,
/// and with it /proc/PID/mem, environ, maps and fd.
const PROC: &str = "/proc";

/// Why the proxy process must not serve.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Landlock is there, and something that must be reachable in the domain is not.
    #[error("Landlock: {}: {error}", path.display())]
    Landlock {
        /// What was put on the list, or `/` for the domain itself.
        path: PathBuf,
        /// What the system said.
        #[source]
        error: io::Error,
    },
    /// The system call filter cannot be set.
    #[error("the system call filter cannot be set: {0}")]
    Seccomp(#[source] io::Error),
    /// A thread that runs already would not be confined.
    #[error("the proxy process must be confined before its first thread is started")]
    Threads,
}

/// Confines this process for good. It needs no_new_privs, and one thread.
///
/// `writable` are the directories of the process's own data, `certificates` further places of trusted roots.
///
/// # Errors
/// It is not confined, and must end.
pub fn confine_proxy(
    writable: &[&Path],
    certificates: &[PathBuf],
) -> Result<Vec<LayerReport>, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    if !threads.is_ok_and(|threads| threads == 1) {
        return Err(ConfineError::Threads);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| ConfineError::Landlock { path, error }
    };
    let mut listed = Listed::new().map_err(failed(Path::new("/")))?;
    for path in writable {
        listed.add(path, Grant::Write).map_err(failed(path))?;
    }
    listed
        .add(Path::new(PROC), Grant::Files)
        .map_err(failed(Path::new(PROC)))?;
    for path in FILES {
        list(&mut listed, Path::new(path), Grant::Files)?;
    }
    if let Some(directory) = resolver_directory() {
        list(&mut listed, &directory, Grant::Files)?;
    }
    for path in READ
        .iter()
        .map(Path::new)
        .chain(certificates.iter().map(PathBuf::as_path))
    {
        list(&mut listed, path, Grant::Read)?;
    }
    let (domain, strength) = listed.finish();
    domain
        .enter()
        .map_err(|errno| failed(Path::new("/"))(errno.into()))?;
    // Last, since nothing is undone: whatever the steps above need has been done.
    Filter::proxy()
        .install()
        .map_err(|errno| ConfineError::Seccomp(errno.into()))?;
    Ok(vec![landlock_layer(strength), seccomp_layer()])
}

/// Lists a place that this host may or may not have; one that the process could not reach anyway is no loss.
fn list(listed: &mut Listed, path: &Path, grant: Grant) -> Result<(), ConfineError> {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match listed.add(path, grant) {
        Err(error) if !matches!(error.kind(), NotADirectory | NotFound | PermissionDenied) => {
            Err(ConfineError::Landlock {
                path: path.to_owned(),
                error,
            })
        }
        _ => Ok(()),
    }
}

/// Where /etc/resolv.conf leads, such as /run/systemd/resolve; the directory, since the file is replaced there, too.
fn resolver_directory() -> Option<PathBuf> {
    let file = std::fs::canonicalize("/etc/resolv.conf").ok()?;
    let directory = file.parent()?;
    // A directory at the top, as /run or /tmp, holds everybody's files: the file alone then.
    if directory.components().count() > 2 {
        Some(directory.to_owned())
    } else {
        Some(file)
    }
}

fn landlock_layer(strength: Strength) -> LayerReport {
    let (state, open) = match strength {
        Strength::Whole => (LayerState::Live, None),
        Strength::Partial => (
            LayerState::Degraded,
            Some(
                "whoever took over the proxy process could signal processes of its uid, connect to abstract Unix sockets, \
                 and before Linux 6.2 truncate files of its uid (Landlock before Linux 6.12)",
            ),
        ),
        Strength::None => (
            LayerState::Absent,
            Some(
                "whoever took over the proxy process could read every file of the host that its uid may read (no Landlock)",
            ),
        ),
    };
    LayerReport {
        name: "proxy_landlock".to_owned(),
        state,
        leaves_open: open.map(str::to_owned).into_iter().collect(),
    }
}

/// Always live: without it the process does not serve.
fn seccomp_layer() -> LayerReport {
    LayerReport {
        name: "proxy_seccomp".to_owned(),
        state: LayerState::Live,
        leaves_open: Vec::new(),
    }
}
