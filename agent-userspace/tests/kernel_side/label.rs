//! The sticky label: whose a task is, wherever it is moved to, and whatever it starts.
//! What stops a task outside its workload differs: BPF LSM, programs at the root (Linux 6.18), or only the next fork or exec.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use agent_userspace::enforce::{Mode, RefusalKind};
use agent_userspace::layers::LayerState;

use crate::host::{EPERM, Host};
use crate::outside::{Elsewhere, govern, top};
use crate::puppet::{Answer, Puppet};

const SIGKILL: Option<i32> = Some(libc::SIGKILL);

/// What stops a task that is outside its workload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stops {
    /// Everything: BPF LSM.
    All,
    /// IP sockets: programs at the root of the hierarchy.
    Sockets,
    /// Only its next fork or exec.
    Late,
}

impl Stops {
    fn at(host: &mut Host) -> Stops {
        let layer = host.layer("label");
        let open = |words: &str| layer.leaves_open.iter().any(|open| open.contains(words));
        match layer.state {
            LayerState::Live => Stops::All,
            LayerState::Degraded if open("makes no IP socket") => Stops::Sockets,
            LayerState::Degraded if open("makes and uses any socket") => Stops::Late,
            _ => panic!("{layer:?}"),
        }
    }
}

fn sockets(puppet: &mut Puppet) -> Vec<Answer> {
    // UDP and TCP.
    ["socket 2 2 0", "socket 10 1 6"]
        .map(|command| puppet.ask(command))
        .into()
}

fn refused(stops: Stops) -> Vec<Answer> {
    match stops {
        Stops::All | Stops::Sockets => vec![Err(EPERM); 2],
        Stops::Late => vec![Ok(vec![]); 2],
    }
}

#[test]
fn full_mode_is_reached_where_the_kernel_runs_bpf_lsm() {
    let mut host = Host::start();
    let list = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let listed = list.trim().split(',').any(|module| module == "bpf");
    let label = host.layer("label");
    // A kernel may list BPF LSM and still refuse its programs; the kernels of the test machines do not.
    if listed && std::env::var_os("SLUICE_TEST_GUEST").is_some() {
        assert_eq!(host.enforcement().mode(), Mode::Full, "{label:?}");
    }
    if !listed {
        assert_eq!(host.enforcement().mode(), Mode::Reduced);
        assert_eq!(label.state, LayerState::Degraded, "{label:?}");
    }
    assert_eq!(
        label.state == LayerState::Live,
        label.leaves_open.is_empty()
    );
}

#[test]
fn a_task_keeps_its_label_through_fork_exec_and_moves() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    // The control: the same family of processes, moved likewise, but never governed.
    let (_parent, mut free) = Puppet::start_and_bear(&outside);
    free.enter(&outside);
    assert_eq!(sockets(&mut free), vec![Ok(vec![]); 2]);

    let admitted = host.admit("acme/support");
    let (_parent, mut child) = Puppet::start_and_bear(&admitted.path);
    assert_eq!(sockets(&mut child), vec![Ok(vec![]); 2]);
    assert_eq!(host.refusals(RefusalKind::Label), 0);
    child.enter(&outside);
    // The move itself is counted, and the mover, who is nobody's, goes on.
    assert_eq!(host.refusals(RefusalKind::Label), 1);
    assert_eq!(sockets(&mut child), refused(stops));
    if stops != Stops::Late {
        assert_eq!(host.refusals(RefusalKind::Label), 3);
    }
    // Back in its workload it is as before.
    child.enter(&admitted.path);
    assert_eq!(sockets(&mut child), vec![Ok(vec![]); 2]);
}

#[test]
fn a_task_that_is_moved_out_uses_neither_its_sockets_nor_others() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    let admitted = host.admit("acme/support");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let acts = |tcp_socket: &str, udp_socket: usize| {
        [
            format!("connectwith {tcp_socket} {}", tcp.local_addr().unwrap()),
            format!("sendto {udp_socket} {} leak", udp.local_addr().unwrap()),
        ]
    };
    let mut stray = Puppet::start(None);
    let make = |stray: &mut Puppet| {
        let made = stray.ask("tcp 4").unwrap()[0].clone();
        (made, stray.udp("127.0.0.1:0"))
    };
    let (free, others) = (make(&mut stray), make(&mut stray));
    // The control: the same process, before it is governed.
    for act in acts(&free.0, free.1) {
        stray.ask(&act).unwrap();
    }

    stray.enter(&admitted.path);
    let own = make(&mut stray);
    stray.enter(&outside);
    for act in acts(&own.0, own.1) {
        assert_eq!(stray.ask(&act), Err(EPERM), "own: {act}");
    }
    for act in acts(&others.0, others.1) {
        assert_eq!(stray.ask(&act).is_err(), stops != Stops::Late, "{act}");
    }
}

#[test]
fn a_task_of_one_workload_is_nothing_in_another() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let (mut workload, _) = host.workload();
    let other = host.admit("acme/support");
    assert_eq!(sockets(&mut workload), vec![Ok(vec![]); 2]);
    workload.enter(&other.path);
    assert_eq!(sockets(&mut workload), refused(stops));
    assert!(host.refusals(RefusalKind::Label) > 0);
}

#[test]
fn a_task_that_leaves_its_workload_is_killed() {
    let mut host = Host::start();
    let outside = top(&mut host);
    let (mut workload, id) = host.workload();
    let inner = workload_path(&mut host, id).join("inner");
    std::fs::create_dir(&inner).unwrap();
    let go = |to: &Path| format!("go {}", to.display());
    // The controls: a process that is not governed goes where it will, and this one moves within its workload.
    let mut free = Puppet::start(None);
    free.ask(&go(&outside)).unwrap();
    workload.ask(&go(&inner)).unwrap();
    workload.ask(&go(inner.parent().unwrap())).unwrap();
    assert_eq!(host.refusals(RefusalKind::Label), 0);

    workload.tell(&go(&outside));
    assert_eq!(workload.signal(), SIGKILL);
    assert_eq!(host.refusals(RefusalKind::Label), 1);
}

#[test]
fn a_task_that_moves_another_out_of_its_workload_is_killed() {
    let mut host = Host::start();
    let outside = top(&mut host);
    let (workload, id) = host.workload();
    let path = workload_path(&mut host, id);
    let mut mover = Puppet::start(Some(&path));
    mover.tell(&format!("move {} {}", workload.pid(), outside.display()));
    assert_eq!(mover.signal(), SIGKILL);
    assert_eq!(host.refusals(RefusalKind::Label), 1);
}

fn workload_path(host: &mut Host, id: policies::WorkloadId) -> PathBuf {
    let found = host.enforcement().workloads_found().unwrap();
    found.into_iter().find(|found| found.id == id).unwrap().path
}

#[test]
fn a_task_starts_nothing_outside_its_workload() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    let clone = format!("clone_into {}", outside.display());
    let child_says = |errno: &str| Ok(vec!["child".to_owned(), errno.to_owned()]);
    // The control.
    let mut free = Puppet::start(None);
    assert_eq!(free.ask(&clone), child_says("0"));

    let (mut workload, _) = host.workload();
    let answer = workload.ask(&clone);
    match stops {
        Stops::All => assert_eq!(answer, Err(EPERM)),
        Stops::Sockets => assert_eq!(answer, child_says("1")),
        Stops::Late => assert_eq!(answer, child_says("0")),
    }
    if stops == Stops::All {
        workload.ask("greet").unwrap();
    } else {
        assert_eq!(workload.signal(), SIGKILL);
    }
    assert!(host.refusals(RefusalKind::Label) > 0);
}

#[test]
fn a_task_that_was_moved_out_starts_and_executes_nothing() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    let (mut workload, _) = host.workload();
    // The control: in its place, it may.
    workload.ask("fork").unwrap();
    workload.enter(&outside);
    workload.tell("fork");
    if stops == Stops::All {
        assert_eq!(workload.answer(), Err(EPERM));
        workload.ask("greet").unwrap();
    } else {
        assert_eq!(workload.signal(), SIGKILL);
    }

    let (mut workload, _) = host.workload();
    workload.enter(&outside);
    // Not from its first thread: the one that carried the label is gone when the program runs.
    workload.tell("become true");
    let layer = host.layer("label");
    if stops == Stops::All {
        assert_eq!(workload.answer(), Err(EPERM));
    } else if layer
        .leaves_open
        .iter()
        .any(|open| open.contains("loses its label"))
    {
        assert_eq!(workload.signal(), None);
    } else {
        assert_eq!(workload.signal(), SIGKILL);
    }
}

#[test]
fn a_label_outlives_the_daemon_and_is_taken_over() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    let (mut workload, _) = host.workload();
    host.die();
    workload.enter(&outside);
    assert_eq!(sockets(&mut workload), refused(stops));
    host.adopt();
    assert_eq!(sockets(&mut workload), refused(stops));
    assert_eq!(Stops::at(&mut host) as u8, stops as u8);
}

#[test]
fn a_process_that_was_there_before_its_cgroup_was_governed_has_its_label() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    let elsewhere = Elsewhere::make(&mut host);
    let inner = elsewhere.below("inner");
    let mut moved = Puppet::start(Some(&inner));
    let mut leaves = Puppet::start(Some(&elsewhere.0));
    // The control: before, who is moved out is as free as before.
    moved.enter(&outside);
    assert_eq!(sockets(&mut moved), vec![Ok(vec![]); 2]);
    moved.enter(&inner);

    govern(&mut host, "acme/support", &elsewhere.0);
    assert_eq!(sockets(&mut moved), vec![Ok(vec![]); 2]);
    moved.enter(&outside);
    assert_eq!(sockets(&mut moved), refused(stops));
    leaves.tell(&format!("go {}", outside.display()));
    assert_eq!(leaves.signal(), SIGKILL);
}

#[test]
fn the_next_daemon_labels_whom_it_finds() {
    let mut host = Host::start();
    let stops = Stops::at(&mut host);
    let outside = top(&mut host);
    let (mut workload, _) = host.workload();
    host.die();
    // As after an upgrade to another version of the maps: nobody has a label.
    let pins = PathBuf::from("/sys/fs/bpf").join(host.settings.instance.as_str());
    for entry in std::fs::read_dir(pins).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    host.adopt();
    workload.enter(&outside);
    assert_eq!(sockets(&mut workload), refused(stops));
}
