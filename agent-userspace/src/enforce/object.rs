//! The embedded eBPF object: its maps made or taken over from pins, its values typed.
//! Place on the path: loaded once when a daemon starts; the maps are how it speaks to the kernel side from then on.
//! INVARIANT: a pinned map is used only if its type and sizes are exactly this version's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use agent_abi::{Address, Config, WorkloadState, mapped};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo, MapType, PerCpuArray};
use aya::{Ebpf, EbpfLoader, Pod};

use super::error::EnforceError;
use super::pins::Pins;
use super::types;

/// The kernel side, built from `agent-ebpf` by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/agent-ebpf.o"));

/// A value of `agent-abi` as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Wire<T>(pub(super) T);

// SAFETY: `#[repr(C)]`, integers only, explicit padding: any bytes are a value, and a value has no other bytes.
unsafe impl Pod for Wire<Config> {}
// SAFETY: as above.
unsafe impl Pod for Wire<WorkloadState> {}

/// The maps that are pinned, with what each must look like: key bytes, value bytes, entries.
pub(super) const PINNED: [(&str, MapType, usize, usize, u32); 10] = [
    (
        "ACCEPTED",
        MapType::SkStorage,
        4,
        size_of::<agent_abi::Origin>(),
        0,
    ),
    ("CONFIG", MapType::Array, 4, size_of::<Config>(), 1),
    ("EVENTS", MapType::RingBuf, 0, 0, agent_abi::EVENTS_BYTES),
    (
        "EVENT_RATE",
        MapType::PerCpuArray,
        4,
        size_of::<agent_abi::Rate>(),
        agent_abi::refusal::COUNT,
    ),
    (
        "FLOWS",
        MapType::LruHash,
        size_of::<agent_abi::FlowKey>(),
        size_of::<agent_abi::Origin>(),
        agent_abi::MAX_FLOWS,
    ),
    ("LITERALS", MapType::Hash, 16, 1, agent_abi::MAX_LITERALS),
    (
        "REFUSALS",
        MapType::PerCpuArray,
        4,
        8,
        agent_abi::refusal::COUNT,
    ),
    (
        "SOCKETS",
        MapType::SkStorage,
        4,
        size_of::<agent_abi::Socket>(),
        0,
    ),
    (
        "TASKS",
        MapType::TaskStorage,
        4,
        size_of::<agent_abi::Task>(),
        0,
    ),
    (
        "WORKLOADS",
        MapType::Hash,
        8,
        size_of::<WorkloadState>(),
        agent_abi::MAX_WORKLOADS,
    ),
];

/// Creates the maps, or takes them over from their pins, and prepares the programs.
pub(super) fn load(pins: &Pins) -> Result<Ebpf, EnforceError> {
    let mut loader = EbpfLoader::new();
    // What programs read of kernel structures is in `places`: relocating them would read the kernel's types (megabytes) for nothing.
    loader.btf(None);
    // aya knows no task storage. Only programs use ours, and nothing here asks for a map of another type than it has.
    loader.allow_unsupported_maps();
    let places = types::places().unwrap_or_default();
    for (name, place) in [
        ("TASK_ATOMIC_FLAGS", &places.task_atomic_flags),
        ("TASK_GROUP_LEADER", &places.task_group_leader),
        ("TASK_CGROUPS", &places.task_cgroups),
        ("CSS_SET_DFL_CGRP", &places.css_set_dfl_cgrp),
        ("CGROUP_LEVEL", &places.cgroup_level),
        ("CGROUP_ANCESTORS", &places.cgroup_ancestors),
        ("CGROUP_KN", &places.cgroup_kn),
        ("KERNFS_NODE_ID", &places.kernfs_node_id),
    ] {
        loader.override_global(name, place, true);
    }
    for (name, kind, key, value, entries) in PINNED {
        let path = pins.path(name);
        if path.exists() {
            check(&path, kind, key, value, entries)?;
        }
        loader.map_pin_path(name, path);
    }
    loader.load(OBJECT).map_err(|source| EnforceError::Load {
        program: None,
        source: Box::new(source),
    })
}

/// aya takes over any pin of the right name; what it holds is checked here.
fn check(
    path: &Path,
    kind: MapType,
    key: usize,
    value: usize,
    entries: u32,
) -> Result<(), EnforceError> {
    let foreign = || EnforceError::PinForeign {
        path: path.to_owned(),
    };
    let info = MapInfo::from_pin(path).map_err(|_unreadable| foreign())?;
    let same = info.map_type().is_ok_and(|found| found == kind)
        && info.key_size() as usize == key
        && info.value_size() as usize == value
        && (info.max_entries() == entries
            || matches!(kind, MapType::SkStorage | MapType::TaskStorage));
    if same { Ok(()) } else { Err(foreign()) }
}

/// The maps that a running daemon writes and reads.
pub(super) struct Maps {
    pub(super) accepted: MapData,
    pub(super) flows: MapData,
    pub(super) tasks: MapData,
    config: Array<MapData, Wire<Config>>,
    literals: HashMap<MapData, Address, u8>,
    refusals: PerCpuArray<MapData, u64>,
    workloads: HashMap<MapData, u64, Wire<WorkloadState>>,
}

impl Maps {
    /// Opens the maps by their pins.
    pub(super) fn open(pins: &Pins) -> Result<Self, EnforceError> {
        Ok(Self {
            accepted: open(pins, "ACCEPTED")?,
            flows: open(pins, "FLOWS")?,
            tasks: open(pins, "TASKS")?,
            config: typed(pins, "CONFIG", Map::Array)?,
            literals: typed(pins, "LITERALS", Map::HashMap)?,
            refusals: typed(pins, "REFUSALS", Map::PerCpuArray)?,
            workloads: typed(pins, "WORKLOADS", Map::HashMap)?,
        })
    }

    pub(super) fn config(&self) -> Result<Config, EnforceError> {
        Ok(self
            .config
            .get(&0, 0)
            .map_err(EnforceError::map("CONFIG"))?
            .0)
    }

    pub(super) fn set_config(&mut self, config: Config) -> Result<(), EnforceError> {
        self.config
            .set(0, Wire(config), 0)
            .map_err(EnforceError::map("CONFIG"))
    }

    /// The workload's state; none if the kernel side does not know it.
    pub(super) fn workload(&self, id: u64) -> Result<Option<WorkloadState>, EnforceError> {
        match self.workloads.get(&id, 0) {
            Ok(Wire(state)) => Ok(Some(state)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(EnforceError::map("WORKLOADS")(error)),
        }
    }

    pub(super) fn workload_ids(&self) -> Result<Vec<u64>, EnforceError> {
        self.workloads
            .keys()
            .collect::<Result<_, _>>()
            .map_err(EnforceError::map("WORKLOADS"))
    }

    pub(super) fn set_workload(&mut self, id: u64, flags: u32) -> Result<(), EnforceError> {
        let state = Wire(WorkloadState { flags, pad: 0 });
        match self.workloads.insert(id, state, 0) {
            Ok(()) => Ok(()),
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                Err(EnforceError::WorkloadsFull)
            }
            Err(error) => Err(EnforceError::map("WORKLOADS")(error)),
        }
    }

    pub(super) fn remove_workload(&mut self, id: u64) -> Result<(), EnforceError> {
        match self.workloads.remove(&id) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(EnforceError::map("WORKLOADS")(error)),
        }
    }

    /// Makes the set of literal addresses exactly `wanted`: additions first, so that none is missing in between, unless
    /// there is no room for both. More than there is room for change nothing.
    pub(super) fn set_literals(&mut self, wanted: &[IpAddr]) -> Result<(), EnforceError> {
        let wanted: BTreeSet<Address> = wanted.iter().map(|ip| address(*ip)).collect();
        let present: BTreeSet<Address> = self
            .literals
            .keys()
            .collect::<Result<_, _>>()
            .map_err(EnforceError::map("LITERALS"))?;
        let room = agent_abi::MAX_LITERALS as usize;
        if wanted.len() > room {
            return Err(EnforceError::LiteralsFull);
        }
        let former: Vec<Address> = present.difference(&wanted).copied().collect();
        let crowded = wanted.union(&present).count() > room;
        if crowded {
            self.remove_literals(&former)?;
        }
        for addr in &wanted {
            self.literals
                .insert(addr, 1, 0)
                .map_err(EnforceError::map("LITERALS"))?;
        }
        if !crowded {
            self.remove_literals(&former)?;
        }
        Ok(())
    }

    fn remove_literals(&mut self, addresses: &[Address]) -> Result<(), EnforceError> {
        for addr in addresses {
            self.literals
                .remove(addr)
                .map_err(EnforceError::map("LITERALS"))?;
        }
        Ok(())
    }

    /// How often a refusal of this kind happened, over all CPUs.
    pub(super) fn refusals(&self, kind: u32) -> Result<u64, EnforceError> {
        let counts = self
            .refusals
            .get(&kind, 0)
            .map_err(EnforceError::map("REFUSALS"))?;
        Ok(counts.iter().sum())
    }
}

/// The ring buffer's map, for one reader.
pub(super) fn events(pins: &Pins) -> Result<aya::maps::RingBuf<MapData>, EnforceError> {
    let map = Map::RingBuf(open(pins, "EVENTS")?);
    map.try_into().map_err(EnforceError::map("EVENTS"))
}

fn open(pins: &Pins, name: &'static str) -> Result<MapData, EnforceError> {
    MapData::from_pin(pins.path(name)).map_err(EnforceError::map(name))
}

fn typed<T>(pins: &Pins, name: &'static str, wrap: fn(MapData) -> Map) -> Result<T, EnforceError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    wrap(open(pins, name)?)
        .try_into()
        .map_err(EnforceError::map(name))
}

/// An address as the kernel side keeps it.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => mapped(word4(v4)),
        IpAddr::V6(v6) => words(v6),
    }
}

/// The bytes of an address as a native word: network order in memory.
pub(super) fn word4(v4: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(v4.octets())
}

pub(super) fn words(v6: Ipv6Addr) -> Address {
    let bits = v6.to_bits();
    [96, 64, 32, 0].map(|shift| ((bits >> shift) as u32).to_be())
}

/// An address that the kernel side kept; a v4-mapped one is IPv4.
pub(crate) fn ip(addr: &Address) -> IpAddr {
    let bits = addr.iter().fold(0u128, |bits, word| {
        (bits << 32) | u128::from(u32::from_be(*word))
    });
    Ipv6Addr::from_bits(bits).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_bytes() {
        for text in [
            "1.2.3.4",
            "127.0.0.1",
            "::1",
            "2001:db8::1",
            "fd53:6c75:6963:65::7",
        ] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(ip(&address(addr)), addr, "{text}");
        }
        assert!(agent_abi::is_mapped(&address("1.2.3.4".parse().unwrap())));
        assert!(!agent_abi::is_mapped(&address("::1".parse().unwrap())));
    }
}
