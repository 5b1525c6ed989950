//! Maps that are full: refused under a name, counted, and over as soon as there is room again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use agent_userspace::enforce::{EnforceError, RefusalKind};
use aya::maps::{HashMap, Map, MapData};
use mitm_proxy::Origins;

use crate::host::{EPERM, Host, receive_any};

#[test]
fn more_workloads_than_there_is_room_for_are_refused_until_one_ends() {
    let mut host = Host::start();
    let (mut first, _) = host.workload();
    let mut room = fill(&mut host);
    let spare = room.pop().unwrap();
    remove(&mut host, spare);
    // The control: with room for one, one is admitted.
    let last = host.admit("acme/support");
    let refused = host.enforcement().admit(&"acme/support".parse().unwrap());
    assert!(
        matches!(refused, Err(EnforceError::WorkloadsFull)),
        "{refused:?}"
    );
    // Nothing is left of the one that was refused, and those that run do not notice.
    assert_eq!(host.enforcement().workloads_found().unwrap().len(), 2);
    first.connect("198.18.0.1:443").unwrap();
    host.enforcement().retire(last.id).unwrap();
    host.admit("acme/support");
}

#[test]
fn flows_that_nobody_takes_make_room_for_new_ones() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    let socket = workload.udp("0.0.0.0:0");
    let ask = format!("sendto {socket} 192.0.2.53:53 question");
    workload.ask(&ask).unwrap();
    let (_, from, at) = receive_any(&host.dns_udp);
    let known = |host: &Host, from: SocketAddr| {
        let socket = host.dns_udp[at].as_fd();
        host.origins.as_ref().unwrap().datagram(socket, from)
    };
    // The control: a flow that is there has its origin.
    assert_eq!(known(&host, from).unwrap().workload, id);
    let map = Map::LruHashMap(MapData::from_pin(host.pin("FLOWS")).unwrap());
    let mut flows: HashMap<MapData, [u8; 32], [u8; 32]> = map.try_into().unwrap();
    // The kernel makes room on the processor that asks for it, and each look makes a flow one that was used of late.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let forgotten = (0..8).any(|round| {
        let mut here = rustix::thread::CpuSet::new();
        here.set(round as usize % processors);
        rustix::thread::sched_setaffinity(None, &here).unwrap();
        for number in 0..agent_abi::MAX_FLOWS * 2 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&(round * agent_abi::MAX_FLOWS * 2 + number).to_ne_bytes());
            flows.insert(key, [0; 32], 0).unwrap();
        }
        known(&host, from).is_none()
    });
    assert!(forgotten, "forgotten is nobody's, and refused");
    // The map is as full as it gets, and new flows find their place.
    workload.ask(&ask).unwrap();
    receive_any(&host.dns_udp);
    assert_eq!(known(&host, from).unwrap().workload, id);
    workload.connect("198.18.0.1:443").unwrap();
    assert_eq!(host.accept().1.unwrap().workload, id);
}

#[test]
fn more_literal_addresses_than_there_is_room_for_change_nothing() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let kept: IpAddr = "192.0.2.1".parse().unwrap();
    host.enforcement().set_literals(&[kept]).unwrap();
    let many = |from: u32, count: u32| -> Vec<IpAddr> {
        (from..from + count)
            .map(|bits| Ipv4Addr::from_bits(0x0a00_0000 + bits).into())
            .collect()
    };
    let refused = host
        .enforcement()
        .set_literals(&many(0, agent_abi::MAX_LITERALS + 1));
    assert!(
        matches!(refused, Err(EnforceError::LiteralsFull)),
        "{refused:?}"
    );
    workload.connect("192.0.2.1:443").unwrap();
    assert_eq!(
        workload.connect("10.0.0.1:443"),
        Err(EPERM),
        "none is taken over"
    );
    // As many as there is room for, twice, each time all different.
    for from in [0, 100_000] {
        let all = many(from, agent_abi::MAX_LITERALS);
        host.enforcement().set_literals(&all).unwrap();
    }
    workload.connect("10.1.134.160:443").unwrap();
    assert_eq!(
        workload.connect("10.0.0.1:443"),
        Err(EPERM),
        "the former are gone"
    );
}

#[test]
fn a_socket_without_room_for_its_storage_is_refused_and_counted() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    // The limit is the namespace's own since Linux 6.8; before, it is the host's, and not a test's to change: there a test
    // machine leaves this test out and says so (`vm_tests::needs`).
    workload.ask("new_netns").unwrap();
    workload.ask("room_for_storage 16").unwrap();
    let refused = workload.ask("socket 2 1 6");
    let counted = host.refusals(RefusalKind::MapFull);
    workload.ask("room_for_storage 131072").unwrap();
    assert_eq!(refused, Err(EPERM));
    assert_eq!(counted, 1);
    // The control: with room, the same socket is made.
    workload.ask("socket 2 1 6").unwrap();
    assert_eq!(host.refusals(RefusalKind::MapFull), 1);
}

/// Takes all room that is left in the map of workloads, without thousands of cgroups.
fn fill(host: &mut Host) -> Vec<u64> {
    let mut workloads = workloads(host);
    let mut taken = Vec::new();
    for id in (1_u64 << 60).. {
        if workloads.insert(id, [0; 8], 0).is_err() {
            return taken;
        }
        taken.push(id);
    }
    taken
}

fn remove(host: &mut Host, id: u64) {
    workloads(host).remove(&id).unwrap();
}

fn workloads(host: &Host) -> HashMap<MapData, u64, [u8; 8]> {
    let map = MapData::from_pin(host.pin("WORKLOADS")).unwrap();
    Map::HashMap(map).try_into().unwrap()
}
