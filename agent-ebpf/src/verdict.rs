//! From a result to what the kernel wants to hear; counting each refusal and telling user space about some.
//! On the path: the last lines of every program.
//! INVARIANT: every `Err` becomes "no", is counted exactly, and is sent as an event at most 16 times a second per kind and CPU.

use agent_abi::{Address, EVENTS_PER_SECOND, Event, refusal};
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::warn;

use crate::maps::{EVENT_RATE, EVENTS, REFUSALS};

/// One of [`agent_abi::refusal`].
#[derive(Clone, Copy)]
pub struct Refusal(pub u32);

/// What a refused program knew about its subject; zero where it knew nothing.
#[derive(Clone, Copy, Default)]
pub struct Subject {
    pub workload: u64,
    pub addr: Address,
    pub port: u16,
    pub family: u16,
    pub protocol: u32,
}

pub const ALLOW: i32 = 1;
pub const REFUSE: i32 = 0;

/// The return value of a cgroup program: 1 lets through, 0 is EPERM (or a dropped packet).
#[inline(always)]
pub fn conclude<C: EbpfContext>(ctx: &C, result: Result<(), Refusal>, subject: &Subject) -> i32 {
    match result {
        Ok(()) => ALLOW,
        Err(refused) => {
            report(ctx, refused, subject);
            REFUSE
        }
    }
}

/// Counts a refusal, and sends it as an event unless too many of its kind went before or it is mere noise.
#[inline(always)]
pub fn report<C: EbpfContext>(ctx: &C, refused: Refusal, subject: &Subject) {
    let Refusal(kind) = refused;
    if let Some(count) = REFUSALS.get_ptr_mut(kind) {
        // SAFETY: a per-CPU slot; the program is not preempted by another one of this CPU that counts the same kind twice.
        unsafe { *count += 1 };
    }
    // The C library's address sorting makes one of these for each name it looks up.
    if kind == refusal::DATAGRAM_NAME || !within_rate(kind) {
        return;
    }
    if kind == refusal::MAP_FULL {
        warn!(ctx, "a map is full: refused workload {}", subject.workload);
    }
    let event = Event {
        workload: subject.workload,
        addr: subject.addr,
        kind,
        protocol: subject.protocol,
        port: subject.port,
        family: subject.family,
        pad: 0,
    };
    // NOTE: a full ring loses the event, never the count.
    let _lost = EVENTS.output::<Event>(&event, 0);
}

#[inline(always)]
fn within_rate(kind: u32) -> bool {
    let Some(rate) = EVENT_RATE.get_ptr_mut(kind) else {
        return false;
    };
    // SAFETY: no pointers are passed.
    let second = unsafe { bpf_ktime_get_ns() } / 1_000_000_000;
    // SAFETY: a non-null slot of this CPU.
    let rate = unsafe { &mut *rate };
    if rate.second != second {
        rate.second = second;
        rate.count = 0;
    }
    rate.count += 1;
    rate.count <= EVENTS_PER_SECOND
}
