//! Whether the kernel side is still as this daemon put it, and how it is put back.
//! Beside the path: the enforcer asks every second, and acts on what is found (`daemon/enforcer/watchdog.rs`).
//! INVARIANT: a repair attaches before it lets go of anything: it never opens what still holds.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::Ebpf;

use super::attach::{self, PROGRAMS, STRAY, Tried};
use super::cgroup::{self, Tree};
use super::error::EnforceError;
use super::object::PINNED;
use super::outside::Outside;
use super::pins::Pins;
use super::sys;

/// Something that is not as this daemon put it. Somebody with root's rights did it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A cgroup of the instance is gone, or was made anew: nothing is attached to the new one.
    CgroupReplaced(&'static str),
    /// A link does not lead to its cgroup any more.
    LinkDetached(String),
    /// A link is attached, but not pinned: it would go with this daemon.
    LinkUnpinned(String),
    /// A map is not pinned any more, or another one is in its place.
    MapUnpinned(String),
    /// A link leads to another program.
    ProgramReplaced(String),
}

impl Fault {
    /// Its name, in metrics and records.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Fault::CgroupReplaced(_) => "cgroup_replaced",
            Fault::LinkDetached(_) => "link_detached",
            Fault::LinkUnpinned(_) => "link_unpinned",
            Fault::MapUnpinned(_) => "map_unpinned",
            Fault::ProgramReplaced(_) => "program_replaced",
        }
    }

    /// What it is about.
    #[must_use]
    pub fn subject(&self) -> &str {
        match self {
            Fault::CgroupReplaced(place) => place,
            Fault::LinkDetached(name)
            | Fault::LinkUnpinned(name)
            | Fault::MapUnpinned(name)
            | Fault::ProgramReplaced(name) => name,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.subject())
    }
}

/// What this daemon put in force. Held open: removing a pin detaches nothing as long as the daemon lives.
#[derive(Debug)]
pub(super) struct Kept {
    agents: u64,
    proxy: u64,
    /// Of the instance's own cgroups, and of the hooks that belong to none.
    links: Vec<Link>,
    /// Of workloads elsewhere.
    outside: Vec<(Outside, Vec<Link>)>,
    maps: Vec<(&'static str, u32, OwnedFd)>,
}

#[derive(Debug)]
struct Link {
    name: &'static str,
    pin: PathBuf,
    /// The cgroup's id; none for a program of a hook that belongs to no cgroup.
    cgroup: Option<u64>,
    program: u32,
    link: OwnedFd,
}

impl Kept {
    /// What is in force now, but for workloads elsewhere.
    pub(super) fn of(
        object: &Ebpf,
        tree: &Tree,
        pins: &Pins,
        tried: &Tried,
    ) -> Result<Kept, EnforceError> {
        let mut links = Vec::new();
        for (name, place) in PROGRAMS {
            let cgroup = cgroup::id(attach::directory(tree, place))?;
            links.push(link(object, pins.version(), name, Some(cgroup))?);
        }
        let root = cgroup::id(tree.root())?;
        for (name, _) in tried.iter().filter(|(_, tried)| tried.is_ok()) {
            let cgroup = STRAY.contains(name).then_some(root);
            links.push(link(object, pins.version(), name, cgroup)?);
        }
        let mut maps = Vec::new();
        for (name, ..) in PINNED {
            let (map, id) = map(&pins.path(name))?;
            maps.push((name, id, map));
        }
        Ok(Kept {
            agents: cgroup::id(tree.agents())?,
            proxy: cgroup::id(tree.proxy())?,
            links,
            outside: Vec::new(),
            maps,
        })
    }

    /// A workload elsewhere has its set of programs.
    pub(super) fn add(
        &mut self,
        object: &Ebpf,
        workload: &Outside,
        pins: &Pins,
    ) -> Result<(), EnforceError> {
        let directory = workload.pins(pins);
        let links = attach::of_workloads()
            .map(|(name, _)| link(object, &directory, name, Some(workload.id)))
            .collect::<Result<_, _>>()?;
        self.outside.push((workload.clone(), links));
        Ok(())
    }

    /// A workload elsewhere is given back.
    pub(super) fn forget(&mut self, id: u64) {
        self.outside.retain(|(workload, _)| workload.id != id);
    }

    /// The id of the cgroup in which the proxy's listeners were opened.
    pub(super) fn proxy(&self) -> u64 {
        self.proxy
    }

    /// Everything that is not so any more.
    pub(super) fn faults(&self, tree: &Tree, pins: &Pins) -> Vec<Fault> {
        let mut faults = Vec::new();
        let is_there = |path: &Path, id| cgroup::id(path).is_ok_and(|found| found == id);
        if !is_there(tree.agents(), self.agents) {
            faults.push(Fault::CgroupReplaced("agents"));
        }
        if !is_there(tree.proxy(), self.proxy) {
            faults.push(Fault::CgroupReplaced("proxy"));
        }
        faults.extend(self.links().filter_map(Link::fault));
        for (name, id, _) in &self.maps {
            if map(&pins.path(name)).map_or(true, |(_, found)| found != *id) {
                faults.push(Fault::MapUnpinned((*name).to_owned()));
            }
        }
        faults
    }

    /// Pins the maps again whose pins are gone or are somebody else's.
    pub(super) fn pin_maps(&self, pins: &Pins) -> Result<(), EnforceError> {
        for (name, id, kept) in &self.maps {
            let path = pins.path(name);
            if map(&path).is_ok_and(|(_, found)| found == *id) {
                continue;
            }
            pin_again(kept.as_fd(), &path)?;
        }
        Ok(())
    }

    /// Pins those links again that only lost their pin, and removes the pins of those that lead nowhere, so that they are made anew.
    pub(super) fn pin_links(&self) -> Result<(), EnforceError> {
        for link in self.links() {
            match link.fault() {
                Some(Fault::LinkUnpinned(_)) => pin_again(link.link.as_fd(), &link.pin)?,
                Some(Fault::LinkDetached(_)) => remove(&link.pin)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Where the cgroup of a workload elsewhere is gone, nothing is missing: nobody is left to be governed.
    fn links(&self) -> impl Iterator<Item = &Link> {
        let there = |workload: &Outside| !matches!(workload.open(), Ok(None));
        let outside = self
            .outside
            .iter()
            .filter(move |(workload, _)| there(workload));
        self.links
            .iter()
            .chain(outside.flat_map(|(_, links)| links))
    }
}

impl Link {
    fn fault(&self) -> Option<Fault> {
        let name = || self.name.to_owned();
        let Ok(info) = sys::link_info(self.link.as_fd()) else {
            return Some(Fault::LinkDetached(name()));
        };
        if self.cgroup.is_some_and(|id| id != info.cgroup) {
            return Some(Fault::LinkDetached(name()));
        }
        if info.program != self.program {
            return Some(Fault::ProgramReplaced(name()));
        }
        let pinned = sys::obj_get(&self.pin).and_then(|link| sys::link_info(link.as_fd()));
        match pinned {
            Ok(pinned) if pinned.link == info.link => None,
            _ => Some(Fault::LinkUnpinned(name())),
        }
    }
}

fn link(
    object: &Ebpf,
    pins: &Path,
    name: &'static str,
    cgroup: Option<u64>,
) -> Result<Link, EnforceError> {
    let pin = pins.join(attach::link_name(name));
    let link = sys::obj_get(&pin).map_err(attach::bpf_error("BPF_OBJ_GET", &pin))?;
    let id = object.program(name).and_then(|program| program.info().ok());
    let program = id.ok_or_else(|| EnforceError::Load {
        program: Some(name),
        source: "the program has no id".into(),
    })?;
    Ok(Link {
        name,
        pin,
        cgroup,
        program: program.id(),
        link,
    })
}

fn map(path: &Path) -> Result<(OwnedFd, u32), EnforceError> {
    let failed = || EnforceError::io("reading the pin", path);
    let map = sys::obj_get(path).map_err(failed())?;
    let id = sys::map_id(map.as_fd()).map_err(failed())?;
    Ok((map, id))
}

fn pin_again(object: BorrowedFd<'_>, path: &Path) -> Result<(), EnforceError> {
    remove(path)?;
    sys::obj_pin(object, path).map_err(attach::bpf_error("BPF_OBJ_PIN", path))
}

fn remove(path: &Path) -> Result<(), EnforceError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EnforceError::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}
