//! How long a process was ready to run and was not let: time that a machine lacked, and not the process.
//! For whoever waits for a daemon with a deadline on a machine that others load, too.
//! Invariant: only time that the kernel says was spent waiting for a processor counts; a process that hangs gains none.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::instance::children;

/// What a process and its children waited for processors so far: of each the thread that waited longest.
#[must_use]
pub fn starved(pid: u32) -> Duration {
    let own = threads(pid)
        .iter()
        .filter_map(|thread| schedule(thread))
        .map(|(_, waited)| waited)
        .max();
    let children = children(pid).into_iter().filter_map(|pid| pid.parse().ok());
    children.fold(own.unwrap_or_default(), |sum, pid| sum + starved(pid))
}

/// What a process and its children are at, a line for each thread, for whoever has to find out why nothing happens.
#[must_use]
pub fn described(pid: u32) -> String {
    let mut lines = Vec::new();
    for thread in threads(pid) {
        let read = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
        let stat = read("stat");
        let state = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().next());
        let (ran, waited) = schedule(&thread).unwrap_or_default();
        lines.push(format!(
            "  {} {}: state {}, ran {} ms, waited {} ms for a processor, in {} ({})",
            thread.display(),
            read("comm").trim(),
            state.unwrap_or("?"),
            ran.as_millis(),
            waited.as_millis(),
            read("wchan").trim(),
            read("syscall").split_whitespace().next().unwrap_or("?"),
        ));
    }
    for child in children(pid).into_iter().filter_map(|pid| pid.parse().ok()) {
        lines.push(described(child));
    }
    lines.join("\n")
}

fn threads(pid: u32) -> Vec<PathBuf> {
    let directory = Path::new("/proc").join(pid.to_string()).join("task");
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Time on a processor, and time waiting for one. Nothing where the kernel does not say.
fn schedule(thread: &Path) -> Option<(Duration, Duration)> {
    let text = fs::read_to_string(thread.join("schedstat")).ok()?;
    let mut numbers = text
        .split_whitespace()
        .map(|word| word.parse().ok().map(Duration::from_nanos));
    Some((numbers.next()??, numbers.next()??))
}
