//! Workloads whose cgroup lies elsewhere: a unit's, a container's, a pod's; here a directory that the test makes beside the instance's.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use agent_userspace::enforce::{Admitted, EnforceError, RefusalKind, Stopped, Unfit};
use agent_userspace::layers::LayerState;
use policies::WorkloadId;

use crate::host::{ECONNREFUSED, EPERM, Host, pool6};
use crate::puppet::Puppet;

/// A cgroup that is not the instance's; removed with what lies below it.
pub(crate) struct Elsewhere(pub(crate) PathBuf);

impl Elsewhere {
    pub(crate) fn make(host: &mut Host) -> Elsewhere {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("elsewhere-{}-{number}", std::process::id());
        let path = top(host).join(name);
        fs::create_dir(&path).unwrap();
        Elsewhere(path)
    }

    pub(crate) fn below(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// What lay in it is killed by now and may take a moment to go.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for _ in 0..500 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
    eprintln!("left behind: {}", path.display());
}

/// The root of the hierarchy.
pub(crate) fn top(host: &mut Host) -> PathBuf {
    let agents = host.enforcement().agents_cgroup();
    agents.parent().unwrap().parent().unwrap().to_owned()
}

pub(crate) fn govern(host: &mut Host, agent: &str, cgroup: &Path) -> Admitted {
    let agent = agent.parse().unwrap();
    host.enforcement().govern(&agent, cgroup).unwrap()
}

fn unfit(host: &mut Host, cgroup: &Path) -> Unfit {
    let agent = "acme/support".parse().unwrap();
    match host.enforcement().govern(&agent, cgroup) {
        Err(EnforceError::CgroupUnfit { why, .. }) => why,
        other => panic!("{}: {other:?}", cgroup.display()),
    }
}

fn pins(host: &Host, id: WorkloadId) -> PathBuf {
    PathBuf::from("/sys/fs/bpf")
        .join(host.settings.instance.as_str())
        .join(format!("v{}", agent_abi::ABI_VERSION))
        .join(format!("outside_{}", id.0))
}

/// Who connected to the proxy, and where to.
fn arrived(host: &Host) -> (WorkloadId, String) {
    let origin = host.accept().1.expect("an origin");
    (origin.workload, origin.destination.to_string())
}

#[test]
fn a_workload_elsewhere_reaches_only_the_proxy() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    let mut outsider = Puppet::start(None);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server.local_addr().unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagrams = datagrams.local_addr().unwrap();
    let send = |puppet: &mut Puppet, from: usize| {
        puppet
            .ask(&format!("sendto {from} {datagrams} leak"))
            .map(drop)
    };

    // The control: before it is governed, the process goes where it will.
    let (open, _, _) = puppet.connect(&server.to_string()).unwrap();
    let before = puppet.udp("0.0.0.0:0");
    send(&mut puppet, before).unwrap();

    let admitted = govern(&mut host, "acme/support", &elsewhere.0);
    let name = elsewhere.0.file_name().unwrap().to_str().unwrap();
    assert_eq!(admitted.in_hierarchy, format!("/{name}"));
    // What it made before is foreign, what it makes now is its own.
    assert_eq!(send(&mut puppet, before), Err(EPERM));
    let _queued = puppet.ask(&format!("send {open} leak"));
    let now = puppet.udp("0.0.0.0:0");
    assert_eq!(send(&mut puppet, now), Err(EPERM));
    assert_eq!(puppet.connect(&server.to_string()), Err(EPERM));
    assert_eq!(puppet.connect("192.0.2.1:443"), Err(EPERM));
    assert_eq!(puppet.ask("socket 2 3 1"), Err(EPERM));
    puppet
        .ask(&format!("sendto {now} 192.0.2.53:53 question"))
        .unwrap();
    puppet.connect("198.18.0.1:443").unwrap();
    assert_eq!(arrived(&host), (admitted.id, "198.18.0.1:443".to_owned()));
    assert!(host.refusals(RefusalKind::SocketForeign) >= 2);

    // Below it is the same workload, beside it is nobody's business.
    let nested = elsewhere.below("a/b");
    let mut nested = Puppet::start(Some(&nested));
    assert_eq!(nested.connect("192.0.2.1:443"), Err(EPERM));
    nested.connect(&format!("[{}]:443", pool6(3))).unwrap();
    assert_eq!(arrived(&host).0, admitted.id);
    outsider.connect(&server.to_string()).unwrap();
}

#[test]
fn a_connection_that_was_open_before_stands_still() {
    use std::io::Read;
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (open, _, _) = puppet
        .connect(&server.local_addr().unwrap().to_string())
        .unwrap();
    let (mut stream, _) = server.accept().unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_millis(300)))
        .unwrap();
    let mut bytes = [0; 16];
    // The control.
    puppet.ask(&format!("send {open} before")).unwrap();
    assert_eq!(stream.read(&mut bytes).unwrap(), 6);

    govern(&mut host, "acme/support", &elsewhere.0);
    let _queued = puppet.ask(&format!("send {open} leak"));
    assert!(stream.read(&mut bytes).is_err(), "nothing arrives");
}

#[test]
fn workloads_elsewhere_and_inside_are_told_apart() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    // At different depths, and two at one depth.
    let paths = ["one", "two", "slice/three"].map(|name| elsewhere.below(name));
    let admitted = paths
        .iter()
        .map(|path| govern(&mut host, "acme/support", path).id)
        .collect::<Vec<_>>();
    let mut puppets: Vec<(Puppet, WorkloadId)> = paths
        .iter()
        .map(|path| Puppet::start(Some(path)))
        .zip(admitted)
        .collect();
    puppets.push(host.workload());
    for round in 0..3 {
        for (puppet, id) in &mut puppets {
            let asked = format!("198.18.{round}.1:443");
            puppet.connect(&asked).unwrap();
            assert_eq!(arrived(&host), (*id, asked));
        }
    }
    // A server of one is not the others', although all carry the same programs.
    let (_, port) = puppets[0].0.listen("127.0.0.1:0");
    puppets[0].0.connect(&format!("127.0.0.1:{port}")).unwrap();
    for (puppet, _) in &mut puppets[1..] {
        assert_eq!(puppet.connect(&format!("127.0.0.1:{port}")), Err(EPERM));
    }
    let mut found: Vec<_> = host
        .enforcement()
        .workloads_found()
        .unwrap()
        .iter()
        .map(|found| (found.outside, found.name.number, found.populated))
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (false, 4, true),
            (true, 1, true),
            (true, 2, true),
            (true, 3, true)
        ]
    );
    // The kill switch takes one of them.
    let (first, others) = puppets.split_first_mut().unwrap();
    host.enforcement().set_disabled(first.1, true).unwrap();
    assert_eq!(first.0.connect("198.18.0.1:443"), Err(EPERM));
    for (puppet, _) in others {
        puppet.connect("198.18.0.1:443").unwrap();
    }
}

#[test]
fn a_workload_elsewhere_outlives_the_daemon_and_is_adopted() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let admitted = govern(&mut host, "acme/support", &elsewhere.below("unit"));
    let mut puppet = Puppet::start(Some(&admitted.path));
    puppet.connect("198.18.0.1:443").unwrap();
    let kept = puppet.ask("tcp 4").unwrap()[0].clone();

    host.die();
    assert_eq!(puppet.connect("198.18.0.1:443"), Err(ECONNREFUSED));
    assert_eq!(puppet.connect("192.0.2.1:443"), Err(EPERM));
    assert_eq!(puppet.ask("socket 2 3 1"), Err(EPERM));

    for _ in 0..3 {
        host.adopt();
        assert_eq!(puppet.connect("192.0.2.1:443"), Err(EPERM));
        host.die();
    }
    host.adopt();
    host.open();
    let found = host.enforcement().workloads_found().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, admitted.id);
    assert_eq!(found[0].name, admitted.name);
    assert_eq!(found[0].in_hierarchy, admitted.in_hierarchy);
    assert!(found[0].outside && found[0].populated);
    assert_eq!(host.enforcement().sweep().unwrap(), []);
    // A socket of before is still its own.
    puppet
        .ask(&format!("connectwith {kept} 198.18.0.9:443"))
        .unwrap();
    assert_eq!(arrived(&host), (admitted.id, "198.18.0.9:443".to_owned()));
    assert!(host.admit("acme/support").name.number > admitted.name.number);
}

#[test]
fn a_set_of_programs_that_is_not_complete_refuses() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let server = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let admitted = govern(&mut host, "acme/support", &elsewhere.0);
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    let pins = pins(&host, admitted.id);
    host.die();
    // As after a crash in the middle: only the first program is there.
    for entry in fs::read_dir(&pins).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("link_") && name != "link_egress" {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert!(puppet.connect(&server).is_err());
    assert!(puppet.connect("198.18.0.1:443").is_err());

    host.adopt();
    host.open();
    assert_eq!(puppet.connect(&server), Err(EPERM));
    puppet.connect("198.18.0.1:443").unwrap();
    assert_eq!(arrived(&host).0, admitted.id);
    assert!(host.is_live("connect"));

    // A crash before anything was attached leaves nothing.
    host.die();
    let stray = pins.with_file_name("outside_1");
    fs::create_dir(&stray).unwrap();
    host.adopt();
    assert!(!stray.exists());
}

#[test]
fn a_cgroup_elsewhere_that_was_made_anew_is_reported_and_forgotten() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let unit = elsewhere.below("unit");
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server.local_addr().unwrap().to_string();
    for daemon_lives in [true, false] {
        let admitted = govern(&mut host, "acme/support", &unit);
        // The control: it is governed.
        let mut puppet = Puppet::start(Some(&unit));
        assert_eq!(puppet.connect(&server), Err(EPERM));
        drop(puppet);
        if !daemon_lives {
            host.die();
        }
        remove(&unit);
        fs::create_dir(&unit).unwrap();
        if !daemon_lives {
            host.adopt();
            host.open();
        }
        let gone = host.enforcement().sweep().unwrap();
        assert_eq!(gone.len(), 1);
        assert_eq!((gone[0].id, &gone[0].name), (admitted.id, &admitted.name));
        assert!(gone[0].made_anew && gone[0].path == unit);
        assert_eq!(host.enforcement().sweep().unwrap(), [], "reported once");
        assert!(host.enforcement().workloads_found().unwrap().is_empty());
        assert!(!pins(&host, admitted.id).exists());
        assert!(matches!(
            host.enforcement().release(admitted.id),
            Err(EnforceError::WorkloadUnknown(_))
        ));
        assert!(host.is_live("egress"), "the others stand");
    }
    // The same name can be governed again, with an id of its own; gone for good is not made anew.
    govern(&mut host, "acme/support", &unit);
    let mut puppet = Puppet::start(Some(&unit));
    assert_eq!(puppet.connect(&server), Err(EPERM));
    drop(puppet);
    remove(&unit);
    let gone = host.enforcement().sweep().unwrap();
    assert!(gone.len() == 1 && !gone[0].made_anew);
}

#[test]
fn a_hierarchy_that_is_out_of_sight_releases_nobody() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let admitted = govern(&mut host, "acme/support", &elsewhere.0);
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    let top = top(&mut host);
    std::thread::scope(|scope| {
        let blind = scope.spawn(|| {
            hide(&top);
            // The control: for this thread the directory is not there.
            assert!(!elsewhere.0.exists());
            assert!(host.enforcement().sweep().is_err());
            assert!(host.enforcement().release(admitted.id).is_err());
        });
        blind.join().unwrap();
    });
    assert_eq!(puppet.connect("192.0.2.1:443"), Err(EPERM));
    assert_eq!(host.enforcement().sweep().unwrap(), []);
    assert_eq!(host.enforcement().workloads_found().unwrap().len(), 1);
}

/// Takes a mount away from the calling thread alone.
fn hide(point: &Path) {
    use rustix::mount::{MountPropagationFlags, UnmountFlags};
    #[expect(
        deprecated,
        reason = "its unsafe successor guards descriptor tables, which are not unshared here"
    )]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    rustix::mount::unmount(point, UnmountFlags::DETACH).unwrap();
}

#[test]
fn a_workload_elsewhere_is_released_once_it_is_empty() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server.local_addr().unwrap().to_string();
    let admitted = govern(&mut host, "acme/support", &elsewhere.0);
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    for _ in 0..2 {
        assert!(matches!(
            host.enforcement().retire(admitted.id),
            Err(EnforceError::WorkloadAlive(_))
        ));
        assert_eq!(puppet.connect(&server), Err(EPERM));
    }
    puppet.enter(&top(&mut host));
    host.enforcement().retire(admitted.id).unwrap();
    assert!(elsewhere.0.exists(), "the cgroup is somebody else's");
    assert!(!pins(&host, admitted.id).exists());
    // Not the one that was governed: it carries its label for good.
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    puppet.connect(&server).unwrap();
    assert!(matches!(
        host.enforcement().release(admitted.id),
        Err(EnforceError::WorkloadUnknown(_))
    ));
}

#[test]
fn stopping_denies_workloads_elsewhere_and_ends_with_the_last() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = server.local_addr().unwrap().to_string();
    let id = govern(&mut host, "acme/support", &elsewhere.0).id;
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    puppet.connect("198.18.0.1:443").unwrap();

    assert_eq!(host.take().stop().unwrap(), Stopped::LeftDenying);
    assert_eq!(puppet.connect("198.18.0.1:443"), Err(EPERM));
    assert_eq!(puppet.connect(&server), Err(EPERM));

    host.adopt();
    puppet.enter(&top(&mut host));
    // Empty, it is still somebody's who means to use it.
    assert_eq!(host.take().stop().unwrap(), Stopped::LeftDenying);
    assert_eq!(
        Puppet::start(Some(&elsewhere.0)).connect(&server),
        Err(EPERM)
    );
    host.adopt();
    host.enforcement().release(id).unwrap();
    assert_eq!(host.take().stop().unwrap(), Stopped::Removed);
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    puppet.connect(&server).unwrap();
}

#[test]
fn a_cgroup_that_overlaps_or_is_none_is_not_governed() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let top = top(&mut host);
    let agents = host.enforcement().agents_cgroup().to_owned();
    let inside = host.admit("acme/support").path;
    assert_eq!(unfit(&mut host, &top), Unfit::Root);
    assert_eq!(unfit(&mut host, &agents), Unfit::Sluice);
    assert_eq!(unfit(&mut host, agents.parent().unwrap()), Unfit::Sluice);
    assert_eq!(unfit(&mut host, &inside), Unfit::Sluice);
    assert_eq!(unfit(&mut host, Path::new("/proc")), Unfit::Hierarchy);
    let agent = "acme/support".parse().unwrap();
    let missing = host.enforcement().govern(&agent, &top.join("no-such"));
    assert!(matches!(missing, Err(EnforceError::Io { .. })));

    // It makes invalid what lies beside it.
    let threads = Elsewhere::make(&mut host);
    let threaded = threads.below("threaded");
    fs::write(threaded.join("cgroup.type"), "threaded").unwrap();
    assert_eq!(unfit(&mut host, &threaded), Unfit::Threaded);

    let middle = elsewhere.below("a/b");
    let id = govern(&mut host, "acme/support", &middle).id;
    for other in ["a", "a/b", "a/b/c"].map(|name| elsewhere.below(name)) {
        assert_eq!(unfit(&mut host, &other), Unfit::Workload(id));
    }
    // The control: beside it there is room, also by another name for the same directory.
    let beside = elsewhere.below("a/bb");
    govern(&mut host, "acme/support", &beside.join("../bb"));

    // Depths: two are taken (one of them twice), six more fit.
    let mut deep = elsewhere.0.clone();
    let mut count = 0;
    for level in 0..9 {
        deep.push("deep");
        let leaf = deep.join("leaf");
        fs::create_dir_all(&leaf).unwrap();
        match host.enforcement().govern(&agent, &leaf) {
            Ok(_) => count += 1,
            Err(EnforceError::CgroupUnfit { why, .. }) => {
                assert_eq!((why, level), (Unfit::Levels, count));
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(count, 8);
    // The deepest is governed as the others are.
    let mut puppet = Puppet::start(Some(&deep.parent().unwrap().join("leaf")));
    assert_eq!(puppet.connect("192.0.2.1:443"), Err(EPERM));
    puppet.connect("198.18.0.1:443").unwrap();
}

#[test]
fn layers_count_the_programs_of_workloads_elsewhere() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let admitted = govern(&mut host, "acme/support", &elsewhere.0);
    assert!(host.is_live("datagram"));
    fs::remove_file(pins(&host, admitted.id).join("link_sendmsg6")).unwrap();
    assert_eq!(host.layer("datagram").state, LayerState::Degraded);
    // The next start puts it back.
    host.die();
    host.adopt();
    assert!(host.is_live("datagram"));
}

#[test]
fn workloads_elsewhere_come_along_to_another_version() {
    let mut host = Host::start();
    let elsewhere = Elsewhere::make(&mut host);
    let admitted = govern(&mut host, "acme/support", &elsewhere.0);
    let record = fs::read_link(pins(&host, admitted.id).join("workload")).unwrap();
    let base = PathBuf::from("/sys/fs/bpf").join(host.settings.instance.as_str());
    host.enforcement().release(admitted.id).unwrap();
    host.die();
    // As an earlier version would have left it.
    let old = base.join("v0").join(format!("outside_{}", admitted.id.0));
    fs::create_dir_all(&old).unwrap();
    std::os::unix::fs::symlink(record, old.join("workload")).unwrap();

    let mut puppet = Puppet::start(Some(&elsewhere.0));
    let refused = agent_userspace::enforce::Enforcement::start(&host.settings).unwrap_err();
    assert!(
        matches!(refused, EnforceError::OtherVersion { .. }),
        "{refused}"
    );
    puppet.enter(&top_of(&elsewhere));
    host.adopt();
    host.open();
    assert!(!base.join("v0").exists());
    puppet.enter(&elsewhere.0);
    puppet.connect("198.18.0.1:443").unwrap();
    assert_eq!(arrived(&host).0, admitted.id);
}

fn top_of(elsewhere: &Elsewhere) -> PathBuf {
    elsewhere.0.parent().unwrap().to_owned()
}
