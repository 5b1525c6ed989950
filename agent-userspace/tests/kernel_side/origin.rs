//! The proxy learns from the kernel who connects and where to, and from nobody else.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use agent_userspace::enforce::RefusalKind;

use crate::host::{ECONNREFUSED, EPERM, Host, accept_any, pool6};
use crate::puppet::{Puppet, numbered};

#[test]
fn a_redirected_connection_reports_its_original_destination() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    let asked = [
        "198.18.0.7:443".to_owned(),
        format!("[{}]:8443", pool6(9)),
        "[::ffff:198.19.255.254]:80".to_owned(),
    ];
    for asked in asked {
        let (_, _, peer) = workload.connect(&asked).unwrap();
        let asked: SocketAddr = asked.parse().unwrap();
        assert_eq!(peer, asked, "the workload sees the peer that it asked for");
        let (_stream, origin) = host.accept();
        let origin = origin.expect("an origin");
        assert_eq!(origin.workload, id);
        assert_eq!(
            origin.destination,
            SocketAddr::new(asked.ip().to_canonical(), asked.port())
        );
    }
}

#[test]
fn a_large_upload_passes_in_either_family() {
    const MEBIBYTES: usize = 64;
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    for asked in ["198.18.0.7:443".to_owned(), format!("[{}]:443", pool6(9))] {
        workload.tell(&format!("upload {MEBIBYTES} {asked}"));
        let (mut stream, _) = host.accept();
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        let arrived = std::io::copy(&mut stream, &mut std::io::sink()).unwrap();
        assert_eq!(arrived, (MEBIBYTES << 20) as u64, "to {asked}");
        workload.answer().unwrap();
    }
    let counts = host.enforcement().refusals().unwrap();
    assert!(counts.iter().all(|(_, count)| *count == 0), "{counts:?}");
}

#[test]
fn a_connection_of_an_ungoverned_process_has_no_origin_and_is_not_disturbed() {
    let mut host = Host::start();
    let mut outsider = Puppet::start(None);
    let (_, own, peer) = outsider
        .connect(&format!("127.0.0.1:{}", host.ports.proxy))
        .unwrap();
    assert_eq!(peer.port(), host.ports.proxy);
    let (stream, origin) = host.accept();
    assert_eq!(stream.peer_addr().unwrap(), own);
    assert_eq!(origin, None);

    // Everything else that an outsider does is its own business.
    let (server, port) = outsider.listen("127.0.0.1:0");
    assert!(outsider.connect(&format!("127.0.0.1:{port}")).is_ok());
    assert!(outsider.ask(&format!("accept {server}")).is_ok());
    for (family, kind, protocol) in [(2, 3, 1), (2, 1, 262), (10, 2, 17)] {
        assert!(
            outsider
                .ask(&format!("socket {family} {kind} {protocol}"))
                .is_ok()
        );
    }
    let counts = host.enforcement().refusals().unwrap();
    assert!(counts.iter().all(|(_, count)| *count == 0), "{counts:?}");
}

#[test]
fn a_thousand_connections_of_two_workloads_are_never_attributed_wrongly() {
    const EACH: u16 = 500;
    let mut host = Host::start();
    let (mut first, first_id) = host.workload();
    let (mut second, second_id) = host.workload();
    assert_ne!(first_id, second_id);
    first.tell(&format!("burst {EACH} 198.18.0.1"));
    second.tell(&format!("burst {EACH} {}", pool6(2)));

    let mut seen = HashSet::new();
    for _ in 0..EACH * 2 {
        let (_stream, origin) = host.accept();
        let origin = origin.expect("an origin, although the client reset at once");
        let expected = if origin.destination.is_ipv4() {
            first_id
        } else {
            second_id
        };
        assert_eq!(origin.workload, expected, "{origin:?}");
        assert!(seen.insert(origin.destination), "twice: {origin:?}");
    }
    first.answer().unwrap();
    second.answer().unwrap();
}

/// In full with `SLUICE_CONNECTIONS=100000`.
#[test]
fn source_ports_that_two_tenants_share_are_never_attributed_wrongly() {
    let all: u32 = std::env::var("SLUICE_CONNECTIONS").map_or(4_000, |text| text.parse().unwrap());
    let each = all / 2;
    // Fewer ports than connections by far, and none that the kernel gives to others.
    const PORTS: u16 = 64;
    let first_port = 10_000 + (std::process::id() % 300) as u16 * 64;
    let mut host = Host::start();
    let tenants = [
        ("acme/support", "198.18.1.0"),
        ("globex/billing", "198.19.1.0"),
    ];
    let mut workloads = Vec::new();
    for (agent, network) in tenants {
        let admitted = host.admit(agent);
        let mut puppet = Puppet::start(Some(&admitted.path));
        puppet.tell(&format!("reuse {each} {network} {first_port} {PORTS}"));
        let network: std::net::Ipv4Addr = network.parse().unwrap();
        workloads.push((puppet, admitted.id, network));
    }
    let mut owners = std::collections::HashMap::new();
    for (_, id, network) in &workloads {
        owners.extend((0..each).map(|number| (numbered(*network, number), *id)));
    }
    let mut sources = HashSet::new();
    for _ in 0..each * 2 {
        let (stream, origin) = host.accept();
        let origin = origin.expect("an origin, although the client reset at once");
        let owner = owners.remove(&origin.destination);
        assert_eq!(owner, Some(origin.workload), "{origin:?}");
        // Gone already, where the reset came first.
        sources.extend(stream.peer_addr().map(|peer| peer.port()));
    }
    let mut taken = 0;
    for (puppet, ..) in &mut workloads {
        taken += puppet.answer().unwrap()[0].parse::<u32>().unwrap();
    }
    assert!(owners.is_empty() && sources.len() <= usize::from(PORTS));
    println!(
        "{} connections from {} source ports, {taken} times the port was the other's: 0 attributed wrongly",
        each * 2,
        PORTS
    );
}

#[test]
fn origins_are_readable_without_any_privilege() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    workload.connect("198.18.3.3:443").unwrap();
    let (stream, _) = host.accept();

    let mut reader = Puppet::start(None);
    reader.ask("setuid 65534").unwrap();
    // The control: this process really is nobody.
    assert_eq!(
        reader.ask("socket 17 3 0"),
        Err(EPERM),
        "no CAP_NET_RAW is left"
    );
    let maps = host.enforcement().map_fds().unwrap();
    let fds = [maps.accepted.as_fd(), maps.flows.as_fd(), stream.as_fd()];
    assert_eq!(
        reader.hand("origin", &fds),
        Ok(vec![id.to_string(), "198.18.3.3:443".to_owned()])
    );
}

#[test]
fn dialling_the_proxy_or_the_resolver_directly_is_refused() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let (proxy, resolver) = (host.ports.proxy, host.ports.resolver);
    for address in [
        "127.0.0.1",
        "127.0.0.2",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
    ] {
        for port in [proxy, resolver] {
            assert_eq!(
                workload.connect(&format!("{address}:{port}")),
                Err(EPERM),
                "{address}:{port}"
            );
        }
    }
    assert_eq!(host.refusals(RefusalKind::ProxyPort), 12);
    // The control: both ports are there, and an ungoverned process reaches them.
    for port in [proxy, resolver] {
        TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
}

#[test]
fn a_workload_cannot_take_the_proxys_port_while_the_daemon_is_down() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let port = host.ports.proxy;
    host.die();
    for address in [
        "127.0.0.1",
        "127.0.0.2",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
    ] {
        assert_eq!(
            workload.ask(&format!("bind {address}:{port}")),
            Err(EPERM),
            "{address}"
        );
    }
    // The control: an ungoverned process can.
    Puppet::start(None)
        .ask(&format!("bind 127.0.0.1:{port}"))
        .unwrap();
}

#[test]
fn a_workloads_own_server_is_reached_and_nobody_elses() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let (mut other, _) = host.workload();
    let mut outsider = Puppet::start(None);

    for (at, dial) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("127.0.0.1:0", "[::ffff:127.0.0.1]"),
        ("0.0.0.0:0", "0.0.0.0"),
        ("[::1]:0", "[::1]"),
        ("[::]:0", "127.0.0.1"),
    ] {
        let (server, port) = workload.listen(at);
        let (client, _, _) = workload.connect(&format!("{dial}:{port}")).unwrap();
        let accepted = workload.ask(&format!("accept {server}")).unwrap()[0].clone();
        workload.ask(&format!("send {accepted} hello")).unwrap();
        assert_eq!(
            workload.ask(&format!("read {client}")),
            Ok(vec!["hello".to_owned()]),
            "{at} by {dial}"
        );
        workload.ask(&format!("send {client} back")).unwrap();
        assert_eq!(
            workload.ask(&format!("read {accepted}")),
            Ok(vec!["back".to_owned()])
        );
        // Both ends close in turn; the last words of each still arrive.
        workload.ask(&format!("close {client}")).unwrap();
        assert_eq!(workload.ask(&format!("read {accepted}")), Ok(vec![]));
        workload.ask(&format!("close {accepted}")).unwrap();
        workload.ask(&format!("close {server}")).unwrap();
    }

    let (_, outside) = outsider.listen("127.0.0.1:0");
    let (_, others) = other.listen("127.0.0.1:0");
    for port in [outside, others] {
        assert_eq!(workload.connect(&format!("127.0.0.1:{port}")), Err(EPERM));
        assert_eq!(
            workload.connect(&format!("[::ffff:127.0.0.1]:{port}")),
            Err(EPERM)
        );
    }
    // Nobody listens there, so it is nobody's.
    assert_eq!(workload.connect("127.0.0.1:1"), Err(EPERM));
    // The controls: both servers are there.
    outsider.connect(&format!("127.0.0.1:{outside}")).unwrap();
    other.connect(&format!("127.0.0.1:{others}")).unwrap();
}

#[test]
fn a_literal_address_is_redirected_only_while_some_connection_names_it() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
    host.enforcement()
        .set_literals(&["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()])
        .unwrap();
    for asked in ["192.0.2.1:443", "[2001:db8::1]:443"] {
        workload.connect(asked).unwrap();
        let (_stream, origin) = host.accept();
        assert_eq!(origin.unwrap().destination, asked.parse().unwrap());
    }
    host.enforcement().set_literals(&[]).unwrap();
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
}

#[test]
fn questions_over_tcp_reach_the_resolver() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    workload.connect("192.0.2.53:53").unwrap();
    let stream = accept_any(&host.dns_tcp);
    let origin = mitm_proxy::Origins::accepted(host.origins.as_ref().unwrap(), stream.as_fd());
    let origin = origin.unwrap();
    assert_eq!(
        (origin.workload, origin.destination),
        (id, "192.0.2.53:53".parse().unwrap())
    );
}

#[test]
fn a_closed_proxy_port_is_an_ordinary_connection_refused() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    workload.connect("198.18.0.1:443").unwrap();
    host.tcp.clear();
    assert_eq!(workload.connect("198.18.0.1:443"), Err(ECONNREFUSED));
}
