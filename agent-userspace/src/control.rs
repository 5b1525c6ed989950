//! The control socket: how a person (or a script) on this host asks the running daemon for something.
//! Served in the proxy process on `<runtime>/control.sock`; the command line is the client.
//! INVARIANT: who asks is what the kernel says of the peer; a process inside a governed cgroup is always refused.

mod answer;
mod client;
mod peer;
mod protocol;
mod report;
mod server;
mod view;

pub(crate) use answer::{Change, change, entries, export, log_tenant, show};
pub use client::{Client, ClientError, Part};
pub(crate) use peer::PeerRefused;
pub use protocol::{
    AuditFilter, CaRoot, CaStep, ErrorCode, ErrorReply, MAX_REQUEST, Reply, Request, SecretText,
};
pub use report::{
    AgentReport, DoctorReport, FaultsReport, ReloadReport, StatusReport, SwitchReport,
    WorkloadReport,
};
pub(crate) use server::serve;
pub use view::{ApprovalView, AskedBy};
