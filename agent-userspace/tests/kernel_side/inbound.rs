//! What comes in: nobody outside reaches a workload's servers; its own processes, the proxy and the resolver do. And what it sees of its own sockets.

use std::io::Write;
use std::net::SocketAddr;

use agent_userspace::enforce::RefusalKind;

use crate::host::{EPERM, Host, pool6};
use crate::puppet::Puppet;

const HOSTS: [&str; 2] = ["127.0.0.1", "[::1]"];

#[test]
fn an_inbound_connection_from_outside_is_refused() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let (mut other, _) = host.workload();
    let mut outsider = Puppet::start(None);
    for at in HOSTS {
        // The control: an ungoverned process's server is reached.
        let (server, port) = outsider.listen(&format!("{at}:0"));
        Puppet::start(None)
            .connect(&format!("{at}:{port}"))
            .unwrap();
        outsider.ask(&format!("accept {server}")).unwrap();

        let (server, port) = workload.listen(&format!("{at}:0"));
        let refused = host.refusals(RefusalKind::Inbound);
        assert!(outsider.connect(&format!("{at}:{port}")).is_err(), "{at}");
        assert!(host.refusals(RefusalKind::Inbound) > refused, "{at}");
        assert_eq!(other.connect(&format!("{at}:{port}")), Err(EPERM));
        // The workload itself is answered, and is the first that the server hears of.
        let (_, own, _) = workload.connect(&format!("{at}:{port}")).unwrap();
        let accepted = workload.ask(&format!("accept {server}")).unwrap()[0].clone();
        let names = workload.ask(&format!("names {accepted}")).unwrap();
        assert_eq!(names[1].parse::<SocketAddr>().unwrap(), own);
    }
    assert_eq!(
        host.refusals(RefusalKind::Packet),
        0,
        "no answer was even tried"
    );
}

#[test]
fn an_inbound_datagram_from_outside_is_dropped() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    for at in HOSTS {
        let receive = |puppet: &mut Puppet| {
            let words = puppet.ask(&format!("udp {at}:0")).unwrap();
            (words[0].clone(), format!("{at}:{}", words[1]))
        };
        let from = outsider.udp(&format!("{at}:0"));
        // The control.
        let (server, to) = receive(&mut outsider);
        outsider.ask(&format!("sendto {from} {to} leak")).unwrap();
        assert_eq!(
            outsider.ask(&format!("recvfrom {server}")).unwrap()[1],
            "leak"
        );

        let (server, to) = receive(&mut workload);
        outsider.ask(&format!("sendto {from} {to} leak")).unwrap();
        let own = workload.udp(&format!("{at}:0"));
        workload.ask(&format!("sendto {own} {to} own")).unwrap();
        assert_eq!(
            workload.ask(&format!("recvfrom {server}")).unwrap()[1],
            "own"
        );
    }
    assert_eq!(host.refusals(RefusalKind::Inbound), 2);
}

#[test]
fn large_segments_pass_inwards_and_within_in_either_family() {
    const BYTES: usize = 64 << 20;
    let mut host = Host::start();
    let admitted = host.admit("acme/support");
    let mut server = Puppet::start(Some(&admitted.path));
    let mut client = Puppet::start(Some(&admitted.path));
    for asked in ["198.18.0.7:443".to_owned(), format!("[{}]:443", pool6(9))] {
        let (socket, _, _) = client.connect(&asked).unwrap();
        let (mut stream, _) = host.accept();
        client.tell(&format!("drain {socket}"));
        stream.set_nonblocking(false).unwrap();
        let piece = vec![7; 4 << 20];
        for _ in 0..BYTES / piece.len() {
            stream.write_all(&piece).unwrap();
        }
        drop(stream);
        assert_eq!(client.answer(), Ok(vec![BYTES.to_string()]), "from {asked}");
    }
    for at in HOSTS {
        let (listener, port) = server.listen(&format!("{at}:0"));
        client.tell(&format!("upload {} {at}:{port}", BYTES >> 20));
        let accepted = server.ask(&format!("accept {listener}")).unwrap()[0].clone();
        assert_eq!(
            server.ask(&format!("drain {accepted}")),
            Ok(vec![BYTES.to_string()]),
            "at {at}"
        );
        client.answer().unwrap();
    }
    let counts = host.enforcement().refusals().unwrap();
    assert!(counts.iter().all(|(_, count)| *count == 0), "{counts:?}");
}

#[test]
fn many_short_connections_within_a_workload_lose_nothing() {
    let mut host = Host::start();
    let admitted = host.admit("acme/support");
    let mut server = Puppet::start(Some(&admitted.path));
    let mut client = Puppet::start(Some(&admitted.path));
    for at in HOSTS {
        let (listener, port) = server.listen(&format!("{at}:0"));
        for round in 0..100 {
            // The client is gone before the server looks.
            let (socket, _, _) = client.connect(&format!("{at}:{port}")).unwrap();
            client.ask(&format!("send {socket} round{round}")).unwrap();
            client.ask(&format!("close {socket}")).unwrap();
            let accepted = server.ask(&format!("accept {listener}")).unwrap()[0].clone();
            assert_eq!(
                server.ask(&format!("drain {accepted}")),
                Ok(vec![format!("round{round}").len().to_string()])
            );
            server.ask(&format!("close {accepted}")).unwrap();
        }
        // A closed server's port is refused, not waited for.
        server.ask(&format!("close {listener}")).unwrap();
        assert_eq!(client.connect(&format!("{at}:{port}")), Err(EPERM));
    }
    assert_eq!(host.refusals(RefusalKind::Inbound), 0);
    assert_eq!(host.refusals(RefusalKind::Packet), 0);
}

#[test]
fn datagrams_within_a_workload_arrive_although_their_sender_is_gone() {
    const SHOTS: usize = 100;
    let mut host = Host::start();
    let admitted = host.admit("acme/support");
    let mut server = Puppet::start(Some(&admitted.path));
    let mut client = Puppet::start(Some(&admitted.path));
    for at in HOSTS {
        let words = server.ask(&format!("udp {at}:0")).unwrap();
        client
            .ask(&format!("fire {SHOTS} {at}:{}", words[1]))
            .unwrap();
        for _ in 0..SHOTS {
            let heard = server.ask(&format!("recvfrom {}", words[0])).unwrap();
            assert_eq!(heard[1], "shot");
        }
    }
    assert_eq!(host.refusals(RefusalKind::Inbound), 0);
}

#[test]
fn a_port_that_the_kernel_chooses_is_not_the_proxys() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let port = host.ports.proxy;
    // In a network namespace of its own the port is free; there is no other one to choose.
    for puppet in [&mut workload, &mut outsider] {
        puppet.ask("new_netns").unwrap();
        puppet.ask("loopback_up").unwrap();
        puppet.ask(&format!("ports {port} {port}")).unwrap();
    }
    for command in ["bind", "udp"] {
        for at in ["0.0.0.0:0", "127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let command = format!("{command} {at}");
            assert_eq!(workload.ask(&command), Err(EPERM), "{command}");
        }
    }
    assert_eq!(host.refusals(RefusalKind::Bind), 8);
    // The control: an ungoverned process is given that port.
    let (socket, given) = outsider.listen("127.0.0.1:0");
    assert_eq!(given, port);
    outsider.ask(&format!("close {socket}")).unwrap();
    // listen() without bind() passes no hook: whoever gets the port so neither hears nor answers anybody.
    let given = workload.ask("listenanywhere").unwrap();
    assert_eq!(given[1], port.to_string());
    assert!(workload.connect(&format!("127.0.0.1:{port}")).is_err());
    let given = outsider.ask("listenanywhere").unwrap();
    assert_eq!(given[1], port.to_string());
}

#[test]
fn a_workload_sees_loopback_as_its_own_address_and_the_peer_that_it_asked_for() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    for (asked, own) in [
        ("198.18.0.7:443".to_owned(), "127.0.0.1"),
        ("[::ffff:198.18.0.7]:443".to_owned(), "::ffff:127.0.0.1"),
        (format!("[{}]:443", pool6(9)), "::1"),
    ] {
        let (socket, _, _) = workload.connect(&asked).unwrap();
        let (stream, _) = host.accept();
        let names = workload.ask(&format!("names {socket}")).unwrap();
        let [local, peer, option] = [0, 1, 2].map(|at| names[at].parse::<SocketAddr>().unwrap());
        assert_eq!(local.ip().to_string(), own);
        assert_eq!(local.port(), stream.peer_addr().unwrap().port());
        // The same by getpeername() and by SO_PEERNAME.
        assert_eq!((peer, option), (asked.parse().unwrap(), peer));
    }
}
