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

const LAYERS: [Layer; 8] = [
    (
        "egress",
        &["egress"],
        "packets to any address leave by any interface",
    ),
    (
        "ingress",
        &["ingress"],
        "packets of processes outside reach a workload's servers, although no answer leaves",
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
        &["bind4", "bind6", "post_bind4", "post_bind6"],
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
const CONNECTED: &str = "a socket that an ungoverned process made and connected (or a raw one), handed over by SCM_RIGHTS or pidfd_getfd, keeps its way out";

/// The layers of BPF LSM programs.
const LSM: [Layer; 8] = [
    (
        "lsm",
        &["socket_create"],
        "no second wall against packet, vsock, XDP and netlink sockets: only seccomp and the missing CAP_NET_RAW stop them",
    ),
    FOREIGN_LSM,
    UNIX_LSM,
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
    (
        "lsm_capable",
        &["no_capability"],
        "no second wall against privileges over the network, devices and the kernel: only the launcher takes them away",
    ),
    (
        "lsm_uring",
        &["uring_sqpoll", "uring_override_creds"],
        "no second wall against io_uring's kernel threads and borrowed credentials: only seccomp stops io_uring",
    ),
    (
        "lsm_uring_cmd",
        &["uring_cmd"],
        "no second wall against io_uring's commands to drivers: only seccomp stops io_uring",
    ),
];
const UNIX_LSM: Layer = (
    "lsm_unix",
    &["socket_post_create", "unix_stream_connect", "unix_may_send"],
    "brokers over Unix sockets that the launcher does not hide can be asked to act",
);
const FOREIGN_LSM: Layer = (
    "lsm_socket",
    &[
        "socket_post_create",
        "socket_connect",
        "socket_sendmsg",
        "socket_setsockopt",
        "socket_bind",
        "socket_listen",
        "socket_accept",
        "file_receive",
    ],
    CONNECTED,
);

/// The label: written by these programs, and asked for by those of three more layers.
const LABEL: Layer = (
    "label",
    &["label_attach", "label_birth", "label_exec"],
    "a process that gets at the cgroup file system, which the launcher hides, or is moved by somebody outside, leaves its workload and is governed no more",
);
/// What LSM programs do to a task outside its workload's cgroup.
const STRAY_LSM: Layer = (
    "label",
    &["task_alloc", "execute", "socket_create"],
    "a process that somebody outside moves out of its workload, or that is started outside by clone3(CLONE_INTO_CGROUP), is killed only when it executes or starts something",
);
/// What programs at the root of the hierarchy do to it instead.
const STRAY: Layer = (
    "label",
    &[
        "stray_create",
        "stray_connect4",
        "stray_connect6",
        "stray_sendmsg4",
        "stray_sendmsg6",
    ],
    "until then it makes and uses any socket",
);
/// How a thread keeps the label that only its process's first thread has.
const KEEP: Layer = (
    "label",
    &["label_keep"],
    "a process that had several threads when it was moved into its workload, was moved out again, and executes something from a thread other than its first loses its label",
);
const STRAY_OTHERS: &str =
    "until then it makes no IP socket, connection or datagram, but sockets of other kinds";
/// The names of all layers that [`layers`] reports.
#[cfg(test)]
pub(crate) fn names() -> Vec<&'static str> {
    let of_programs = LAYERS.iter().chain(&LSM).chain([&FOREIGN]);
    of_programs
        .map(|(name, _, _)| *name)
        .chain(["label"])
        .collect()
}

/// Every layer, best first.
pub(super) fn layers(
    tree: &Tree,
    outside: &[Outside],
    pins: &Pins,
    tried: &Tried,
) -> Vec<LayerReport> {
    let is_live = |program: &str| attach::is_live(program, tree, outside, pins).unwrap_or(false);
    let mut reports: Vec<LayerReport> = LAYERS
        .iter()
        .map(|layer| cgroup_layer(layer, is_live))
        .collect();
    reports.extend(LSM.iter().map(|layer| tried_layer(layer, tried)));
    reports.push(foreign_socket(is_live, tried));
    reports.push(label(tried));
    reports
}

/// Whoever carries the label is found everywhere; what then stops it, outside its cgroup, is the programs of BPF LSM.
fn label(tried: &Tried) -> LayerReport {
    let mut report = tried_layer(&LABEL, tried);
    if report.state != LayerState::Live {
        return report;
    }
    let lsm = tried_layer(&STRAY_LSM, tried);
    let sockets = [FOREIGN_LSM, UNIX_LSM];
    if lsm.state == LayerState::Live
        && sockets
            .iter()
            .all(|layer| tried_layer(layer, tried).state == LayerState::Live)
    {
        return report;
    }
    report.state = LayerState::Degraded;
    let (_, _, moved) = STRAY_LSM;
    match lsm.state {
        // Only the programs on sockets are missing.
        LayerState::Live => report.leaves_open.push(moved.to_owned()),
        LayerState::Absent | LayerState::Degraded => report.leaves_open.extend(lsm.leaves_open),
    }
    let stray = tried_layer(&STRAY, tried);
    if stray.state == LayerState::Live {
        report.leaves_open.push(STRAY_OTHERS.to_owned());
    } else {
        report.leaves_open.extend(stray.leaves_open);
    }
    report
        .leaves_open
        .extend(tried_layer(&KEEP, tried).leaves_open);
    report
}

/// What the hooks at the root of the hierarchy see is closed by them; the rest needs the LSM programs.
fn foreign_socket(is_live: impl Fn(&str) -> bool, tried: &Tried) -> LayerReport {
    let mut report = cgroup_layer(&FOREIGN, is_live);
    if tried_layer(&FOREIGN_LSM, tried).state != LayerState::Live {
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

fn tried_layer((name, programs, open): &Layer, tried: &Tried) -> LayerReport {
    let tried: Vec<_> = tried
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
