//! The life of a whole daemon, from outside: watched, switched off, panicked, killed, restarted; agents are at work meanwhile.
//! Root, eBPF and cgroup v2: a daemon of its own per test, agents started by `sluice run`.
//! INVARIANT: what an agent must not reach is a server that counts, and is first seen to be reached by somebody ungoverned.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test helper that cannot go on fails its test"
)]
#![allow(
    dead_code,
    reason = "the puppet and what it needs serve three test programs; each uses its part"
)]

#[path = "life/daemon.rs"]
mod daemon;
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

#[path = "life/attached.rs"]
mod attached;
#[path = "life/full.rs"]
mod full;
#[path = "life/refusals.rs"]
mod refusals;
#[path = "life/restart.rs"]
mod restart;
#[path = "life/switches.rs"]
mod switches;
#[path = "life/watchdog.rs"]
mod watchdog;

/// Not a test: the body of the processes that the tests start.
#[test]
#[ignore = "the body of the processes that the other tests start"]
fn role() {
    puppet::obey();
}
