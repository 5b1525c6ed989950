//! The proxy process's `app::serve` in this test process, without a kernel side: the command line can talk to it.
//! What the enforcer would do is done by the test through the same channels.
//! INVARIANT: stopped and joined when dropped.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use agent_userspace::app::{Command, Event, Ready, StartError, WorkerParts, prepare, serve};
use agent_userspace::config::{Paths, Snapshot};
use agent_userspace::daemon::protocol::Switched;
use agent_userspace::layers::{LayerReport, LayerState};
use mitm_proxy::{Listeners, Origin, Origins, Workload};
use policies::{AgentId, WorkloadId};
use tokio::sync::{mpsc, oneshot};

/// A running proxy process.
pub struct Daemon {
    /// To it, as the enforcer.
    pub events: mpsc::Sender<Event>,
    /// Which switches it asked the enforcer for; each was confirmed.
    switched: std::sync::mpsc::Receiver<(AgentId, bool)>,
    /// What it said when it was ready.
    pub ready: Ready,
    thread: Option<JoinHandle<Result<(), StartError>>>,
}

/// No connection is anybody's.
struct Nobody;

impl Origins for Nobody {
    fn accepted(&self, _: BorrowedFd<'_>) -> Option<Origin> {
        None
    }

    fn datagram(&self, _: BorrowedFd<'_>, _: SocketAddr) -> Option<Origin> {
        None
    }
}

/// Layers as a host without BPF LSM has them.
pub fn layers() -> Vec<LayerReport> {
    let live = [
        "bind", "connect", "datagram", "egress", "ingress", "origin", "socket",
    ];
    let live = live.map(|name| LayerReport {
        name: name.to_owned(),
        state: LayerState::Live,
        leaves_open: Vec::new(),
    });
    let lsm = LayerReport {
        name: "lsm".to_owned(),
        state: LayerState::Absent,
        leaves_open: vec!["io_uring".to_owned()],
    };
    live.into_iter().chain([lsm]).collect()
}

impl Daemon {
    /// Starts, with everything below `governed` counting as an agent's.
    pub fn start(paths: &Paths, governed: &str) -> Result<Daemon, StartError> {
        let snapshot = Snapshot::read(paths).map_err(StartError::Configuration)?;
        let prepared = prepare(paths, snapshot)?;
        let socket = paths.control_socket();
        let _ = std::fs::remove_file(&socket);
        let control = UnixListener::bind(&socket).unwrap();
        // As the enforcer does where a control group is configured.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let tcp = || vec![TcpListener::bind("127.0.0.1:0").unwrap()];
        let listeners = Listeners {
            tcp: tcp(),
            dns_tcp: tcp(),
            dns_udp: vec![UdpSocket::bind("127.0.0.1:0").unwrap()],
        };
        let (events, incoming) = mpsc::channel(16);
        let (outgoing, mut commands) = mpsc::channel(16);
        let parts = WorkerParts {
            prepared,
            paths: paths.clone(),
            listeners,
            control,
            origins: Arc::new(Nobody),
            workloads: Vec::new(),
            layers: layers(),
            governed: governed.to_owned(),
            events: incoming,
            commands: outgoing,
        };
        let runtime = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap()
        };
        let thread = std::thread::spawn(move || runtime().block_on(serve(parts)));
        match commands.blocking_recv() {
            Some(Command::Ready(ready)) => Ok(Daemon {
                events,
                switched: confirm(commands),
                ready,
                thread: Some(thread),
            }),
            Some(other) => panic!("{other:?} before it was ready"),
            None => Err(thread
                .join()
                .unwrap()
                .expect_err("it ended without an error before it was ready")),
        }
    }

    /// Asks whether a workload of this agent may start.
    pub fn admit(&self, agent: &str, id: u64) -> Result<(), agent_userspace::app::AdmitRefused> {
        let agent: AgentId = agent.parse().unwrap();
        let cgroup = format!("/sluice/agents/{}.{}.{id}", agent.tenant, agent.name);
        let workload = Workload {
            id: WorkloadId(id),
            agent,
            pid: None,
            exe: None,
            cgroup,
            way: mitm_proxy::Way::Run,
        };
        let (reply, answer) = oneshot::channel();
        self.events
            .blocking_send(Event::Admit {
                workload,
                recorded: Vec::new(),
                reply,
            })
            .unwrap();
        answer.blocking_recv().unwrap()
    }

    /// Reloads the configuration directory, as SIGHUP does.
    pub fn reload(&self, paths: &Paths) -> Result<Ready, policies::Diagnostics> {
        let snapshot = Snapshot::read(paths)?;
        let (reply, answer) = oneshot::channel();
        self.events
            .blocking_send(Event::Reload { snapshot, reply })
            .unwrap();
        answer.blocking_recv().unwrap()
    }

    /// The next switch that the enforcer was asked for.
    pub fn switched(&mut self) -> (AgentId, bool) {
        self.switched.recv_timeout(Duration::from_secs(5)).unwrap()
    }

    /// Stops it in good order.
    pub fn stop(mut self) {
        self.events.blocking_send(Event::Stop).unwrap();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

/// Answers like an enforcer whose kernel side does what it is asked for.
fn confirm(mut commands: mpsc::Receiver<Command>) -> std::sync::mpsc::Receiver<(AgentId, bool)> {
    let (told, switched) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        while let Some(command) = commands.blocking_recv() {
            if let Command::SetDisabled {
                agent,
                disabled,
                reply,
            } = command
            {
                let done = Switched {
                    workloads: 1,
                    sockets: 2,
                    ..Switched::default()
                };
                let _ = told.send((agent, disabled));
                let _ = reply.send(done);
            }
        }
    });
    switched
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.events.blocking_send(Event::Stop);
            let _ = thread.join();
        }
    }
}
