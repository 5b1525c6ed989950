//! The proxy process of a running daemon: confined on every thread, reported as such, and never waited for without end.
//! Root, eBPF and cgroup v2: a whole daemon of its own per test, asked through the `sluice` binary.
//! INVARIANT: dropping the daemon ends it and whatever it started.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test helper that cannot go on fails its test"
)]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const AGENT: &str = "tenant = \"acme\"\nname = \"support\"\nowner = \"olga\"\nstage = \"write\"\n";

struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Daemon {
        let dir = tempfile::Builder::new()
            .prefix("sluice-worker-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        fs::create_dir_all(dir.path().join("config/agents.d")).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(
            dir.path().join("config/config.toml"),
            "[proxy]\nuser = \"nobody\"\n",
        )
        .unwrap();
        fs::write(dir.path().join("config/agents.d/support.toml"), AGENT).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = sluice(&dir, &["daemon"])
            .env("SLUICE_REDUCED", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { dir, child };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !daemon.sluice(&["status"]).status.success() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}\n{}",
                daemon.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn sluice(&self, args: &[&str]) -> Output {
        sluice(&self.dir, args).output().unwrap()
    }

    fn run(&self) -> Output {
        self.sluice(&["run", "--agent", "acme/support", "--", "true"])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The daemon's only lasting child.
    fn worker(&self) -> Pid {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let worker = children.split_whitespace().find(|child| {
            fs::read(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains("internal-worker"))
        });
        Pid::from_raw(worker.expect("a proxy process").parse().unwrap()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        let _ = kill_process(pid, Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sluice(dir: &tempfile::TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command
        .args(args)
        .env("SLUICE_CONFIG", dir.path().join("config"))
        .env("SLUICE_STATE_DIR", dir.path().join("state"))
        .env("SLUICE_RUNTIME_DIR", dir.path().join("run"))
        .env_remove("NOTIFY_SOCKET");
    command
}

fn field(status: &str, key: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("{key} in {status}"))
        .trim()
        .to_owned()
}

#[test]
fn every_thread_of_the_worker_is_confined_and_doctor_says_so() {
    let daemon = Daemon::start();
    let worker = daemon.worker().as_raw_nonzero();
    // The control: the enforcer, which the same binary is, has none of it.
    let enforcer = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    assert_eq!(field(&enforcer, "Seccomp:"), "0");
    assert_ne!(field(&enforcer, "CapEff:"), "0000000000000000");
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert_eq!(field(&status, "Seccomp:"), "2", "{status}");
        assert_eq!(field(&status, "NoNewPrivs:"), "1");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(&status, "Uid:").split('\t').next(), Some("65534"));
        threads += 1;
    }
    assert!(threads > 1, "the runtime's threads are among them");
    let report = String::from_utf8(daemon.sluice(&["doctor"]).stdout).unwrap();
    for layer in ["proxy_landlock", "proxy_seccomp"] {
        assert!(
            report
                .lines()
                .any(|line| line == format!("live      {layer}")),
            "{report}"
        );
    }
}

#[test]
fn a_worker_that_does_not_answer_is_waited_for_ten_seconds_at_most() {
    let daemon = Daemon::start();
    assert_eq!(daemon.run().status.code(), Some(0), "the control runs");
    let worker = daemon.worker();
    kill_process(worker, Signal::STOP).unwrap();
    let asked = Instant::now();
    let refused = daemon.run();
    let waited = asked.elapsed();
    kill_process(worker, Signal::CONT).unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{told}");
    assert!(told.contains("admission_timeout"), "{told}");
    assert!(waited < Duration::from_secs(12), "{waited:?}");
    // The late answer finds nobody, and the next one is heard.
    let again = daemon.run();
    assert_eq!(again.status.code(), Some(0), "{again:?}\n{}", daemon.log());
}

#[test]
fn a_daemon_that_does_not_answer_is_waited_for_ten_seconds_at_most() {
    let daemon = Daemon::start();
    let enforcer = Pid::from_raw(daemon.child.id().cast_signed()).unwrap();
    kill_process(enforcer, Signal::STOP).unwrap();
    let asked = Instant::now();
    let refused = daemon.run();
    let waited = asked.elapsed();
    kill_process(enforcer, Signal::CONT).unwrap();
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{told}");
    assert!(told.contains("admission_timeout"), "{told}");
    assert!(waited < Duration::from_secs(12), "{waited:?}");
}
