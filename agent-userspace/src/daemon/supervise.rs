//! The proxy process as its parent sees it: started with what it needs, talked to, waited for.
//! The enforcer restarts it when it ends; the listeners stay open here meanwhile.
//! INVARIANT: one proxy process at a time; it gets descriptors and a document, and inherits nothing else.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::channel::AsyncChannel;
use super::listeners::Sockets;
use super::protocol::{FromWorker, Handover, ToWorker};
use super::{Channel, ChannelError, DaemonError};
use crate::config::Paths;
use crate::enforce::MapFds;

/// How long a proxy process that hung up may take to end.
const TIME_TO_END: Duration = Duration::from_secs(10);
/// How long it may leave a message in its queue.
const TIME_TO_READ: Duration = Duration::from_secs(10);

/// What happened to the proxy process.
#[derive(Debug)]
pub(super) enum News {
    /// It said something.
    Said(FromWorker),
    /// It ended.
    Ended(io::Result<ExitStatus>),
}

/// A proxy process.
#[derive(Debug)]
pub(super) struct Worker {
    channel: Arc<AsyncChannel>,
    kill: CancellationToken,
}

impl Worker {
    /// Starts one. Call it on the process's main thread: the proxy process dies with the thread that started it.
    pub(super) async fn start(
        paths: &Paths,
        sockets: &Sockets,
        control: &UnixListener,
        maps: &MapFds,
        handover: &Handover,
        news: mpsc::Sender<News>,
    ) -> Result<Worker, DaemonError> {
        let (ours, theirs) = Channel::pair().map_err(DaemonError::io("socketpair"))?;
        let mut command = own_binary("internal-worker");
        command
            .arg("--config")
            .arg(&paths.config)
            .arg("--state-dir")
            .arg(&paths.state);
        command
            .arg("--runtime-dir")
            .arg(&paths.runtime)
            .stdin(OwnedFd::from(theirs));
        let child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .map_err(DaemonError::io("cannot start the proxy process"))?;
        let channel = Arc::new(
            ours.into_async()
                .map_err(DaemonError::io("the channel to the proxy process"))?,
        );
        let document = document(handover)?;
        let mut fds = vec![
            document.as_fd(),
            control.as_fd(),
            maps.accepted.as_fd(),
            maps.flows.as_fd(),
        ];
        fds.extend(sockets.descriptors());
        channel
            .send(
                &ToWorker::Start {
                    listeners: sockets.listening,
                },
                &fds,
            )
            .await?;
        let kill = CancellationToken::new();
        tokio::spawn(listen(Arc::clone(&channel), child, kill.clone(), news));
        Ok(Worker { channel, kill })
    }

    /// Tells it something. A process that no longer listens is about to be news, so that failing is only logged.
    pub(super) async fn tell(&self, message: &ToWorker, fds: &[BorrowedFd<'_>]) {
        match tokio::time::timeout(TIME_TO_READ, self.channel.send(message, fds)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the proxy process cannot be told"),
            Err(_) => {
                tracing::error!("the proxy process does not read what it is told; ending it");
                self.kill();
            }
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        self.kill.cancel();
    }
}

/// This program again, in another role.
pub(crate) fn own_binary(role: &str) -> Command {
    // By this link also when the file has been replaced by an upgrade meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sluice").arg(role);
    command
}

/// A document in a memfd: of any length, and nobody else's.
pub(super) fn document<T: Serialize>(content: &T) -> Result<OwnedFd, DaemonError> {
    let text = serde_json::to_vec(content).map_err(ChannelError::from)?;
    let fd = rustix::fs::memfd_create("sluice-handover", MemfdFlags::CLOEXEC)
        .map_err(|errno| DaemonError::io("memfd")(errno.into()))?;
    let mut file = File::from(fd);
    file.write_all(&text).map_err(DaemonError::io("memfd"))?;
    Ok(file.into())
}

/// Carries everything that the process says, and at last that it ended.
async fn listen(
    channel: Arc<AsyncChannel>,
    mut child: tokio::process::Child,
    kill: CancellationToken,
    news: mpsc::Sender<News>,
) {
    loop {
        let heard = tokio::select! {
            heard = channel.receive::<FromWorker>() => heard,
            () = kill.cancelled() => break,
        };
        match heard {
            Ok(Some((said, _))) => {
                if news.send(News::Said(said)).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "the proxy process does not speak the protocol; ending it");
                kill.cancel();
                break;
            }
        }
    }
    let ended = tokio::select! {
        ended = tokio::time::timeout(TIME_TO_END, child.wait()) => ended.ok(),
        () = kill.cancelled() => None,
    };
    let status = match ended {
        Some(status) => status,
        None => match child.kill().await {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    let _ = news.send(News::Ended(status)).await;
}
