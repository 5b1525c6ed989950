//! How each wall stands on this host, in words for `sluice doctor`.
//! Place on the path: beside it.
//! INVARIANT: a layer is live only if its links were just seen attached to the live cgroup; what is missing says what it leaves open.

use super::attach::{self, Tried};
use super::cgroup::Tree;
use super::outside::Outside;
use super::pins::Pins;
use crate::layers::{LayerReport, LayerState};

/// A layer of cgroup programs: its name, its programs, and what is open without it.
type Layer = (&'static str, &'static [&'static str], &'static str);

const LAYERS: [Layer; 7] = [
    (
        "egress",
        &["egress"],
        "packets to any address leave by any interface",
    ),
    (
        "connect",
        &["connect4", "connect6", "getpeername4", "getpeername6"],
        "connections do not reach the proxy",
    ),
    (
        "datagram",
        &["sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6"],
        "names are not asked at the policy resolver",
    ),
    (
        "socket",
        &["sock_create"],
        "sockets of any IP protocol can be made",
    ),
    (
        "bind",
        &["bind4", "bind6"],
        "a workload can take the proxy's port while the daemon is down",
    ),
    (
        "origin",
        &["flows", "accepted"],
        "the proxy finds no original destination and refuses every connection",
    ),
    (
        "multicast",
        &["set_option"],
        "IGMP and MLD membership reports leave on the local link (a few chosen bits each)",
    ),
];

/// Sockets that were born outside the workloads' cgroup.
const FOREIGN: Layer = (
    "foreign_socket",
    &[
        "root_connect4",
        "root_connect6",
        "root_sendmsg4",
        "root_sendmsg6",
    ],
    "a socket made by an ungoverned process and handed over (SCM_RIGHTS, pidfd_getfd) connects and sends where it will",
);
const LABEL: &str = "a workload's process that gets at the cgroup file system, which the launcher hides, or is moved by somebody outside, leaves its cgroup and is governed no more";
const CONNECTED: &str = "a socket that an ungoverned process made and connected (or a raw one), handed over by SCM_RIGHTS or pidfd_getfd, keeps its way out";

/// The layers of BPF LSM programs.
const LSM: [Layer; 5] = [
    (
        "lsm",
        &["socket_create"],
        "no second wall against packet, vsock, XDP and netlink sockets: only seccomp and the missing CAP_NET_RAW stop them",
    ),
    FOREIGN_LSM,
    (
        "lsm_unix",
        &["socket_post_create", "unix_stream_connect", "unix_may_send"],
        "brokers over Unix sockets that the launcher does not hide can be asked to act",
    ),
    (
        "lsm_ptrace",
        &["ptrace_access_check"],
        "no second wall against taking over another process: only seccomp, Landlock and uids stop it",
    ),
    (
        "lsm_bpf",
        &["bpf_call"],
        "no second wall against bpf(2): only seccomp and the missing CAP_BPF stop it",
    ),
];
const FOREIGN_LSM: Layer = (
    "lsm_socket",
    &[
        "socket_post_create",
        "socket_connect",
        "socket_sendmsg",
        "socket_setsockopt",
        "file_receive",
    ],
    CONNECTED,
);

/// Every layer, best first.
pub(super) fn layers(
    tree: &Tree,
    outside: &[Outside],
    pins: &Pins,
    lsm: &Tried,
) -> Vec<LayerReport> {
    let is_live = |program: &str| attach::is_live(program, tree, outside, pins).unwrap_or(false);
    let mut reports: Vec<LayerReport> = LAYERS
        .iter()
        .map(|layer| cgroup_layer(layer, is_live))
        .collect();
    reports.extend(LSM.iter().map(|layer| lsm_layer(layer, lsm)));
    reports.push(foreign_socket(is_live, lsm));
    // Not built: said here, so that nobody takes silence for a wall.
    reports.push(LayerReport {
        name: "label".to_owned(),
        state: LayerState::Absent,
        leaves_open: vec![LABEL.to_owned()],
    });
    reports
}

/// What the hooks at the root of the hierarchy see is closed by them; the rest needs the LSM programs.
fn foreign_socket(is_live: impl Fn(&str) -> bool, lsm: &Tried) -> LayerReport {
    let mut report = cgroup_layer(&FOREIGN, is_live);
    if lsm_layer(&FOREIGN_LSM, lsm).state != LayerState::Live {
        if report.state == LayerState::Live {
            report.state = LayerState::Degraded;
        }
        report.leaves_open.push(CONNECTED.to_owned());
    }
    report
}

fn cgroup_layer((name, programs, open): &Layer, is_live: impl Fn(&str) -> bool) -> LayerReport {
    let live = programs.iter().filter(|program| is_live(program)).count();
    let state = match live {
        live if live == programs.len() => LayerState::Live,
        0 => LayerState::Absent,
        _ => LayerState::Degraded,
    };
    let leaves_open = if state == LayerState::Live {
        Vec::new()
    } else {
        vec![(*open).to_owned()]
    };
    LayerReport {
        name: (*name).to_owned(),
        state,
        leaves_open,
    }
}

fn lsm_layer((name, programs, open): &Layer, lsm: &Tried) -> LayerReport {
    let tried: Vec<_> = lsm
        .iter()
        .filter(|(program, _)| programs.contains(program))
        .collect();
    let live = tried.iter().filter(|(_, tried)| tried.is_ok()).count();
    let why = tried.iter().find_map(|(_, tried)| tried.as_ref().err());
    let (state, leaves_open) = match why {
        None if live == programs.len() => (LayerState::Live, Vec::new()),
        None => (LayerState::Absent, vec![(*open).to_owned()]),
        Some(why) if live == 0 => (LayerState::Absent, vec![format!("{open} ({why})")]),
        Some(why) => (LayerState::Degraded, vec![format!("{open} ({why})")]),
    };
    LayerReport {
        name: (*name).to_owned(),
        state,
        leaves_open,
    }
}
