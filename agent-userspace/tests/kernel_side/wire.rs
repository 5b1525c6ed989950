//! Packets that socket options send elsewhere than connect() said: a TUN device shows what would have left the host.
//! Needs /dev/net/tun. Each test has a network namespace of its own, made by a thread of its own.
//! INVARIANT: the detector is first seen to catch the same trick by a process that is not governed.

use std::net::{Ipv4Addr, Ipv6Addr};

use agent_userspace::enforce::RefusalKind;

use crate::host::{EPERM, Host};
use crate::net::{Wire, datagram4, hex, leave_by, membership4, membership6, routing_header};
use crate::puppet::Puppet;

#[test]
fn binding_to_a_device_puts_no_loopback_packet_on_the_wire() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let proxy = host.ports.proxy;

    // The control: 127.0.0.1 through the device is a packet on the wire.
    let _timed_out = outsider.ask(&format!("connect 127.0.0.1:{proxy} device wire0"));
    assert!(
        wire.saw(|packet| is_tcp4(packet, Ipv4Addr::LOCALHOST, proxy)),
        "the detector works"
    );
    drop(outsider);
    wire.clear();

    // The workload asks for a name's address, and is led to 127.0.0.1 by the device.
    assert_eq!(
        workload.ask("connect 198.18.0.1:443 device wire0"),
        Err(EPERM)
    );
    // What comes with the datagram itself passes no hook on options: the packet floor stops it.
    let socket = workload.udp("0.0.0.0:0");
    let pktinfo = hex(&leave_by("wire0"));
    let (level, kind) = (libc::IPPROTO_IP, libc::IP_PKTINFO);
    let _refused = workload.ask(&format!(
        "sendwith {socket} 192.0.2.53:53 {level} {kind} {pktinfo}"
    ));
    assert!(
        !wire.saw(|packet| packet.first().is_some_and(|first| first >> 4 == 4)),
        "nothing leaves"
    );
    assert!(host.refusals(RefusalKind::Packet) > 0);
}

#[test]
fn a_packet_that_comes_in_by_a_device_reaches_no_server_of_a_workload() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let (remote, local) = (Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 1));
    let resolver = host.ports.resolver;
    // The control: it reaches a server of an ungoverned process.
    let server = outsider.ask("udp 0.0.0.0:0").unwrap();
    let to = (local, server[1].parse().unwrap());
    wire.inject(&datagram4((remote, 4000), to, b"leak"));
    let heard = outsider.ask(&format!("recvfrom {}", server[0])).unwrap();
    assert_eq!(heard[1], "leak");

    let server = workload.ask("udp 0.0.0.0:0").unwrap();
    let port = server[1].parse().unwrap();
    for from in [4000, resolver] {
        wire.inject(&datagram4((remote, from), (local, port), b"leak"));
    }
    let own = workload.udp("0.0.0.0:0");
    workload
        .ask(&format!("sendto {own} 127.0.0.1:{port} own"))
        .unwrap();
    let heard = workload.ask(&format!("recvfrom {}", server[0])).unwrap();
    assert_eq!(heard[1], "own");
    assert_eq!(host.refusals(RefusalKind::Inbound), 2);
}

#[test]
fn a_routing_header_leads_no_packet_past_the_proxy() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let through: Ipv6Addr = "2001:db8:77::1".parse().unwrap();

    // The control: the first hop of the header is where the packet goes, whatever sendto() said.
    let header = hex(&routing_header(through));
    let (level, option) = (libc::IPPROTO_IPV6, libc::IPV6_RTHDR);
    let socket = outsider.udp("[::]:0");
    outsider
        .ask(&format!("option {socket} {level} {option} {header}"))
        .unwrap();
    let _sent = outsider.ask(&format!("sendto {socket} [2001:db8:66::1]:53 control"));
    assert!(
        wire.saw(|packet| is_to6(packet, through)),
        "the detector works"
    );
    drop(outsider);
    wire.clear();

    let socket = workload.udp("[::]:0");
    assert_eq!(
        workload.ask(&format!("option {socket} {level} {option} {header}")),
        Err(EPERM)
    );
    // Datagrams may bring headers of their own (options for the destination, padding here), which no hook on options
    // sees: the packet floor stops whatever is not a plain packet.
    let padding = hex(&[0, 0, 1, 4, 0, 0, 0, 0]);
    let _refused = workload.ask(&format!(
        "sendwith {socket} [2001:db8::53]:53 {level} {} {padding}",
        libc::IPV6_DSTOPTS
    ));
    assert!(
        !wire.saw(|packet| is_to6(packet, through)),
        "nothing leaves"
    );
    assert!(host.refusals(RefusalKind::Packet) > 0);
}

#[test]
fn nothing_reaches_the_wire_by_ordinary_means() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let asked = Ipv4Addr::new(192, 0, 2, 1);

    // The control.
    let _timed_out = outsider.ask(&format!("connect {asked}:443"));
    assert!(
        wire.saw(|packet| is_tcp4(packet, asked, 443)),
        "the detector works"
    );
    drop(outsider);
    wire.clear();

    let udp = workload.udp("0.0.0.0:0");
    for command in [
        format!("connect {asked}:443"),
        "connect [2001:db8::1]:443".to_owned(),
        "connect [::ffff:192.0.2.1]:443".to_owned(),
        format!("sendto {udp} {asked}:443 leak"),
        format!("sendto {udp} 224.0.0.251:5353 leak"),
        format!("sendto {udp} 255.255.255.255:67 leak"),
    ] {
        assert!(workload.ask(&command).is_err(), "{command}");
    }
    assert!(
        !wire.saw(|packet| packet.first().is_some_and(|first| first >> 4 == 4)),
        "nothing leaves"
    );
}

#[test]
fn joining_a_group_puts_no_report_on_the_link() {
    let mut wire = Wire::make();
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let (chosen4, chosen6) = (Ipv4Addr::new(239, 83, 76, 85), "ff15::5361:6c75".parse());
    let chosen6: Ipv6Addr = chosen6.unwrap();
    let joins = [
        (
            "0.0.0.0:0",
            libc::IPPROTO_IP,
            libc::IP_ADD_MEMBERSHIP,
            membership4(chosen4),
        ),
        (
            "[::]:0",
            libc::IPPROTO_IPV6,
            libc::IPV6_ADD_MEMBERSHIP,
            membership6(chosen6),
        ),
    ];

    // The control: the report carries the bits that the process chose.
    for (at, level, option, group) in &joins {
        let socket = outsider.udp(at);
        outsider
            .ask(&format!("option {socket} {level} {option} {}", hex(group)))
            .unwrap();
        let bits = &group[..group.len() - if *level == libc::IPPROTO_IP { 8 } else { 4 }];
        assert!(
            wire.saw(|packet| packet.windows(bits.len()).any(|part| part == bits)),
            "the detector works: {at}"
        );
    }
    drop(outsider);
    // Leaving the groups is reported as well.
    std::thread::sleep(std::time::Duration::from_secs(1));
    wire.clear();

    for (at, level, option, group) in &joins {
        let socket = workload.udp(at);
        assert_eq!(
            workload.ask(&format!("option {socket} {level} {option} {}", hex(group))),
            Err(EPERM)
        );
    }
    let bits = [&chosen4.octets()[..], &chosen6.octets()[..]];
    assert!(
        !wire.saw(|packet| bits
            .iter()
            .any(|bits| packet.windows(bits.len()).any(|part| part == *bits))),
        "nothing leaves"
    );
    assert_eq!(host.refusals(RefusalKind::Option), 2);
}

fn is_tcp4(packet: &[u8], to: Ipv4Addr, port: u16) -> bool {
    packet.len() >= 24
        && packet[0] >> 4 == 4
        && packet[9] == 6
        && packet[16..20] == to.octets()
        && packet[22..24] == port.to_be_bytes()
}

fn is_to6(packet: &[u8], to: Ipv6Addr) -> bool {
    packet.len() >= 40 && packet[0] >> 4 == 6 && packet[24..40] == to.octets()
}
