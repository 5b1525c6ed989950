//! The user side of the kernel's part: load, attach, pin, adopt, admit workloads, and say how the walls stand.
//! Place on the path: before it; the enforcer (root) calls this, the proxy process only ever sees two map descriptors.
//! INVARIANT: egress is attached first and ports are published last; dropping an `Enforcement` changes nothing in the kernel.

#![allow(
    unsafe_code,
    reason = "bpf(2) and typed map memory; every block says why it is sound"
)]

mod adopt;
mod attach;
mod cgroup;
mod cut;
mod error;
mod freeze;
mod govern;
mod instance;
mod label;
pub mod launch;
pub mod listen;
mod mounts;
mod netns;
pub(crate) mod object;
mod outside;
pub mod panic;
mod pins;
mod refusals;
mod report;
mod sys;
mod types;
mod upkeep;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use agent_abi::{ABI_VERSION, Config, PANIC, task_flag, workload_flag};
use policies::{AgentId, WorkloadId};

pub use adopt::{Running, Standing, Unadopted, descends_from, hold, let_go, started};
pub use cut::Cut;
pub use error::EnforceError;
pub use instance::{Instance, NotAWorkload, WorkloadName};
pub use netns::NetNamespace;
pub use outside::{Gone, Unfit, governed_as};
pub use refusals::{Events, KernelRefusal, RefusalKind};
#[cfg(test)]
pub(crate) use report::names as layer_names;
pub use upkeep::Repaired;
pub use watch::Fault;

use crate::layers::{LayerReport, LayerState};
use cgroup::Tree;
use object::Maps;
use outside::Outside;
use pins::Pins;

/// `lo` has this index in every network namespace: it is the first interface that a namespace gets.
const LOOPBACK_IFINDEX: u32 = 1;

/// What a daemon enforces with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names its cgroups and pins.
    pub instance: Instance,
    /// Synthetic IPv4 addresses: network and prefix length.
    pub pool4: (Ipv4Addr, u8),
    /// Synthetic IPv6 addresses: network and prefix length.
    pub pool6: (Ipv6Addr, u8),
}

/// The ports on 127.0.0.1 and ::1 that connections and questions are led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The transparent proxy (TCP).
    pub proxy: u16,
    /// The policy resolver (UDP and TCP).
    pub resolver: u16,
}

/// Whether every wall of the design stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every layer is live.
    Full,
    /// Some layer is not. To be opted into; [`Enforcement::layers`] says what that leaves open.
    Reduced,
}

/// A workload that may now be started in its cgroup.
#[derive(Debug)]
pub struct Admitted {
    /// The kernel's id of the cgroup: the workload's identity from here on.
    pub id: WorkloadId,
    /// The workload's name; for a cgroup that Sluice made, the directory's, too.
    pub name: WorkloadName,
    /// The cgroup as `/proc/<pid>/cgroup` shows it.
    pub in_hierarchy: String,
    /// The directory, opened for clone3(CLONE_INTO_CGROUP).
    pub cgroup: OwnedFd,
    /// Its path.
    pub path: PathBuf,
}

/// A workload that was there already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The kernel's id of the cgroup.
    pub id: WorkloadId,
    /// The workload's name; for a cgroup that Sluice made, the directory's, too.
    pub name: WorkloadName,
    /// The cgroup as `/proc/<pid>/cgroup` shows it.
    pub in_hierarchy: String,
    /// Its path.
    pub path: PathBuf,
    /// Whether any process lives in it.
    pub populated: bool,
    /// Whether the cgroup lies elsewhere ([`Enforcement::govern`]) and is somebody else's to remove.
    pub outside: bool,
}

/// The descriptors that the proxy process reads origins through; it needs no capability for that.
#[derive(Debug)]
pub struct MapFds {
    /// Socket storage of accepted connections.
    pub accepted: OwnedFd,
    /// Flows by source.
    pub flows: OwnedFd,
}

/// What [`Enforcement::stop`] left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Workloads still run, or cgroups elsewhere are there to be used: everything is in place and denies.
    LeftDenying,
    /// Nothing: programs, maps and cgroups are gone.
    Removed,
}

/// Writes what the programs have logged (rare: a full map) to this process's log.
type Flush = Box<dyn FnMut() + Send>;

/// The kernel side of one daemon instance, in force.
pub struct Enforcement {
    tree: Tree,
    pins: Pins,
    maps: Maps,
    tried: attach::Tried,
    /// Workloads whose cgroup lies elsewhere, and those of them that nobody has been told are gone.
    outside: Vec<Outside>,
    gone: Vec<Gone>,
    kept: watch::Kept,
    /// Cgroups that stand still because of a repair.
    frozen: Vec<PathBuf>,
    next_number: u64,
    /// Passes on what programs log; goes to the first reader of events.
    log: Mutex<Option<Flush>>,
    /// Holds the programs, for repairs; the pinned links keep them alive without it.
    object: aya::Ebpf,
}

impl std::fmt::Debug for Enforcement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enforcement")
            .field("tree", &self.tree)
            .field("tried", &self.tried)
            .finish_non_exhaustive()
    }
}

impl Enforcement {
    /// Puts the kernel side in force: from nothing, or by taking over what an earlier daemon pinned.
    ///
    /// Afterwards every governed process is denied everything until [`publish`](Self::publish); after a takeover, connections
    /// still go to the ports of before. Needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN); blocks for about 100 ms.
    pub fn start(settings: &Settings) -> Result<Self, EnforceError> {
        raise_memlock();
        let pins = Pins::hold(&mounts::bpffs()?, &settings.instance)?;
        let tree = Tree::make(&settings.instance)?;
        let (other_versions, earlier) = other_versions(&pins, &tree)?;
        let (found, mut gone) = govern::find(&tree, &pins, earlier)?;

        let mut object = object::load(&pins)?;
        attach::attach_all(&mut object, &tree, &pins)?;
        let mut maps = Maps::open(&pins)?;
        let config = configure(settings, &tree, &maps.config()?)?;
        maps.set_config(config)?;
        let outside = govern::adopt(found, &mut object, &mut maps, &pins, &mut gone)?;
        let tried = attach::try_all(&mut object, &tree, &pins);

        let log = programs_log(&mut object);
        let next_number = readmit(&tree, &outside, &mut maps)?;
        label_all(&tree, &outside, &maps)?;
        for path in other_versions {
            pins::remove_pins(&path)?;
        }
        let mut kept = watch::Kept::of(&object, &tree, &pins, &tried)?;
        for workload in &outside {
            kept.add(&object, workload, &pins)?;
        }
        // A daemon that died during a repair has left them standing still. No cgroup.freeze, nobody frozen.
        let _never_frozen = freeze::thaw(tree.agents());
        adopt::recover(&tree, &outside)?;
        Ok(Self {
            tree,
            pins,
            maps,
            tried,
            outside,
            gone,
            kept,
            frozen: Vec::new(),
            next_number,
            log: Mutex::new(log),
            object,
        })
    }

    /// Lets governed processes reach the proxy and the resolver. The last step of a start. In a panic they still reach nothing.
    pub fn publish(&mut self, ports: Ports) -> Result<(), EnforceError> {
        let config = self.maps.config()?;
        let enabled = if config.enabled == PANIC { PANIC } else { 1 };
        self.maps.set_config(Config {
            enabled,
            proxy_port: ports.proxy,
            resolver_port: ports.resolver,
            ..config
        })
    }

    /// The ports that were published last, by this daemon or an earlier one; workloads cannot take them meanwhile.
    pub fn published(&self) -> Result<Ports, EnforceError> {
        let config = self.maps.config()?;
        Ok(Ports {
            proxy: config.proxy_port,
            resolver: config.resolver_port,
        })
    }

    /// The addresses that connections name literally: they may be dialled as they are, and go to the proxy.
    pub fn set_literals(&mut self, addresses: &[IpAddr]) -> Result<(), EnforceError> {
        self.maps.set_literals(addresses)
    }

    /// Makes a cgroup for a new workload of `agent` and lets the kernel side know it.
    pub fn admit(&mut self, agent: &AgentId) -> Result<Admitted, EnforceError> {
        let name = WorkloadName {
            agent: agent.clone(),
            number: self.next_number,
        };
        let (directory, cgroup) = self.tree.make_workload(&name)?;
        self.next_number += 1;
        // A crash before this line leaves an empty directory, which the next start finds, admits, and can retire.
        if let Err(error) = self
            .maps
            .set_workload(directory.id, workload_flag::ADMITTED)
        {
            cgroup::remove_tree(&directory.path)?;
            return Err(error);
        }
        Ok(Admitted {
            id: WorkloadId(directory.id),
            in_hierarchy: format!("{}/{name}", self.governed()),
            name,
            cgroup,
            path: directory.path,
        })
    }

    /// Forgets a workload whose processes are all gone, and removes its cgroup if that is Sluice's own.
    pub fn retire(&mut self, id: WorkloadId) -> Result<(), EnforceError> {
        if let Some(workload) = self.outside.iter().find(|workload| workload.id == id.0) {
            let path = workload.path.clone();
            self.release(id)?;
            self.discard_place(&path);
            return Ok(());
        }
        let directory = self
            .tree
            .workloads()?
            .into_iter()
            .find(|directory| directory.id == id.0);
        let directory = directory.ok_or(EnforceError::WorkloadUnknown(id))?;
        if directory.populated {
            return Err(EnforceError::WorkloadAlive(id));
        }
        cgroup::remove_tree(&directory.path)?;
        self.maps.remove_workload(id.0)
    }

    /// Whether a workload's cgroup lies elsewhere: it is governed as long as that cgroup exists, empty or not.
    #[must_use]
    pub fn lies_elsewhere(&self, id: WorkloadId) -> bool {
        self.outside.iter().any(|workload| workload.id == id.0)
    }

    /// The kill switch: a workload that is switched off makes no connection, and its open ones stand still.
    pub fn set_disabled(&mut self, id: WorkloadId, disabled: bool) -> Result<(), EnforceError> {
        let state = self
            .maps
            .workload(id.0)?
            .ok_or(EnforceError::WorkloadUnknown(id))?;
        let flags = if disabled {
            state.flags | workload_flag::DISABLED
        } else {
            state.flags & !workload_flag::DISABLED
        };
        self.maps.set_workload(id.0, flags)
    }

    /// Every workload's cgroup that exists, also those that an earlier daemon started.
    pub fn workloads_found(&self) -> Result<Vec<Found>, EnforceError> {
        let inside = self.tree.workloads()?.into_iter().map(|directory| Found {
            id: WorkloadId(directory.id),
            in_hierarchy: format!("{}/{}", self.governed(), directory.name),
            name: directory.name,
            path: directory.path,
            populated: directory.populated,
            outside: false,
        });
        let mut found: Vec<Found> = inside.collect();
        for workload in &self.outside {
            // One that is gone is for `sweep` to tell.
            let Some(populated) = workload.populated()? else {
                continue;
            };
            found.push(Found {
                id: WorkloadId(workload.id),
                name: workload.name.clone(),
                in_hierarchy: workload.in_hierarchy.clone(),
                path: workload.path.clone(),
                populated,
                outside: true,
            });
        }
        Ok(found)
    }

    /// The cgroup in which the proxy's listeners must be opened (see [`listen::open`]).
    #[must_use]
    pub fn proxy_cgroup(&self) -> &Path {
        self.tree.proxy()
    }

    /// The cgroup under which every governed process lies, but those of workloads elsewhere.
    #[must_use]
    pub fn agents_cgroup(&self) -> &Path {
        self.tree.agents()
    }

    /// The same as `/proc/<pid>/cgroup` shows it, `/sluice/agents`: a process whose line begins with this (and `/`) is governed.
    #[must_use]
    pub fn governed(&self) -> String {
        let shown = self.tree.in_hierarchy(self.tree.agents());
        shown.map_or_else(String::new, |(shown, _)| shown)
    }

    /// The top of the cgroup v2 hierarchy, as far as it is mounted.
    #[must_use]
    pub fn hierarchy(&self) -> &Path {
        self.tree.root()
    }

    /// Whether this very directory is a workload's that lies elsewhere.
    #[must_use]
    pub fn governs(&self, directory: &Path) -> bool {
        self.outside
            .iter()
            .any(|workload| workload.path == directory)
    }

    /// The workloads that lie elsewhere.
    #[must_use]
    pub fn elsewhere(&self) -> Vec<(WorkloadId, PathBuf)> {
        let all = self.outside.iter();
        all.map(|workload| (WorkloadId(workload.id), workload.path.clone()))
            .collect()
    }

    /// The workload that a directory would be.
    pub fn id_of(&self, directory: &Path) -> Result<WorkloadId, EnforceError> {
        cgroup::id(directory).map(WorkloadId)
    }

    /// The directory of a cgroup that `/proc/<pid>/cgroup` shows so; none if it is not mounted here.
    #[must_use]
    pub fn directory_of(&self, in_hierarchy: &str) -> Option<PathBuf> {
        self.tree.path_of(in_hierarchy)
    }

    /// The cgroup of a directory as `/proc/<pid>/cgroup` shows it; none if it is not of this hierarchy.
    #[must_use]
    pub fn shown(&self, directory: &Path) -> Option<String> {
        let (shown, _) = self.tree.in_hierarchy(directory)?;
        Some(shown)
    }

    /// Descriptors for the proxy process.
    pub fn map_fds(&self) -> Result<MapFds, EnforceError> {
        let clone = |map: &'static str, data: &aya::maps::MapData| {
            data.fd()
                .as_fd()
                .try_clone_to_owned()
                .map_err(EnforceError::io("duplicating the descriptor of map", map))
        };
        Ok(MapFds {
            accepted: clone("ACCEPTED", &self.maps.accepted)?,
            flows: clone("FLOWS", &self.maps.flows)?,
        })
    }

    /// Whether every wall stands.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self
            .layers()
            .iter()
            .all(|layer| layer.state == LayerState::Live)
        {
            Mode::Full
        } else {
            Mode::Reduced
        }
    }

    /// Every wall, and what is open where one does not stand.
    #[must_use]
    pub fn layers(&self) -> Vec<LayerReport> {
        report::layers(&self.tree, &self.outside, &self.pins, &self.tried)
    }

    /// How often each kind of refusal happened since the maps were made; they outlive a daemon.
    pub fn refusals(&self) -> Result<Vec<(RefusalKind, u64)>, EnforceError> {
        RefusalKind::ALL
            .into_iter()
            .map(|kind| Ok((kind, self.maps.refusals(kind.number())?)))
            .collect()
    }

    /// The stream of refusals. One reader at a time.
    pub fn events(&self) -> Result<Events, EnforceError> {
        let log = self
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(Events {
            ring: object::events(&self.pins)?,
            log,
        })
    }

    /// Ends enforcement where nobody is governed any more; otherwise leaves it in place, denying everything.
    pub fn stop(mut self) -> Result<Stopped, EnforceError> {
        let workloads = self.tree.workloads()?;
        let mut populated = workloads.iter().any(|directory| directory.populated);
        for workload in &self.outside {
            // An empty one, too, is somebody's who means to use it: what starts there must not be nobody's.
            populated |= workload.populated()?.is_some();
        }
        if populated {
            let config = self.maps.config()?;
            let enabled = if config.enabled == PANIC { PANIC } else { 0 };
            self.maps.set_config(Config { enabled, ..config })?;
            return Ok(Stopped::LeftDenying);
        }
        for directory in workloads {
            cgroup::remove_tree(&directory.path)?;
        }
        // Somebody may have removed what is to be removed.
        self.pins.restore()?;
        for workload in &self.outside {
            workload.forget(&self.pins)?;
        }
        // The cgroups first: while one exists, something could be started in it.
        self.tree.remove()?;
        self.pins.remove()?;
        Ok(Stopped::Removed)
    }
}

/// Pin directories of other versions, and the workloads elsewhere that are recorded there. Where anybody lives under one of
/// them, this version must not start; else they are removed once this version's programs are in force.
fn other_versions(pins: &Pins, tree: &Tree) -> Result<(Vec<PathBuf>, Vec<Outside>), EnforceError> {
    let others = pins.other_versions()?;
    let mut earlier = Vec::new();
    for path in &others {
        let recorded = outside::recorded(path, tree)?;
        let mut alive = tree
            .workloads()?
            .iter()
            .any(|directory| directory.populated);
        for workload in &recorded {
            alive |= workload.populated()? == Some(true);
        }
        if alive {
            return Err(EnforceError::OtherVersion { path: path.clone() });
        }
        earlier.extend(recorded);
    }
    Ok((others, earlier))
}

/// The new configuration: who is governed, and the pools. Whether and where to is kept from an earlier daemon.
fn configure(settings: &Settings, tree: &Tree, before: &Config) -> Result<Config, EnforceError> {
    let (pool4, prefix4) = settings.pool4;
    let (pool6, prefix6) = settings.pool6;
    let mask4 = mask(prefix4, 32) >> 96;
    let mask6 = mask(prefix6, 128);
    let kept = if before.version == ABI_VERSION {
        *before
    } else {
        Config::default()
    };
    Ok(Config {
        version: ABI_VERSION,
        enabled: kept.enabled,
        workload_level: tree.workload_level(),
        loopback_ifindex: LOOPBACK_IFINDEX,
        agents: cgroup::id(tree.agents())?,
        proxy_port: kept.proxy_port,
        resolver_port: kept.resolver_port,
        pool4: (pool4.to_bits() & mask4 as u32).to_be(),
        pool4_mask: (mask4 as u32).to_be(),
        pad: 0,
        pool6: object::words(Ipv6Addr::from_bits(pool6.to_bits() & mask6)),
        pool6_mask: object::words(Ipv6Addr::from_bits(mask6)),
        outside_levels: kept.outside_levels,
    })
}

/// The upper `prefix` bits of 128; prefixes beyond `width` count as `width`, and 0 is no pool.
fn mask(prefix: u8, width: u32) -> u128 {
    let prefix = u32::from(prefix).min(width);
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

/// Lets the kernel side know every workload that exists, forgets the others, and finds the next free number.
fn readmit(tree: &Tree, outside: &[Outside], maps: &mut Maps) -> Result<u64, EnforceError> {
    let inside = tree.workloads()?;
    let inside = inside
        .iter()
        .map(|directory| (directory.id, &directory.name));
    let outside = outside.iter().map(|workload| (workload.id, &workload.name));
    let workloads: Vec<_> = inside.chain(outside).collect();
    for id in maps.workload_ids()? {
        if !workloads.iter().any(|(known, _)| *known == id) {
            maps.remove_workload(id)?;
        }
    }
    let mut next = 1;
    for (id, name) in workloads {
        // A workload that was switched off stays off.
        let flags = maps.workload(id)?.map_or(0, |state| state.flags);
        maps.set_workload(id, flags | workload_flag::ADMITTED)?;
        next = next.max(name.number.saturating_add(1));
    }
    Ok(next)
}

/// Labels whoever an earlier version governed, by its cgroup or under labels that nobody reads any more.
fn label_all(tree: &Tree, outside: &[Outside], maps: &Maps) -> Result<(), EnforceError> {
    for directory in tree.workloads()? {
        let flags = task_flag::ARMED;
        label::label_processes(&maps.tasks, directory.id, &directory.path, flags)?;
    }
    for workload in outside {
        if workload.open()?.is_some() {
            label::label_processes(&maps.tasks, workload.id, &workload.path, 0)?;
        }
    }
    Ok(())
}

/// The programs' log. Losing it loses words, never an enforcement: its absence is no error.
fn programs_log(object: &mut aya::Ebpf) -> Option<Flush> {
    let mut logger = aya_log::EbpfLogger::init(object).ok()?;
    Some(Box::new(move || logger.flush()))
}

/// Before Linux 5.11 maps count against this limit; it may not be raised where that no longer matters.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _refused_where_not_needed = setrlimit(Resource::Memlock, unlimited);
}
