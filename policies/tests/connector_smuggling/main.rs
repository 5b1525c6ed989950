//! Requests that a server could read otherwise than we do: each is refused, and by its name.
//! Every table has a control: the same request in its plain form is the call that it looks like.
//! INVARIANT: no request in these tables becomes a call.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod bodies;
mod heads;
mod wire;
