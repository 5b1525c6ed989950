//! `sluice daemon`: the enforcer process, the proxy process it supervises, and what they say to each other.
//! The enforcer is root and never parses a byte that an agent wrote; the proxy process parses them and has no privilege.
//! INVARIANT: the ports are published last, and only while the listeners behind them are ours.

#![forbid(unsafe_code)]

mod channel;
pub mod protocol;

pub use channel::{Channel, ChannelError};
