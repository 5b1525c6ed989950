//! What agents' clients speak, and what comes of it: versions and edges of HTTP, WebSocket, gRPC, codings, hosts that speak no HTTP.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may panic, and so may what it is made of"
)]

#[path = "../support/mod.rs"]
mod support;

mod coding;
mod edge;
mod grpc;
mod opaque;
mod websocket;
