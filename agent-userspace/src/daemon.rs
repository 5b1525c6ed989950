//! `sluice daemon`: the enforcer process, the proxy process it supervises, and what they say to each other.
//! The enforcer is root and never parses a byte that an agent wrote; the proxy process parses them and has no privilege.
//! INVARIANT: the ports are published last, and the enforcer keeps the listeners open for as long as it lives.

#![forbid(unsafe_code)]

mod admission;
mod appearing;
mod channel;
mod enforcer;
mod error;
mod events;
#[cfg(test)]
mod fuzz;
mod listeners;
mod namespaces;
mod places;
mod privileges;
pub mod protocol;
mod runs;
mod start;
mod supervise;
mod ways;
mod worker;

pub use channel::{Channel, ChannelError};
pub use error::DaemonError;
pub use listeners::open_for_parent;
pub use places::connect_to_enforcer;
pub use start::run;
pub(crate) use supervise::own_binary;
pub use worker::run as run_worker;
