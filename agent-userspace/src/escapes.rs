//! The ways in which a governed process could send data out anyway, and which layers close each.
//! Read by `sluice doctor` and the metrics; the state of a class is derived from the layers' and kept nowhere.
//! INVARIANT: every layer that closes an escape is named here, and a class whose layers are not live is not called closed.

use serde::{Deserialize, Serialize};

use crate::layers::{LayerReport, LayerState};

/// What the launcher does for the processes that `sluice run` starts, whatever the kernel has.
type Launcher = Option<&'static str>;

/// Declares the classes in one table, so that none can be without a name, a title or its walls.
macro_rules! classes {
    ($($variant:ident, $name:literal, $title:literal, [$([$($layer:literal),*]),*], $launcher:expr;)*) => {
        /// One way out, as the escape suite tries it. The names are an interface.
        #[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum EscapeClass {
            $(#[doc = $title] $variant,)*
        }

        impl EscapeClass {
            /// Every class, in alphabetical order.
            pub const ALL: &'static [EscapeClass] = &[$(EscapeClass::$variant,)*];

            /// The name, in snake case; also the metric label.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(EscapeClass::$variant => $name,)* }
            }

            /// The technique, for people.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(EscapeClass::$variant => $title,)* }
            }

            /// Sets of layers; each set closes the class by itself when all of its layers are live.
            #[must_use]
            pub fn closed_by(self) -> &'static [&'static [&'static str]] {
                match self { $(EscapeClass::$variant => &[$(&[$($layer),*]),*],)* }
            }

            /// How the launcher narrows it for what it starts, if it does.
            #[must_use]
            pub fn launcher(self) -> Launcher {
                match self { $(EscapeClass::$variant => $launcher,)* }
            }
        }
    };
}

const NO_BPF: Launcher = Some("no CAP_BPF, bpf(2) filtered, bpffs hidden");
const NO_FAMILIES: Launcher = Some("system call filter of families, no CAP_NET_RAW");
const CLOSED_FDS: Launcher = Some("inherited descriptors closed");

classes! {
    CgroupMigration, "cgroup_migration", "leaving the cgroup: cgroup.procs, clone3 into another",
        [["label"]], Some("cgroup file systems hidden, cgroups owned by root");
    DeviceBinding, "device_binding", "SO_BINDTODEVICE, IP_PKTINFO, UNICAST_IF: loopback addresses on the wire", [["egress"]], None;
    ForeignSocket, "foreign_socket", "a socket of an outside process, handed over by SCM_RIGHTS or pidfd_getfd",
        [["foreign_socket", "lsm_socket"]], None;
    ForwardedPackets, "forwarded_packets", "veth with packet sockets, TUN with forwarding, tc mirred", [["lsm_capable"]],
        Some("no CAP_NET_ADMIN, no user namespaces, /dev/net/tun masked");
    Inbound, "inbound", "listening, and answering who connects from outside", [["egress", "ingress"]], None;
    InheritedRing, "inherited_ring", "an io_uring with a polling thread from before the start", [], CLOSED_FDS;
    InheritedSocket, "inherited_socket", "a socket made, connected or listening before the start",
        [["foreign_socket", "lsm_socket"]], CLOSED_FDS;
    IoUring, "io_uring", "io_uring: socket, connect, send", [["egress"], ["connect", "datagram", "socket"]],
        Some("io_uring_setup filtered");
    LoopbackDeputies, "loopback_deputies", "servers on this host's loopback, and the proxy's own ports", [["egress"], ["connect"]], None;
    Mptcp, "mptcp", "Multipath TCP", [["egress"], ["socket"]], None;
    MulticastJoin, "multicast_join", "IGMP and MLD reports by joining groups", [["multicast"]], None;
    Namespaces, "namespaces", "a user and network namespace of one's own", [["egress"], ["connect"]], Some("namespaces filtered");
    OtherFamilies, "other_families", "vsock, TIPC, RDS and other families", [["lsm"]], NO_FAMILIES;
    OtherTransports, "other_transports", "UDP-Lite, ping sockets, SCTP, DCCP", [["egress"], ["socket"]], None;
    PacketSockets, "packet_sockets", "AF_PACKET, SOCK_PACKET, AF_XDP", [["lsm"]], NO_FAMILIES;
    ProcessMemory, "process_memory", "pidfd_getfd, process_vm_writev, /proc/PID/mem, ptrace of a process outside",
        [["lsm_ptrace"]], Some("Landlock domain, system call filter");
    ProgramDetach, "program_detach", "detaching programs, writing maps, removing pins", [["lsm_bpf"]], NO_BPF;
    ProxyPort, "proxy_port", "taking the proxy's port while it restarts", [["bind"]], None;
    RawIp, "raw_ip", "raw sockets, HDRINCL, GRE, IPIP", [["egress"], ["socket"]], Some("no CAP_NET_RAW");
    RoutingHeader, "routing_header", "an IPv6 routing header, source routing", [["egress"], ["multicast"]], None;
    SocketMark, "socket_mark", "SO_MARK and policy routing", [["egress"]], None;
    TcpConnect, "tcp_connect", "TCP over IPv4, IPv6, v4-mapped, reconnect by AF_UNSPEC", [["egress"], ["connect"]], None;
    TcpFastOpen, "tcp_fast_open", "TCP Fast Open: data with the first packet", [["egress"], ["connect"]], None;
    Udp, "udp", "datagrams: IPv4, IPv6, v4-mapped, AF_UNSPEC, sendmmsg, multicast", [["egress"], ["datagram"]], None;
    UnixBrokers, "unix_brokers", "brokers over Unix sockets: docker.sock, D-Bus, systemd-run, resolved",
        [["lsm_unix"]], Some("known brokers hidden at launch");
    UringThreads, "uring_threads", "io_uring: polling threads, borrowed credentials, commands to drivers",
        [["lsm_uring", "lsm_uring_cmd"]], Some("io_uring_setup filtered");
}

/// How a class stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapeState {
    /// Some set of layers that closes it is live.
    Closed,
    /// Not closed in the kernel, but narrowed: by a part of a set, or by the launcher for what it starts.
    Degraded,
    /// Nothing is in the way.
    Open,
}

impl EscapeState {
    /// Every state, for exhaustive metric families.
    pub const ALL: [EscapeState; 3] = [
        EscapeState::Closed,
        EscapeState::Degraded,
        EscapeState::Open,
    ];

    /// The word used in output and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EscapeState::Closed => "closed",
            EscapeState::Degraded => "degraded",
            EscapeState::Open => "open",
        }
    }
}

/// One class as `sluice doctor` shows it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EscapeReport {
    /// Which.
    pub class: EscapeClass,
    /// How it stands.
    pub state: EscapeState,
    /// The live layers that close it, or take part.
    pub held_by: Vec<String>,
    /// The layers that would close it and are not live.
    pub missing: Vec<String>,
    /// What the launcher does about it, if anything.
    pub launcher: Option<String>,
    /// Whether the mode allows it to be open: in reduced mode, where only layers of the opt-in close it.
    pub allowed_open: bool,
}

/// The layers that kernels may lack and that the opt-in to reduced mode is about: second walls, and what the
/// programs of the cgroups cannot see. Any other name is required.
#[must_use]
pub fn optional(layer: &str) -> bool {
    matches!(
        layer,
        "foreign_socket"
            | "label"
            | "lsm"
            | "lsm_bpf"
            | "lsm_capable"
            | "lsm_ptrace"
            | "lsm_socket"
            | "lsm_unix"
            | "lsm_uring"
            | "lsm_uring_cmd"
            | "multicast"
    )
}

/// Every class as these layers leave it. A layer that is not among them is not live.
#[must_use]
pub fn classes(layers: &[LayerReport]) -> Vec<EscapeReport> {
    let state = |name: &str| {
        layers
            .iter()
            .find(|layer| layer.name == name)
            .map_or(LayerState::Absent, |layer| layer.state)
    };
    let report = |class: EscapeClass| {
        let sets = class.closed_by();
        let live = |layer: &&str| state(layer) == LayerState::Live;
        let mut all: Vec<&str> = sets.iter().flat_map(|set| set.iter().copied()).collect();
        all.dedup();
        let closed = sets.iter().any(|set| set.iter().all(live));
        let narrowed = class.launcher().is_some()
            || all.iter().any(|layer| state(layer) != LayerState::Absent);
        let state = match (closed, narrowed) {
            (true, _) => EscapeState::Closed,
            (false, true) => EscapeState::Degraded,
            (false, false) => EscapeState::Open,
        };
        let (held_by, missing): (Vec<&str>, Vec<&str>) = all.iter().partition(|layer| live(layer));
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        EscapeReport {
            class,
            state,
            held_by: owned(held_by),
            missing: owned(missing),
            launcher: class.launcher().map(str::to_owned),
            allowed_open: sets
                .iter()
                .all(|set| set.iter().any(|layer| optional(layer))),
        }
    };
    EscapeClass::ALL.iter().copied().map(report).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::enforce::layer_names;

    fn layers(state: impl Fn(&str) -> LayerState) -> Vec<LayerReport> {
        layer_names()
            .into_iter()
            .map(|name| LayerReport {
                name: name.to_owned(),
                state: state(name),
                leaves_open: Vec::new(),
            })
            .collect()
    }

    fn state_of(class: EscapeClass, layers: &[LayerReport]) -> EscapeState {
        let all = classes(layers);
        all.iter()
            .find(|report| report.class == class)
            .unwrap()
            .state
    }

    #[test]
    fn the_classes_are_alphabetical_and_named_after_their_variant() {
        let names: Vec<&str> = EscapeClass::ALL
            .iter()
            .map(|class| class.as_str())
            .collect();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
        for class in EscapeClass::ALL {
            let json = serde_json::to_string(class).unwrap();
            assert_eq!(json, format!("\"{}\"", class.as_str()));
        }
    }

    #[test]
    fn every_layer_that_a_class_names_exists_and_every_layer_closes_something() {
        // Not about ways out: without the first two nothing is forwarded at all; the proxy's own walls.
        let others = BTreeSet::from([
            "origin",
            "datagram_origin",
            "proxy_landlock",
            "proxy_seccomp",
        ]);
        let known: BTreeSet<&str> = layer_names()
            .into_iter()
            .filter(|name| !others.contains(name))
            .collect();
        let used: BTreeSet<&str> = EscapeClass::ALL
            .iter()
            .flat_map(|class| class.closed_by().iter().flat_map(|set| set.iter().copied()))
            .collect();
        assert_eq!(
            used, known,
            "name the new layer in the classes that it closes"
        );
    }

    #[test]
    fn a_class_is_closed_only_by_layers_that_are_live() {
        use EscapeClass as C;
        use EscapeState::{Closed, Degraded, Open};
        let all = layers(|_| LayerState::Live);
        let none = layers(|_| LayerState::Absent);
        for report in classes(&all) {
            let by_kernel = !report.class.closed_by().is_empty();
            assert_eq!(report.state == Closed, by_kernel, "{report:?}");
            assert_ne!(report.state, Open);
        }
        for report in classes(&none) {
            let expected = if report.launcher.is_some() {
                Degraded
            } else {
                Open
            };
            assert_eq!(report.state, expected, "{report:?}");
        }
        assert_eq!(
            classes(&[]),
            classes(&none),
            "a layer nobody speaks of is not live"
        );
        let without_lsm = layers(|name| {
            if name.starts_with("lsm") {
                LayerState::Absent
            } else {
                LayerState::Live
            }
        });
        assert_eq!(state_of(C::TcpConnect, &without_lsm), Closed);
        assert_eq!(state_of(C::ForeignSocket, &without_lsm), Degraded);
        assert_eq!(state_of(C::PacketSockets, &without_lsm), Degraded);
        let half = layers(|name| {
            if name == "multicast" {
                LayerState::Degraded
            } else {
                LayerState::Live
            }
        });
        assert_eq!(state_of(C::MulticastJoin, &half), Degraded);
    }

    #[test]
    fn reduced_mode_allows_only_what_layers_of_the_opt_in_close() {
        for report in classes(&[]) {
            let required = matches!(
                report.class,
                EscapeClass::TcpConnect
                    | EscapeClass::Udp
                    | EscapeClass::RawIp
                    | EscapeClass::ProxyPort
                    | EscapeClass::DeviceBinding
                    | EscapeClass::Inbound
                    | EscapeClass::SocketMark
            );
            if required {
                assert!(!report.allowed_open, "{report:?}");
            }
        }
        let allowed = |class| {
            classes(&[])
                .iter()
                .any(|report| report.class == class && report.allowed_open)
        };
        assert!(allowed(EscapeClass::MulticastJoin) && allowed(EscapeClass::UnixBrokers));
    }
}
