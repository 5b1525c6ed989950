//! Test support: a whole Sluice instance in a temporary place, stand-ins for the vendors it calls, and clients of theirs.
//! Drives the product as its users do, through the `sluice` binary alone; depends on none of our crates.
//! Invariant: whatever an instance made is gone when it is dropped, and what a killed run left is removed by the next.
#![deny(unsafe_code)]

pub mod bench;
pub mod clients;
pub mod conformance;
pub mod demo;
pub mod escape;
pub mod instance;
pub mod leftovers;
pub mod needs;
pub mod output;
pub mod patience;
pub mod pki;
pub mod rounds;
pub mod upstream;
