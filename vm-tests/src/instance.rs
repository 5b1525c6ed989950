//! One Sluice instance of a test: its own configuration, state, runtime directory, ports, cgroup and pins.
//! Started and asked through the `sluice` binary; several run side by side.
//! Invariant: dropping it ends the daemon and every workload and removes what they made, also when a check failed.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::leftovers;
use crate::output::{self, Output};
use crate::patience;

/// How long any one client or command may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where an instance lives, and the daemon that runs there.
pub struct Instance {
    root: PathBuf,
    reduced: bool,
    daemon: Option<Child>,
    keep: bool,
    metrics_port: u16,
    binary: PathBuf,
}

impl Instance {
    /// Makes the directories of a new instance; no daemon yet.
    ///
    /// # Errors
    /// If the directories cannot be made.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let root = leftovers::base().join(leftovers::name(std::process::id(), number));
        drop(fs::remove_dir_all(&root));
        for dir in [
            "config/agents.d",
            "config/policies",
            "config/connectors.d",
            "home",
            "run",
            "state",
        ] {
            fs::create_dir_all(root.join(dir))
                .with_context(|| format!("cannot make {}", root.display()))?;
        }
        // Agents work there, each under its own uid.
        fs::set_permissions(root.join("home"), fs::Permissions::from_mode(0o1777))?;
        let metrics_port = free_port()?;
        Ok(Self {
            root,
            reduced: false,
            daemon: None,
            keep: false,
            metrics_port,
            binary: sluice_binary(),
        })
    }

    /// The directory that holds everything of this instance.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Its runtime directory.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.root.join("run")
    }

    /// The port of `[metrics] listen`.
    #[must_use]
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// The pid of the daemon's first process.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The pid of the proxy process, which the daemon started.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        let is_worker = |pid: &String| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains("internal-worker"))
        };
        children(self.daemon_pid()?)
            .iter()
            .find(|pid| is_worker(pid))
            .and_then(|pid| pid.parse().ok())
    }

    /// Leaves the files in place at the end.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Whether it had to opt into reduced mode.
    #[must_use]
    pub fn is_reduced(&self) -> bool {
        self.reduced
    }

    /// Opts into reduced mode without asking for full mode first.
    pub fn reduce(&mut self) {
        self.reduced = true;
    }

    /// Writes a file below the configuration directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn configure(&self, path: &str, text: &str) -> Result<()> {
        let file = self.root.join("config").join(path);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Starts the daemon and waits until it says that it is ready. Where full mode is refused, opts into reduced mode.
    ///
    /// # Errors
    /// If it does not become ready; with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        if self.reduced {
            return self.start_once();
        }
        let Err(refused) = self.start_once() else {
            return Ok(());
        };
        if !refused.to_string().contains("reduced") {
            return Err(refused);
        }
        self.reduced = true;
        self.start_once()
    }

    fn spawn_daemon(&self, notify: &Path) -> Result<Child> {
        let log = self.log();
        let mut command = self.sluice(&["daemon"]);
        command.env("NOTIFY_SOCKET", notify).stdin(Stdio::null());
        command.stdout(File::options().create(true).append(true).open(&log)?);
        command.stderr(File::options().create(true).append(true).open(&log)?);
        let child = command.spawn().context("cannot start sluice daemon")?;
        fs::write(
            self.root.join(leftovers::DAEMON_PID),
            child.id().to_string(),
        )?;
        Ok(child)
    }

    /// Starts a daemon and kills it this much later, whatever it is doing then.
    ///
    /// # Errors
    /// If it cannot be started, or had ended by itself.
    pub fn crash_in_start(&mut self, after: Duration) -> Result<()> {
        let nobody = self.root.join("nobody.sock");
        self.daemon = Some(self.spawn_daemon(&nobody)?);
        std::thread::sleep(after);
        self.kill().map(drop)
    }

    /// Kills the proxy process alone.
    ///
    /// # Errors
    /// If there is none.
    pub fn kill_proxy(&self) -> Result<()> {
        let worker = self.worker_pid().context("no proxy process")?;
        signal(worker, rustix::process::Signal::KILL)
    }

    /// Waits until the proxy process of the running daemon answers: its socket is the enforcer's, so that this waits for the next one.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn until_it_answers(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.ask(&["status"])?.status.success() {
            if Instant::now() > deadline {
                bail!("the daemon does not answer\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// From now on it is this copy of `sluice`.
    pub fn use_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    fn start_once(&mut self) -> Result<()> {
        let notify = self.root.join("notify.sock");
        drop(fs::remove_file(&notify));
        let socket = UnixDatagram::bind(&notify)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut child = self.spawn_daemon(&notify)?;
        let patience = start_patience();
        let deadline = Instant::now() + patience;
        let mut buffer = [0_u8; 4096];
        loop {
            if let Ok(length) = socket.recv(&mut buffer) {
                let message =
                    String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                if message.lines().any(|line| line == "READY=1") {
                    self.daemon = Some(child);
                    return Ok(());
                }
            }
            if let Some(status) = child.try_wait()? {
                bail!("the daemon ended with {status}\n{}", self.log_tail());
            }
            // What it was not let run on a machine that others load is not its fault; one that hangs is not waiting to run.
            if Instant::now() > deadline + patience::starved(child.id()) {
                let at = patience::described(child.id());
                child.kill()?;
                child.wait()?;
                bail!(
                    "the daemon is not ready after {} s; it is at\n{at}\n{}",
                    patience.as_secs(),
                    self.log_tail()
                );
            }
        }
    }

    /// The daemon's log file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(30)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Stops the daemon as systemd would: SIGTERM, then patience.
    ///
    /// # Errors
    /// If it does not end cleanly and in time.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.daemon.take() else {
            return Ok(());
        };
        signal(child.id(), rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("the daemon ended with {status}\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        bail!(
            "the daemon did not stop within {} s\n{}",
            PATIENCE.as_secs(),
            self.log_tail()
        );
    }

    /// `kill -9` of the daemon's first process. Returns when its child, the proxy process, has followed it, and says how long that took.
    ///
    /// # Errors
    /// If there was no daemon, or the proxy process outlives it.
    pub fn kill(&mut self) -> Result<Duration> {
        let mut child = self.daemon.take().context("no daemon to kill")?;
        let children = children(child.id());
        child.kill()?;
        let status = child.wait()?;
        if status.signal() != Some(9) {
            bail!("the daemon had ended before the kill, with {status}");
        }
        let killed = Instant::now();
        while children.iter().any(|pid| lives(pid)) {
            if killed.elapsed() > PATIENCE {
                bail!("the proxy process outlives the daemon: {children:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(killed.elapsed())
    }

    /// Sends SIGHUP.
    ///
    /// # Errors
    /// If there is no daemon.
    pub fn reload(&self) -> Result<()> {
        let child = self.daemon.as_ref().context("no daemon")?;
        signal(child.id(), rustix::process::Signal::HUP)
    }

    /// `sluice` with these arguments, for this instance.
    #[must_use]
    pub fn sluice(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env("SLUICE_CONFIG", self.root.join("config"))
            .env("SLUICE_STATE_DIR", self.state())
            .env("SLUICE_RUNTIME_DIR", self.runtime())
            .env("HOME", self.root.join("home"))
            .env_remove("NOTIFY_SOCKET")
            .current_dir(self.root.join("home"));
        if self.reduced {
            command.env("SLUICE_REDUCED", "1");
        }
        command
    }

    /// Runs `sluice` to its end, whatever it says.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn ask(&self, args: &[&str]) -> Result<Output> {
        output::run(&mut self.sluice(args), PATIENCE)
    }

    /// Runs `sluice` with this on its stdin.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn tell(&self, args: &[&str], input: &str) -> Result<()> {
        use std::io::Write;
        let mut command = self.sluice(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start sluice")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let ended = child.wait_with_output()?;
        if !ended.status.success() {
            bail!(
                "sluice {} failed\n{}",
                args.join(" "),
                String::from_utf8_lossy(&ended.stderr)
            );
        }
        Ok(())
    }

    /// `sluice run --agent AGENT -- ARGS`, not started.
    #[must_use]
    pub fn agent(&self, agent: &str, args: &[&str]) -> Command {
        let mut all = vec!["run", "--agent", agent, "--"];
        all.extend(args);
        self.sluice(&all)
    }

    /// Runs a program as that agent to its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn run(&self, agent: &str, args: &[&str]) -> Result<Output> {
        output::run(&mut self.agent(agent, args), PATIENCE)
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// If it cannot be scraped.
    pub fn metrics(&self) -> Result<String> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.metrics_port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Errors are not worth more than what follows: the cgroup is killed whatever the daemon did.
        drop(self.stop());
        leftovers::remove(&self.root, self.keep);
    }
}

/// An emulated machine verifies and attaches programs a hundred times slower.
fn start_patience() -> Duration {
    if std::env::var_os("SLUICE_TEST_GUEST").is_some() {
        PATIENCE * 10
    } else {
        PATIENCE
    }
}

/// The `sluice` that was built beside this program, or `SLUICE_BIN`.
#[must_use]
pub fn sluice_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    // target/debug/harness, or target/debug/deps/test-0123
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("sluice"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| "sluice".into())
}

/// A port that nobody listens on at this moment.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The processes that any thread of this one has started.
pub(crate) fn children(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|pids| {
            pids.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a thread of a process still runs, and so keeps its sockets open; one that only waits to be reaped does not.
fn lives(pid: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("stat")).ok())
        .any(|stat| {
            let state = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().next());
            state.is_some_and(|state| !matches!(state, "X" | "Z"))
        })
}

fn signal(pid: u32, signal: rustix::process::Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .context("no such pid")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}
