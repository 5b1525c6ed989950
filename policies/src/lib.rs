//! Crate `policies`: connectors map requests to capabilities, Cedar decides them, approvals are a pure state machine.
//! Steps 5 and 6 of a request's path, and the types that every later step carries.
//! INVARIANT: pure. No async runtime, clock, I/O, randomness, or other crate of this workspace: all of that is the caller's.
#![forbid(unsafe_code)]

mod agent;
mod approval;
mod bundle;
mod call;
mod canonical;
mod case;
mod catalogue;
mod cedar;
mod connector;
mod decision;
mod diagnostic;
mod names;
mod peer;
mod processes;
mod reason;

pub use agent::{Agent, CapabilityPattern, Connection, Stage};
pub use approval::{Answer, AnswerError, Approval, ApprovalState, Grant, Verdict};
pub use bundle::{Bundle, Sources};
pub use call::{Auth, BodyNeed, Call, Mapping, Refused, RequestView, Risk, Strip, Value};
pub use case::{CaseReport, Mismatch, run_case};
pub use catalogue::Catalogue;
pub use cedar::{DeterminingPolicy, Explanation, NeededApproval, Ruling};
pub use connector::{Capability, Connector, ExampleResult, Param, ParamKind};
pub use decision::{Decision, Denied, Facts, Held, Permit};
pub use diagnostic::{Diagnostic, Diagnostics, Source};
pub use names::{
    AgentId, AgentName, ApprovalId, Approver, CapabilityId, CapabilityName, ConnectionName,
    ConnectorId, CredentialId, CredentialName, Digest, Endpoint, Group, Host, HostPattern,
    NameError, Owner, PolicyId, PolicyVersion, Tenant, Timestamp, WorkloadId,
};
pub use peer::{Peer, Pin};
pub use processes::{CgroupPattern, is_like};
pub use reason::Reason;
