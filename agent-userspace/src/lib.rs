//! The Sluice daemon and command line: the only crate that wires things up, the only one that knows aya.
//! Depends on policies, audit, vault, mitm-proxy and agent-abi; nothing depends on it but its own binary.
//! INVARIANT: `unsafe` lives only in `enforce` and `origin`; files and environment are read only by `config`.

#![deny(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod enforce;
pub mod escapes;
pub mod layers;
pub mod metrics;
pub mod origin;
