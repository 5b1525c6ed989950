//! Socket options of a workload: those that join groups or choose another way are refused, ordinary ones are not.

use std::net::{Ipv4Addr, Ipv6Addr};

use agent_userspace::enforce::RefusalKind;

use crate::host::{EPERM, Host};
use crate::net::{hex, membership4, membership6};
use crate::puppet::Puppet;

const SOL_TCP: i32 = libc::IPPROTO_TCP;
const SOL_UDP: i32 = libc::IPPROTO_UDP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;

/// `MCAST_JOIN_GROUP` takes an interface and a `sockaddr_storage`.
fn group_request(family: u16, address: &[u8], at: usize) -> Vec<u8> {
    let mut request = vec![0; 136];
    request[8..10].copy_from_slice(&family.to_ne_bytes());
    request[8 + at..8 + at + address.len()].copy_from_slice(address);
    request
}

#[test]
fn options_that_join_a_group_or_choose_a_way_are_refused() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let one = 1u32.to_ne_bytes().to_vec();
    let lo = [&[0; 4][..], &[127, 0, 0, 1], &1u32.to_ne_bytes()].concat();
    let v4 = Ipv4Addr::new(239, 1, 2, 3);
    let v6: Ipv6Addr = "ff15::7".parse().unwrap();
    let on_lo4 = [&membership4(v4)[..8], &1u32.to_ne_bytes()].concat();
    let on_lo6 = [&membership6(v6)[..16], &1u32.to_ne_bytes()].concat();
    let mut join4 = group_request(2, &[239, 1, 2, 4], 4);
    join4[0] = 1;
    let mut join6 = group_request(10, &membership6(v6)[..16], 8);
    join6[0] = 1;
    let refused: [(&str, &str, i32, i32, &[u8]); 14] = [
        (
            "join",
            "udp 0.0.0.0:0",
            IP,
            libc::IP_ADD_MEMBERSHIP,
            &on_lo4,
        ),
        (
            "join v6",
            "udp [::]:0",
            IPV6,
            libc::IPV6_ADD_MEMBERSHIP,
            &on_lo6,
        ),
        ("join by TCP", "tcp 4", IP, 42, &join4),
        ("join v6 by any family", "udp [::]:0", IPV6, 42, &join6),
        (
            "multicast interface",
            "udp 0.0.0.0:0",
            IP,
            libc::IP_MULTICAST_IF,
            &lo,
        ),
        ("IP options", "tcp 4", IP, libc::IP_OPTIONS, &[1, 1, 1, 0]),
        ("transparency", "tcp 4", IP, libc::IP_TRANSPARENT, &one),
        (
            "unicast interface",
            "udp 0.0.0.0:0",
            IP,
            50,
            &1u32.to_be_bytes(),
        ),
        (
            "unicast interface v6",
            "udp [::]:0",
            IPV6,
            76,
            &1u32.to_be_bytes(),
        ),
        ("anycast", "udp [::]:0", IPV6, 27, &on_lo6),
        (
            "device",
            "tcp 4",
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            b"lo",
        ),
        ("interface", "tcp 6", libc::SOL_SOCKET, 62, &one),
        ("mark", "tcp 4", libc::SOL_SOCKET, libc::SO_MARK, &one),
        (
            "encapsulation",
            "udp 0.0.0.0:0",
            SOL_UDP,
            100,
            &2u32.to_ne_bytes(),
        ),
    ];
    let mut possible = 0;
    for (what, socket, level, name, value) in refused {
        let command = |socket: &str| format!("option {socket} {level} {name} {}", hex(value));
        let own = workload.ask(socket).unwrap()[0].clone();
        assert_eq!(workload.ask(&command(&own)), Err(EPERM), "{what}");
        // The control: an ungoverned process sets it, where the kernel has it.
        let others = outsider.ask(socket).unwrap()[0].clone();
        possible += u32::from(outsider.ask(&command(&others)).is_ok());
    }
    assert!(possible >= 10, "only {possible} of the options exist here");
    assert_eq!(host.refusals(RefusalKind::Option), 14);
}

#[test]
fn ordinary_options_are_set_as_ever() {
    let mut host = Host::start();
    let (mut workload, _) = host.workload();
    let one = 1u32.to_ne_bytes().to_vec();
    // The last one is longer than what the program sees.
    for (what, socket, level, name, value) in [
        ("no delay", "tcp 4", SOL_TCP, libc::TCP_NODELAY, one.clone()),
        (
            "keep alive",
            "tcp 6",
            libc::SOL_SOCKET,
            libc::SO_KEEPALIVE,
            one.clone(),
        ),
        ("type of service", "tcp 4", IP, libc::IP_TOS, one.clone()),
        (
            "packet information",
            "udp 0.0.0.0:0",
            IP,
            libc::IP_PKTINFO,
            one.clone(),
        ),
        (
            "packet information v6",
            "udp [::]:0",
            IPV6,
            libc::IPV6_RECVPKTINFO,
            one.clone(),
        ),
        ("errors", "udp 0.0.0.0:0", IP, libc::IP_RECVERR, one.clone()),
        (
            "multicast without membership",
            "udp 0.0.0.0:0",
            IP,
            49,
            vec![0; 4],
        ),
        (
            "multicast without membership v6",
            "udp [::]:0",
            IPV6,
            29,
            vec![0; 4],
        ),
        ("long", "tcp 4", SOL_TCP, libc::TCP_CONGESTION, {
            let mut name = b"cubic".to_vec();
            name.resize(8192, 0);
            name
        }),
    ] {
        let own = workload.ask(socket).unwrap()[0].clone();
        let answer = workload.ask(&format!("option {own} {level} {name} {}", hex(&value)));
        assert_eq!(answer, Ok(vec![]), "{what}");
    }
    assert_eq!(host.refusals(RefusalKind::Option), 0);
    workload.connect("198.18.0.1:443").unwrap();
}
