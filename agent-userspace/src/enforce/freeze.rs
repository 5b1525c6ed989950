//! Stops every process under a cgroup for a moment, or for good, whatever it does.
//! Beside the path: what the watchdog does to workloads while, or because, a wall is missing.
//! INVARIANT: who is told to be killed is: by the kernel where it can, else by a loop that ends when nobody is left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long processes may take to stand still. Those in a system call that cannot be interrupted take longer.
const TIME_TO_FREEZE: Duration = Duration::from_millis(50);
/// How long the loop before Linux 5.14 goes on.
const TIME_TO_KILL: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(1);

/// Freezes everything under `directory`, and waits for a moment until it stands.
pub(super) fn freeze(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.freeze"), "1")?;
    let deadline = Instant::now() + TIME_TO_FREEZE;
    while Instant::now() < deadline {
        let events = fs::read_to_string(directory.join("cgroup.events"))?;
        if events.lines().any(|line| line == "frozen 1") {
            break;
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// Whether somebody asked for everything under `directory` to stand still.
pub(super) fn is_asked_to(directory: &Path) -> bool {
    fs::read_to_string(directory.join("cgroup.freeze")).is_ok_and(|text| text.trim_end() == "1")
}

/// Lets everything under `directory` go on.
pub(super) fn thaw(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.freeze"), "0")
}

/// Kills everything under `directory`, frozen or not.
pub(super) fn kill(directory: &Path) -> io::Result<()> {
    match fs::write(directory.join("cgroup.kill"), "1") {
        // Before Linux 5.14.
        Err(error) if error.kind() == io::ErrorKind::NotFound => kill_each(directory),
        done => done,
    }
}

/// A process may fork faster than one round takes: round after round, until nobody is left.
fn kill_each(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + TIME_TO_KILL;
    loop {
        let mut left = false;
        for each in subtree(directory)? {
            for pid in processes(&each) {
                left = true;
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
        if !left {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(STEP);
    }
}

/// A directory and every one below it.
pub(super) fn subtree(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut at = 0;
    while let Some(next) = found.get(at).cloned() {
        at += 1;
        match fs::read_dir(&next) {
            Ok(entries) => {
                let below = entries.flatten().map(|entry| entry.path());
                found.extend(below.filter(|path| path.is_dir()));
            }
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && next != directory => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The processes of one directory; none where it is gone.
pub(super) fn processes(directory: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_the_kernels_own_kill_is_killed_process_by_process() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let procs = below.join("cgroup.procs");
        fs::write(&procs, child.id().to_string()).unwrap();
        assert_eq!(processes(&below).len(), 1);
        std::thread::scope(|scope| {
            let killing = scope.spawn(|| kill_each(dir.path()));
            use std::os::unix::process::ExitStatusExt as _;
            assert_eq!(child.wait().unwrap().signal(), Some(9));
            fs::write(&procs, "").unwrap();
            killing.join().unwrap().unwrap();
        });
    }
}
