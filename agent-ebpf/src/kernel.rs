//! The few fields of kernel structures that the label needs, at the places where the running kernel has them.
//! On the path: beside it; the loader writes the places, found in the kernel's own type information, before anything is loaded.
//! INVARIANT: only numbers are read (a read that fails gives none); the one pointer that is used, a task's leader, is of a type that the verifier knows.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;

// Bytes from the beginning of each structure. Each is a constant to the verifier: it reads them from a frozen map.
#[unsafe(no_mangle)]
static TASK_ATOMIC_FLAGS: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_GROUP_LEADER: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static TASK_CGROUPS: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static CSS_SET_DFL_CGRP: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_LEVEL: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_ANCESTORS: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static CGROUP_KN: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static KERNFS_NODE_ID: Global<u64> = Global::new(0);

/// The current task.
#[inline(always)]
pub fn current() -> *mut c_void {
    // SAFETY: no pointers are passed; there always is a current task.
    unsafe { bpf_get_current_task_btf() }.cast()
}

/// The first task of the current process: the one that the kernel names when it moves a whole process.
#[inline(always)]
pub fn current_leader() -> *mut c_void {
    let place = TASK_GROUP_LEADER.load() as usize;
    // SAFETY: a task is at least as long as its fields; the verifier knows the type of what lies there.
    unsafe {
        current()
            .byte_add(place)
            .cast::<*mut c_void>()
            .read_volatile()
    }
}

/// Whether the current task has renounced new privileges (PR_SET_NO_NEW_PRIVS), which cannot be taken back.
#[inline(always)]
pub fn no_new_privileges() -> bool {
    /// `PFA_NO_NEW_PRIVS`: the first bit.
    const BIT: u64 = 1;
    field::<u64>(current(), TASK_ATOMIC_FLAGS.load()).is_some_and(|flags| flags & BIT != 0)
}

/// The cgroup of a task in the unified hierarchy; good for as long as the program runs.
#[derive(Clone, Copy)]
pub struct Cgroup(*const c_void);

impl Cgroup {
    /// Where a task is, which need not be the current one.
    #[inline(always)]
    pub fn of(task: *mut c_void) -> Self {
        let set: Option<*const c_void> = field(task, TASK_CGROUPS.load());
        let cgroup = set.and_then(|set| field(set, CSS_SET_DFL_CGRP.load()));
        Self(cgroup.unwrap_or(ptr::null()))
    }

    /// The id of its ancestor at this level, itself included; 0 where it lies higher up.
    #[inline(always)]
    pub fn ancestor(self, level: u32) -> u64 {
        self.find(level).unwrap_or(0)
    }

    #[inline(always)]
    fn find(self, level: u32) -> Option<u64> {
        let own: u32 = field(self.0, CGROUP_LEVEL.load())?;
        if level > own {
            return None;
        }
        let place = CGROUP_ANCESTORS.load() + u64::from(level) * 8;
        let ancestor: *const c_void = field(self.0, place)?;
        let node: *const c_void = field(ancestor, CGROUP_KN.load())?;
        field(node, KERNFS_NODE_ID.load())
    }
}

#[inline(always)]
fn field<T>(structure: *const c_void, place: u64) -> Option<T> {
    if structure.is_null() {
        return None;
    }
    // SAFETY: the helper reads any address, and fails instead of faulting; callers ask for numbers and addresses only.
    unsafe { bpf_probe_read_kernel(structure.wrapping_byte_add(place as usize).cast::<T>()) }.ok()
}
