//! The enforcer's main function: put the kernel side in force, open the listeners, start the proxy process, publish.
//! Root, and the only one that changes what the kernel enforces; supervises, admits workloads, reloads, stops.
//! INVARIANT: ports are published once the proxy process is ready and never before; it never reads an agent's byte.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use policies::{AgentId, WorkloadId};
use tokio::sync::{mpsc, oneshot};

use super::DaemonError;
use super::admission::{Book, Waiting};
use super::error::in_full;
use super::events::{Input, Inputs};
use super::listeners::Sockets;
use super::places::{self, Places};
use super::protocol::{
    BundleFacts, FromWorker, Handover, Refusal, Ticket, ToRun, ToWorker, WorkerAccount,
    WorkloadFacts,
};
use super::runs::{self, Admission, Ask};
use super::supervise::{News, Worker, document};
use crate::config::{Config, Paths, ProcessFacts, Snapshot, reduced_by_environment};
use crate::enforce::launch::Account;
use crate::enforce::{EnforceError, Enforcement, Events, Instance, Mode, Ports, Settings, Stopped};
use crate::layers::LayerState;

/// How long a stopping proxy process may finish what is under way.
const TIME_TO_DRAIN: Duration = Duration::from_secs(30);
/// The wait before the first restart of a proxy process that ended; doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A proxy process that served this long is restarted without a grudge.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// How many refusals of the kernel are passed on at once; the rest is only counted.
const REFUSALS_AT_ONCE: usize = 64;
/// How many messages may wait for the main loop.
const QUEUE: usize = 256;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// It could not start, and nothing was published; or it could not stop cleanly.
pub fn run(paths: &Paths) -> Result<(), DaemonError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    let snapshot = Snapshot::read(paths)?;
    let config = snapshot.config()?;
    let account = worker_account(&config)?;
    let places = Places::prepare(paths, &account)?;
    let control = places::control_socket(paths, config.control.group.is_some())?;
    let socket = places::enforcer_socket(paths)?;
    let enforcement = enforce(paths, &config)?;
    let sockets = match Sockets::open(enforcement.proxy_cgroup()) {
        Ok(sockets) => sockets,
        Err(error) => return Err(undo(enforcement, error)),
    };
    // One thread: the proxy process dies with the thread that started it, so that must be the one that lives longest.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::io("the runtime cannot be started"))?;
    let served = runtime.block_on(async {
        let governed = governed(&sockets.cgroup);
        let kernel = enforcement.events()?;
        let (news, heard) = mpsc::channel(QUEUE);
        let (asks, asked) = mpsc::channel(QUEUE);
        let inputs = Inputs::new(heard, asked)?;
        let mut enforcer = Enforcer {
            paths: paths.clone(),
            snapshot,
            config,
            account,
            governed: governed.clone(),
            sockets,
            control,
            book: Book::default(),
            kernel,
            counts: Vec::new(),
            worker: None,
            news,
            restart: Restart::default(),
            reloading: None,
            enforcement,
        };
        let inputs = enforcer.start(inputs).await;
        let mut inputs = match inputs {
            Ok(inputs) => inputs,
            Err(error) => return Err(undo(enforcer.enforcement, error)),
        };
        tokio::spawn(runs::accept(socket, governed, asks));
        enforcer.serve(&mut inputs).await;
        enforcer.stop(inputs).await
    });
    drop(places);
    served
}

/// The daemon while it lives.
struct Enforcer {
    paths: Paths,
    /// The configuration in force: what a restarted proxy process is given.
    snapshot: Snapshot,
    config: Config,
    account: WorkerAccount,
    governed: String,
    sockets: Sockets,
    control: std::os::unix::net::UnixListener,
    book: Book,
    kernel: Events,
    counts: Vec<(String, u64)>,
    worker: Option<Worker>,
    news: mpsc::Sender<News>,
    restart: Restart,
    reloading: Option<(Ticket, Snapshot)>,
    enforcement: Enforcement,
}

/// When the proxy process is started again.
#[derive(Default)]
struct Restart {
    ready_since: Option<Instant>,
    wait: Option<Duration>,
    due: Option<Instant>,
}

impl Enforcer {
    /// From a kernel side that denies everything to one that leads to a proxy process that is ready.
    async fn start(&mut self, mut inputs: Inputs) -> Result<Inputs, DaemonError> {
        self.adopt()?;
        self.start_worker().await?;
        let bundle = loop {
            match inputs.news.recv().await {
                Some(News::Said(FromWorker::Ready { bundle })) => break bundle,
                Some(News::Said(FromWorker::CannotStart { detail })) => {
                    return Err(DaemonError::Worker(detail));
                }
                Some(News::Said(other)) => {
                    tracing::warn!(?other, "the proxy process speaks before it is ready")
                }
                Some(News::Ended(status)) => {
                    let how =
                        status.map_or_else(|error| error.to_string(), |status| status.to_string());
                    return Err(DaemonError::Worker(format!(
                        "it ended before it was ready ({how})"
                    )));
                }
                None => return Err(DaemonError::Worker("nothing was heard of it".to_owned())),
            }
        };
        self.restart.ready_since = Some(Instant::now());
        self.take(&bundle)?;
        let listening = self.sockets.listening;
        self.enforcement.publish(Ports {
            proxy: listening.proxy_port,
            resolver: listening.resolver_port,
        })?;
        tracing::info!(version = %bundle.version, proxy = listening.proxy_port, resolver = listening.resolver_port, "ready");
        notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status("serving"),
        ]);
        Ok(inputs)
    }

    /// Handles one input after the other until told to stop.
    async fn serve(&mut self, inputs: &mut Inputs) {
        loop {
            match inputs.next().await {
                Input::Asked(ask) => self.asked(ask).await,
                Input::News(news) => self.heard(news).await,
                Input::Reload => self.reload().await,
                Input::Stop => return,
                Input::Tick => self.tick().await,
            }
        }
    }

    /// Lets the proxy process finish, then takes the kernel side back as far as nobody is governed any more.
    async fn stop(mut self, mut inputs: Inputs) -> Result<(), DaemonError> {
        tracing::info!("stopping");
        notify(&[
            sd_notify::NotifyState::Stopping,
            sd_notify::NotifyState::Status("finishing open calls"),
        ]);
        // Nobody is admitted any more: whoever asks is hung up on.
        inputs.asked.close();
        if let Some(worker) = self.worker.take() {
            worker.tell(&ToWorker::Stop {}, &[]).await;
            let ended =
                async { while !matches!(inputs.news.recv().await, Some(News::Ended(_)) | None) {} };
            if tokio::time::timeout(TIME_TO_DRAIN, ended).await.is_err() {
                tracing::warn!("the proxy process does not finish; ending it");
                worker.kill();
                while !matches!(inputs.news.recv().await, Some(News::Ended(_)) | None) {}
            }
        }
        for path in [self.paths.control_socket(), self.paths.enforcer_socket()] {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "a socket could not be removed");
            }
        }
        self.retire_left();
        match self.enforcement.stop()? {
            Stopped::Removed => tracing::info!("stopped"),
            Stopped::LeftDenying => tracing::warn!(
                "stopped; workloads still run and are denied everything until a daemon adopts them"
            ),
        }
        Ok(())
    }

    /// Workloads that a former daemon left running.
    fn adopt(&mut self) -> Result<(), DaemonError> {
        for found in self.enforcement.workloads_found()? {
            let cgroup = format!("{}/{}", self.governed, found.name);
            let agent = found.name.agent.clone();
            tracing::info!(workload = %found.name, populated = found.populated, "adopted");
            self.book.enter(
                WorkloadFacts {
                    id: found.id,
                    agent,
                    pid: None,
                    exe: None,
                    cgroup,
                },
                true,
            );
        }
        self.retire_left();
        Ok(())
    }

    async fn start_worker(&mut self) -> Result<(), DaemonError> {
        let handover = Handover {
            snapshot: self.snapshot.clone(),
            workloads: self.book.admitted(),
            layers: self.enforcement.layers(),
            governed: self.governed.clone(),
            account: self.account.clone(),
        };
        let maps = self.enforcement.map_fds()?;
        let news = self.news.clone();
        let worker = Worker::start(
            &self.paths,
            &self.sockets,
            &self.control,
            &maps,
            &handover,
            news,
        )
        .await?;
        self.worker = Some(worker);
        self.counts.clear();
        Ok(())
    }

    /// The kernel learns what the bundle says of addresses and of agents that are switched off.
    fn take(&mut self, bundle: &BundleFacts) -> Result<(), EnforceError> {
        self.enforcement.set_literals(&bundle.literals)?;
        for id in self
            .book
            .admitted()
            .iter()
            .map(|facts| (facts.id, bundle.disabled.contains(&facts.agent)))
            .collect::<Vec<_>>()
        {
            self.enforcement.set_disabled(id.0, id.1)?;
        }
        Ok(())
    }

    async fn heard(&mut self, news: News) {
        match news {
            News::Said(FromWorker::Ready { bundle }) => {
                tracing::info!(version = %bundle.version, "the proxy process serves again");
                self.restart.ready_since = Some(Instant::now());
                self.take_or_log(&bundle);
            }
            News::Said(FromWorker::CannotStart { detail }) => {
                tracing::error!(detail, "the proxy process cannot go on")
            }
            News::Said(FromWorker::Admitted { ticket, refused }) => {
                self.admitted(ticket, refused).await
            }
            News::Said(FromWorker::Reloaded {
                ticket,
                bundle,
                detail,
            }) => self.reloaded(ticket, bundle, &detail),
            News::Said(FromWorker::SetDisabled { agent, disabled }) => {
                self.set_disabled(&agent, disabled)
            }
            News::Ended(status) => self.worker_ended(&status),
        }
    }

    fn take_or_log(&mut self, bundle: &BundleFacts) {
        if let Err(error) = self.take(bundle) {
            tracing::error!(
                error = in_full(&error),
                "the kernel side could not take over the bundle"
            );
        }
    }

    /// The kill switch, in the kernel.
    fn set_disabled(&mut self, agent: &AgentId, disabled: bool) {
        for id in self.book.of(agent) {
            match self.enforcement.set_disabled(id, disabled) {
                Ok(()) => tracing::warn!(%agent, workload = id.0, disabled, "switched"),
                Err(error) => {
                    tracing::error!(%agent, workload = id.0, error = in_full(&error), "the kernel side did not switch")
                }
            }
        }
    }

    fn worker_ended(&mut self, status: &std::io::Result<std::process::ExitStatus>) {
        self.worker = None;
        self.reloading = None;
        // Dropping a reply tells its session; the cgroup goes with the next tick.
        for waiting in self.book.unanswered() {
            self.book.leave(waiting.workload);
        }
        let served = self.restart.ready_since.take().map(|since| since.elapsed());
        let wait = match (served, self.restart.wait) {
            (Some(served), _) if served >= GOOD_LIFE => FIRST_WAIT,
            (_, Some(last)) => (last * 2).min(LONGEST_WAIT),
            (_, None) => FIRST_WAIT,
        };
        self.restart.wait = Some(wait);
        self.restart.due = Some(Instant::now() + wait);
        tracing::error!(
            ?status,
            ?wait,
            "the proxy process ended; its ports stay ours, connections wait"
        );
    }

    async fn tick(&mut self) {
        if self.restart.due.is_some_and(|due| due <= Instant::now()) {
            self.restart.due = None;
            if let Err(error) = self.start_worker().await {
                tracing::error!(%error, "the proxy process cannot be started");
                self.restart.due = Some(Instant::now() + LONGEST_WAIT);
            }
        }
        for id in self.retire_left() {
            self.tell(&ToWorker::Retire { id }, None).await;
        }
        self.pass_refusals_on().await;
        match self.enforcement.refusals() {
            Ok(counts) => {
                let counts: Vec<(String, u64)> = counts
                    .into_iter()
                    .map(|(kind, count)| (kind.as_str().to_owned(), count))
                    .collect();
                if counts != self.counts {
                    self.tell(
                        &ToWorker::KernelRefusals {
                            counts: counts.clone(),
                        },
                        None,
                    )
                    .await;
                    self.counts = counts;
                }
            }
            Err(error) => tracing::error!(
                error = in_full(&error),
                "the kernel's counts cannot be read"
            ),
        }
    }

    /// Removes the workloads that nobody waits for and that are empty.
    fn retire_left(&mut self) -> Vec<WorkloadId> {
        let mut retired = Vec::new();
        for id in self.book.left() {
            match self.enforcement.retire(id) {
                Ok(()) | Err(EnforceError::WorkloadUnknown(_)) => {
                    self.book.strike(id);
                    retired.push(id);
                }
                Err(EnforceError::WorkloadAlive(_)) => {}
                Err(error) => tracing::error!(
                    workload = id.0,
                    error = in_full(&error),
                    "a workload cannot be retired"
                ),
            }
        }
        retired
    }

    async fn pass_refusals_on(&mut self) {
        let mut refusals = Vec::new();
        // All are taken, or the kernel has no room for new ones; the counters have every one.
        while let Some(refusal) = self.kernel.next_refusal() {
            if refusals.len() < REFUSALS_AT_ONCE {
                refusals.push(refusal);
            }
        }
        for refusal in refusals {
            let kind = refusal.kind.as_str().to_owned();
            tracing::debug!(workload = ?refusal.workload, kind, destination = ?refusal.destination, "the kernel refused");
            let message = ToWorker::KernelRefused {
                workload: refusal.workload,
                kind,
                destination: refusal.destination,
            };
            self.tell(&message, None).await;
        }
    }

    async fn tell(&self, message: &ToWorker, document: Option<std::os::fd::BorrowedFd<'_>>) {
        if let Some(worker) = &self.worker {
            worker.tell(message, document.as_slice()).await;
        }
    }

    async fn asked(&mut self, ask: Ask) {
        match ask {
            Ask::Run {
                agent,
                argv0,
                cwd,
                reply,
            } => {
                tracing::info!(%agent, argv0, cwd = %cwd.display(), "a workload is asked for");
                self.admit(agent, reply).await;
            }
            Ask::Started { workload, pid } => self.started(workload, pid).await,
            Ask::Ended(workload) => self.book.leave(workload),
        }
    }

    /// Makes the cgroup, then asks the proxy process whether the agent may run.
    async fn admit(&mut self, agent: AgentId, reply: oneshot::Sender<Result<Admission, Refusal>>) {
        if self.worker.is_none() || self.restart.ready_since.is_none() {
            let detail = "the proxy process is being restarted; try again".to_owned();
            drop(reply.send(Err(Refusal {
                reason: None,
                detail,
            })));
            return;
        }
        let admitted = match self.enforcement.admit(&agent) {
            Ok(admitted) => admitted,
            Err(error) => {
                drop(reply.send(Err(Refusal {
                    reason: None,
                    detail: in_full(&error),
                })));
                return;
            }
        };
        let cgroup = format!("{}/{}", self.governed, admitted.name);
        let workload = WorkloadFacts {
            id: admitted.id,
            agent,
            pid: None,
            exe: None,
            cgroup,
        };
        let ticket = self.book.ticket();
        self.book.enter(workload.clone(), false);
        self.book.wait(
            ticket,
            Waiting {
                workload: admitted.id,
                cgroup: admitted.cgroup,
                reply,
            },
        );
        self.tell(&ToWorker::Admit { ticket, workload }, None).await;
    }

    /// The proxy process's answer, to the session that asked.
    async fn admitted(&mut self, ticket: Ticket, refused: Option<Refusal>) {
        let Some(waiting) = self.book.answered(ticket) else {
            return tracing::warn!(?ticket, "the proxy process answers what nobody asked");
        };
        let id = waiting.workload;
        let answer = match (refused, self.book.facts(id)) {
            (None, Some(facts)) => {
                let message = ToRun::Admitted {
                    workload: id,
                    cgroup: facts.cgroup.clone(),
                    ca_pem: self.paths.ca_pem(&facts.agent.tenant),
                    nameserver: nameserver(self.config.names.pool4),
                };
                Ok(Admission {
                    workload: id,
                    message,
                    cgroup: waiting.cgroup,
                })
            }
            (Some(refusal), _) => Err(refusal),
            (None, None) => Err(Refusal {
                reason: None,
                detail: "the workload is gone".to_owned(),
            }),
        };
        let refused = answer.is_err();
        // If the session is gone, too, nobody will say that it ended.
        if waiting.reply.send(answer).is_err() || refused {
            self.book.leave(id);
        }
    }

    async fn started(&mut self, id: WorkloadId, pid: u32) {
        let Some(cgroup) = self.book.facts(id).map(|facts| facts.cgroup.clone()) else {
            return;
        };
        // The number came in a message: it counts only if that process is in the workload's cgroup.
        if !ProcessFacts::read(pid).is_ok_and(|facts| facts.cgroup == cgroup) {
            return tracing::debug!(
                pid,
                cgroup,
                "a first process is gone already, or is not in its cgroup"
            );
        }
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"))
            .ok()
            .map(|exe| exe.to_string_lossy().into_owned());
        self.book.started(id, pid, exe.clone());
        self.tell(&ToWorker::Started { id, pid, exe }, None).await;
    }

    /// SIGHUP: reads the configuration and hands it to the proxy process, which takes it whole or not at all.
    async fn reload(&mut self) {
        use std::os::fd::AsFd as _;
        let mut state = vec![sd_notify::NotifyState::Reloading];
        state.extend(sd_notify::NotifyState::monotonic_usec_now());
        notify(&state);
        match Snapshot::read(&self.paths)
            .map_err(DaemonError::from)
            .and_then(|snapshot| Ok((document(&snapshot)?, snapshot)))
        {
            Ok((file, snapshot)) => {
                let ticket = self.book.ticket();
                self.tell(&ToWorker::Reload { ticket }, Some(file.as_fd()))
                    .await;
                self.reloading = Some((ticket, snapshot));
            }
            Err(error) => {
                tracing::error!(%error, "the new configuration cannot be read; the old one stays");
                notify(&[
                    sd_notify::NotifyState::Ready,
                    sd_notify::NotifyState::Status("reload failed; the old configuration stays"),
                ]);
            }
        }
    }

    fn reloaded(&mut self, ticket: Ticket, bundle: Option<BundleFacts>, detail: &str) {
        let pending = self.reloading.take_if(|(asked, _)| *asked == ticket);
        let status = match (bundle, pending) {
            (Some(bundle), Some((_, snapshot))) => {
                self.take_or_log(&bundle);
                if let Ok(config) = snapshot.config() {
                    if config.names != self.config.names
                        || config.proxy.user != self.config.proxy.user
                    {
                        tracing::warn!(
                            "[names] and [proxy] user take effect at the next start of the daemon"
                        );
                    }
                }
                self.snapshot = snapshot;
                tracing::info!(version = %bundle.version, "reloaded");
                "serving"
            }
            (Some(_), None) => "serving",
            (None, _) => {
                tracing::error!("the new configuration is refused; the old one stays:\n{detail}");
                "reload failed; the old configuration stays"
            }
        };
        notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status(status),
        ]);
    }
}

/// The account of `[proxy] user`, which must not be root.
fn worker_account(config: &Config) -> Result<WorkerAccount, DaemonError> {
    let account = Account::find(&config.proxy.user)?;
    if account.uid == 0 || account.gid == 0 {
        return Err(DaemonError::RootAccount);
    }
    Ok(WorkerAccount {
        uid: account.uid,
        gid: account.gid,
    })
}

/// Puts the kernel side in force; in reduced mode only if somebody opted in.
fn enforce(paths: &Paths, config: &Config) -> Result<Enforcement, DaemonError> {
    let runtime = std::fs::canonicalize(&paths.runtime)
        .map_err(DaemonError::io(paths.runtime.display().to_string()))?;
    let settings = Settings {
        instance: Instance::of(&runtime),
        pool4: config.names.pool4,
        pool6: config.names.pool6,
    };
    let enforcement = Enforcement::start(&settings)?;
    if enforcement.mode() == Mode::Full {
        return Ok(enforcement);
    }
    let layers = enforcement.layers();
    let open: Vec<String> = layers
        .iter()
        .filter(|layer| layer.state != LayerState::Live)
        .flat_map(|layer| {
            layer
                .leaves_open
                .iter()
                .map(move |open| format!("{}: {open}", layer.name))
        })
        .collect();
    if !config.enforcement.reduced && !reduced_by_environment() {
        return Err(undo(enforcement, DaemonError::Reduced(open)));
    }
    tracing::warn!("REDUCED MODE: not every layer is live. Open without it:");
    for escape in &open {
        tracing::warn!("  {escape}");
    }
    Ok(enforcement)
}

/// A start that failed leaves nothing behind, unless a former daemon's workloads still run.
fn undo(enforcement: Enforcement, why: DaemonError) -> DaemonError {
    if let Err(error) = enforcement.stop() {
        tracing::error!(
            error = in_full(&error),
            "the kernel side could not be taken back; it denies everything"
        );
    }
    why
}

/// The cgroup path of all workloads, given that of the listeners: they lie beside each other.
fn governed(proxy: &str) -> String {
    let parent = proxy.rsplit_once('/').map_or("", |(parent, _)| parent);
    format!("{parent}/agents")
}

/// The first address of the pool: every question to port 53 is led to the resolver, whatever address it names.
fn nameserver((network, _): (Ipv4Addr, u8)) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(network.to_bits() | 1))
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
