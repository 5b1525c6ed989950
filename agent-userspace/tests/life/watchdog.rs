//! The watchdog of a running daemon against somebody with root's rights.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::daemon::{Daemon, NAME, Outside};
use crate::host::EPERM;
use crate::net::detach_link;

#[test]
fn a_detached_wall_is_put_back_within_seconds_and_an_agent_that_dials_never_gets_out() {
    let mut daemon = Daemon::start();
    let outside = Outside::open();
    let mut agent = daemon.agent("acme/support");
    agent.connect(NAME).unwrap();
    let stop = AtomicBool::new(false);
    let to = outside.address().to_string();
    let dialled = std::thread::scope(|scope| {
        let (stop, to) = (&stop, &to);
        let dialling = scope.spawn(move || {
            let mut dialled = 0;
            while !stop.load(Ordering::Relaxed) {
                assert!(agent.connect(to).is_err());
                dialled += 1;
            }
            assert_eq!(agent.connect(to), Err(EPERM));
            agent.connect(NAME).unwrap();
            dialled
        });
        // The walls stand behind each other: with any one of them gone the others hold, as long as it comes back.
        for (count, wall) in ["egress", "connect4", "egress", "sock_create", "connect4"]
            .into_iter()
            .enumerate()
        {
            let pin = daemon.pin(&format!("link_{wall}"));
            detach_link(&pin).unwrap();
            daemon.eventually("it is put back and told", |daemon| {
                let status = daemon.told(&["status", "--format", "json"]);
                let status: serde_json::Value = serde_json::from_str(&status).unwrap();
                status["faults"]["found"] == count + 1
            });
        }
        stop.store(true, Ordering::Relaxed);
        dialling.join().unwrap()
    });
    assert_eq!(outside.reached(), 0);
    assert!(dialled > 5, "{dialled}");
    let log = daemon.host_log();
    for told in [
        "enforcement_fault",
        "enforcement_broken",
        "link_detached egress",
    ] {
        assert!(log.contains(told), "{told}: {log}");
    }
    assert!(
        daemon
            .told(&["doctor"])
            .contains("behind the daemon's back, 5 times")
    );
    assert!(daemon.told(&["status"]).contains("5 found by the watchdog"));
}

#[test]
fn removed_pins_are_pinned_again_and_outlive_the_daemon() {
    let mut daemon = Daemon::start();
    let outside = Outside::open();
    let mut agent = daemon.agent("acme/support");
    let directory = daemon.pin("");
    let mut pins: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
    pins.sort_by_key(|pin| pin.file_name());
    for pin in &pins {
        fs::remove_file(pin.path()).unwrap();
    }
    let all = pins.len();
    daemon.eventually("every pin is back", |daemon| {
        fs::read_dir(daemon.pin("")).unwrap().count() == all
    });
    // A daemon that dies in the middle leaves the workloads standing, for the next one to let go on.
    daemon.eventually("the repair is over", |daemon| {
        let status = daemon.told(&["status", "--format", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["faults"]["found"].as_u64() > Some(0)
    });
    daemon.kill();
    assert_eq!(agent.connect(&outside.address().to_string()), Err(EPERM));
    assert_eq!(outside.reached(), 0);
    daemon.restart();
    agent.connect(NAME).unwrap();
}

#[test]
fn what_cannot_be_put_back_ends_the_workloads_and_nothing_starts() {
    // Nothing can be pinned on a tmpfs. The test's own mounts: nobody else sees it.
    #[expect(
        deprecated,
        reason = "its unsafe successor guards descriptor tables, which are not unshared here"
    )]
    rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    let mut daemon = Daemon::start();
    let mut agent = daemon.agent("acme/support");
    agent.ask("greet").unwrap();
    let procs = workload_of(&daemon);
    let pins = daemon.pin("");
    rustix::mount::mount("none", &pins, "tmpfs", MountFlags::empty(), None).unwrap();
    daemon.eventually("the workload is killed", |_| {
        !procs.exists()
            || fs::read_to_string(procs.join("cgroup.procs"))
                .unwrap_or_default()
                .is_empty()
    });
    let refused = daemon.ask(&["run", "--agent", "acme/support", "--", "true"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{told}");
    assert!(told.contains("enforcement_broken"), "{told}");
    assert!(daemon.host_log().contains("every workload is killed"));
    // The control: as it must be again, workloads start.
    rustix::mount::unmount(&pins, UnmountFlags::empty()).unwrap();
    daemon.eventually("workloads start again", |daemon| {
        let again = daemon.ask(&["run", "--agent", "acme/support", "--", "true"]);
        again.status.code() == Some(0)
    });
}

#[test]
fn an_isolated_workload_gets_its_listeners_back_when_the_proxys_cgroup_was_made_anew() {
    let mut daemon = Daemon::start();
    let mut isolated = daemon.isolated("acme/support");
    // The control: it reaches the proxy inside its own network namespace.
    isolated.connect(NAME).unwrap();
    let agents = workload_of(&daemon);
    let proxy = agents.ancestors().nth(2).unwrap().join("proxy");
    let id =
        |path: &Path| fs::metadata(path).map(|found| std::os::unix::fs::MetadataExt::ino(&found));
    let before = id(&proxy).unwrap();
    fs::remove_dir(&proxy).unwrap();
    daemon.eventually("the cgroup is made anew", |_| {
        id(&proxy).is_ok_and(|now| now != before)
    });
    daemon.eventually("the proxy process serves again", |daemon| {
        daemon.ask(&["status"]).status.success()
    });
    daemon.eventually("it reaches the proxy again", |_| {
        isolated.connect(NAME).is_ok()
    });
    // Somebody who shares the host's network does, too, and a new one in a namespace of its own.
    daemon.agent("globex/billing").connect(NAME).unwrap();
    daemon.isolated("globex/billing").connect(NAME).unwrap();
}

/// The cgroup of the only workload.
fn workload_of(daemon: &Daemon) -> std::path::PathBuf {
    let status = daemon.told(&["status", "--format", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let cgroup = status["workloads"][0]["cgroup"]
        .as_str()
        .unwrap()
        .to_owned();
    daemon.hierarchy().join(cgroup.trim_start_matches('/'))
}
