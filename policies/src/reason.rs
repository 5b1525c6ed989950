//! The closed list of ways to say no: one name each, used as status body, audit reason and metric label alike.
//! Every step of a request's path refuses with one of these and nothing else.
//! INVARIANT: alphabetical, and a name once published is not changed; scripts and alerts are written against them.

use std::fmt;
use std::str::FromStr;

/// Declares the enum, its names and its titles in one table, so that none can be forgotten.
macro_rules! reasons {
    ($($variant:ident, $name:literal, $title:literal;)*) => {
        /// Why a connection, a name or a call was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $title] $variant,)*
        }

        impl Reason {
            /// Every reason, in alphabetical order.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)*];

            /// The refusal's name, in snake case.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)*
                }
            }

            /// One sentence for people.
            pub fn title(self) -> &'static str {
                match self {
                    $(Reason::$variant => $title,)*
                }
            }
        }
    };
}

reasons! {
    AdmissionTimeout, "admission_timeout", "The proxy process did not answer in time, so nothing was started.";
    AdmissionUnavailable, "admission_unavailable", "The daemon cannot admit workloads right now.";
    AdoptStands, "adopt_stands", "The running tree could neither be governed nor put back; it stands still.";
    AdoptUnfit, "adopt_unfit", "What governs cannot be governed.";
    AgentDisabled, "agent_disabled", "The agent is switched off.";
    AgentUnknown, "agent_unknown", "No agent of this name is configured.";
    AlreadyGoverned, "already_governed", "The cgroup is a workload already.";
    AmbiguousRequest, "ambiguous_request", "The request can be read in more than one way.";
    AnswerNotTaken, "answer_not_taken", "The agent did not take its answer in time.";
    ApprovalDenied, "approval_denied", "A person denied this call.";
    ApprovalExpired, "approval_expired", "Nobody approved this call in time.";
    ApprovalRequired, "approval_required", "A person must approve this call first.";
    AuditUnavailable, "audit_unavailable", "The call cannot be recorded, so it is not made.";
    AuthorityMismatch, "authority_mismatch", "The request names another host than the connection does.";
    BodyTooLarge, "body_too_large", "The body is larger than may be read for a decision.";
    CgroupGone, "cgroup_gone", "The cgroup was gone before it was governed.";
    CgroupUnfit, "cgroup_unfit", "This cgroup cannot be governed.";
    CgroupUnknown, "cgroup_unknown", "This is no cgroup of the hierarchy that the daemon uses.";
    ClientCertificateRequired, "client_certificate_required", "The upstream wants a client certificate that the connection does not have.";
    CompressionBomb, "compression_bomb", "A compressed body grows beyond all measure.";
    ConnectMethod, "connect_method", "CONNECT is not offered.";
    CredentialUnavailable, "credential_unavailable", "The credential of this connection is missing or revoked.";
    EncryptedHello, "encrypted_hello", "The TLS client insists on hiding which name it asks for.";
    EnforcementBroken, "enforcement_broken", "The kernel side is not as it must be and could not be repaired.";
    EnforcementFailed, "enforcement_failed", "The kernel side could not be made ready for the workload.";
    HeldOpen, "held_open", "The running tree holds something open that leads out and cannot be closed from outside.";
    HostUnknown, "host_unknown", "No connection of the agent names this host.";
    KernelRefused, "kernel_refused", "The kernel refused a connection, a packet or a system call.";
    LiteralsFull, "literals_full", "Connections name more IP addresses than the kernel side has room for.";
    MalformedRequest, "malformed_request", "The request is not well formed.";
    NameNotAllowed, "name_not_allowed", "No connection of the agent allows this name.";
    NameRateLimited, "name_rate_limited", "The agent asks for names too fast.";
    NamesExhausted, "names_exhausted", "No address is left that could stand for another name.";
    NotAttached, "not_attached", "This cgroup is no attached workload.";
    NotHttp, "not_http", "The connection does not speak HTTP.";
    OriginUnknown, "origin_unknown", "The connection's workload or destination is not known.";
    Overloaded, "overloaded", "Too many calls are under way.";
    Panic, "panic", "Every agent of this host is stopped.";
    PeerRefused, "peer_refused", "Only root, outside of every workload, may start workloads.";
    PolicyDenied, "policy_denied", "Policy denies this call.";
    PolicyError, "policy_error", "A policy could not be evaluated, so the call is denied.";
    ProcessGone, "process_gone", "There is no such process any more.";
    ProtocolUnsupported, "protocol_unsupported", "This protocol is not supported.";
    QueryTypeRefused, "query_type_refused", "This kind of DNS question is not answered.";
    RequestTimeout, "request_timeout", "The request did not arrive in time.";
    ResponseEncoding, "response_encoding", "The response is encoded in a way that cannot be scrubbed.";
    Shutdown, "shutdown", "Sluice is stopping.";
    SniMismatch, "sni_mismatch", "The TLS server name is not the host that was dialled.";
    SniMissing, "sni_missing", "The TLS client named no server.";
    TlsHandshake, "tls_handshake", "The TLS handshake failed.";
    TlsRefusedByClient, "tls_refused_by_client", "The client does not trust the tenant's certificate authority.";
    TreeUnsettled, "tree_unsettled", "The running tree does not come to a stand.";
    TunnelLimit, "tunnel_limit", "The connection carried more, or lasted longer, than it may.";
    Unmapped, "unmapped", "No capability of the connection matches this request.";
    UpstreamAddress, "upstream_address", "The upstream's name leads to an address that is not public.";
    UpstreamCertificate, "upstream_certificate", "The upstream's certificate could not be verified.";
    UpstreamPin, "upstream_pin", "The upstream's certificate is not one that the connection pins.";
    UpstreamTimeout, "upstream_timeout", "The upstream did not answer in time.";
    UpstreamUnreachable, "upstream_unreachable", "The upstream could not be reached.";
    WorkloadAlive, "workload_alive", "Processes live in the workload, and a live process is not set free.";
    WorkloadsFull, "workloads_full", "As many workloads live as the kernel side has room for.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = crate::NameError;
    fn from_str(text: &str) -> Result<Reason, crate::NameError> {
        let known = Reason::ALL
            .iter()
            .find(|reason| reason.as_str() == text)
            .copied();
        known.ok_or_else(|| {
            crate::NameError::new("refusal", text, "one of the names that `sluice` documents")
        })
    }
}

crate::names::serde_as_text!(Reason);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_alphabetical_and_named_after_their_variant() {
        let names: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(names, sorted);
        for reason in Reason::ALL {
            let snake: String = format!("{reason:?}")
                .char_indices()
                .flat_map(|(at, c)| {
                    (at > 0 && c.is_uppercase())
                        .then_some('_')
                        .into_iter()
                        .chain(c.to_lowercase())
                })
                .collect();
            assert_eq!(reason.as_str(), snake);
            assert!(reason.title().ends_with('.'));
            assert_eq!(reason.as_str().parse::<Reason>().unwrap(), *reason);
        }
    }
}
