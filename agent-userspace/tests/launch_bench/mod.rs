//! What the launch tests share: a cgroup, a directory and a way to run a script as a workload.
//! Needs root and cgroup v2, but no daemon and no eBPF.
//! INVARIANT: whatever happens, the cgroup's processes are killed and its directory is removed.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_userspace::enforce::launch::{self, Account, Launch, LaunchError};

/// Not a real certificate; the launcher only copies it.
pub(crate) const ROOT: &str =
    "-----BEGIN CERTIFICATE-----\nU0xVSUNFIFRFU1Q=\n-----END CERTIFICATE-----\n";

/// A forked launcher must not inherit the launcher's lock from another test's thread.
static ONE_TEST_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) struct Bench {
    _turn: MutexGuard<'static, ()>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cgroup: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let turn = ONE_TEST_AT_A_TIME
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::Builder::new()
            .prefix("sluice-launch-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("work")).unwrap();
        fs::set_permissions(dir.path().join("work"), Permissions::from_mode(0o777)).unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let cgroup = cgroup2().join(name);
        fs::create_dir(&cgroup).unwrap();
        Bench {
            _turn: turn,
            dir,
            cgroup,
        }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// A launch of this command, in the directory `work`.
    pub(crate) fn launch(&self, command: &[&str]) -> Launch {
        Launch {
            command: command.iter().map(Into::into).collect(),
            environment: std::env::vars_os().collect(),
            directory: self.path("work"),
            account: None,
            cgroup: File::open(&self.cgroup).unwrap().into(),
            netns: None,
            root_pem: ROOT.to_owned(),
            trust: Vec::new(),
            nameserver: "198.18.0.1".parse().unwrap(),
            runtime_dir: self.path("run"),
            hidden: Vec::new(),
        }
    }

    /// A launch of a shell script whose output goes to the file `out`.
    pub(crate) fn script(&self, script: &str) -> Launch {
        let _ = fs::remove_file(self.path("work/out"));
        self.launch(&[
            "/bin/sh",
            "-c",
            &format!("exec >{} 2>&1\n{script}", self.path("work/out").display()),
        ])
    }

    /// Runs a script as a workload: its exit code and its output.
    pub(crate) fn inside(&self, script: &str) -> (u8, String) {
        let code = run(self.script(script)).unwrap();
        (code, self.out())
    }

    /// Runs a script as a workload of another user.
    pub(crate) fn inside_as(&self, user: &str, script: &str) -> (u8, String) {
        let mut launch = self.script(script);
        launch.account = Some(Account::find(user).unwrap());
        let code = run(launch).unwrap();
        (code, self.out())
    }

    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.path("work/out")).unwrap_or_default()
    }

    /// Waits until the output satisfies a condition.
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&str) -> bool) {
        wait_until(what, || condition(&self.out()));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.freeze"), "0");
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub(crate) fn run(launch: Launch) -> Result<u8, LaunchError> {
    launch::start(launch)?.wait()
}

/// The positive control: the same script, outside.
pub(crate) fn outside(script: &str) -> (i32, String) {
    let output = Command::new("/bin/sh")
        .args(["-c", script])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where cgroup v2 is mounted.
pub(crate) fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("cgroup v2 is mounted");
    Path::new(mount.split(' ').nth(1).unwrap()).to_owned()
}
