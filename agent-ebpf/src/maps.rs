//! The maps, and the only ways to read them: each lookup that fails is a refusal with a name.
//! On the path: every other file of the kernel side goes through here.
//! INVARIANT: nobody outside this file sees a null pointer of a map.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use agent_abi::{
    ABI_VERSION, Address, Config, EVENTS_BYTES, FlowKey, MAX_FLOWS, MAX_LITERALS, MAX_WORKLOADS,
    Origin, Rate, Socket, Task, WorkloadState, refusal, workload_flag,
};
use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock,
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_sk_storage_get, bpf_task_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};

use crate::verdict::Refusal;

#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

#[map]
static WORKLOADS: HashMap<u64, WorkloadState> = HashMap::with_max_entries(MAX_WORKLOADS, 0);

/// IP literals that some connection names: they may be dialled as they are.
#[map]
static LITERALS: HashMap<Address, u8> = HashMap::with_max_entries(MAX_LITERALS, 0);

/// Least recently used flows make room: their connections are refused by the proxy, which finds no origin.
#[map]
pub static FLOWS: LruHashMap<FlowKey, Origin> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

#[map]
pub static REFUSALS: PerCpuArray<u64> = PerCpuArray::with_max_entries(refusal::COUNT, 0);

#[map]
pub static EVENT_RATE: PerCpuArray<Rate> = PerCpuArray::with_max_entries(refusal::COUNT, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_BYTES, 0);

/// What a governed socket is; an accepted socket inherits it from its listener.
#[btf_map]
pub static SOCKETS: Storage<Socket, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> =
    Storage::new();

/// Where the peer of a socket that the proxy accepted wanted to go.
#[btf_map]
pub static ACCEPTED: Storage<Origin, { BPF_F_NO_PREALLOC as usize }> = Storage::new();

/// The sticky label of each task that was ever governed; `label` alone writes it.
#[btf_map]
pub static TASKS: TaskStorage<Task> = TaskStorage::new();

/// A task storage map; aya has none.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields describe the map to the loader and are never dereferenced.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value kept with `task`, if there is one.
    #[inline(always)]
    pub fn get(&'static self, task: *mut c_void) -> Option<Slot<T>> {
        self.ask(task, 0)
    }

    /// The value kept with `task`, made all-zero if there was none.
    #[inline(always)]
    pub fn make(&'static self, task: *mut c_void) -> Result<Slot<T>, Refusal> {
        // The same number in every kind of local storage.
        self.ask(task, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
            .ok_or(Refusal(refusal::MAP_FULL))
    }

    #[inline(always)]
    fn ask(&'static self, task: *mut c_void, flags: u64) -> Option<Slot<T>> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the verifier checks that `task` is a task.
        let value = unsafe { bpf_task_storage_get(map, task.cast(), ptr::null_mut(), flags) };
        NonNull::new(value.cast()).map(Slot)
    }
}

/// A socket storage map with flags; aya's own knows neither BPF_F_CLONE nor any program but sock_addr.
#[repr(C)]
pub struct Storage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields describe the map to the loader and are never dereferenced.
unsafe impl<T, const FLAGS: usize> Sync for Storage<T, FLAGS> {}

impl<T, const FLAGS: usize> Storage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value kept with `sk`, or the refusal that its absence means.
    #[inline(always)]
    pub fn get(&'static self, sk: *mut c_void, absent: u32) -> Result<Slot<T>, Refusal> {
        // SAFETY: the verifier checks that `sk` is a socket.
        let value = unsafe { bpf_sk_storage_get(self.as_ptr(), sk, ptr::null_mut(), 0) };
        NonNull::new(value.cast()).map(Slot).ok_or(Refusal(absent))
    }

    /// The value kept with `sk`, made all-zero if there was none.
    #[inline(always)]
    pub fn make(&'static self, sk: *mut c_void) -> Result<Slot<T>, Refusal> {
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as in `get`.
        let value = unsafe { bpf_sk_storage_get(self.as_ptr(), sk, ptr::null_mut(), create) };
        NonNull::new(value.cast())
            .map(Slot)
            .ok_or(Refusal(refusal::MAP_FULL))
    }

    #[inline(always)]
    fn as_ptr(&'static self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

/// A value in the storage of a socket or a task. Other programs may hold the same one: it is read and written whole, never borrowed.
#[derive(Clone, Copy)]
pub struct Slot<T>(NonNull<T>);

impl<T: Copy> Slot<T> {
    #[inline(always)]
    pub fn read(self) -> T {
        // SAFETY: the storage lives as long as the program runs, and any bytes are a value of these types.
        unsafe { self.0.read() }
    }

    #[inline(always)]
    pub fn write(self, value: T) {
        // SAFETY: as in `read`.
        unsafe { self.0.write(value) };
    }
}

impl Slot<Socket> {
    /// What the socket last asked for; nothing else is touched.
    #[inline(always)]
    pub fn set_origin(self, origin: Origin) {
        // SAFETY: as in `read`; the place is inside the value.
        unsafe { (&raw mut (*self.0.as_ptr()).origin).write(origin) };
    }

    /// The peer that was checked; nothing else is touched.
    #[inline(always)]
    pub fn set_peer(self, peer: Address, port: u32) {
        let socket = self.0.as_ptr();
        // SAFETY: as in `read`; both places are inside the value.
        unsafe {
            (&raw mut (*socket).peer).write(peer);
            (&raw mut (*socket).peer_port).write(port);
        }
    }
}

/// The published configuration. A zeroed, foreign or disabled one is a refusal.
#[inline(always)]
pub fn config() -> Result<&'static Config, Refusal> {
    let config = CONFIG.get(0).ok_or(Refusal(refusal::CONFIG))?;
    if config.version != ABI_VERSION || config.enabled != 1 {
        return Err(Refusal(refusal::CONFIG));
    }
    Ok(config)
}

/// The configuration, published or not: who is governed does not depend on the ports.
#[inline(always)]
pub fn unpublished_config() -> Option<&'static Config> {
    CONFIG.get(0).filter(|config| config.version == ABI_VERSION)
}

/// The workload of the current task, admitted and not switched off.
#[inline(always)]
pub fn current_workload(config: &Config) -> Result<u64, Refusal> {
    let workload = current_id(config);
    admitted(workload)?;
    Ok(workload)
}

/// The place of a governed task that is in no workload.
pub const IN_NONE: u64 = u64::MAX;

/// The workload's directory that the current task lies under, admitted or not; 0 is none.
#[inline(always)]
pub fn current_id(config: &Config) -> u64 {
    match current_place(config) {
        IN_NONE => 0,
        id => id,
    }
}

/// Whether the current task is in any workload's hands, admitted or not.
#[inline(always)]
pub fn is_governed(config: &Config) -> bool {
    current_place(config) != 0
}

/// Where the current task is: see [`place`].
#[inline(always)]
pub fn current_place(config: &Config) -> u64 {
    place(config, ancestor)
}

/// Where a task is, by the cgroups above it: the workload that it lies in, [`IN_NONE`] where it lies in none but under the
/// directory of all workloads, or 0 for who is not governed. Without workloads elsewhere that is one comparison for everybody
/// else. A number, not an `Option`: compilers compare what a `None` would hold, and the verifier sees it was never written.
#[inline(always)]
pub fn place(config: &Config, ancestor: impl Fn(u32) -> u64) -> u64 {
    let (level, agents) = (config.workload_level, config.agents);
    if level != 0 && agents != 0 && ancestor(level - 1) == agents {
        return match ancestor(level) {
            0 => IN_NONE,
            id => id,
        };
    }
    for level in config.outside_levels {
        if level == 0 {
            break;
        }
        let id = ancestor(u32::from(level));
        if is_outside(id) {
            return id;
        }
    }
    0
}

/// Whether it is a workload whose cgroup was there before it.
#[inline(always)]
pub fn is_outside(id: u64) -> bool {
    // SAFETY: the reference is not kept across an update of the map.
    unsafe { WORKLOADS.get(id) }.is_some_and(|state| state.flags & workload_flag::OUTSIDE != 0)
}

/// The cgroup at this level above the current task; 0 where there is none.
#[inline(always)]
fn ancestor(level: u32) -> u64 {
    // SAFETY: no pointers are passed.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// Refuses a workload that is unknown or switched off.
#[inline(always)]
pub fn admitted(workload: u64) -> Result<(), Refusal> {
    // SAFETY: the reference is not kept across an update of the map.
    let state = unsafe { WORKLOADS.get(workload) }.ok_or(Refusal(refusal::WORKLOAD_UNKNOWN))?;
    if state.flags & workload_flag::ADMITTED == 0 {
        return Err(Refusal(refusal::WORKLOAD_UNKNOWN));
    }
    if state.flags & workload_flag::DISABLED != 0 {
        return Err(Refusal(refusal::WORKLOAD_DISABLED));
    }
    Ok(())
}

/// A socket used by the workload that made it; anything else is foreign. The workload comes with it.
#[inline(always)]
pub fn own_socket(config: &Config, sk: *mut bpf_sock) -> Result<(Slot<Socket>, u64), Refusal> {
    let workload = current_workload(config)?;
    let socket = SOCKETS.get(sk.cast(), refusal::SOCKET_FOREIGN)?;
    if socket.read().origin.workload != workload {
        return Err(Refusal(refusal::SOCKET_FOREIGN));
    }
    Ok((socket, workload))
}

/// Whether some connection names this address literally.
#[inline(always)]
pub fn is_literal(addr: &Address) -> bool {
    // SAFETY: the reference is not kept.
    unsafe { LITERALS.get(addr) }.is_some()
}
