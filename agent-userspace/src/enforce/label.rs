//! Labels for processes that lived in a workload before the programs that write labels did: a cgroup taken under governance, or an upgrade.
//! Place on the path: right after those programs are in force; who is born from then on has a label already.
//! INVARIANT: when this returns, each process of the workload has the label; one that has another keeps it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use agent_abi::Task;
use aya::maps::MapData;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::error::EnforceError;
use super::sys;

/// Labels every process in `directory` and below, with these flags (`agent_abi::task_flag`).
pub(super) fn label_processes(
    tasks: &MapData,
    workload: u64,
    directory: &Path,
    flags: u32,
) -> Result<(), EnforceError> {
    let label = Task {
        workload,
        flags,
        pad: 0,
    };
    // A process that is born meanwhile of one without a label gets its own by where it is; the list need not be read again.
    for pid in processes(directory)? {
        give(tasks.fd().as_fd(), pid, label).map_err(|source| EnforceError::Bpf {
            call: "BPF_MAP_UPDATE_ELEM",
            subject: format!("TASKS, process {}", pid.as_raw_nonzero()),
            source,
        })?;
    }
    for entry in fs::read_dir(directory).map_err(EnforceError::io("listing", directory))? {
        let below = entry
            .map_err(EnforceError::io("listing", directory))?
            .path();
        if below.is_dir() {
            match label_processes(tasks, workload, &below, flags) {
                // Its processes are gone, and so is it.
                Err(EnforceError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                labelled => labelled?,
            }
        }
    }
    Ok(())
}

/// The processes of one cgroup; those of pid namespaces that cannot be seen from here are left out.
fn processes(directory: &Path) -> Result<Vec<Pid>, EnforceError> {
    let file = directory.join("cgroup.procs");
    let list = match fs::read_to_string(&file) {
        Ok(list) => list,
        // A threaded cgroup: its processes are those of the one above.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        // The kernel says so of a cgroup that is being removed.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(Vec::new()),
        Err(error) => return Err(EnforceError::io("reading", &file)(error)),
    };
    let pids = list.lines().filter_map(|line| line.parse().ok());
    Ok(pids.filter_map(Pid::from_raw).collect())
}

fn give(tasks: BorrowedFd<'_>, pid: Pid, label: Task) -> io::Result<()> {
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        opened => opened?,
    };
    match sys::task_storage_make(tasks, process.as_fd(), &label) {
        // It ended, or it is somebody's already.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EEXIST)) => Ok(()),
        made => made,
    }
}
