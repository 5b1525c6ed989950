//! What a run that died has left: a daemon, workloads in its cgroup, pinned programs, mounts and files.
//! Called by every instance at its own end, and by `cargo xtask test` for the instances of dead owners.
//! Invariant: only what carries an instance's own name is touched, and only if that instance's owner is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// In an instance's directory: the pid of its daemon.
pub(crate) const DAEMON_PID: &str = "daemon.pid";

const PREFIX: &str = "sluice-test-";
const BPFFS: &str = "/sys/fs/bpf";

/// Where instances live.
pub(crate) fn base() -> PathBuf {
    std::env::temp_dir()
}

/// An instance's directory carries its owner's pid.
pub(crate) fn name(owner: u32, number: u32) -> String {
    format!("{PREFIX}{owner}-{number}")
}

/// Removes every instance whose owner is dead, and says how many there were.
#[must_use]
pub fn clean() -> usize {
    let mut removed = 0;
    for root in orphans(&base()) {
        remove(&root, false);
        removed += 1;
    }
    // The kernel tests have no directory of their own: their instances are a cgroup and pins of the same name.
    for cgroup in cgroup2().iter().flat_map(|mount| orphans(mount)) {
        remove_cgroup(&cgroup);
        removed += 1;
    }
    for pins in orphans(Path::new(BPFFS)) {
        drop(fs::remove_dir_all(&pins));
        removed += 1;
    }
    removed
}

/// What lies in `directory`, is named like an instance, and has no owner any more.
fn orphans(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let orphan = |entry: &fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        owner.is_some_and(|pid| !is_ours(pid))
    };
    entries.filter(orphan).map(|entry| entry.path()).collect()
}

/// Whether this pid is a test program of this workspace; pids are used again by others.
fn is_ours(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        let environ = String::from_utf8_lossy(&environ).into_owned();
        environ.contains("CARGO") || environ.contains("NEXTEST") || environ.contains("SLUICE")
    })
}

/// Ends everything of one instance and removes what it made.
pub(crate) fn remove(root: &Path, keep_files: bool) {
    kill_daemon(root);
    let name = instance_name(&root.join("run"));
    if let Some(cgroup) = cgroup2().map(|mount| mount.join(&name)) {
        remove_cgroup(&cgroup);
    }
    let beside = cgroup2().and_then(|mount| fs::read_dir(mount).ok());
    let adopted = format!("{name}.adopted.");
    for entry in beside.into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&adopted) {
            remove_cgroup(&entry.path());
        }
    }
    drop(fs::remove_dir_all(Path::new(BPFFS).join(&name)));
    unmount_below(root);
    if !keep_files {
        drop(fs::remove_dir_all(root));
    }
}

/// The name of the instance's cgroup and pins: the daemon derives it from the runtime directory.
#[must_use]
pub fn instance_name(runtime: &Path) -> String {
    let digest = Sha256::digest(runtime.as_os_str().as_encoded_bytes());
    let hex: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sluice-{hex}")
}

/// Where the daemon of an instance pins its programs and maps; none before it did.
pub(crate) fn pins_of(root: &Path) -> Option<PathBuf> {
    let runtime = fs::canonicalize(root.join("run")).ok()?;
    let pins = Path::new(BPFFS).join(instance_name(&runtime));
    pins.is_dir().then_some(pins)
}

/// The cgroup in which an instance's proxy listens; none before its daemon made it.
pub(crate) fn proxy_cgroup(root: &Path) -> Option<PathBuf> {
    let runtime = fs::canonicalize(root.join("run")).ok()?;
    let cgroup = cgroup2()?.join(instance_name(&runtime)).join("proxy");
    cgroup.is_dir().then_some(cgroup)
}

/// Kills the daemon of a run that died, if that pid is still a `sluice` of this very directory.
fn kill_daemon(root: &Path) {
    let Ok(pid) = fs::read_to_string(root.join(DAEMON_PID)) else {
        return;
    };
    let environ = fs::read(format!("/proc/{}/environ", pid.trim())).unwrap_or_default();
    let here = format!("SLUICE_RUNTIME_DIR={}", root.join("run").display());
    if !String::from_utf8_lossy(&environ)
        .split('\0')
        .any(|entry| entry == here)
    {
        return;
    }
    if let Some(pid) = pid
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Where cgroup v2 is mounted: not always at /sys/fs/cgroup.
#[must_use]
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let place = words.nth(1)?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(place))
    })
}

/// Kills what runs in a cgroup and removes it with all below.
fn remove_cgroup(cgroup: &Path) {
    if !cgroup.is_dir() {
        return;
    }
    drop(fs::write(cgroup.join("cgroup.kill"), "1"));
    let deadline = Instant::now() + Duration::from_secs(5);
    while cgroup.is_dir() && !remove_tree(cgroup) && Instant::now() < deadline {
        // Killed processes leave the cgroup a moment later.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes the directories of a cgroup, deepest first; its files are the kernel's.
fn remove_tree(cgroup: &Path) -> bool {
    let children = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for child in children.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&child.path());
    }
    fs::remove_dir(cgroup).is_ok()
}

fn unmount_below(root: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/mounts") else {
        return;
    };
    let below = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(PathBuf::from)
        .filter(|place| place.starts_with(root));
    let mut places: Vec<PathBuf> = below.collect();
    places.reverse();
    for place in places {
        let _ = rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_of_a_dead_owner_is_removed_and_one_of_a_live_owner_is_not() {
        // Pids end at 4194304, so this one never lives.
        let dead = base().join(name(4_194_305, 0));
        let alive = base().join(name(std::process::id(), 999));
        for dir in [&dead, &alive] {
            fs::create_dir_all(dir.join("run")).unwrap();
        }
        // How many it removes is not asserted: another test may have been quicker.
        let _removed = clean();
        let kept = alive.is_dir();
        fs::remove_dir_all(&alive).unwrap();
        assert!(!dead.exists() && kept);
    }
    #[test]
    fn only_names_of_dead_owners_are_orphans() {
        let directory = tempfile::tempdir().unwrap();
        let dead = directory.path().join(name(4_194_305, 0));
        let others = [name(std::process::id(), 0), "sluice-test-x".to_owned()];
        for other in others {
            fs::create_dir(directory.path().join(other)).unwrap();
        }
        fs::create_dir(&dead).unwrap();
        assert_eq!(orphans(directory.path()), [dead]);
    }

    #[test]
    fn a_cgroup_is_removed_with_what_runs_in_it() {
        // Named after this test, which lives, so that nobody else removes it.
        let cgroup = cgroup2().unwrap().join(name(std::process::id(), 998));
        fs::create_dir_all(cgroup.join("agents")).unwrap();
        let mut left = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        fs::write(cgroup.join("agents/cgroup.procs"), left.id().to_string()).unwrap();
        remove_cgroup(&cgroup);
        let ended = left.wait().unwrap();
        assert!(!cgroup.exists() && !ended.success());
    }
}
