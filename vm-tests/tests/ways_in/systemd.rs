//! A systemd of the test's own: first process of a pid namespace, with its own /run, /etc/systemd/system and part of the cgroup hierarchy.
//! The daemon stays outside and sees the same paths below the cgroup mount, as on a host that systemd booted.
//! Invariant: dropping it ends every process of it, and removes its cgroups; no unit file of the host is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vm_tests::demo::Stage;
use vm_tests::leftovers::cgroup2;

const PATIENCE: Duration = Duration::from_secs(60);

/// `$1` is its cgroup, as the host names it.
const BOOT: &str = r#"set -e
echo $$ > "$1/cgroup.procs"
mount --make-rprivate /
mount -t proc proc /proc
umount -l /sys/fs/cgroup || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mount -t tmpfs none /etc/systemd/system
mkdir -p /run/systemd/system
printf '[Unit]\nDefaultDependencies=no\n' > /run/systemd/system/nothing.target
exec env -i PATH="$PATH" container=other SYSTEMD_LOG_TARGET=console /usr/lib/systemd/systemd --system --unit=nothing.target
"#;

/// A running systemd.
pub(crate) struct Systemd {
    child: Child,
    cgroup: PathBuf,
    pid: u32,
}

impl Systemd {
    /// Boots it, and waits until it answers.
    pub(crate) fn boot(stage: &Stage) -> Systemd {
        static NUMBER: AtomicU32 = AtomicU32::new(700);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Named like an instance, so that what a dead run left is found.
        let name = format!("sluice-test-{}-{number}", std::process::id());
        let cgroup = cgroup2().unwrap().join(name);
        fs::create_dir(&cgroup).unwrap();
        let log = fs::File::create(stage.instance.root().join("systemd.log")).unwrap();
        let child = Command::new("unshare")
            .args(["--pid", "--mount", "--fork", "--kill-child=SIGKILL"])
            .args(["sh", "-c", BOOT, "boot"])
            .arg(&cgroup)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut systemd = Systemd {
            child,
            cgroup,
            pid: 0,
        };
        let deadline = Instant::now() + PATIENCE;
        while systemd.pid == 0 || !systemd.answers() {
            assert!(
                Instant::now() < deadline,
                "systemd does not come up: {}",
                fs::read_to_string(stage.instance.root().join("systemd.log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
            systemd.pid = systemd.first().unwrap_or_default();
        }
        systemd
    }

    /// The process that systemd itself moved there.
    fn first(&self) -> Option<u32> {
        let procs = fs::read_to_string(self.cgroup.join("init.scope/cgroup.procs")).ok()?;
        procs.lines().next()?.parse().ok()
    }

    fn answers(&self) -> bool {
        let said = self.ask("systemctl is-system-running");
        matches!(
            String::from_utf8_lossy(&said.stdout).trim(),
            "running" | "degraded"
        )
    }

    fn entered(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--pid", "--mount", "--"]);
        command.stdin(Stdio::null());
        command
    }

    /// What a script in there says.
    pub(crate) fn ask(&self, script: &str) -> Output {
        self.entered().args(["sh", "-c", script]).output().unwrap()
    }

    /// The same, which must do well; its standard output.
    pub(crate) fn tell(&self, script: &str) -> String {
        let output = self.ask(script);
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// `sluice` in there, for the daemon outside.
    pub(crate) fn sluice(&self, stage: &Stage, args: &[&str]) -> Output {
        let inner = stage.instance.sluice(args);
        let mut command = self.entered();
        command.arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.output().unwrap()
    }

    /// Writes a unit, as a package or an administrator would.
    pub(crate) fn unit(&self, name: &str, service: &str) {
        let text = format!("[Unit]\nDefaultDependencies=no\n[Service]\n{service}\n");
        let file = format!("/proc/{}/root/run/systemd/system/{name}", self.pid);
        fs::write(file, text).unwrap();
        self.tell("systemctl daemon-reload");
    }

    /// The cgroup of a unit.
    pub(crate) fn cgroup_of(&self, unit: &str) -> PathBuf {
        self.cgroup.join("system.slice").join(unit)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // With the first process of a pid namespace, all of them go.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !removed(&self.cgroup) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes a cgroup with those below it.
pub(crate) fn removed(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            removed(&entry.path());
        }
    }
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}
