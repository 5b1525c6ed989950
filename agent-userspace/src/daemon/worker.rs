//! The proxy process: receives what the enforcer opened, gives up root, serves.
//! Everything that touches an agent's byte happens here; `app` is what it does, this file is how it comes to be.
//! INVARIANT: it serves only as its own uid, without capabilities and confined; when the enforcer is gone, so is it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};

use mitm_proxy::{Listeners, Workload};
use policies::Diagnostics;
use tokio::sync::{mpsc, oneshot};

use super::channel::AsyncChannel;
use super::protocol::{
    BundleFacts, FromWorker, Handover, Listening, Refusal, Switched, Ticket, ToWorker,
    WorkloadFacts,
};
use super::{Channel, ChannelError, DaemonError, listeners, privileges};
use crate::app::{self, Command, Event, KernelRefusal, Prepared, Ready, WorkerParts};
use crate::config::{Paths, Snapshot, certificate_places};
use crate::enforce::launch::confine_proxy;
use crate::layers::LayerState;
use crate::origin::KernelOrigins;

/// A longer document is cut off, and so none.
const MAX_DOCUMENT: u64 = 256 * 1024 * 1024;
/// How many events or commands may wait.
const QUEUE: usize = 256;

/// The worker's whole life. The channel to the enforcer is its standard input. Call it before any thread is started.
///
/// # Errors
/// It could not start, which the enforcer has been told, or the enforcer is gone.
pub fn run(paths: &Paths) -> Result<(), DaemonError> {
    let channel = Channel::from_stdin().map_err(DaemonError::io("standard input"))?;
    let handed = receive_start(&channel)?;
    let served =
        become_worker(paths, handed, &channel).and_then(|worker| worker.serve(paths, &channel));
    if let Err(error) = &served {
        // The enforcer says itself what its news means.
        let detail = match error {
            DaemonError::Worker(detail) => detail.clone(),
            error => error.to_string(),
        };
        // The enforcer may be gone; then there is nobody to tell.
        let _ = channel.send(&FromWorker::CannotStart { detail }, &[]);
    }
    served
}

/// What the enforcer handed over.
struct Handed {
    handover: Handover,
    control: UnixListener,
    accepted: OwnedFd,
    flows: OwnedFd,
    listeners: Listeners,
}

fn receive_start(channel: &Channel) -> Result<Handed, DaemonError> {
    let (message, fds) = channel.receive::<ToWorker>()?.ok_or(ChannelError::HungUp)?;
    let ToWorker::Start {
        listeners: listening,
    } = message
    else {
        return Err(DaemonError::Worker(
            "the first message was not the start".to_owned(),
        ));
    };
    sort(listening, fds)
}

fn sort(listening: Listening, fds: Vec<OwnedFd>) -> Result<Handed, DaemonError> {
    let (found, expected) = (fds.len(), listening.sockets().saturating_add(4));
    let mut fds = fds.into_iter();
    let (Some(document), Some(control), Some(accepted), Some(flows)) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(ChannelError::WrongDescriptors { expected, found }.into());
    };
    if found != expected {
        return Err(ChannelError::WrongDescriptors { expected, found }.into());
    }
    let listeners = listeners::sort(listening, fds.collect())?;
    Ok(Handed {
        handover: read_document(document)?,
        control: UnixListener::from(control),
        accepted,
        flows,
        listeners,
    })
}

/// A document that travelled in a memfd.
fn read_document<T: serde::de::DeserializeOwned>(document: OwnedFd) -> Result<T, DaemonError> {
    let mut text = Vec::new();
    let mut file = File::from(document);
    file.rewind()
        .and_then(|()| file.take(MAX_DOCUMENT).read_to_end(&mut text))
        .map_err(DaemonError::io("the handover document"))?;
    Ok(serde_json::from_slice(&text).map_err(ChannelError::from)?)
}

/// The process once it has no privileges.
struct Worker {
    prepared: Prepared,
    handed: Handed,
    threads: usize,
}

/// Reads what only root may read, gives root up, and shuts itself in.
fn become_worker(
    paths: &Paths,
    mut handed: Handed,
    channel: &Channel,
) -> Result<Worker, DaemonError> {
    let snapshot = std::mem::take(&mut handed.handover.snapshot);
    let prepared =
        app::prepare(paths, snapshot).map_err(|error| DaemonError::Worker(error.to_string()))?;
    // The cgroup's share of the processors is read outside of what can be read later.
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let memory = privileges::lock_memory();
    privileges::give_up(&handed.handover.account)
        .map_err(DaemonError::io("privileges cannot be given up"))?;
    // Signals and files of others are out of reach from here on, as is everything that the filter refuses.
    let mut walls = confine_proxy(&[&paths.state, &paths.ca_dir()], &certificate_places())?;
    walls.push(memory);
    for wall in walls.iter().filter(|wall| wall.state != LayerState::Live) {
        tracing::warn!(layer = wall.name, state = wall.state.as_str(), open = ?wall.leaves_open, "the proxy process is confined less than designed");
    }
    handed.handover.layers.extend(walls);
    // The enforcer may have died before its death would have been ours.
    let mut polled = [rustix::event::PollFd::new(
        channel,
        rustix::event::PollFlags::empty(),
    )];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|hung_up| hung_up > 0) {
        return Err(ChannelError::HungUp.into());
    }
    Ok(Worker {
        prepared,
        handed,
        threads,
    })
}

impl Worker {
    fn serve(self, paths: &Paths, channel: &Channel) -> Result<(), DaemonError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads)
            .enable_all()
            .build()
            .map_err(DaemonError::io("the runtime cannot be started"))?;
        let own = rustix::io::dup(channel).map_err(|errno| DaemonError::io("dup")(errno.into()))?;
        runtime.block_on(self.serve_on_runtime(paths, Channel::from(own)))
    }

    async fn serve_on_runtime(self, paths: &Paths, channel: Channel) -> Result<(), DaemonError> {
        let Worker {
            prepared, handed, ..
        } = self;
        let origins = KernelOrigins::from_fds(handed.accepted, handed.flows)
            .map_err(DaemonError::io("the origin maps"))?;
        let channel = Arc::new(
            channel
                .into_async()
                .map_err(DaemonError::io("the channel to the enforcer"))?,
        );
        let (events, incoming) = mpsc::channel(QUEUE);
        let (commands, outgoing) = mpsc::channel(QUEUE);
        let switching = Arc::new(Switching::default());
        tokio::spawn(carry_events(
            Arc::clone(&channel),
            events,
            Arc::clone(&switching),
        ));
        let saying = tokio::spawn(carry_commands(Arc::clone(&channel), outgoing, switching));
        let parts = WorkerParts {
            prepared,
            paths: paths.clone(),
            listeners: handed.listeners,
            control: handed.control,
            origins: Arc::new(origins),
            workloads: handed
                .handover
                .workloads
                .into_iter()
                .map(Workload::from)
                .collect(),
            layers: handed.handover.layers,
            governed: handed.handover.governed,
            events: incoming,
            commands,
        };
        let served = app::serve(parts)
            .await
            .map_err(|error| DaemonError::Worker(error.to_string()));
        // Every sender is gone by now: what was still to be said is said.
        saying.abort();
        served
    }
}

/// Who waits for the enforcer's word that a switch is in force.
#[derive(Default)]
struct Switching(Mutex<(u64, BTreeMap<Ticket, oneshot::Sender<Switched>>)>);

impl Switching {
    fn ask(&self, reply: oneshot::Sender<Switched>) -> Ticket {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.0 = waiting.0.wrapping_add(1);
        let ticket = Ticket(waiting.0);
        waiting.1.insert(ticket, reply);
        // Whoever waited too long is gone.
        waiting.1.retain(|_, reply| !reply.is_closed());
        ticket
    }

    fn answer(&self, ticket: Ticket, switched: Switched) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.1.remove(&ticket) {
            Some(reply) => drop(reply.send(switched)),
            None => tracing::warn!(?ticket, "the enforcer answers what nobody asked"),
        }
    }
}

/// From the enforcer to the app. When the enforcer hangs up, the sender is dropped and the app ends.
async fn carry_events(
    channel: Arc<AsyncChannel>,
    events: mpsc::Sender<Event>,
    switching: Arc<Switching>,
) {
    loop {
        let event = match channel.receive::<ToWorker>().await {
            Ok(Some((ToWorker::Switched { ticket, switched }, _))) => {
                switching.answer(ticket, switched);
                continue;
            }
            Ok(Some((message, fds))) => match into_event(message, fds, &channel) {
                Ok(event) => event,
                Err(error) => {
                    return tracing::error!(%error, "the enforcer's message cannot be understood");
                }
            },
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, "the enforcer cannot be heard"),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn into_event(
    message: ToWorker,
    fds: Vec<OwnedFd>,
    channel: &Arc<AsyncChannel>,
) -> Result<Event, DaemonError> {
    Ok(match message {
        ToWorker::Admit {
            ticket,
            workload,
            recorded,
        } => Event::Admit {
            workload: workload.into(),
            recorded,
            reply: answer(channel, move |admitted| admission(ticket, admitted)),
        },
        ToWorker::Happened { event } => Event::Happened(event),
        ToWorker::Layers { layers } => Event::Layers(layers),
        ToWorker::KernelRefused {
            workload,
            kind,
            destination,
        } => Event::KernelRefused(KernelRefusal {
            workload,
            kind,
            destination,
        }),
        ToWorker::KernelRefusals { counts } => Event::KernelRefusals(counts),
        ToWorker::Listen { id, listening } => Event::Listen {
            id,
            listeners: listeners::sort(listening, fds)?,
        },
        ToWorker::Reload { ticket } => {
            let found = fds.len();
            let document = fds
                .into_iter()
                .next()
                .ok_or(ChannelError::WrongDescriptors { expected: 1, found })?;
            let snapshot: Snapshot = read_document(document)?;
            Event::Reload {
                snapshot,
                reply: answer(channel, move |loaded| reloaded(ticket, loaded)),
            }
        }
        ToWorker::Started { id, pid, exe } => Event::Started { id, pid, exe },
        ToWorker::Retire { id } => Event::Retire(id),
        ToWorker::Stop {} => Event::Stop,
        ToWorker::Start { .. } => return Err(DaemonError::Worker("started twice".to_owned())),
        ToWorker::Switched { .. } => {
            return Err(DaemonError::Worker("an answer is no event".to_owned()));
        }
    })
}

/// A sender whose value becomes a message to the enforcer.
fn answer<T: Send + 'static>(
    channel: &Arc<AsyncChannel>,
    message: impl FnOnce(T) -> FromWorker + Send + 'static,
) -> oneshot::Sender<T> {
    let (sender, receiver) = oneshot::channel();
    let channel = Arc::clone(channel);
    tokio::spawn(async move {
        if let Ok(value) = receiver.await
            && let Err(error) = channel.send(&message(value), &[]).await
        {
            tracing::error!(%error, "the enforcer cannot be answered");
        }
    });
    sender
}

fn admission(ticket: Ticket, admitted: Result<(), app::AdmitRefused>) -> FromWorker {
    let refused = admitted.err().map(|refused| Refusal {
        reason: refused.reason,
        detail: refused.detail,
    });
    FromWorker::Admitted { ticket, refused }
}

fn reloaded(ticket: Ticket, loaded: Result<Ready, Diagnostics>) -> FromWorker {
    match loaded {
        Ok(ready) => FromWorker::Reloaded {
            ticket,
            bundle: Some(ready.into()),
            detail: String::new(),
        },
        Err(diagnostics) => {
            let mut detail = diagnostics.to_string();
            detail.truncate(detail.floor_char_boundary(16 * 1024));
            FromWorker::Reloaded {
                ticket,
                bundle: None,
                detail,
            }
        }
    }
}

/// From the app to the enforcer.
async fn carry_commands(
    channel: Arc<AsyncChannel>,
    mut commands: mpsc::Receiver<Command>,
    switching: Arc<Switching>,
) {
    while let Some(command) = commands.recv().await {
        let message = match command {
            Command::Ready(ready) => FromWorker::Ready {
                bundle: ready.into(),
            },
            Command::SetDisabled {
                agent,
                disabled,
                reply,
            } => FromWorker::SetDisabled {
                ticket: switching.ask(reply),
                agent,
                disabled,
            },
        };
        if let Err(error) = channel.send(&message, &[]).await {
            return tracing::error!(%error, "the enforcer cannot be told");
        }
    }
}

impl From<Ready> for BundleFacts {
    fn from(ready: Ready) -> Self {
        BundleFacts {
            version: ready.version,
            literals: ready.literals,
            disabled: ready.disabled,
            processes: ready.processes,
        }
    }
}

impl From<WorkloadFacts> for Workload {
    fn from(facts: WorkloadFacts) -> Self {
        Workload {
            id: facts.id,
            agent: facts.agent,
            pid: facts.pid,
            exe: facts.exe,
            cgroup: facts.cgroup,
            way: facts.way,
        }
    }
}
