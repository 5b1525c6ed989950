//! A tree that runs already is brought to a stand in one cgroup, freed of what it could leave by, and put back where that fails.
//! Place on the path: before `govern`, which takes the cgroup that stands; the enforcer lets it go on afterwards.
//! INVARIANT: a tree is gathered outside every workload, so that no label sticks to what is put back; each cgroup made here names the one its processes came from.

mod held;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use policies::{AgentId, WorkloadId};

use super::Enforcement;
use super::cgroup::{self, Tree};
use super::error::EnforceError;
use super::freeze::{self, processes, subtree};
use super::instance::WorkloadName;
use super::outside::Outside;

pub use tree::{descends_from, started};

/// How long a tree may go on starting processes faster than they are stopped, and then take to stand.
const TIME_TO_STAND: Duration = Duration::from_secs(2);
/// On a cgroup that was made here: where its processes came from. Only CAP_SYS_ADMIN on the host writes it.
const ORIGIN: &str = "trusted.sluice.origin";
/// On a cgroup that stands still for an adoption: whoever finds it governed lets it go on.
const STANDS: &str = "trusted.sluice.adopting";

/// Why a running tree is not taken over. It is as it was, but for its sockets where that is said.
#[derive(Debug, thiserror::Error)]
pub enum Unadopted {
    /// It is a workload's already.
    #[error("already_governed: process {0} is a workload's")]
    Governed(u32),
    /// No such process.
    #[error("process_gone: there is no process {0} any more")]
    Gone(u32),
    /// Something that leads out and cannot be closed from outside.
    #[error(
        "held_open: process {pid} holds {what}; close it, or start the agent anew with `sluice run`"
    )]
    Held {
        /// Whose.
        pid: u32,
        /// What.
        what: String,
    },
    /// Part of what governs.
    #[error("adopt_unfit: {0} is part of it")]
    Ours(&'static str),
    /// The kernel side does not take it; its sockets are ended all the same.
    #[error("{0}; its sockets are ended all the same")]
    Ungoverned(String),
    /// The system refused.
    #[error("{what} {}", path.display())]
    System {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// It does not come to a stand.
    #[error(
        "tree_unsettled: after {} s it still starts processes, or one does not stand still; adopt the cgroup that it has to itself, or stop it",
        TIME_TO_STAND.as_secs()
    )]
    Unsettled,
    /// The tree stands in `place`, because it could not be put back.
    #[error("{why}; it stands still in {}, since it could not be put back", place.display())]
    Stands {
        /// Where.
        place: PathBuf,
        /// Why it was not adopted.
        why: Box<Unadopted>,
        /// Why it was not put back.
        source: io::Error,
    },
}

impl Unadopted {
    fn system(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Unadopted {
        let path = path.into();
        move |source| Unadopted::System { what, path, source }
    }
}

/// Which processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Running {
    /// All of a cgroup that is there, where they are.
    Cgroup {
        /// The cgroup.
        place: PathBuf,
        /// Whether it is to stand still for as long as it is not governed.
        held: bool,
    },
    /// A process and what descends from it, gathered in a cgroup that was made for them.
    Tree {
        /// The cgroup.
        place: PathBuf,
        /// The process.
        pid: u32,
        /// When it was started, in ticks (field 22 of proc_pid_stat(5)): another of that number was not.
        started: u64,
    },
}

/// A tree that stands still. To be governed and then [let go on](Standing::go_on), or [put back](Standing::put_back).
#[derive(Debug)]
#[must_use]
pub struct Standing {
    place: PathBuf,
    gathered: bool,
    /// Somebody else had it standing before.
    stood: bool,
    /// It goes on governed, or not at all.
    held: bool,
}

impl Running {
    /// Where it stands or will stand.
    #[must_use]
    pub fn place(&self) -> &Path {
        match self {
            Running::Cgroup { place, .. } | Running::Tree { place, .. } => place,
        }
    }

    /// Brings everything to a stand and ends the sockets that were made outside. Blocks for some seconds at most.
    /// `is_governed` says of a cgroup, as `/proc/PID/cgroup` shows it, whether it is a workload's.
    ///
    /// # Errors
    /// Why it is not taken over; it is as it was.
    pub fn stop(
        &self,
        enforcement: &Enforcement,
        is_governed: &dyn Fn(&str) -> bool,
    ) -> Result<Standing, Unadopted> {
        let standing = match self {
            Running::Cgroup { place, held } => stand(place, *held)?,
            Running::Tree {
                place,
                pid,
                started,
            } => {
                let standing = Standing {
                    place: place.clone(),
                    gathered: true,
                    stood: false,
                    held: false,
                };
                let root = (*pid, *started);
                match tree::gather(place, root, &enforcement.tree, is_governed) {
                    Ok(()) => standing,
                    Err(why) => return Err(standing.put_back(&enforcement.tree, why)),
                }
            }
        };
        match standing.search() {
            Ok(()) => Ok(standing),
            Err(why) => Err(standing.put_back(&enforcement.tree, why)),
        }
    }
}

impl Standing {
    /// Looks at every descriptor first, and ends sockets only if nothing is in the way.
    fn search(&self) -> Result<(), Unadopted> {
        let pids = tree::residents(&self.place);
        ours(pids.iter().copied())?;
        let mut found = Vec::new();
        for pid in &pids {
            found.extend(held::sockets(*pid)?);
        }
        for (pid, socket) in &found {
            held::end(socket).map_err(|error| Unadopted::Held {
                pid: *pid,
                what: format!("a socket that cannot be ended ({error})"),
            })?;
        }
        tracing::info!(place = %self.place.display(), processes = pids.len(), sockets = found.len(), "a running tree stands, and its sockets are ended");
        Ok(())
    }

    /// It is governed: it goes on.
    ///
    /// # Errors
    /// It stands still, governed.
    pub fn go_on(self) -> io::Result<()> {
        if !self.stood {
            freeze::thaw(&self.place)?;
        }
        unmark(&self.place);
        Ok(())
    }

    /// It is not governed: it goes on where it came from.
    pub(super) fn put_back(self, tree: &Tree, why: Unadopted) -> Unadopted {
        if self.held {
            return why;
        }
        let done = match (self.gathered, self.stood) {
            (true, _) => put_back(&self.place, tree),
            (false, true) => Ok(()),
            (false, false) => freeze::thaw(&self.place),
        };
        unmark(&self.place);
        match done {
            Ok(()) => why,
            Err(source) => Unadopted::Stands {
                place: self.place,
                why: Box::new(why),
                source,
            },
        }
    }
}

impl Enforcement {
    /// Whether a cgroup could be governed, before anything is done to it.
    ///
    /// # Errors
    /// Why not.
    pub fn fit(&self, agent: &AgentId, cgroup: &Path) -> Result<(), EnforceError> {
        let name = WorkloadName {
            agent: agent.clone(),
            number: self.next_number,
        };
        Outside::examine(cgroup, name, &self.tree, &self.outside).map(drop)
    }

    /// Makes an empty cgroup outside every workload for a tree to be gathered in: its id, and its directory.
    pub fn place_for_tree(&mut self) -> Result<(WorkloadId, PathBuf), EnforceError> {
        let place = self.tree.adopted(self.next_number);
        self.next_number += 1;
        fs::create_dir(&place).map_err(EnforceError::io("making", &place))?;
        Ok((WorkloadId(cgroup::id(&place)?), place))
    }

    /// Gives up on a tree that stands.
    pub fn unstop(&self, standing: Standing, why: Unadopted) -> Unadopted {
        standing.put_back(&self.tree, why)
    }

    /// Removes a place that nothing was gathered in, or from which everything was put back.
    pub fn discard_place(&self, place: &Path) {
        if self.tree.is_adopted(place) {
            // Where it is not empty, it stands still, and that was told.
            let _stands = cgroup::remove_tree(place);
        }
    }

    /// Whether a workload's cgroup lies elsewhere and is Sluice's all the same: nobody else will use it again.
    #[must_use]
    pub fn is_gathered(&self, id: WorkloadId) -> bool {
        let workload = self.outside.iter().find(|workload| workload.id == id.0);
        workload.is_some_and(|workload| self.tree.is_adopted(&workload.path))
    }
}

/// Stops a cgroup at once, until it is adopted or [let go](let_go): who enters it stands, too.
///
/// # Errors
/// It is part of what governs, or cannot be frozen.
pub fn hold(place: &Path) -> Result<(), Unadopted> {
    ours(tree::residents(place).into_iter())?;
    if !freeze::is_asked_to(place) {
        mark(place);
    }
    let file = place.join("cgroup.freeze");
    fs::write(&file, "1").map_err(Unadopted::system("freezing", place))
}

/// Lets a cgroup that was [held](hold) go on as it is.
///
/// # Errors
/// It stands still.
pub fn let_go(place: &Path) -> io::Result<()> {
    if is_marked(place) {
        freeze::thaw(place)?;
        unmark(place);
    }
    Ok(())
}

/// A daemon died during an adoption: what is governed goes on, what is not goes on where it came from.
pub(super) fn recover(tree: &Tree, outside: &[Outside]) -> Result<(), EnforceError> {
    for workload in outside {
        if is_marked(&workload.path) {
            freeze::thaw(&workload.path).map_err(EnforceError::io(
                "letting go on what stands in",
                &workload.path,
            ))?;
            unmark(&workload.path);
        }
    }
    for place in tree.all_adopted()? {
        if outside.iter().any(|workload| workload.path == place) {
            continue;
        }
        match put_back(&place, tree) {
            Ok(()) => {
                tracing::warn!(place = %place.display(), "an adoption was cut short; its processes are where they came from")
            }
            Err(error) => {
                tracing::error!(%error, place = %place.display(), "an adoption was cut short; its processes stand still here")
            }
        }
    }
    Ok(())
}

/// Freezes a cgroup where it is.
fn stand(place: &Path, held: bool) -> Result<Standing, Unadopted> {
    // Before it is frozen: it could be who would let it go on.
    ours(tree::residents(place).into_iter())?;
    let stood = freeze::is_asked_to(place) && !is_marked(place);
    mark(place);
    let standing = Standing {
        place: place.to_owned(),
        gathered: false,
        stood,
        held,
    };
    let done = freeze::freeze(place)
        .map_err(Unadopted::system("freezing", place))
        .and_then(|()| wait_until_it_stands(place));
    if let Err(why) = done {
        if held {
            return Err(why);
        }
        if !stood {
            let _goes_on = freeze::thaw(place);
        }
        unmark(place);
        return Err(why);
    }
    Ok(standing)
}

fn wait_until_it_stands(place: &Path) -> Result<(), Unadopted> {
    let deadline = Instant::now() + TIME_TO_STAND;
    let file = place.join("cgroup.events");
    loop {
        let events = fs::read_to_string(&file).map_err(Unadopted::system("reading", &file))?;
        // An empty cgroup counts as standing.
        if events.lines().any(|line| line == "frozen 1")
            || events.lines().any(|line| line == "populated 0")
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Unadopted::Unsettled);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Moves everything to where it came from. What is frozen starts nothing, so that each cgroup is empty after one pass, or its
/// processes cannot be moved.
fn put_back(place: &Path, tree: &Tree) -> io::Result<()> {
    for below in subtree(place)?.into_iter().filter(|below| below != place) {
        let origin = origin(&below)?;
        let origin = tree
            .path_of(&origin)
            .filter(|origin| origin.is_dir())
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{origin} is gone")))?;
        for pid in processes(&below) {
            match fs::write(
                origin.join("cgroup.procs"),
                pid.as_raw_nonzero().to_string(),
            ) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
                _ => {}
            }
        }
    }
    match cgroup::remove_tree(place) {
        Ok(()) => Ok(()),
        Err(EnforceError::Io { source, .. }) => Err(source),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

fn origin(below: &Path) -> io::Result<String> {
    let mut text = [0_u8; 4096];
    let length = rustix::fs::getxattr(below, ORIGIN, &mut text[..])?;
    let text = text.get(..length).unwrap_or_default();
    String::from_utf8(text.to_vec())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What governs is never governed.
fn ours(mut pids: impl Iterator<Item = u32>) -> Result<(), Unadopted> {
    let own = std::process::id();
    let mut line = BTreeSet::from([own]);
    // The proxy process is a child, whoever started this one an ancestor.
    line.extend(tree::ancestors(own));
    line.extend(tree::children(own));
    match pids.find(|pid| line.contains(pid)) {
        None => Ok(()),
        Some(1) => Err(Unadopted::Ours("the first process of the host")),
        Some(_) => Err(Unadopted::Ours("the daemon, or what it was started by")),
    }
}

fn mark(place: &Path) {
    let _unmarked = rustix::fs::setxattr(place, STANDS, b"1", rustix::fs::XattrFlags::empty());
}

fn is_marked(place: &Path) -> bool {
    rustix::fs::getxattr(place, STANDS, &mut [0_u8; 8][..]).is_ok()
}

fn unmark(place: &Path) {
    let _never_marked = rustix::fs::removexattr(place, STANDS);
}
