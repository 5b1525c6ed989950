//! Questions about names reach our resolver whatever server was asked, and no other datagram leaves.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;

use agent_userspace::enforce::RefusalKind;
use mitm_proxy::Origins;

use crate::host::{EPERM, Host, pool6, receive_any};
use crate::puppet::Puppet;

#[test]
fn an_unconnected_socket_asks_our_resolver_and_hears_the_asked_server() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    for (own, server) in [
        ("0.0.0.0:0", "192.0.2.53:53"),
        ("0.0.0.0:0", "127.0.0.53:53"),
        ("[::]:0", "[2001:db8::53]:53"),
        ("[::]:0", "[::ffff:192.0.2.54]:53"),
    ] {
        let socket = workload.udp(own);
        workload
            .ask(&format!("sendto {socket} {server} question"))
            .unwrap();
        let (text, from, index) = receive_any(&host.dns_udp);
        assert_eq!(text, "question");

        let origin = host
            .origins
            .as_ref()
            .unwrap()
            .datagram(host.dns_udp[index].as_fd(), from)
            .expect("an origin");
        let asked: SocketAddr = server.parse().unwrap();
        assert_eq!(origin.workload, id);
        assert_eq!(
            origin.destination,
            SocketAddr::new(asked.ip().to_canonical(), asked.port())
        );

        host.dns_udp[index].send_to(b"answer", from).unwrap();
        assert_eq!(
            workload.ask(&format!("recvfrom {socket}")),
            Ok(vec![server.to_owned(), "answer".to_owned()])
        );
    }
}

#[test]
fn a_connected_socket_asks_our_resolver_and_sees_the_asked_server() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    for (own, server) in [
        ("0.0.0.0:0", "192.0.2.53:53"),
        ("[::]:0", "[2001:db8::53]:53"),
        ("[::]:0", "[::ffff:192.0.2.53]:53"),
    ] {
        let socket = workload.udp(own);
        assert_eq!(
            workload.ask(&format!("udpconnect {socket} {server}")),
            Ok(vec![server.to_owned()]),
            "getpeername"
        );
        workload.ask(&format!("send {socket} question")).unwrap();
        let (_, from, index) = receive_any(&host.dns_udp);
        assert_eq!(
            host.origins
                .as_ref()
                .unwrap()
                .datagram(host.dns_udp[index].as_fd(), from)
                .unwrap()
                .workload,
            id
        );
        host.dns_udp[index].send_to(b"answer", from).unwrap();
        assert_eq!(
            workload.ask(&format!("recvfrom {socket}")),
            Ok(vec![server.to_owned(), "answer".to_owned()])
        );
    }
}

#[test]
fn a_datagram_of_an_ungoverned_process_has_no_origin() {
    let host = Host::start();
    let mut outsider = Puppet::start(None);
    let socket = outsider.udp("127.0.0.1:0");
    let resolver = host.dns_udp[0].local_addr().unwrap();
    outsider
        .ask(&format!("sendto {socket} {resolver} question"))
        .unwrap();
    let (_, from, _) = receive_any(&host.dns_udp);
    assert_eq!(
        host.origins
            .as_ref()
            .unwrap()
            .datagram(host.dns_udp[0].as_fd(), from),
        None
    );
}

#[test]
fn other_datagrams_are_refused() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let receiver = outsider.ask("udp 127.0.0.1:0").unwrap();
    let (receiver, port) = (receiver[0].clone(), receiver[1].clone());

    let v4 = workload.udp("0.0.0.0:0");
    let v6 = workload.udp("[::]:0");
    for (socket, to) in [
        (v4, format!("127.0.0.1:{port}")),
        (v4, "192.0.2.1:443".to_owned()),
        (v4, "255.255.255.255:67".to_owned()),
        (v4, "224.0.0.251:5353".to_owned()),
        (v6, "[2001:db8::1]:443".to_owned()),
        (v6, "[ff02::fb]:5353".to_owned()),
        (v6, format!("[::ffff:127.0.0.1]:{port}")),
    ] {
        assert_eq!(
            workload.ask(&format!("sendto {socket} {to} leak")),
            Err(EPERM),
            "sendto {to}"
        );
        assert_eq!(
            workload.ask(&format!("udpconnect {socket} {to}")),
            Err(EPERM),
            "connect {to}"
        );
    }
    assert_eq!(host.refusals(RefusalKind::Datagram), 14);

    // Datagrams towards a name (QUIC) have a kind of their own: the C library makes them when it sorts addresses.
    assert_eq!(
        workload.ask(&format!("udpconnect {v4} 198.18.0.1:443")),
        Err(EPERM)
    );
    assert_eq!(
        workload.ask(&format!("sendto {v6} [{}]:443 leak", pool6(1))),
        Err(EPERM)
    );
    assert_eq!(host.refusals(RefusalKind::DatagramName), 2);

    // The control: the receiver is there and hears somebody who is not governed.
    let sender = outsider.udp("127.0.0.1:0");
    outsider
        .ask(&format!("sendto {sender} 127.0.0.1:{port} control"))
        .unwrap();
    let heard = outsider.ask(&format!("recvfrom {receiver}")).unwrap();
    assert_eq!(
        heard[1], "control",
        "the first thing heard: nothing leaked before"
    );
}

#[test]
fn a_workload_speaks_udp_with_itself() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let (mut other, _) = host.workload();
    for (at, dial) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "[::1]")] {
        let server = workload.ask(&format!("udp {at}")).unwrap();
        let (server, port) = (server[0].clone(), server[1].clone());
        let client = workload.udp(at);
        workload
            .ask(&format!("sendto {client} {dial}:{port} hello"))
            .unwrap();
        assert_eq!(
            workload.ask(&format!("recvfrom {server}")).unwrap()[1],
            "hello"
        );

        let stranger = other.udp(at);
        assert_eq!(
            other.ask(&format!("sendto {stranger} {dial}:{port} leak")),
            Err(EPERM)
        );
    }
}
