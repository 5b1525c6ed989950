//! Security properties of the kernel side, each against the running kernel: one instance, cgroups and pins of its own per test.
//! Run as root with proc, sys and cgroup2 mounted; nothing else is assumed.
//! INVARIANT: each property has a positive control: the same act without governance is first seen to succeed.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test helper that cannot go on fails its test"
)]
#![allow(
    dead_code,
    reason = "the modules below serve two test programs; each uses its part"
)]

#[path = "kernel_side/host.rs"]
mod host;
#[path = "kernel_side/net.rs"]
mod net;
#[path = "kernel_side/puppet.rs"]
mod puppet;
#[path = "kernel_side/ring.rs"]
mod ring;
#[path = "kernel_side/task.rs"]
mod task;

#[path = "kernel_side/adoption.rs"]
mod adoption;
#[path = "kernel_side/foreign.rs"]
mod foreign;
#[path = "kernel_side/inbound.rs"]
mod inbound;
#[path = "kernel_side/label.rs"]
mod label;
#[path = "kernel_side/limits.rs"]
mod limits;
#[path = "kernel_side/lsm.rs"]
mod lsm;
#[path = "kernel_side/names.rs"]
mod names;
#[path = "kernel_side/options.rs"]
mod options;
#[path = "kernel_side/origin.rs"]
mod origin;
#[path = "kernel_side/outside.rs"]
mod outside;
#[path = "kernel_side/privilege.rs"]
mod privilege;
#[path = "kernel_side/refusal.rs"]
mod refusal;
#[path = "kernel_side/upkeep.rs"]
mod upkeep;

/// Not a test: the body of the processes that the tests start, in their own cgroups and with their own user.
#[test]
#[ignore = "the body of the processes that the other tests start"]
fn role() {
    puppet::obey();
}
