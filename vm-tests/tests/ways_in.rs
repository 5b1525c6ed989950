//! The ways in, each with a whole instance: own uid, own network namespace, containers, units, running trees.
//! The vendor's stand-in on the host says what arrived; the workload says what it saw.
//! Invariant: every test first shows that the same act works for somebody who is not governed that way.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

#[path = "ways_in/adopted.rs"]
mod adopted;
#[path = "ways_in/bundle.rs"]
mod bundle;
#[path = "ways_in/container.rs"]
mod container;
#[path = "ways_in/elsewhere.rs"]
mod elsewhere;
#[path = "ways_in/isolated.rs"]
mod isolated;
#[path = "ways_in/own_uid.rs"]
mod own_uid;
#[path = "ways_in/podman.rs"]
mod podman;
#[path = "ways_in/rules.rs"]
mod rules;
#[path = "ways_in/shell.rs"]
mod shell;
#[path = "ways_in/systemd.rs"]
mod systemd;
#[path = "ways_in/unit.rs"]
mod unit;

use vm_tests::demo::Stage;

/// Whom everything runs as.
pub(crate) const AGENT: &str = "acme/support";

/// A call that the agent may make, as curl's last lines: the body and the status.
pub(crate) const BALANCE: &str = "https://api.stripe.com/v1/balance";

/// An instance that serves, and its vendors.
pub(crate) fn stage() -> Stage {
    let mut stage = Stage::set("2s").unwrap();
    stage.open().unwrap();
    stage
}

/// How many calls reached the vendor.
pub(crate) fn arrived(stage: &Stage) -> usize {
    stage.upstream.received("GET", "/v1/balance").len()
}
