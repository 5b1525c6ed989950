//! What the path tells whoever counts: calls, refusals, durations, names, connections.
//! Place on the path: called at the same points where records are written, with the same reasons.
//! INVARIANT: measuring never blocks and never decides; no stage reads a metric.

use std::time::Duration;

use policies::{AgentId, CapabilityId, ConnectorId, Reason, Tenant};

/// A decided call, for counting.
#[derive(Clone, Copy, Debug)]
pub struct CallMeasure<'a> {
    /// The agent that asked.
    pub agent: &'a AgentId,
    /// The connector that the call was mapped by.
    pub connector: &'a ConnectorId,
    /// The capability that it was mapped to.
    pub capability: &'a CapabilityId,
    /// What policy said the first time it was asked.
    pub decision: Decided,
}

/// The three answers of policy, without their proofs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decided {
    /// May go.
    Allow,
    /// Refused.
    Deny,
    /// Needs a person.
    Hold,
}

impl Decided {
    /// The name used in records and as a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Hold => "hold",
        }
    }
}

/// A part of a call's life that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the last waiting approver's side: how long a held call waited.
    ApprovalWait,
    /// Mapping and deciding, without waiting for a body or a person.
    Decision,
    /// From departure to the head of the answer.
    Upstream,
    /// From the request's head to the end of the answer's body.
    Whole,
}

/// Addresses that a name may not lead to, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// IPv4 inside IPv6 that leads nowhere public: 6to4, Teredo, local-use NAT64.
    Embedded,
    /// Links and neighbours: 169.254.0.0/16 with its metadata services, fe80::/10.
    LinkLocal,
    /// This host.
    Loopback,
    /// A cloud's own services for its machines, at an address that looks public or is in a private range.
    Metadata,
    /// Groups, and broadcast.
    Multicast,
    /// Private networks, unique local addresses, shared address space.
    Private,
    /// Documentation, benchmarking, what is not assigned.
    Reserved,
    /// No address at all.
    Unspecified,
}

impl AddressKind {
    /// The name used as a metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::LinkLocal => "link_local",
            Self::Loopback => "loopback",
            Self::Metadata => "metadata",
            Self::Multicast => "multicast",
            Self::Private => "private",
            Self::Reserved => "reserved",
            Self::Unspecified => "unspecified",
        }
    }
}

/// Receives measurements; the daemon implements it over its metrics registry.
pub trait Meter: Send + Sync + 'static {
    /// A call was decided.
    fn call(&self, measure: &CallMeasure<'_>);
    /// Something was refused; `None` where the tenant or agent could not be known.
    fn refused(&self, tenant: Option<&Tenant>, agent: Option<&AgentId>, reason: Reason);
    /// A stage of a call took this long.
    fn stage(&self, stage: Stage, took: Duration);
    /// A name was asked for, and answered or not.
    fn name(&self, answered: bool);
    /// A name led to an address of this kind, which is never dialled.
    fn address_refused(&self, kind: AddressKind);
    /// A call was sent on a second connection, because the kept one had closed before anything of it was sent.
    fn retried(&self);
    /// Agent connections were opened (+1) or closed (-1).
    fn connections(&self, delta: i64);
}

/// A meter that forgets; for tests and tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMeter;

impl Meter for NoMeter {
    fn call(&self, _: &CallMeasure<'_>) {}
    fn refused(&self, _: Option<&Tenant>, _: Option<&AgentId>, _: Reason) {}
    fn stage(&self, _: Stage, _: Duration) {}
    fn name(&self, _: bool) {}
    fn address_refused(&self, _: AddressKind) {}
    fn retried(&self) {}
    fn connections(&self, _: i64) {}
}
