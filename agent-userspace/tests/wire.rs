//! What would leave the host, seen on a TUN device: apart from `kernel_side` because a bare kernel has no /dev/net/tun.
//! Run as root with proc, sys, cgroup2 and the tun driver.
//! INVARIANT: the detector is first seen to catch the same trick by a process that is not governed.

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
#[path = "kernel_side/wire.rs"]
mod wire;

/// Not a test: the body of the processes that the tests start.
#[test]
#[ignore = "the body of the processes that the other tests start"]
fn role() {
    puppet::obey();
}
