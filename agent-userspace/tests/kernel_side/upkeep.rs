//! What somebody with root's rights takes away, the enforcement finds and puts back.

use std::fs;
use std::net::TcpListener;

use agent_userspace::enforce::{Fault, Repaired, panic};

use crate::host::{ECONNREFUSED, EPERM, Host};
use crate::net::detach_link;
use crate::outside::{Elsewhere, govern};
use crate::puppet::Puppet;

/// One look of the watchdog.
fn watch(host: &mut Host) -> Vec<Fault> {
    let faults = host.enforcement().faults();
    if !faults.is_empty() {
        host.enforcement().freeze().unwrap();
        host.enforcement().repair().unwrap();
        assert_eq!(host.enforcement().faults(), [], "put back");
        host.enforcement().thaw().unwrap();
    }
    faults
}

/// Dials an outsider's server with one wall after the other taken away; whether it was ever reached.
fn dial_while_walls_fall(watched: bool) -> bool {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let outside = TcpListener::bind("127.0.0.1:0").unwrap();
    outside.set_nonblocking(true).unwrap();
    let to = outside.local_addr().unwrap();
    for wall in ["link_egress", "link_ingress", "link_connect4"] {
        detach_link(&host.pin(wall)).unwrap();
        let _refused = workload.connect(&to.to_string());
        if watched {
            let found = Fault::LinkDetached(wall.trim_start_matches("link_").to_owned());
            assert_eq!(watch(&mut host), [found]);
        }
        let _refused_again = workload.connect(&to.to_string());
    }
    outside.accept().is_ok()
}

#[test]
fn walls_that_are_taken_away_one_by_one_are_put_back_in_between() {
    assert!(
        dial_while_walls_fall(false),
        "the control: unwatched, the agent gets out"
    );
    assert!(!dial_while_walls_fall(true));
}

#[test]
fn removed_pins_detach_nothing_and_are_pinned_again() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    assert_eq!(watch(&mut host), [], "the control: nothing is missing");
    let base = host.pin("").parent().unwrap().to_owned();
    let names = |host: &Host| {
        let mut names: Vec<_> = fs::read_dir(host.pin(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names(&host);
    for name in &before {
        fs::remove_file(host.pin("").join(name)).unwrap();
    }
    fs::remove_dir(host.pin("")).unwrap();
    fs::remove_dir(&base).unwrap();
    // The daemon holds what it put in force.
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
    workload.connect("198.18.0.1:443").unwrap();
    let faults = watch(&mut host);
    let unpinned = |fault: &Fault| matches!(fault, Fault::LinkUnpinned(_) | Fault::MapUnpinned(_));
    assert!(
        faults.iter().all(unpinned) && faults.len() == before.len(),
        "{faults:?}"
    );
    assert_eq!(names(&host), before);
    // What is pinned again holds without the daemon, and the next one adopts it.
    host.die();
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
    assert_eq!(workload.connect("198.18.0.1:443"), Err(ECONNREFUSED));
    host.adopt();
    host.open();
    workload.connect("198.18.0.1:443").unwrap();
}

#[test]
fn another_map_or_program_in_the_place_of_ours_is_found() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    fs::rename(host.pin("LITERALS"), host.pin("kept")).unwrap();
    fs::rename(host.pin("link_egress"), host.pin("link_kept")).unwrap();
    fs::rename(host.pin("link_flows"), host.pin("link_egress")).unwrap();
    let faults = watch(&mut host);
    let expected = [
        Fault::LinkUnpinned("egress".to_owned()),
        Fault::LinkUnpinned("flows".to_owned()),
        Fault::MapUnpinned("LITERALS".to_owned()),
    ];
    for fault in &expected {
        assert!(faults.contains(fault), "{faults:?}");
    }
    assert_eq!(faults.len(), expected.len());
    for stray in ["kept", "link_kept"] {
        fs::remove_file(host.pin(stray)).unwrap();
    }
    workload.connect("198.18.0.1:443").unwrap();
}

#[test]
fn cgroups_that_were_made_anew_are_covered_again_by_the_watchdog() {
    let mut host = Host::start();
    let agents = host.enforcement().agents_cgroup().to_owned();
    let proxy = host.enforcement().proxy_cgroup().to_owned();
    for cgroup in [&agents, &proxy] {
        fs::remove_dir(cgroup).unwrap();
        fs::create_dir(cgroup).unwrap();
    }
    let directory = agents.join("acme.support.1");
    fs::create_dir(&directory).unwrap();
    let mut stray = Puppet::start(Some(&directory));
    // The control: this is the hole.
    stray.ask("socket 2 3 1").unwrap();
    let faults = host.enforcement().faults();
    assert!(
        faults.contains(&Fault::CgroupReplaced("agents")),
        "{faults:?}"
    );
    assert!(
        faults.contains(&Fault::CgroupReplaced("proxy")),
        "{faults:?}"
    );
    let repaired = host.enforcement().repair().unwrap();
    assert_eq!(
        repaired,
        Repaired {
            listeners_lost: true
        }
    );
    assert_eq!(stray.ask("socket 2 3 1"), Err(EPERM));
    host.open();
    stray.connect("198.18.0.1:443").unwrap();
    assert!(host.accept().1.is_some(), "the new listeners know origins");
}

#[test]
fn frozen_workloads_stand_still_and_killed_ones_are_gone() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    host.enforcement().freeze().unwrap();
    workload.tell("greet");
    outsider.ask("greet").unwrap();
    let state = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let events = host.enforcement().agents_cgroup().join("cgroup.events");
    assert!(fs::read_to_string(&events).unwrap().contains("frozen 1"));
    host.enforcement().thaw().unwrap();
    workload.answer().unwrap();
    assert!(!state(workload.pid()).contains(") Z "));
    host.enforcement().freeze().unwrap();
    host.enforcement().kill_workloads().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while fs::read_to_string(&events).unwrap().contains("populated 1") {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    host.enforcement().thaw().unwrap();
    outsider.ask("greet").unwrap();
}

#[test]
fn cutting_ends_the_sockets_of_one_workload_in_every_network_namespace() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    let (mut apart, apart_id) = host.workload();
    let (mut other, _) = host.workload();
    // One with a network namespace of its own talks to itself there.
    apart.ask("new_netns").unwrap();
    apart.ask("loopback_up").unwrap();
    let (_, port) = apart.listen("127.0.0.1:0");
    let (inside, _, _) = apart.connect(&format!("127.0.0.1:{port}")).unwrap();
    let (open, _, _) = workload.connect("198.18.0.1:443").unwrap();
    let (stream, _) = host.accept();
    let (kept, _, _) = other.connect("198.18.0.1:443").unwrap();
    let (kept_stream, _) = host.accept();

    let cut = host.enforcement().cut(&[id]).unwrap();
    // Where the kernel destroys no sockets, a test machine leaves this test out and says so (`vm_tests::needs`).
    assert_eq!((cut.sockets, cut.refused), (1, 0), "INET_DIAG_DESTROY");
    assert!(workload.ask(&format!("read {open}")).is_err());
    use std::io::{Read, Write};
    stream.set_nonblocking(false).unwrap();
    let proxys = (&stream).read(&mut [0]);
    assert!(proxys.is_err(), "the proxy's end is cut, too: {proxys:?}");
    // The control: another workload's is not, on either end.
    (&kept_stream).write_all(b"still").unwrap();
    assert_eq!(
        other.ask(&format!("read {kept}")),
        Ok(vec!["still".to_owned()])
    );

    let cut = host.enforcement().cut(&[apart_id]).unwrap();
    assert!(cut.sockets >= 1 && cut.refused == 0, "{cut:?}");
    assert!(apart.ask(&format!("read {inside}")).is_err());
    // A workload that is cut and not switched off may connect again.
    workload.connect("198.18.0.1:443").unwrap();
}

#[test]
fn a_panic_needs_no_daemon_and_no_daemon_publishes_over_it() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let (mut other, _) = host.workload();
    let instance = host.settings.instance.clone();
    assert!(!panic::is_engaged(&instance).unwrap());
    let (open, _, _) = workload.connect("198.18.0.1:443").unwrap();
    let (stream, _) = host.accept();
    host.die();
    drop(stream);
    let panicked = panic::engage(&instance).unwrap();
    assert_eq!(panicked.configurations, 1);
    assert!(panic::is_engaged(&instance).unwrap());
    // Where the kernel destroys no sockets, what is written stays in the socket: nothing leaves.
    if panicked.cut.refused == 0 {
        assert_ne!(
            workload.ask(&format!("send {open} x")),
            Ok(vec!["1".to_owned()])
        );
    }
    for who in [&mut workload, &mut other] {
        assert_eq!(who.connect("198.18.0.1:443"), Err(EPERM));
        assert_eq!(who.ask("udp 0.0.0.0:0"), Err(EPERM));
    }
    host.adopt();
    host.open();
    assert!(host.enforcement().is_panicked().unwrap());
    assert_eq!(workload.connect("198.18.0.1:443"), Err(EPERM));
    // The control: lifted and published, they work.
    panic::lift(&instance).unwrap();
    assert_eq!(workload.connect("198.18.0.1:443"), Err(EPERM));
    let ports = host.ports;
    host.enforcement().publish(ports).unwrap();
    for who in [&mut workload, &mut other] {
        who.connect("198.18.0.1:443").unwrap();
    }
}

#[test]
fn a_workload_elsewhere_is_watched_and_cut_like_any_other() {
    let mut host = Host::start();
    let place = Elsewhere::make(&mut host);
    let mut workload = Puppet::start(Some(&place.0));
    let id = govern(&mut host, "acme/support", &place.0).id;
    assert_eq!(watch(&mut host), [], "the control: nothing is missing");
    let sets = host.pin(&format!("outside_{id}"));
    for wall in ["link_egress", "link_ingress", "link_connect4"] {
        detach_link(&sets.join(wall)).unwrap();
        let found = Fault::LinkDetached(wall.trim_start_matches("link_").to_owned());
        assert_eq!(watch(&mut host), [found]);
        assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
    }
    let (open, _, _) = workload.connect("198.18.0.1:443").unwrap();
    let (_stream, origin) = host.accept();
    assert_eq!(origin.unwrap().workload, id);
    if host.enforcement().cut(&[id]).unwrap().refused == 0 {
        assert!(workload.ask(&format!("read {open}")).is_err());
    }
    // Its cgroup is gone: that is no fault, and `sweep` tells it.
    drop(workload);
    drop(place);
    assert_eq!(watch(&mut host), []);
    assert_eq!(host.enforcement().sweep().unwrap().len(), 1);
    assert_eq!(watch(&mut host), []);
}
