//! What an operator can set about the path, and the limits that protect it from its peers.
//! Place on the path: read by every stage; replaced as a whole on reload.
//! INVARIANT: every wait and every buffer on the path has a bound that is named here.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use policies::Endpoint;
use rustls_pki_types::CertificateDer;

use crate::share::{Bound, Of};

/// The settings of the path.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Fixed addresses (`host:port`) for endpoints; the certificate is still verified for the endpoint's name.
    pub connect_to: HashMap<Endpoint, String>,
    /// A proxy (`host:port`) that upstream is reached through by `CONNECT`, but for `connect_to`. It resolves the names.
    pub outbound: Option<String>,
    /// Name servers that are asked for upstreams instead of the host's.
    pub nameservers: Vec<SocketAddr>,
    /// Roots that upstream certificates may chain to, besides the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// How long a held call keeps its connection waiting for a person.
    pub hold: Duration,
    /// Where synthetic addresses come from.
    pub names: Pools,
    /// Bounds on time and memory.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_to: HashMap::new(),
            outbound: None,
            nameservers: Vec::new(),
            extra_roots: Vec::new(),
            hold: Duration::from_secs(10),
            names: Pools::default(),
            limits: Limits::default(),
        }
    }
}

/// The two prefixes that synthetic addresses are taken from: base address and prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// IPv4, at most /30; by default 198.18.0.0/15 (RFC 2544, never routed).
    pub v4: (Ipv4Addr, u8),
    /// IPv6, at most /126; by default a unique local /64 (RFC 4193).
    pub v6: (Ipv6Addr, u8),
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            v4: (Ipv4Addr::new(198, 18, 0, 0), 15),
            v6: (Ipv6Addr::new(0xfd53, 0x6c75, 0x6963, 0x65, 0, 0, 0, 0), 64),
        }
    }
}

/// Bounds on time and memory. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of all agents together; beyond, an agent has at most an even part of them, and more are dropped as
    /// `overloaded`.
    pub connections: usize,
    /// Open connections of one agent.
    pub connections_per_agent: usize,
    /// Calls under way of all agents together, from the request's head to the end of the answer; beyond, an agent has at
    /// most an even part of them, and more are refused as `overloaded`.
    pub calls: usize,
    /// Calls under way of one agent.
    pub calls_per_agent: usize,
    /// Bytes of bodies that were read ahead, of all agents together; beyond, an agent has at most an even part of them.
    pub buffered: usize,
    /// Bytes of bodies that were read ahead, of one agent.
    pub buffered_per_agent: usize,
    /// From accept to the end of the TLS handshake, first byte included.
    pub handshake: Duration,
    /// From the first byte of a request head (or an idle connection's last answer) to its last.
    pub head: Duration,
    /// Size of a request or response head.
    pub head_bytes: usize,
    /// Number of header fields in a head.
    pub headers: usize,
    /// HTTP/2 streams that one agent connection may have open.
    pub streams: u32,
    /// Largest body that is read ahead because a decision or an approval needs it.
    pub body_bytes: usize,
    /// Longest time that reading such a body may take.
    pub body: Duration,
    /// Largest body that is passed on at all.
    pub request_bytes: u64,
    /// Longest time that an agent may send nothing of a body that is awaited, or take nothing of an answer.
    pub stall: Duration,
    /// TCP connect to upstream, per address.
    pub connect: Duration,
    /// TLS (and HTTP/2) handshake with upstream.
    pub upstream_handshake: Duration,
    /// From the request's departure to the head of the answer. Long: model APIs think for minutes.
    pub answer: Duration,
    /// Longest silence inside a response body.
    pub silence: Duration,
    /// How long an unused upstream connection is kept.
    pub idle: Duration,
    /// Unused upstream connections kept per agent, endpoint and address.
    pub idle_connections: usize,
    /// The longest that the real address of a name is remembered; where its TTL is less, that counts.
    pub resolved: Duration,
    /// Calls of one agent that may wait for a person at the same time.
    pub pending_approvals: usize,
    /// Names that one tenant may have addresses for at a time.
    pub names: usize,
    /// Names of them that one agent was the first to ask for.
    pub names_per_agent: usize,
    /// How long after its last answer a name keeps its address: many clients keep answers for longer than they may.
    pub names_kept: Duration,
    /// Questions a second that one agent may ask, once its burst is used up.
    pub questions: u32,
    /// How long a TCP connection to the resolver may be silent, or a question on it be under way.
    pub questions_idle: Duration,
    /// Questions that one agent may ask at once.
    pub questions_burst: u32,
    /// How long open calls may take to finish after a stop.
    pub drain: Duration,
    /// Bytes in one direction of a connection on which no more HTTP is spoken: a WebSocket, or one to an opaque host.
    pub tunnel_bytes: u64,
    /// WebSocket frames in one direction.
    pub tunnel_frames: u64,
    /// Longest silence of such a connection, in both directions at once.
    pub tunnel_idle: Duration,
    /// Longest life of such a connection.
    pub tunnel_time: Duration,
}

impl Limits {
    pub(crate) fn bound(&self, of: Of) -> Bound {
        let (each, all) = match of {
            Of::Buffered => (self.buffered_per_agent, self.buffered),
            Of::Calls => (self.calls_per_agent, self.calls),
            Of::Connections => (self.connections_per_agent, self.connections),
        };
        Bound { each, all }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            connections_per_agent: 12_288,
            calls: 16_384,
            calls_per_agent: 4_096,
            buffered: 512 * 1024 * 1024,
            buffered_per_agent: 64 * 1024 * 1024,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            head_bytes: 64 * 1024,
            headers: 128,
            streams: 256,
            body_bytes: 1024 * 1024,
            body: Duration::from_secs(30),
            request_bytes: 16 * 1024 * 1024 * 1024,
            stall: Duration::from_secs(120),
            connect: Duration::from_secs(5),
            upstream_handshake: Duration::from_secs(10),
            answer: Duration::from_secs(600),
            silence: Duration::from_secs(600),
            idle: Duration::from_secs(60),
            idle_connections: 1024,
            resolved: Duration::from_secs(300),
            pending_approvals: 256,
            names: 16_384,
            names_per_agent: 4_096,
            names_kept: Duration::from_secs(600),
            questions: 100,
            questions_idle: Duration::from_secs(10),
            questions_burst: 1_000,
            drain: Duration::from_secs(5),
            tunnel_bytes: 1024 * 1024 * 1024,
            tunnel_frames: 1024 * 1024,
            tunnel_idle: Duration::from_secs(600),
            tunnel_time: Duration::from_secs(24 * 3600),
        }
    }
}
