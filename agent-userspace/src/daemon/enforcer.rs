//! The enforcer while it lives: starts the proxy process, publishes, supervises, admits workloads, reloads, stops.
//! Root, and the only one that changes what the kernel enforces; `start` brings it up.
//! INVARIANT: ports are published once the proxy process is ready and never before; it never reads an agent's byte.

mod admissions;
mod adoptions;
mod attachments;
mod patterns;
mod reload;
mod switches;
mod watchdog;

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use policies::WorkloadId;
use tokio::sync::mpsc;

use super::DaemonError;
use super::admission::Book;
use super::appearing::Appearing;
use super::error::in_full;
use super::events::{Input, Inputs};
use super::listeners::Sockets;
use super::namespaces::Namespaces;
use super::protocol::{
    BundleFacts, FromWorker, Handover, Happening, Ticket, ToWorker, WorkerAccount,
};
use super::supervise::{News, Worker};
use crate::config::{Config, Paths, Snapshot};
use crate::enforce::{EnforceError, Enforcement, Events, Ports, Stopped};
use switches::Knocks;

/// How long a stopping proxy process may finish what is under way.
const TIME_TO_DRAIN: Duration = Duration::from_secs(30);
/// The wait before the first restart of a proxy process that ended; doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A proxy process that served this long is restarted without a grudge.
const GOOD_LIFE: Duration = Duration::from_secs(60);
/// How many refusals of the kernel are passed on at once; the rest is only counted.
const REFUSALS_AT_ONCE: usize = 64;
/// What the service manager shows after a reload that failed.
const RELOAD_FAILED: &str = "reload failed; the old configuration stays";

/// What the daemon is made of before it serves.
pub(super) struct Given {
    pub(super) paths: Paths,
    /// The configuration in force: what a restarted proxy process is given.
    pub(super) snapshot: Snapshot,
    pub(super) config: Config,
    pub(super) account: WorkerAccount,
    /// The cgroup path of all workloads.
    pub(super) governed: String,
    pub(super) sockets: Sockets,
    pub(super) control: UnixListener,
}

/// The daemon while it lives.
pub(super) struct Enforcer {
    given: Given,
    book: Book,
    kernel: Events,
    counts: Vec<(String, u64)>,
    worker: Option<Worker>,
    news: mpsc::Sender<News>,
    namespaces: Namespaces,
    patterns: patterns::Patterns,
    appearing: Appearing,
    restart: Restart,
    /// Workloads whose cgroup is gone and which the proxy process still knows.
    swept: Vec<WorkloadId>,
    /// Configurations that the proxy process has not answered for yet.
    reloading: BTreeMap<Ticket, Snapshot>,
    /// What the proxy process has yet to write into the host's log.
    happenings: VecDeque<Happening>,
    knocks: Knocks,
    /// The ports are published, unless there is a panic.
    published: bool,
    /// Every agent is stopped.
    panic: bool,
    /// The kernel side could not be put back: nothing may start.
    broken: Option<String>,
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
    /// Nothing is started yet.
    pub(super) fn new(
        given: Given,
        kernel: Events,
        news: mpsc::Sender<News>,
        namespaces: Namespaces,
        appearing: Appearing,
        enforcement: Enforcement,
    ) -> Enforcer {
        Enforcer {
            given,
            book: Book::default(),
            kernel,
            counts: Vec::new(),
            worker: None,
            news,
            namespaces,
            patterns: patterns::Patterns::default(),
            appearing,
            restart: Restart::default(),
            swept: Vec::new(),
            reloading: BTreeMap::new(),
            happenings: VecDeque::new(),
            knocks: Knocks::default(),
            published: false,
            panic: false,
            broken: None,
            enforcement,
        }
    }

    /// The kernel side, for taking it back after a start that failed.
    pub(super) fn into_enforcement(self) -> Enforcement {
        self.enforcement
    }

    /// From a kernel side that denies everything to one that leads to a proxy process that is ready.
    pub(super) async fn start(&mut self, inputs: &mut Inputs) -> Result<(), DaemonError> {
        self.adopt()?;
        // Before anything is published: a panic outlives the daemon in whose time it began.
        self.follow_panic().await;
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
        match self.take(&bundle) {
            // As with a reload: what it has no room for the kernel side refuses, which is no reason to leave everybody without a daemon.
            Err(error @ EnforceError::LiteralsFull) => self.not_taken(&error),
            taken => taken?,
        }
        self.publish()?;
        self.published = true;
        self.tell_happenings().await;
        let listening = self.given.sockets.listening;
        tracing::info!(version = %bundle.version, proxy = listening.proxy_port, resolver = listening.resolver_port, "ready");
        notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status("serving"),
        ]);
        Ok(())
    }

    fn publish(&mut self) -> Result<(), EnforceError> {
        let listening = self.given.sockets.listening;
        self.enforcement.publish(Ports {
            proxy: listening.proxy_port,
            resolver: listening.resolver_port,
        })
    }

    /// Handles one input after the other until told to stop.
    pub(super) async fn serve(&mut self, inputs: &mut Inputs) {
        loop {
            match inputs.next().await {
                Input::Appeared => self.take_matching().await,
                Input::Asked(ask) => self.asked(ask).await,
                Input::News(news) => self.heard(news).await,
                Input::Reload => self.reload().await,
                Input::Stop => return,
                Input::Tick => self.tick().await,
                Input::Watch => self.watch().await,
            }
        }
    }

    /// Lets the proxy process finish, then takes the kernel side back as far as nobody is governed any more.
    pub(super) async fn stop(mut self, mut inputs: Inputs) -> Result<(), DaemonError> {
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
        for path in [
            self.given.paths.control_socket(),
            self.given.paths.enforcer_socket(),
        ] {
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

    async fn start_worker(&mut self) -> Result<(), DaemonError> {
        let handover = Handover {
            snapshot: self.given.snapshot.clone(),
            workloads: self.book.admitted(),
            layers: self.enforcement.layers(),
            governed: self.given.governed.clone(),
            account: self.given.account.clone(),
        };
        let maps = self.enforcement.map_fds()?;
        let news = self.news.clone();
        let worker = Worker::start(
            &self.given.paths,
            &self.given.sockets,
            &self.given.control,
            &maps,
            &handover,
            news,
        )
        .await?;
        self.namespaces.tell_all(&worker).await;
        self.worker = Some(worker);
        self.counts.clear();
        Ok(())
    }

    /// The kernel learns what the bundle says of addresses and of agents that are switched off.
    fn take(&mut self, bundle: &BundleFacts) -> Result<(), EnforceError> {
        self.set_patterns(bundle.processes.clone());
        for id in self
            .book
            .admitted()
            .iter()
            .map(|facts| (facts.id, bundle.disabled.contains(&facts.agent)))
            .collect::<Vec<_>>()
        {
            self.enforcement.set_disabled(id.0, id.1)?;
        }
        // Last: there may be no room for them, and who is switched off is so all the same.
        self.enforcement.set_literals(&bundle.literals)
    }

    async fn heard(&mut self, news: News) {
        match news {
            News::Said(FromWorker::Ready { bundle }) => {
                tracing::info!(version = %bundle.version, "the proxy process serves again");
                self.restart.ready_since = Some(Instant::now());
                self.take_or_log(&bundle);
                self.repeat_panic();
                self.tell_happenings().await;
                self.ask_again().await;
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
            News::Said(FromWorker::SetDisabled {
                ticket,
                agent,
                disabled,
            }) => self.switch(ticket, &agent, disabled).await,
            News::Ended(status) => self.worker_ended(&status),
        }
    }

    fn take_or_log(&mut self, bundle: &BundleFacts) {
        if let Err(error) = self.take(bundle) {
            self.not_taken(&error);
        }
    }

    fn not_taken(&mut self, error: &EnforceError) {
        tracing::error!(
            error = in_full(error),
            "the kernel side could not take over the bundle"
        );
        self.refused(None, &admissions::unenforced(error));
    }

    fn worker_ended(&mut self, status: &std::io::Result<std::process::ExitStatus>) {
        self.worker = None;
        // A restarted one is given the configuration in force.
        self.reloading.clear();
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
        self.refuse_overdue();
        if self.restart.due.is_some_and(|due| due <= Instant::now()) {
            self.restart.due = None;
            if let Err(error) = self.start_worker().await {
                tracing::error!(%error, "the proxy process cannot be started");
                self.restart.due = Some(Instant::now() + LONGEST_WAIT);
            }
        }
        let mut gone = self.sweep();
        gone.extend(self.retire_left());
        for id in gone {
            self.tell(&ToWorker::Retire { id }, None).await;
        }
        self.look_again().await;
        self.take_matching().await;
        self.look_into_namespaces().await;
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
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
