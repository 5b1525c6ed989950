//! What happens to workloads when a daemon dies, comes back, or stops.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_userspace::enforce::{EnforceError, Enforcement, Mode, RefusalKind, Stopped};
use agent_userspace::layers::{LayerReport, LayerState};

use crate::host::{ECONNREFUSED, EPERM, Host};

#[test]
fn when_the_daemon_dies_connections_are_refused_at_once_and_the_next_daemon_adopts_them() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    workload.connect("198.18.0.1:443").unwrap();
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));

    host.die();
    assert_eq!(workload.connect("198.18.0.1:443"), Err(ECONNREFUSED));
    assert_eq!(
        workload.connect("192.0.2.1:443"),
        Err(EPERM),
        "the floor stays"
    );
    assert_eq!(workload.ask("socket 2 3 1"), Err(EPERM));

    host.adopt();
    host.open();
    workload.connect("198.18.0.2:443").unwrap();
    let (_stream, origin) = host.accept();
    let origin = origin.unwrap();
    assert_eq!(
        (origin.workload, origin.destination),
        (id, "198.18.0.2:443".parse().unwrap())
    );
    let found = host.enforcement().workloads_found().unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].id == id && found[0].populated);
    assert_eq!(
        host.refusals(RefusalKind::DestinationUnknown),
        2,
        "counts outlive the daemon"
    );
    // The next workload's name is a new one.
    assert!(host.admit("acme/support").name.number > found[0].name.number);
}

#[test]
fn adoption_leaves_no_moment_without_programs() {
    let mut host = Host::start();
    let (workload, _) = host.workload();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let prober = scope.spawn(move || {
            let mut workload = workload;
            let mut tries = 0u32;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
                assert_eq!(workload.ask("socket 2 3 1"), Err(EPERM));
                tries += 1;
            }
            tries
        });
        for _ in 0..5 {
            host.die();
            host.adopt();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(prober.join().unwrap() > 50);
    });
}

#[test]
fn a_cgroup_that_was_made_anew_is_covered_again() {
    let mut host = Host::start();
    let agents = host.enforcement().agents_cgroup().to_owned();
    host.die();
    // Removing a cgroup detaches its links without a word; a new one of that name has none.
    fs::remove_dir(&agents).unwrap();
    fs::create_dir(&agents).unwrap();
    let directory = agents.join("acme.support.1");
    fs::create_dir(&directory).unwrap();
    let mut stray = crate::puppet::Puppet::start(Some(&directory));
    // The control: this is the hole.
    stray.ask("socket 2 3 1").unwrap();

    host.adopt();
    host.open();
    assert_eq!(stray.ask("socket 2 3 1"), Err(EPERM));
    stray.connect("198.18.0.1:443").unwrap();
    assert!(all_live(host.enforcement()));
}

#[test]
fn a_second_daemon_of_the_same_instance_does_not_start() {
    let mut host = Host::start();
    assert!(matches!(
        Enforcement::start(&host.settings),
        Err(EnforceError::InUse(_))
    ));
    host.die();
    // The control: after the first one's end, it does.
    host.adopt();
}

#[test]
fn stopping_with_workloads_denies_and_without_removes_everything() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    workload.connect("198.18.0.1:443").unwrap();
    let base = host
        .enforcement()
        .agents_cgroup()
        .parent()
        .unwrap()
        .to_owned();
    let pins = PathBuf::from("/sys/fs/bpf").join(host.settings.instance.as_str());
    assert!(base.exists() && pins.exists());

    assert!(matches!(
        host.enforcement().retire(id),
        Err(EnforceError::WorkloadAlive(_))
    ));
    assert_eq!(host.take().stop().unwrap(), Stopped::LeftDenying);
    assert_eq!(workload.connect("198.18.0.1:443"), Err(EPERM));
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));

    host.adopt();
    drop(workload);
    host.enforcement().retire(id).unwrap();
    assert!(matches!(
        host.enforcement().retire(id),
        Err(EnforceError::WorkloadUnknown(_))
    ));
    assert_eq!(host.take().stop().unwrap(), Stopped::Removed);
    assert!(!base.exists() && !pins.exists());
}

#[test]
fn a_pin_that_is_not_ours_is_refused() {
    let mut host = Host::start();
    host.die();
    let pins = PathBuf::from("/sys/fs/bpf")
        .join(host.settings.instance.as_str())
        .join(format!("v{}", agent_abi::ABI_VERSION));
    // The wrong map under the right name.
    fs::rename(pins.join("FLOWS"), pins.join("kept")).unwrap();
    fs::rename(pins.join("LITERALS"), pins.join("FLOWS")).unwrap();
    assert!(matches!(
        Enforcement::start(&host.settings),
        Err(EnforceError::PinForeign { .. })
    ));
    fs::rename(pins.join("FLOWS"), pins.join("LITERALS")).unwrap();
    fs::rename(pins.join("kept"), pins.join("FLOWS")).unwrap();
    // The control: put back, it starts.
    host.adopt();
}

#[test]
fn pins_of_another_version_are_removed_only_without_workloads() {
    let mut host = Host::start();
    let (workload, id) = host.workload();
    host.die();
    let base = PathBuf::from("/sys/fs/bpf").join(host.settings.instance.as_str());
    fs::create_dir(base.join("v0")).unwrap();
    let refused = Enforcement::start(&host.settings).unwrap_err();
    assert!(
        matches!(refused, EnforceError::OtherVersion { .. }),
        "{refused}"
    );
    drop(workload);
    host.adopt();
    assert!(!base.join("v0").exists());
    host.enforcement().retire(id).unwrap();
}

#[test]
fn layers_say_what_is_live() {
    let mut host = Host::start();
    assert!(all_live(host.enforcement()));
    let pins = PathBuf::from("/sys/fs/bpf")
        .join(host.settings.instance.as_str())
        .join(format!("v{}", agent_abi::ABI_VERSION));
    fs::remove_file(pins.join("link_sendmsg6")).unwrap();
    let layers = host.enforcement().layers();
    let datagram = layers
        .iter()
        .find(|layer| layer.name == "datagram")
        .unwrap();
    assert_eq!(datagram.state, LayerState::Degraded);
    assert!(!datagram.leaves_open.is_empty());
}

#[test]
fn the_mode_is_full_only_if_every_layer_is_live() {
    let mut host = Host::start();
    let all = |layers: &[LayerReport]| layers.iter().all(|layer| layer.state == LayerState::Live);
    let layers = host.enforcement().layers();
    assert_eq!(host.enforcement().mode() == Mode::Full, all(&layers));
    for layer in &layers {
        assert_eq!(
            layer.leaves_open.is_empty(),
            layer.state == LayerState::Live,
            "{}",
            layer.name
        );
    }
    let pins = PathBuf::from("/sys/fs/bpf")
        .join(host.settings.instance.as_str())
        .join(format!("v{}", agent_abi::ABI_VERSION));
    fs::remove_file(pins.join("link_set_option")).unwrap();
    assert_eq!(host.enforcement().mode(), Mode::Reduced);
}

fn all_live(enforcement: &Enforcement) -> bool {
    let cgroup_layers = [
        "egress",
        "ingress",
        "connect",
        "datagram",
        "socket",
        "bind",
        "origin",
        "multicast",
    ];
    let layers = enforcement.layers();
    cgroup_layers.iter().all(|name| {
        layers
            .iter()
            .any(|layer| layer.name == *name && layer.state == LayerState::Live)
    })
}
