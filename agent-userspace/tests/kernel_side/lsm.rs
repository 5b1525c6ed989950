//! What only BPF LSM programs see. Where the kernel runs none, the layer says so, and the same act is seen to succeed: it is really open.
//! Names begin with `lsm_`, so that a machine that has them can run these alone.

use std::io::Read;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use agent_userspace::enforce::RefusalKind;

use crate::host::{EPERM, Host, receive_fds};
use crate::outside::{Elsewhere, govern};
use crate::puppet::Puppet;

#[test]
fn lsm_layers_are_live_where_the_kernel_runs_such_programs() {
    let mut host = Host::start();
    let list = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let listed = list.trim().split(',').any(|module| module == "bpf");
    // A kernel may list BPF LSM and still refuse its programs; the kernels of the test machines do not.
    let runs = listed && std::env::var_os("SLUICE_TEST_GUEST").is_some();
    for name in [
        "lsm",
        "lsm_socket",
        "lsm_unix",
        "lsm_ptrace",
        "lsm_bpf",
        "lsm_capable",
        "lsm_uring",
        "lsm_uring_cmd",
    ] {
        let layer = host.layer(name);
        assert!(host.is_live(name) || !runs, "{layer:?}");
        assert!(!host.is_live(name) || listed, "{layer:?}");
        assert_eq!(
            host.is_live(name),
            layer.leaves_open.is_empty(),
            "{layer:?}"
        );
    }
}

#[test]
fn lsm_a_socket_connected_outside_sends_nothing_from_a_workload() {
    let mut host = Host::start();
    let live = host.is_live("lsm_socket");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = server.local_addr().unwrap();
    let mut stray = Puppet::start(None);
    let (socket, _, _) = stray.connect(&to.to_string()).unwrap();
    let (mut stream, _) = server.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut bytes = [0; 8];

    // The control: the same socket, before its process is governed.
    stray.ask(&format!("send {socket} before")).unwrap();
    assert_eq!(stream.read(&mut bytes).unwrap(), 6);

    let admitted = host.admit("acme/support");
    stray.enter(&admitted.path);
    let sent = stray.ask(&format!("send {socket} after"));
    let option = format!(
        "option {socket} {} {} 01000000",
        libc::IPPROTO_TCP,
        libc::TCP_NODELAY
    );
    let set = stray.ask(&option);
    if live {
        assert_eq!((sent, set), (Err(EPERM), Err(EPERM)));
        assert!(stream.read(&mut bytes).is_err(), "nothing arrives");
        assert_eq!(host.refusals(RefusalKind::SocketForeign), 2);
    } else {
        sent.unwrap();
        assert!(!host.layer("foreign_socket").leaves_open.is_empty());
    }
    // Its own sockets send as ever.
    let (own, _, _) = stray.connect("198.18.0.1:443").unwrap();
    stray.ask(&format!("send {own} hello")).unwrap();
}

#[test]
fn lsm_a_socket_born_outside_takes_no_port_and_no_connection() {
    let mut host = Host::start();
    let live = host.is_live("lsm_socket");
    let mut stray = Puppet::start(None);
    let acts = |stray: &mut Puppet| {
        let mut made = || stray.ask("tcp 4").unwrap()[0].clone();
        let (unbound, bound) = (made(), made());
        stray.ask(&format!("bindwith {bound} 127.0.0.1:0")).unwrap();
        let (listening, port) = stray.listen("127.0.0.1:0");
        let waiting = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let commands = [
            format!("bindwith {unbound} 127.0.0.1:0"),
            format!("listenwith {bound}"),
            format!("accept {listening}"),
        ];
        (commands, waiting)
    };
    // The control: the same process, before it is governed.
    let (free, _waiting) = acts(&mut stray);
    for act in &free {
        stray.ask(act).unwrap();
    }

    let (governed, _waiting) = acts(&mut stray);
    let admitted = host.admit("acme/support");
    stray.enter(&admitted.path);
    for act in &governed {
        let answer = stray.ask(act);
        assert_eq!(answer.err(), live.then_some(EPERM), "{act}");
    }
    let counted = host.refusals(RefusalKind::SocketForeign);
    assert_eq!(counted, if live { 3 } else { 0 });
}

#[test]
fn lsm_a_workload_receives_no_socket_from_outside() {
    let mut host = Host::start();
    let live = host.is_live("lsm_socket");
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();

    // The controls: an ungoverned process receives it; a workload receives its own socket, and what is no socket.
    outsider.hand("take_socket", &[foreign.as_fd()]).unwrap();
    let own = workload.udp("0.0.0.0:0");
    workload.tell(&format!("give_socket {own}"));
    let fds = receive_fds(workload.socket()).unwrap();
    workload.answer().unwrap();
    workload.hand("take_socket", &[fds[0].as_fd()]).unwrap();
    workload.hand("take_file", &[file.as_fd()]).unwrap();

    let taken = workload.hand("take_socket", &[foreign.as_fd()]);
    assert_eq!(taken.is_err(), live);
    assert_eq!(host.refusals(RefusalKind::SocketForeign), u64::from(live));
}

#[test]
fn lsm_a_managers_child_connects_its_output_until_it_executes() {
    let mut host = Host::start();
    let live = host.is_live("lsm_unix");
    let elsewhere = Elsewhere::make(&mut host);
    govern(&mut host, "acme/support", &elsewhere.0);
    let mut outsider = Puppet::start(None);
    let theirs = place(&host, "stream", "theirs");
    let listen = format!("unixlisten stream {}", theirs.display());
    outsider.ask(&listen).unwrap();
    let connect = format!("unixconnect stream {}", theirs.display());
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };

    // The control is the manager's child itself: it came by its own move, and has executed nothing since.
    let (mut manager, mut program) = Puppet::start_and_bear(&elsewhere.0);
    assert_eq!(manager.ask(&connect), Ok(vec![]));
    assert_eq!(program.ask(&connect), refused);
    // Nor may who was there before, or was moved in by somebody else.
    let mut moved = Puppet::start(None);
    moved.enter(&elsewhere.0);
    assert_eq!(moved.ask(&connect), refused);
    // A network socket is as far away for it as for everybody else.
    assert_eq!(manager.connect("192.0.2.1:443"), Err(EPERM));
}

#[test]
fn lsm_a_managers_helper_that_is_born_in_the_cgroup_connects_its_output_until_it_executes() {
    let mut host = Host::start();
    let live = host.is_live("lsm_unix");
    let elsewhere = Elsewhere::make(&mut host);
    govern(&mut host, "acme/support", &elsewhere.0);
    let mut outsider = Puppet::start(None);
    let theirs = place(&host, "stream", "theirs");
    let listen = format!("unixlisten stream {}", theirs.display());
    outsider.ask(&listen).unwrap();
    let connect = format!("unixconnect stream {}", theirs.display());
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };

    // As systemd does since version 255: its child is born in the unit's cgroup and executes `systemd-executor` first.
    let (_manager, mut helper) = Puppet::start_and_bear_into(&elsewhere.0, "greet");
    assert_eq!(helper.ask(&connect), Ok(vec![]));
    assert_eq!(helper.connect("192.0.2.1:443"), Err(EPERM));
    helper.again();
    assert_eq!(helper.ask(&connect), refused, "the service itself");
    // One that can gain no privileges is no manager's.
    let (_manager, mut program) = Puppet::start_and_bear_into(&elsewhere.0, "renounce");
    assert_eq!(program.ask(&connect), refused);
}

#[test]
fn lsm_unix_sockets_stay_within_a_workload() {
    let mut host = Host::start();
    let live = host.is_live("lsm_unix");
    let (mut workload, _) = host.workload();
    let (mut other, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };

    for kind in ["stream", "dgram"] {
        let [theirs, own] = ["theirs", "own"].map(|whose| place(&host, kind, whose));
        let command = |verb: &str, at: &PathBuf| format!("unix{verb} {kind} {}", at.display());
        outsider.ask(&command("listen", &theirs)).unwrap();
        workload.ask(&command("listen", &own)).unwrap();
        // The controls: outsiders among themselves, and the workload within itself.
        outsider.ask(&command("connect", &theirs)).unwrap();
        workload.ask(&command("connect", &own)).unwrap();

        assert_eq!(
            workload.ask(&command("connect", &theirs)),
            refused,
            "{kind}: a broker"
        );
        assert_eq!(
            other.ask(&command("connect", &own)),
            refused,
            "{kind}: another workload"
        );
        assert_eq!(
            outsider.ask(&command("connect", &own)),
            refused,
            "{kind}: into a workload"
        );
        for at in [theirs, own] {
            std::fs::remove_file(at).unwrap();
        }
    }
    assert_eq!(host.refusals(RefusalKind::Broker), if live { 6 } else { 0 });
}

fn place(host: &Host, kind: &str, whose: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{}-{kind}-{whose}", host.settings.instance))
}

#[test]
fn lsm_a_workload_takes_nothing_out_of_another_process() {
    let mut host = Host::start();
    let live = host.is_live("lsm_ptrace");
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    let target = Puppet::start(None);
    let command = format!("take_fd_of {}", target.pid());
    // The control.
    outsider.ask(&command).unwrap();
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };
    assert_eq!(workload.ask(&command), refused);
    assert_eq!(host.refusals(RefusalKind::Task), u64::from(live));
}

#[test]
fn lsm_a_workload_makes_no_bpf_call() {
    let mut host = Host::start();
    let live = host.is_live("lsm_bpf");
    let (mut workload, _) = host.workload();
    let mut outsider = Puppet::start(None);
    // The control.
    outsider.ask("first_bpf_program").unwrap();
    let refused = if live { Err(EPERM) } else { Ok(vec![]) };
    assert_eq!(workload.ask("first_bpf_program"), refused);
    assert_eq!(host.refusals(RefusalKind::Task), u64::from(live));
}
