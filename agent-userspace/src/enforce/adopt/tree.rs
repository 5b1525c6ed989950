//! A process and what descends from it, gathered in one frozen cgroup, pass after pass, until a whole pass finds nobody new.
//! Below `adopt`. A process that is moved into a frozen cgroup stands at once and starts nothing more.
//! INVARIANT: passes end, by nobody being left or by the clock; who lives in a cgroup that the tree has to itself is caught whoever its parent was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::super::cgroup::Tree;
use super::super::freeze::{self, processes, subtree};
use super::{ORIGIN, TIME_TO_STAND, Unadopted, mark, ours, wait_until_it_stands};
use crate::config::ProcessFacts;

/// One process, as `/proc/PID/stat` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    parent: u32,
    session: u32,
    started: u64,
    /// Ended: it only waits to be reaped, and cannot be moved.
    over: bool,
}

impl Process {
    fn is(&self, (pid, started): (u32, u64)) -> bool {
        self.pid == pid && self.started == started
    }
}

/// Gathers the tree below `root` (its pid, and when it started) in `place`.
pub(super) fn gather(
    place: &Path,
    root: (u32, u64),
    tree: &Tree,
    is_governed: &dyn Fn(&str) -> bool,
) -> Result<(), Unadopted> {
    let pid = root.0;
    if !list()
        .iter()
        .any(|process| process.is(root) && !process.over)
    {
        return Err(Unadopted::Gone(pid));
    }
    mark(place);
    freeze::freeze(place).map_err(Unadopted::system("freezing", place))?;
    let closed = close(pid, tree);
    let gathered = pass_after_pass(place, root, closed.as_deref(), tree, is_governed);
    if let Some(closed) = closed {
        // Empty by now; or as it was, with whoever is put back.
        freeze::thaw(&closed).map_err(Unadopted::system("letting go on", &closed))?;
    }
    gathered.and_then(|()| wait_until_it_stands(place))
}

/// Freezes the cgroup of the process, if nobody but the tree lives in it: then nobody escapes by losing its parent.
fn close(pid: u32, tree: &Tree) -> Option<PathBuf> {
    let facts = ProcessFacts::read(pid).ok()?;
    let cgroup = tree.path_of(&facts.cgroup)?;
    if cgroup == tree.root() || freeze::is_asked_to(&cgroup) {
        return None;
    }
    let members = closure(&list(), &BTreeSet::from([pid]));
    let alone = residents(&cgroup)
        .iter()
        .all(|resident| members.contains(resident));
    if !alone || ours(members.into_iter()).is_err() {
        return None;
    }
    freeze::freeze(&cgroup).ok()?;
    Some(cgroup)
}

fn pass_after_pass(
    place: &Path,
    root: (u32, u64),
    closed: Option<&Path>,
    tree: &Tree,
    is_governed: &dyn Fn(&str) -> bool,
) -> Result<(), Unadopted> {
    let deadline = Instant::now() + TIME_TO_STAND;
    let mut origins = BTreeMap::new();
    loop {
        let here: BTreeSet<u32> = residents(place).into_iter().collect();
        let listed = list();
        let mut seeds = here.clone();
        // Its number, once it ended, may become somebody else's.
        if listed.iter().any(|process| process.is(root)) {
            seeds.insert(root.0);
        }
        seeds.extend(closed.map(residents).unwrap_or_default());
        let members = closure(&listed, &seeds);
        ours(members.iter().copied())?;
        let mut moved = 0_usize;
        for process in listed
            .iter()
            .filter(|process| members.contains(&process.pid))
        {
            if process.over || here.contains(&process.pid) {
                continue;
            }
            // One that ended meanwhile is nobody's loss.
            let Ok(facts) = ProcessFacts::read(process.pid) else {
                continue;
            };
            if is_governed(&facts.cgroup) {
                return Err(Unadopted::Governed(process.pid));
            }
            let to = origin(place, &facts.cgroup, tree, &mut origins)?;
            match fs::write(to.join("cgroup.procs"), process.pid.to_string()) {
                Ok(()) => moved += 1,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(Unadopted::system("moving a process into", &to)(error)),
            }
        }
        if moved == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Unadopted::Unsettled);
        }
    }
}

/// The cgroup below `place` for those who come from this one; its note is written before anybody is moved.
fn origin<'a>(
    place: &Path,
    from: &str,
    tree: &Tree,
    origins: &'a mut BTreeMap<String, PathBuf>,
) -> Result<&'a Path, Unadopted> {
    if tree.path_of(from).is_none() {
        let source = io::Error::new(io::ErrorKind::NotFound, "it is not in sight of the daemon");
        return Err(Unadopted::system("finding the cgroup", from)(source));
    }
    let number = origins.len();
    if !origins.contains_key(from) {
        let below = place.join(number.to_string());
        fs::create_dir(&below).map_err(Unadopted::system("making", &below))?;
        rustix::fs::setxattr(
            &below,
            ORIGIN,
            from.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        )
        .map_err(|errno| {
            Unadopted::system("noting where processes come from in", &below)(errno.into())
        })?;
        origins.insert(from.to_owned(), below);
    }
    let gone = || Unadopted::system("finding", place)(io::ErrorKind::NotFound.into());
    origins.get(from).map(PathBuf::as_path).ok_or_else(gone)
}

/// Those, what descends from them, and who is in a session that one of them began (a child keeps it when its parent is gone).
fn closure(listed: &[Process], seeds: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut members = seeds.clone();
    loop {
        let before = members.len();
        for process in listed {
            if members.contains(&process.parent) || members.contains(&process.session) {
                members.insert(process.pid);
            }
        }
        if members.len() == before {
            return members;
        }
    }
}

/// The processes of a cgroup and of those below it.
pub(super) fn residents(cgroup: &Path) -> Vec<u32> {
    let directories = subtree(cgroup).unwrap_or_default();
    let pids = directories.iter().flat_map(|each| processes(each));
    pids.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
        .collect()
}

/// Every process that can be seen.
fn list() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(read).collect()
}

fn read(pid: u32) -> Option<Process> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// proc_pid_stat(5); the second field may hold anything, so that the others are counted from its end.
fn parse(stat: &str) -> Option<Process> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let pid = head.split_once(" (")?.0.parse().ok()?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let small = |at: usize| u32::try_from(number(at)?).ok();
    Some(Process {
        pid,
        over: matches!(*fields.first()?, "X" | "Z"),
        parent: small(1)?,
        session: small(3)?,
        started: number(19)?,
    })
}

/// When a process was started, in ticks.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    read(pid).map(|process| process.started)
}

/// Whether a process is another one, or descends from it.
#[must_use]
pub fn descends_from(pid: u32, from: u32) -> bool {
    pid == from || ancestors(pid).contains(&from)
}

/// Who started it, and who started that, up to the first process.
pub(super) fn ancestors(pid: u32) -> Vec<u32> {
    let mut line: Vec<u32> = Vec::new();
    let mut next = read(pid).map(|process| process.parent);
    while let Some(parent) = next.filter(|parent| *parent != 0 && !line.contains(parent)) {
        line.push(parent);
        next = read(parent).map(|process| process.parent);
    }
    line
}

/// Whom it started.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let listed = list();
    let its = listed.iter().filter(|process| process.parent == pid);
    its.map(|process| process.pid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_calls_itself() {
        let stat = "42 (a) S 7 (b)) Z 7 40 41 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 9000 1 1 1\n";
        let process = parse(stat).unwrap();
        assert_eq!((process.pid, process.parent, process.session), (42, 7, 41));
        assert!(process.over && process.started == 9000);
        assert_eq!(parse("42 (a S 7"), None);
        assert!(started(std::process::id()).is_some());
    }

    #[test]
    fn a_tree_has_its_descendants_and_the_sessions_that_it_began() {
        let process = |pid, parent, session| Process {
            pid,
            parent,
            session,
            started: 1,
            over: false,
        };
        let listed = [
            process(10, 1, 5),
            process(11, 10, 5),
            process(12, 11, 12),
            // Its parent is gone, its session was begun by 12.
            process(13, 1, 12),
            process(14, 13, 12),
            // Of the session that 10 was born in, but not of its tree.
            process(20, 1, 5),
        ];
        let members = closure(&listed, &BTreeSet::from([10]));
        assert_eq!(members, BTreeSet::from([10, 11, 12, 13, 14]));
    }
}
