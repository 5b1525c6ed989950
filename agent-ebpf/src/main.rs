//! The kernel side: programs on each governed cgroup that say where a workload's sockets may go.
//! The first step on the path of a request: connect(), sendmsg(), socket() -> allowed, redirected to the proxy, or refused.
//! INVARIANT: whatever is unknown, missing or full is refused; every refusal is counted under one name.

#![no_std]
#![no_main]
#![allow(unreachable_pub, reason = "the program macros need `pub`")]

mod connect;
mod datagram;
mod destination;
mod egress;
mod foreign;
mod ingress;
mod kernel;
mod label;
mod lsm;
mod maps;
mod option;
mod origin;
mod own;
mod packet;
mod privilege;
mod socket;
mod stray;
mod verdict;

/// Several helpers may be called by programs under a GPL-compatible licence only; Apache-2.0 code may be dual-licensed so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
