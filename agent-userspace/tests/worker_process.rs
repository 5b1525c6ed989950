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
fn the_worker_leaves_no_core_and_its_memory_is_locked_or_said_not_to_be() {
    let daemon = Daemon::start();
    let worker = daemon.worker().as_raw_nonzero().get();
    let read = |pid: i64, what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let core = |pid: i64| {
        let limits = read(pid, "limits");
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        let words: Vec<String> = line
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        (words[4].clone(), words[5].clone())
    };
    assert_eq!(core(worker.into()), ("0".to_owned(), "0".to_owned()));
    // Who is not dumpable belongs to root in /proc, whatever its uid.
    let owner = |pid: i64| {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid()
    };
    assert_eq!(
        field(&read(worker.into(), "status"), "Uid:")
            .split('\t')
            .next(),
        Some("65534")
    );
    assert_eq!(owner(worker.into()), 0);
    let kib = |pid: i64, key: &str| {
        let value = field(&read(pid, "status"), key);
        value.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    // Without CAP_SYS_RESOURCE the limit cannot be raised: then nothing is locked, and the doctor says so.
    let report = String::from_utf8(daemon.sluice(&["doctor"]).stdout).unwrap();
    let live = report.lines().any(|line| line == "live      proxy_memory");
    let said = report.contains("swap can hold secrets");
    assert_eq!(
        (kib(worker.into(), "VmLck:") > 1024, live),
        (live, !said),
        "{report}"
    );
    // The controls: the enforcer locks nothing, and a plain process of that uid belongs to it.
    assert_eq!(kib(daemon.child.id().into(), "VmLck:"), 0);
    let mut plain = Command::new("sleep");
    let mut plain = std::os::unix::process::CommandExt::uid(&mut plain, 65534)
        .arg("60")
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while owner(plain.id().into()) != 65534 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let seen = owner(plain.id().into());
    plain.kill().unwrap();
    plain.wait().unwrap();
    assert_eq!(seen, 65534);
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
