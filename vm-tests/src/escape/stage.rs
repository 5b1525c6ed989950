//! What an attempt finds: a running daemon with one agent, a workload to join, sockets that somebody outside made.
//! Under the suite.
//! Invariant: everything made here is gone when it is dropped, also when a case went wrong.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::agent::{BEGUN, END, OUTCOME, READY};
use super::cases::{ALLOWED, REBOUND};
use super::helper::Role;
use super::order::{Order, raw};
use super::sys;
use crate::instance::{self, Instance, PATIENCE};
use crate::leftovers;
use crate::pki::Authority;

/// Who the attacker is to Sluice.
pub(super) const AGENT: &str = "acme/escape";

/// Every name that leads somewhere, and no other.
fn agent_file() -> String {
    let rebound = REBOUND.iter().map(|(name, _)| *name);
    let hosts: Vec<String> = std::iter::once(ALLOWED)
        .chain(rebound)
        .flat_map(|name| [format!("\"{name}\""), format!("\"{name}:80\"")])
        .collect();
    format!(
        "tenant = \"acme\"\nname = \"escape\"\nowner = \"the suite\"\nstage = \"write\"\n\n[[connections]]\nname = \"allowed\"\nconnector = \"generic-http\"\nhosts = [{}]\n",
        hosts.join(", ")
    )
}

/// A socket that somebody outside made, as standard input.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Given {
    /// Connected by TCP.
    TcpConnected,
    /// Connected by UDP.
    UdpConnected,
    /// TCP, not connected.
    TcpFresh,
    /// UDP, not connected.
    UdpFresh,
    /// TCP, listening on the host's address.
    TcpListening,
    /// Raw, of a protocol of its own.
    Raw,
    /// A packet socket.
    Packet,
}

impl Given {
    /// Makes it in this process, which is nobody's workload.
    pub(super) fn make(self, order: &Order) -> Result<OwnedFd> {
        let (family, kind, protocol) = match self {
            Self::TcpConnected | Self::TcpFresh | Self::TcpListening => {
                (libc::AF_INET, libc::SOCK_STREAM, 0)
            }
            Self::UdpConnected | Self::UdpFresh => (libc::AF_INET, libc::SOCK_DGRAM, 0),
            Self::Raw => (libc::AF_INET, libc::SOCK_RAW, 253),
            Self::Packet => (libc::AF_PACKET, libc::SOCK_RAW, 0),
        };
        let socket = sys::socket(family, kind, protocol)?;
        match self {
            Self::TcpConnected | Self::UdpConnected => {
                sys::connect(socket.as_fd(), &raw(order.to4()))?;
            }
            Self::TcpListening => {
                let reuse = 1_i32.to_ne_bytes();
                sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &reuse)?;
                sys::bind(
                    socket.as_fd(),
                    &raw((Ipv4Addr::UNSPECIFIED, INBOUND).into()),
                )?;
                rustix::net::listen(&socket, 4)?;
            }
            _ => {}
        }
        Ok(socket)
    }
}

/// Where attempts listen.
pub(super) const INBOUND: u16 = 4434;

/// The daemon, and the files beside it.
pub(super) struct Stage {
    pub(super) instance: Instance,
    /// The attacker's program, where everybody may run it.
    pub(super) program: PathBuf,
    /// A directory where everybody may write.
    pub(super) open: PathBuf,
    /// Where cgroup v2 is mounted.
    pub(super) hierarchy: PathBuf,
}

impl Stage {
    /// Writes the files; the daemon is not started.
    pub(super) fn set() -> Result<Stage> {
        use std::os::unix::fs::PermissionsExt;
        let instance = Instance::new()?;
        instance.configure("ca.pem", Authority::new()?.pem())?;
        instance.configure(
            "config.toml",
            &format!(
                "[proxy]\nextra_roots = [\"ca.pem\"]\nuser = \"65534\"\n\n[metrics]\nlisten = \"127.0.0.1:{}\"\n",
                instance.metrics_port()
            ),
        )?;
        instance.configure("agents.d/escape.toml", &agent_file())?;
        let bin = instance.root().join("bin");
        let open = instance.root().join("open");
        for dir in [&bin, &open] {
            fs::create_dir_all(dir)?;
        }
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
        let built = instance::sluice_binary().with_file_name("escape-agent");
        let program = bin.join("escape-agent");
        fs::copy(&built, &program).with_context(|| format!("cannot copy {}", built.display()))?;
        Ok(Stage {
            instance,
            program,
            open,
            hierarchy: leftovers::cgroup2().context("no cgroup v2 hierarchy is mounted")?,
        })
    }

    /// The attacker's program, not as an agent.
    pub(super) fn plain(&self, words: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(&self.open);
        command
    }

    /// The same by `sluice run`.
    pub(super) fn launched(&self, words: &[String]) -> Command {
        let program = self.program.to_string_lossy();
        // As root, who can most; without a name it would run under a uid of the agent's own.
        let mut all = vec!["run", "--agent", AGENT, "--user", "root", "--", &program];
        all.extend(words.iter().map(String::as_str));
        let mut command = self.instance.sluice(&all);
        command.current_dir(&self.open);
        command
    }

    /// The attacker, waiting for orders as nobody's agent.
    pub(super) fn outsider(&self) -> Result<Server> {
        Server::start(&mut self.plain(&["serve".to_owned()]))
    }

    /// The attacker, waiting for orders as the launched agent, and its cgroup.
    pub(super) fn agent(&self) -> Result<(Server, PathBuf)> {
        let server = Server::start(&mut self.launched(&["serve".to_owned()]))?;
        let lines = fs::read_to_string(format!("/proc/{}/cgroup", server.pid))?;
        let place = lines
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .context("the workload is in no cgroup v2")?;
        Ok((server, self.hierarchy.join(place)))
    }

    /// Starts a helper; gives where it is found, too.
    pub(super) fn helper(&self, role: Role, order: &Order) -> Result<(Waiting, String)> {
        let mut words = vec!["help".to_owned(), role.word().to_owned()];
        words.extend(order.words());
        let waiting = Waiting::start(&mut self.plain(&words))?;
        let place = waiting.place.clone();
        Ok((waiting, place))
    }
}

/// An attacker that makes one attempt after another, each in a child of its own.
pub(super) struct Server {
    child: Child,
    lines: Receiver<String>,
    pid: String,
}

impl Server {
    fn start(command: &mut Command) -> Result<Server> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the attacker")?;
        let stdout = child.stdout.take().context("no standard output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut server = Server {
            child,
            lines,
            pid: String::new(),
        };
        let first = server
            .lines
            .recv_timeout(PATIENCE)
            .context("the attacker did not become ready")?;
        server.pid = first
            .strip_prefix(READY)
            .context("the attacker did not become ready")?
            .trim()
            .to_owned();
        Ok(server)
    }

    /// One attempt, and its own account of it.
    pub(super) fn attempt(&mut self, words: &[String]) -> Result<String> {
        let input = self.child.stdin.as_mut().context("no standard input")?;
        writeln!(input, "{}", words.join("\t"))?;
        let (mut begun, mut account) = (false, None);
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .context("the attacker is gone")?;
            if line == BEGUN {
                begun = true;
            } else if let Some(said) = line.strip_prefix(OUTCOME) {
                account = Some(said.trim().to_owned());
            } else if let Some(ended) = line.strip_prefix(END) {
                let said = account.unwrap_or_else(|| ended.trim().to_owned());
                // What was never tried was not stopped either.
                if !begun {
                    bail!("no attempt was made: {said}");
                }
                return Ok(said);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A process that runs until its standard input ends, which is when this is dropped.
pub(super) struct Waiting {
    child: Child,
    place: String,
}

impl Waiting {
    fn start(command: &mut Command) -> Result<Waiting> {
        let log = tempfile::NamedTempFile::new()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(File::options().append(true).open(log.path())?)
            .stderr(File::options().append(true).open(log.path())?)
            .spawn()
            .context("cannot start a helper")?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let told = first_ready(log.path())?;
            if let Some(place) = told {
                return Ok(Waiting { child, place });
            }
            if child.try_wait()?.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(log.path())?;
                drop(child.kill());
                drop(child.wait());
                bail!("a helper did not become ready: {}", said.trim());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn first_ready(log: &Path) -> Result<Option<String>> {
    for line in BufReader::new(File::open(log)?).lines() {
        if let Some(place) = line?.strip_prefix("ready ") {
            return Ok(Some(place.to_owned()));
        }
    }
    Ok(None)
}

impl Drop for Waiting {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Both kinds end with their standard input.
fn end(child: &mut Child) {
    drop(child.stdin.take());
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(child.kill());
    drop(child.wait());
}
