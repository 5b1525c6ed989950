//! A daemon of the built binary in a temporary place: started, killed, restarted, asked, with agents of two tenants.
//! Under the tests of `life`; everything it starts is its child.
//! INVARIANT: dropping it ends the daemon and every workload, also after a failed check.

use std::fs::{self, File, Permissions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_userspace::enforce::Instance;
use rustix::process::{Pid, Signal, kill_process};

use crate::puppet::Puppet;

const PATIENCE: Duration = Duration::from_secs(30);
/// A synthetic address: the connection goes to the proxy.
pub(crate) const NAME: &str = "198.18.0.9:443";

pub(crate) struct Daemon {
    dir: tempfile::TempDir,
    metrics: SocketAddr,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn start() -> Daemon {
        let dir = tempfile::Builder::new()
            .prefix("sluice-life-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        fs::create_dir_all(dir.path().join("config/agents.d")).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join("config").join(name), text);
        // Free at this moment, and nobody else's soon: the kernel gives out ports in turn.
        let free = |listener: TcpListener| listener.local_addr();
        let metrics = TcpListener::bind("127.0.0.1:0").and_then(free).unwrap();
        let config = format!("[proxy]\nuser = \"nobody\"\n\n[metrics]\nlisten = \"{metrics}\"\n");
        write("config.toml", &config).unwrap();
        for (tenant, agent) in [("acme", "support"), ("globex", "billing")] {
            let text = format!(
                "tenant = \"{tenant}\"\nname = \"{agent}\"\nowner = \"olga\"\nstage = \"write\"\n"
            );
            write(&format!("agents.d/{agent}.toml"), &text).unwrap();
        }
        let mut daemon = Daemon {
            dir,
            metrics,
            child: None,
        };
        daemon.restart();
        daemon
    }

    /// Starts the next daemon of this place and waits until it is ready: its proxy process answers a little earlier, and
    /// a daemon whose proxy process is killed in between does not start.
    pub(crate) fn restart(&mut self) {
        let earlier = fs::read(self.dir.path().join("log")).map_or(0, |log| log.len());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let child = self
            .sluice(&["daemon"])
            .env("SLUICE_REDUCED", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.eventually("the daemon is ready", |daemon| {
            let ended = daemon.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}\n{}", daemon.log());
            let log = daemon.log();
            log.get(earlier..)
                .is_some_and(|log| log.contains(" ready version="))
        });
    }

    /// `kill -9` of the enforcer; the proxy process goes with it.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn sluice(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command
            .args(args)
            .env("SLUICE_CONFIG", self.dir.path().join("config"))
            .env("SLUICE_STATE_DIR", self.dir.path().join("state"))
            .env("SLUICE_RUNTIME_DIR", self.dir.path().join("run"))
            .env_remove("NOTIFY_SOCKET");
        command
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Output {
        self.sluice(args).output().unwrap()
    }

    /// What a command that must succeed says.
    pub(crate) fn told(&self, args: &[&str]) -> String {
        let output = self.ask(args);
        assert!(
            output.status.success(),
            "{args:?}: {output:?}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// An agent that does what it is told.
    pub(crate) fn agent(&self, agent: &str) -> Puppet {
        Puppet::through(self.sluice(&["run", "--agent", agent, "--user", "root", "--"]))
    }

    /// The same, in a network namespace of its own.
    pub(crate) fn isolated(&self, agent: &str) -> Puppet {
        let run = ["run", "--agent", agent, "--isolate", "--user", "root", "--"];
        Puppet::through(self.sluice(&run))
    }

    /// The text of `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(self.metrics).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// A file of its configuration.
    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.dir.path().join("config").join(name)
    }

    /// Where the cgroup hierarchy of the daemon is mounted.
    pub(crate) fn hierarchy(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let point = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[2] == "cgroup2").then(|| words[1].to_owned())
        });
        point.unwrap().into()
    }

    /// The host's own log, one line per record.
    pub(crate) fn host_log(&self) -> String {
        self.told(&["audit", "list", "--kind", "event", "--format", "json"])
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn enforcer(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().cast_signed()).unwrap()
    }

    /// The daemon's only lasting child, once there is one.
    pub(crate) fn worker(&self) -> Option<Pid> {
        let pid = self.enforcer().as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let worker = children.split_whitespace().find(|child| {
            fs::read(format!("/proc/{child}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains("internal-worker"))
        });
        Pid::from_raw(worker?.parse().unwrap())
    }

    /// Where a map or link of this daemon is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        let runtime = fs::canonicalize(self.dir.path().join("run")).unwrap();
        Path::new("/sys/fs/bpf")
            .join(Instance::of(&runtime).as_str())
            .join(format!("v{}", agent_abi::ABI_VERSION))
            .join(name)
    }

    /// Waits for something that must become so.
    pub(crate) fn eventually(&mut self, what: &str, mut is_so: impl FnMut(&mut Daemon) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Puppets are gone by now, or are killed with their cgroup: a daemon that stops leaves nothing then.
        if let Some(child) = &mut self.child {
            let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
            let _ = kill_process(pid, Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_))) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A cgroup beside Sluice's; removed when it is empty.
pub(crate) struct Elsewhere(pub(crate) PathBuf);

impl Elsewhere {
    pub(crate) fn make(daemon: &Daemon) -> Elsewhere {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-test-{}-{number}", std::process::id());
        let path = daemon.hierarchy().join(name);
        fs::create_dir(&path).unwrap();
        Elsewhere(path)
    }

    pub(crate) fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A server outside, which counts who reaches it.
pub(crate) struct Outside(TcpListener);

impl Outside {
    pub(crate) fn open() -> Outside {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let outside = Outside(listener);
        // The control: somebody ungoverned reaches it, and is counted.
        drop(std::net::TcpStream::connect(outside.address()).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while outside.reached() == 0 {
            assert!(Instant::now() < deadline, "the control is counted");
        }
        outside
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// How many have reached it since the last time.
    pub(crate) fn reached(&self) -> usize {
        std::iter::from_fn(|| self.0.accept().ok()).count()
    }
}
