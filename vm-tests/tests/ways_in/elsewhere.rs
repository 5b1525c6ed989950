//! A cgroup of the test's own, beside Sluice's, and a server outside that whoever is not governed reaches.
//! Invariant: dropping it ends what lives in it and removes it.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vm_tests::leftovers::cgroup2;

use crate::shell::Shell;
use crate::systemd::removed;
use crate::{AGENT, BALANCE, stage};

/// The directory.
pub(crate) struct Elsewhere(pub(crate) PathBuf);

impl Elsewhere {
    /// Makes it, empty.
    pub(crate) fn make() -> Elsewhere {
        static NUMBER: AtomicU32 = AtomicU32::new(800);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-test-{}-{number}", std::process::id());
        let path = cgroup2().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Elsewhere(path)
    }

    /// A shell in it.
    pub(crate) fn shell(&self) -> Shell {
        let enter = format!("echo $$ > {}/cgroup.procs; exec sh", self.0.display());
        Shell::start(Command::new("sh").args(["-c", &enter]))
    }

    pub(crate) fn name(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !removed(&self.0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A server on the host's loopback, which answers 204, and the command that calls it.
pub(crate) fn server() -> (std::net::SocketAddr, String) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in server.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    let call = format!("curl -sS -o /dev/null -w '%{{http_code}}' --max-time 3 http://{at}/");
    (at, call)
}

#[test]
fn an_attached_cgroup_is_governed_until_it_is_given_back_empty_or_not() {
    let mut stage = stage();
    let elsewhere = Elsewhere::make();
    let (_, outside) = server();
    let mut shell = elsewhere.shell();
    // The control.
    assert_eq!(shell.ask(&outside), "204");
    let name = elsewhere.name();
    let ask = |stage: &vm_tests::demo::Stage, args: &[&str]| stage.instance.ask(args).unwrap();
    let done = ask(
        &stage,
        &["agents", "attach", "--agent", AGENT, "--cgroup", &name],
    );
    assert_eq!(done.status.code(), Some(0), "{done}");
    assert!(shell.ask(&outside).contains("curl: ("));
    let alive = ask(&stage, &["agents", "detach", "--cgroup", &name]);
    assert!(alive.stderr.contains("workload_alive"), "{alive}");
    assert!(shell.ask(&outside).contains("curl: ("));

    // Empty for longer than the daemon looks, and over a restart of the daemon: whoever starts there is governed.
    drop(shell);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(elsewhere.shell().ask(&outside).contains("curl: ("));
    stage.instance.stop().unwrap();
    assert!(elsewhere.shell().ask(&outside).contains("curl: ("));
    stage.instance.start().unwrap();
    let mut shell = elsewhere.shell();
    assert!(shell.ask(&outside).contains("curl: ("));
    assert!(!shell.call(BALANCE).is_empty());
    drop(shell);

    let given = ask(&stage, &["agents", "detach", "--cgroup", &name]);
    assert_eq!(given.status.code(), Some(0), "{given}");
    assert_eq!(elsewhere.shell().ask(&outside), "204");
    let again = ask(&stage, &["agents", "detach", "--cgroup", &name]);
    assert!(again.stderr.contains("not_attached"), "{again}");
    let records = stage.audit().unwrap();
    assert!(
        records
            .iter()
            .any(|record| record["event"] == "workload_ended"),
        "{records:?}"
    );
}
