//! Sockets that were born outside a workload's cgroup, used inside it: the programs of the workload's own cgroup never see them.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use agent_userspace::enforce::RefusalKind;

use crate::host::{EPERM, Host};
use crate::puppet::Puppet;

/// Servers of nobody governed, on both families.
struct Outside {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

const FAMILIES: [(&str, &str); 2] = [("4", "127.0.0.1"), ("6", "[::1]")];

impl Outside {
    fn open() -> Outside {
        let hosts = FAMILIES.iter().map(|(_, host)| format!("{host}:0"));
        Outside {
            tcp: hosts
                .clone()
                .map(|at| TcpListener::bind(at).unwrap())
                .collect(),
            udp: hosts.map(|at| UdpSocket::bind(at).unwrap()).collect(),
        }
    }

    /// Connects and sends to each server, with sockets that were made before: what came of it.
    fn reach(&self, puppet: &mut Puppet, sockets: &[Sockets]) -> Vec<Result<(), i32>> {
        let mut answers = Vec::new();
        for (index, made) in sockets.iter().enumerate() {
            let tcp = self.tcp[index].local_addr().unwrap();
            let udp = self.udp[index].local_addr().unwrap();
            for command in [
                format!("connectwith {} {tcp}", made.tcp),
                format!("sendto {} {udp} leak", made.udp),
                format!("udpconnect {} {udp}", made.connected),
            ] {
                answers.push(puppet.ask(&command).map(drop));
            }
        }
        answers
    }
}

/// Numbers of one puppet's sockets, of one family.
struct Sockets {
    tcp: String,
    udp: String,
    connected: String,
}

fn make(puppet: &mut Puppet) -> Vec<Sockets> {
    let mut sockets = Vec::new();
    for (family, host) in FAMILIES {
        let mut new = |command: String| puppet.ask(&command).unwrap()[0].clone();
        sockets.push(Sockets {
            tcp: new(format!("tcp {family}")),
            udp: new(format!("udp {host}:0")),
            connected: new(format!("udp {host}:0")),
        });
    }
    sockets
}

#[test]
fn a_socket_born_outside_connects_and_sends_nowhere_in_a_workload() {
    let mut host = Host::start();
    let admitted = host.admit("acme/support");
    let outside = Outside::open();
    let mut stray = Puppet::start(None);
    let (before, after, later) = (make(&mut stray), make(&mut stray), make(&mut stray));

    // The control: the same process, before it is governed.
    assert_eq!(outside.reach(&mut stray, &before), vec![Ok(()); 6]);

    stray.enter(&admitted.path);
    assert_eq!(outside.reach(&mut stray, &after), vec![Err(EPERM); 6]);
    assert_eq!(host.refusals(RefusalKind::SocketForeign), 6);
    // A socket that it makes now is its own.
    stray.connect("198.18.0.1:443").unwrap();

    // Without a daemon, and with the next one.
    host.die();
    assert_eq!(outside.reach(&mut stray, &later), vec![Err(EPERM); 6]);
    host.adopt();
    assert_eq!(outside.reach(&mut stray, &later), vec![Err(EPERM); 6]);
}

#[test]
fn instances_side_by_side_judge_only_their_own_tasks() {
    let mut one = Host::start();
    let mut two = Host::start();
    let outside = Outside::open();
    let mut outsider = Puppet::start(None);
    let (mut of_one, _) = one.workload();
    let (mut of_two, _) = two.workload();

    of_one.connect("198.18.0.1:443").unwrap();
    of_two.connect("198.18.0.1:443").unwrap();
    of_two.ask("connect 192.0.2.1:443").unwrap_err();
    let sockets = make(&mut outsider);
    assert_eq!(outside.reach(&mut outsider, &sockets), vec![Ok(()); 6]);
    for host in [&mut one, &mut two] {
        assert_eq!(host.refusals(RefusalKind::SocketForeign), 0);
    }

    // The control: each does judge its own.
    let admitted = two.admit("acme/support");
    let sockets = make(&mut outsider);
    outsider.enter(&admitted.path);
    assert_eq!(outside.reach(&mut outsider, &sockets), vec![Err(EPERM); 6]);
    assert_eq!(one.refusals(RefusalKind::SocketForeign), 0);
    assert_eq!(two.refusals(RefusalKind::SocketForeign), 6);
}

#[test]
fn an_instance_that_stopped_leaves_nothing_at_the_root() {
    let outside = Outside::open();
    let mut host = Host::start();
    let mut stray = Puppet::start(None);
    let sockets = make(&mut stray);
    let admitted = host.admit("acme/support");
    stray.enter(&admitted.path);
    // The control: while the instance is there, its programs are.
    assert_eq!(outside.reach(&mut stray, &sockets), vec![Err(EPERM); 6]);
    let base = admitted
        .path
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    stray.enter(&base);
    host.enforcement().retire(admitted.id).unwrap();
    assert_eq!(
        host.take().stop().unwrap(),
        agent_userspace::enforce::Stopped::Removed
    );
    // The kernel detaches a program some time after its pin is gone.
    let deadline = Instant::now() + Duration::from_secs(10);
    while outside.reach(&mut stray, &sockets) != vec![Ok(()); 6] {
        assert!(Instant::now() < deadline, "programs are still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}
