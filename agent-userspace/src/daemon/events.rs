//! Everything that the enforcer's main loop waits for, as one stream.
//! Signals, the proxy process, `sluice run`, and a clock by which the kernel's refusals are collected.
//! INVARIANT: nothing is lost between two waits; a signal that came while another event was handled is next.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use super::DaemonError;
use super::appearing::Appeared;
use super::runs::Ask;
use super::supervise::News;

/// How often ended workloads are looked for and the kernel's refusals passed on.
const TICK: Duration = Duration::from_millis(500);
/// How often the kernel side is looked at.
const WATCH: Duration = Duration::from_secs(1);

/// What the main loop acts on.
#[derive(Debug)]
pub(super) enum Input {
    /// A directory, where a rule looks for cgroups.
    Appeared,
    /// `sluice run` wants something.
    Asked(Ask),
    /// Of the proxy process.
    News(News),
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
    /// Time has passed.
    Tick,
    /// Time to look at the kernel side.
    Watch,
}

/// The sources.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) news: mpsc::Receiver<News>,
    pub(super) asked: mpsc::Receiver<Ask>,
    appeared: Appeared,
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
    tick: Interval,
    watch: Interval,
}

impl Inputs {
    /// Starts to catch signals.
    pub(super) fn new(
        news: mpsc::Receiver<News>,
        asked: mpsc::Receiver<Ask>,
        appeared: Appeared,
    ) -> Result<Inputs, DaemonError> {
        let catch = |kind| signal(kind).map_err(DaemonError::io("signal handlers"));
        let every = |period| {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Ok(Inputs {
            news,
            asked,
            appeared,
            hang_up: catch(SignalKind::hangup())?,
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            tick: every(TICK),
            watch: every(WATCH),
        })
    }

    /// The next input.
    pub(super) async fn next(&mut self) -> Input {
        tokio::select! {
            _ = self.terminate.recv() => Input::Stop,
            _ = self.interrupt.recv() => Input::Stop,
            Some(news) = self.news.recv() => Input::News(news),
            _ = self.hang_up.recv() => Input::Reload,
            Some(ask) = self.asked.recv() => Input::Asked(ask),
            () = self.appeared.wait() => Input::Appeared,
            _ = self.tick.tick() => Input::Tick,
            _ = self.watch.tick() => Input::Watch,
        }
    }
}
