//! What a workload may not do, each refused by the kernel and counted under its name.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use agent_userspace::enforce::{KernelRefusal, RefusalKind};

use crate::host::{EPERM, Host, pool6};
use crate::puppet::Puppet;

#[test]
fn a_zeroed_configuration_denies_everything() {
    let mut host = Host::start_unpublished();
    let (mut workload, _) = host.workload();
    for command in [
        "connect 198.18.0.1:443",
        "connect 127.0.0.1:1",
        "udp 0.0.0.0:0",
        "listen 127.0.0.1:0",
        "udp [::]:0",
    ] {
        assert_eq!(workload.ask(command), Err(EPERM), "{command}");
    }
    assert!(host.refusals(RefusalKind::Config) >= 5);

    // The control: the same process, once the ports are published.
    host.open();
    workload.connect("198.18.0.1:443").unwrap();
}

#[test]
fn an_unknown_destination_is_refused_and_reported() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    let mut events = host.enforcement().events().unwrap();
    for to in [
        "192.0.2.1:443",
        "[2001:db8::1]:443",
        "[::ffff:192.0.2.1]:443",
        "169.254.169.254:80",
        "198.20.0.1:443",
    ] {
        assert_eq!(workload.connect(to), Err(EPERM), "{to}");
        let to: SocketAddr = to.parse().unwrap();
        let expected = KernelRefusal {
            workload: Some(id),
            kind: RefusalKind::DestinationUnknown,
            destination: Some(SocketAddr::new(to.ip().to_canonical(), to.port())),
            protocol: 6,
            family: if matches!(to.ip().to_canonical(), IpAddr::V4(_)) {
                2
            } else {
                10
            },
        };
        assert_eq!(events.next_refusal(), Some(expected));
    }
    assert_eq!(events.next_refusal(), None);
    assert_eq!(host.refusals(RefusalKind::DestinationUnknown), 5);
    // The control: a synthetic address is let through.
    workload.connect("198.19.0.1:443").unwrap();
}

#[test]
fn events_are_limited_and_counts_are_exact() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut events = host.enforcement().events().unwrap();
    for _ in 0..500 {
        assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
    }
    let sent = std::iter::from_fn(|| events.next_refusal()).count();
    assert!((1..400).contains(&sent), "{sent} events");
    assert_eq!(host.refusals(RefusalKind::DestinationUnknown), 500);
}

#[test]
fn only_tcp_and_udp_sockets_exist() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let kinds = [
        ("raw ICMP", 2, 3, 1),
        ("raw ICMPv6", 10, 3, 58),
        ("raw UDP", 2, 3, 17),
        ("raw everything", 2, 3, 255),
        ("ping", 2, 2, 1),
        ("ping v6", 10, 2, 58),
        ("UDP-Lite", 2, 2, 136),
        ("SCTP", 2, 1, 132),
        ("MPTCP", 2, 1, 262),
        ("MPTCP v6", 10, 1, 262),
    ];
    let mut existing = 0;
    for (name, family, kind, protocol) in kinds {
        let command = format!("socket {family} {kind} {protocol}");
        let refused = workload.ask(&command).expect_err(name);
        // The control: where the kernel knows the protocol at all, an ungoverned process gets the socket.
        if outsider.ask(&command).is_ok() {
            assert_eq!(refused, EPERM, "{name}");
            existing += 1;
        }
    }
    assert!(
        existing >= 6,
        "only {existing} of the protocols exist on this kernel"
    );
    assert!(host.refusals(RefusalKind::Family) >= existing);
    for allowed in [
        "socket 2 1 0",
        "socket 2 1 6",
        "socket 2 2 0",
        "socket 10 1 0",
        "socket 10 2 17",
        "socket 1 1 0",
    ] {
        workload.ask(allowed).unwrap();
    }
}

#[test]
fn a_socket_of_another_workload_or_of_nobody_governed_is_refused() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let (mut other, _) = host.workload();
    let others = other.udp("0.0.0.0:0");
    // One workload's socket in another's hands: it would be attributed to the wrong one.
    other.tell(&format!("give_socket {others}"));
    let fds = crate::host::receive_fds(other.socket()).unwrap();
    other.answer().unwrap();
    match workload.hand("take_socket", &[fds[0].as_fd()]) {
        Ok(socket) => assert_eq!(
            workload.ask(&format!("sendto {} 192.0.2.53:53 question", socket[0])),
            Err(EPERM)
        ),
        // The LSM layer does not even let it in.
        Err(_none) => assert!(host.is_live("lsm_socket")),
    }
    assert_eq!(host.refusals(RefusalKind::SocketForeign), 1);
    // The control: its maker may use it.
    other
        .ask(&format!("sendto {others} 192.0.2.53:53 question"))
        .unwrap();
}

#[test]
fn a_task_in_no_admitted_workload_is_refused() {
    let mut host = Host::start();
    let agents = host.enforcement().agents_cgroup().to_owned();
    let stray = agents.join("acme.stray.1");
    std::fs::create_dir(&stray).unwrap();
    let mut stray_process = Puppet::start(Some(&stray));
    assert_eq!(stray_process.connect("198.18.0.1:443"), Err(EPERM));
    assert!(host.refusals(RefusalKind::WorkloadUnknown) > 0);
    // The control: admitted, the same act is let through.
    host.workload().0.connect("198.18.0.1:443").unwrap();
}

#[test]
fn the_kill_switch_stops_new_and_open_connections() {
    let mut host = Host::start();
    let (mut workload, id) = host.workload();
    let (mut other, _) = host.workload();
    let (open, _, _) = workload.connect("198.18.0.1:443").unwrap();
    let (stream, _) = host.accept();
    workload.ask(&format!("send {open} before")).unwrap();
    assert_eq!(read(&stream), b"before");

    host.enforcement().set_disabled(id, true).unwrap();
    assert_eq!(workload.connect("198.18.0.1:443"), Err(EPERM));
    let _queued = workload.ask(&format!("send {open} after"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(read(&stream), b"", "nothing arrives on the open connection");
    assert!(host.refusals(RefusalKind::WorkloadDisabled) >= 2);
    // The controls: another workload is not touched, and switching on again lets the queued bytes through.
    other.connect("198.18.0.1:443").unwrap();
    host.enforcement().set_disabled(id, false).unwrap();
    workload.connect("198.18.0.1:443").unwrap();
}

#[test]
fn a_new_network_namespace_is_no_way_out() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    workload.ask("new_netns").unwrap();
    workload.ask("loopback_up").unwrap();
    // Redirected into its own namespace, where nobody listens.
    for to in ["198.18.0.1:443".to_owned(), format!("[{}]:443", pool6(1))] {
        assert_eq!(workload.connect(&to), Err(crate::host::ECONNREFUSED));
    }
    assert_eq!(workload.connect("192.0.2.1:443"), Err(EPERM));
    // A server of its own, on the port that the proxy has outside, gets nothing either.
    let port = host.ports.proxy;
    assert_eq!(
        workload.ask(&format!("listen 127.0.0.1:{port}")),
        Err(EPERM)
    );
}

#[test]
fn packet_and_netlink_sockets_are_refused_by_the_lsm_layer() {
    let mut host = Host::start();
    let live = host.is_live("lsm");
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    // The control: an ungoverned process may have all of these.
    for command in ["socket 17 3 0", "socket 16 3 0", "socket 16 3 9"] {
        outsider.ask(command).unwrap();
    }
    workload.ask("socket 16 3 0").expect("NETLINK_ROUTE");
    // Where no LSM program runs, the layer says that it is absent and what that leaves open.
    assert_eq!(host.layer("lsm").leaves_open.is_empty(), live);
    for command in ["socket 17 3 0", "socket 16 3 9"] {
        assert_eq!(workload.ask(command).is_err(), live, "{command}");
    }
}

fn read(stream: &std::net::TcpStream) -> Vec<u8> {
    use std::io::Read;
    let mut stream = stream;
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_millis(100)))
        .unwrap();
    let mut bytes = [0; 64];
    let count = stream.read(&mut bytes).unwrap_or(0);
    bytes[..count].to_vec()
}
