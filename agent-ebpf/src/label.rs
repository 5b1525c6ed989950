//! The sticky label: a task that was ever in a workload stays that workload's, wherever it is moved to, and so does what it starts.
//! On the path: before any socket; every program that asks who a task is asks here, and a task outside its own cgroup gets nothing.
//! INVARIANT: a label is written once, by entering a workload or by birth, and never changes; its flags only ever take more away, at exec.

use core::ffi::c_void;

use agent_abi::{Config, Task, refusal, task_flag};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_uid_gid;
use aya_ebpf::helpers::generated::bpf_send_signal;
use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};

use crate::kernel::{self, Cgroup};
use crate::maps::{self, IN_NONE, TASKS};
use crate::verdict::{Refusal, Subject, report};

/// `CLONE_INTO_CGROUP`, Linux 5.7.
const INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGKILL: u32 = 9;
const EPERM: i32 = 1;

/// Who the current task is.
#[derive(Clone, Copy)]
pub enum Standing {
    /// Nobody's: it is let through everywhere.
    Free,
    /// A workload's, in its cgroup; 0 is a governed task in no workload.
    Of(u64),
    /// A workload's, outside its cgroup.
    Strayed(u64),
}

/// A process was moved: one that comes into a workload gets its label. What leaves one is stopped, if a workload's own
/// process did that; if somebody outside did, it is refused everything from here on.
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn label_attach(ctx: BtfTracePointContext) -> i32 {
    let Some(config) = maps::unpublished_config() else {
        return 0;
    };
    // The leader of the process, or a single thread.
    let task: *mut c_void = ctx.arg(2);
    let here = workload_at(config, task);
    let Some(label) = TASKS.get(task) else {
        if here != 0 {
            // Who moves itself, does so to execute something: its privileges end there. Another is what it is already.
            let flags = if is_current(task) {
                on_arrival(here)
            } else {
                task_flag::ARMED
            };
            write(&ctx, task, here, flags);
        }
        return 0;
    };
    let workload = label.read().workload;
    if workload != here {
        refuse(&ctx, workload);
        if of_current().workload != 0 {
            kill();
        }
    }
    0
}

/// A task was born, and did not run yet: it has its parent's label, or that of the cgroup it is born in.
#[btf_tracepoint(function = "task_newtask")]
pub fn label_birth(ctx: BtfTracePointContext) -> i32 {
    let Some(config) = maps::unpublished_config() else {
        return 0;
    };
    let child: *mut c_void = ctx.arg(0);
    let here = workload_at(config, child);
    let parent = of_current();
    if parent.workload == 0 {
        if here != 0 {
            write(&ctx, child, here, on_birth(here));
        }
        return 0;
    }
    write(&ctx, child, parent.workload, parent.flags);
    if parent.workload != here {
        refuse(&ctx, parent.workload);
        kill();
    }
    0
}

/// A program is about to be executed (Linux 6.10). The kernel makes the thread that does it the first of its process, and
/// frees the one that was; a label that only that one had would go with it.
#[btf_tracepoint(function = "sched_prepare_exec")]
pub fn label_keep(ctx: BtfTracePointContext) -> i32 {
    keep(&ctx);
    0
}

/// The same on any kernel with BPF LSM; and a task outside its workload's cgroup executes nothing.
#[lsm(hook = "bprm_check_security")]
pub fn execute(ctx: LsmContext) -> i32 {
    if let Standing::Strayed(workload) = standing() {
        refuse(&ctx, workload);
        return -EPERM;
    }
    keep(&ctx);
    0
}

/// A program was executed: from here on it is the workload's own, not the launcher's.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn label_exec(ctx: BtfTracePointContext) -> i32 {
    match standing() {
        Standing::Free | Standing::Of(0) => {}
        Standing::Of(workload) => {
            // systemd and container runtimes execute helpers of their own in the cgroup, and need their privileges there;
            // what they start in the end is told by PR_SET_NO_NEW_PRIVS, where they are told to set it.
            let is_ready = !maps::is_outside(workload) || kernel::no_new_privileges();
            write(
                &ctx,
                kernel::current(),
                workload,
                if is_ready { task_flag::ARMED } else { 0 },
            );
            if let Some(label) = TASKS.get(kernel::current()) {
                let before = label.read();
                let is_helper = before.flags & task_flag::BORN != 0 && !is_ready && is_root();
                let over = if is_helper {
                    task_flag::BORN
                } else {
                    task_flag::BORN | task_flag::MANAGER
                };
                label.write(Task {
                    flags: before.flags & !over,
                    ..before
                });
            }
        }
        Standing::Strayed(workload) => {
            refuse(&ctx, workload);
            kill();
        }
    }
    0
}

/// A workload's task starts nothing in another cgroup, and one outside its cgroup starts nothing at all.
#[lsm(hook = "task_alloc")]
pub fn task_alloc(ctx: LsmContext) -> i32 {
    let flags: u64 = ctx.arg(1);
    let workload = match standing() {
        Standing::Free => return 0,
        Standing::Of(_) if flags & INTO_CGROUP == 0 => return 0,
        Standing::Of(workload) | Standing::Strayed(workload) => workload,
    };
    refuse(&ctx, workload);
    -EPERM
}

/// Who the current task is, by its label and by where it is.
#[inline(always)]
pub fn standing() -> Standing {
    let Some(config) = maps::unpublished_config() else {
        return Standing::Free;
    };
    let here = maps::current_place(config);
    let label = of_current().workload;
    if label != 0 && label != here {
        return Standing::Strayed(label);
    }
    match here {
        0 => Standing::Free,
        IN_NONE => Standing::Of(0),
        workload => Standing::Of(workload),
    }
}

/// The label of the current task: its own, or its process's where a whole process was labelled at once. All-zero is none.
#[inline(always)]
pub fn of_current() -> Task {
    if let Some(own) = TASKS.get(kernel::current()) {
        return own.read();
    }
    match TASKS.get(kernel::current_leader()) {
        Some(label) => label.read(),
        None => Task::default(),
    }
}

/// Whether the current task is still its service manager's or runtime's own: in a cgroup elsewhere, before it executes the workload.
#[inline(always)]
pub fn is_managers() -> bool {
    of_current().flags & task_flag::MANAGER != 0
}

/// Who comes into a unit's or container's cgroup by itself is its manager's child, until it executes something.
#[inline(always)]
fn on_arrival(workload: u64) -> u32 {
    if maps::is_outside(workload) {
        task_flag::MANAGER
    } else {
        0
    }
}

/// The same for who is born there: what it executes first may be its manager's, too.
#[inline(always)]
fn on_birth(workload: u64) -> u32 {
    if maps::is_outside(workload) {
        task_flag::MANAGER | task_flag::BORN
    } else {
        0
    }
}

/// Whether the current task's real uid is the host's root.
#[inline(always)]
fn is_root() -> bool {
    bpf_get_current_uid_gid() as u32 == 0
}

/// Gives the current task a label of its own, where it has its process's.
#[inline(always)]
fn keep<C: EbpfContext>(ctx: &C) {
    let label = of_current();
    if label.workload != 0 {
        write(ctx, kernel::current(), label.workload, label.flags);
    }
}

/// Counts a task that is where it must not be.
#[inline(always)]
pub fn refuse<C: EbpfContext>(ctx: &C, workload: u64) {
    let subject = Subject {
        workload,
        ..Subject::default()
    };
    report(ctx, Refusal(refusal::LABEL), &subject);
}

/// Labels a task, or adds flags to its label.
#[inline(always)]
fn write<C: EbpfContext>(ctx: &C, task: *mut c_void, workload: u64, flags: u32) {
    match TASKS.make(task) {
        Ok(slot) => {
            let before = slot.read();
            slot.write(Task {
                workload,
                flags: before.flags | flags,
                pad: 0,
            });
        }
        // It is governed by where it is; what next asks for its label there makes it.
        Err(full) => {
            let subject = Subject {
                workload,
                ..Subject::default()
            };
            report(ctx, full, &subject);
        }
    }
}

/// The workload that a task, which need not be the current one, is in by its cgroup; 0 is none.
#[inline(always)]
fn workload_at(config: &Config, task: *mut c_void) -> u64 {
    let cgroup = Cgroup::of(task);
    match maps::place(config, |level| cgroup.ancestor(level)) {
        IN_NONE => 0,
        id => id,
    }
}

#[inline(always)]
fn is_current(task: *mut c_void) -> bool {
    task == kernel::current() || task == kernel::current_leader()
}

/// Ends the current process before it runs another instruction of its own.
#[inline(always)]
fn kill() {
    // SAFETY: no pointers are passed. The init process cannot be killed, and is nobody's.
    let _never_init = unsafe { bpf_send_signal(SIGKILL) };
}
