//! Crate `mitm-proxy`: the path of one request of an agent, from its connection to the answer.
//! It stands between the kernel side, which says who connects and where to, and upstream; `serve` tells the story.
//! INVARIANT: what is unknown, ambiguous, late or failed is refused with a named reason; nothing is passed through unread.
//!
//! Dependencies: `policies`, `audit`, `vault`. Never aya: who a connection belongs to comes in through [`Origins`].
//!
//! # Reading the code
//! `serve` is the path, one line per stage: `accept` and `tls` (whose connection, which name), `request` (bytes to one
//! canonical request, with `wire` as the second reader), `capability`, `approvals`, then the ledger and the vault, then
//! `upstream` and `response`. `refusal` is the only way of saying no. `names` is DNS.
#![forbid(unsafe_code)]

mod accept;
mod approvals;
mod body;
mod capability;
mod clock;
mod coding;
mod dial;
mod dropped;
mod frames;
mod grpc;
mod handshake;
pub mod meter;
mod names;
mod opaque;
mod origin;
mod pool;
mod probe;
mod proxy;
mod refusal;
mod request;
mod response;
mod serve;
mod settings;
mod share;
mod stall;
mod tls;
mod trailers;
mod tunnel;
mod upstream;
mod websocket;
mod wire;
mod workload;

pub use approvals::{AnswerFailure, Approvals};
pub use meter::{CallMeasure, Decided, Meter, NoMeter};
pub use names::pool::PoolError;
pub use origin::{Origin, Origins};
pub use probe::PROBE_HOST;
pub use proxy::{Further, Listeners, Proxy, StartError};
pub use settings::{Limits, Pools, Settings};
pub use tls::verify::RootsError;
pub use tls::{CaError, Root};
pub use workload::{Way, Workload, Workloads};
