//! What a governed task may not do to others and to the kernel, where the kernel runs BPF LSM programs.
//! On the path: beside it; the launcher's seccomp filter and dropped capabilities say the same, and only to what was launched.
//! INVARIANT: who is not governed is let through after one look; the launcher's own child keeps its privileges until it executes.

use agent_abi::{refusal, task_flag};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::label::{Standing, of_current, refuse, standing};
use crate::lsm::{EPERM, deny};
use crate::verdict::Refusal;

/// `PTRACE_MODE_ATTACH`: also asked for by pidfd_getfd, process_vm_writev and /proc/<pid>/mem.
const ATTACH: u32 = 2;
/// `CAP_OPT_NOAUDIT`: the kernel asks for itself, not because the task wants something; said no, and not counted.
const NO_AUDIT: u32 = 2;

/// Capabilities that reach past a workload's own files and processes (linux/capability.h).
const REFUSED: u64 = bits(&[
    2,  // DAC_READ_SEARCH: files by handle, outside its mounts
    12, // NET_ADMIN
    13, // NET_RAW
    16, // SYS_MODULE
    17, // SYS_RAWIO
    19, // SYS_PTRACE
    20, // SYS_PACCT
    21, // SYS_ADMIN
    22, // SYS_BOOT
    25, // SYS_TIME
    27, // MKNOD
    30, // AUDIT_CONTROL
    32, // MAC_OVERRIDE
    33, // MAC_ADMIN
    34, // SYSLOG
    35, // WAKE_ALARM
    37, // AUDIT_READ
    38, // PERFMON
    39, // BPF
    40, // CHECKPOINT_RESTORE
]);

/// A workload's process takes nothing out of another process, nor puts anything in.
#[lsm(hook = "ptrace_access_check")]
pub fn ptrace_access_check(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if mode & ATTACH == 0 {
        return 0;
    }
    act(&ctx, refusal::TASK)
}

#[lsm(hook = "bpf")]
pub fn bpf_call(ctx: LsmContext) -> i32 {
    act(&ctx, refusal::TASK)
}

/// Asked only where the task has the capability. The label decides alone: whoever has it executed a program in a workload.
#[lsm(hook = "capable")]
pub fn no_capability(ctx: LsmContext) -> i32 {
    let (capability, options): (u32, u32) = (ctx.arg(2), ctx.arg(3));
    if capability > 63 || (1 << capability) & REFUSED == 0 {
        return 0;
    }
    let label = of_current();
    if label.flags & task_flag::ARMED == 0 {
        return 0;
    }
    if options & NO_AUDIT != 0 {
        return -EPERM;
    }
    deny(&ctx, Refusal(refusal::CAPABILITY), label.workload)
}

/// A thread of the kernel's that goes on working when its task is judged elsewhere, or is gone.
#[lsm(hook = "uring_sqpoll")]
pub fn uring_sqpoll(ctx: LsmContext) -> i32 {
    act(&ctx, refusal::URING)
}

/// Work under credentials that another task registered.
#[lsm(hook = "uring_override_creds")]
pub fn uring_override_creds(ctx: LsmContext) -> i32 {
    act(&ctx, refusal::URING)
}

/// Commands to drivers and sockets that no other hook sees (setsockopt, pass-through to devices).
#[lsm(hook = "uring_cmd")]
pub fn uring_cmd(ctx: LsmContext) -> i32 {
    act(&ctx, refusal::URING)
}

#[inline(always)]
fn act(ctx: &LsmContext, kind: u32) -> i32 {
    match standing() {
        Standing::Free => 0,
        Standing::Of(workload) => deny(ctx, Refusal(kind), workload),
        Standing::Strayed(workload) => {
            refuse(ctx, workload);
            -EPERM
        }
    }
}

const fn bits(numbers: &[u32]) -> u64 {
    let (mut bits, mut index) = (0, 0);
    while index < numbers.len() {
        #[expect(
            clippy::indexing_slicing,
            reason = "in range, and computed by the compiler"
        )]
        let number = numbers[index];
        bits |= 1 << number;
        index += 1;
    }
    bits
}
