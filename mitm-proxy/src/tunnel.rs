//! A connection on which no more HTTP is spoken: bytes both ways, counted, bounded, and ended by name.
//! Place on the path: after upstream has switched to WebSocket, and for hosts that a connection declares opaque.
//! INVARIANT: a tunnel ends within its bounds of bytes, frames, time and silence, and its outcome is written however it ends.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use policies::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::body::Tally;
use crate::frames::closing;
use crate::response::Debt;
use crate::settings::Limits;

/// What is read at a time; what is written waits for its reader, so that nothing piles up.
const CHUNK: usize = 16 * 1024;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Agent,
    Upstream,
}

/// What bytes become on their way.
pub(crate) trait Course {
    /// Appends what may go on of `bytes` to `out`; at an error, what came before it.
    fn pass(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), End>;
    /// Whether a closing frame may be put here.
    fn between(&self) -> bool;
    /// Frames so far, where there are any.
    fn frames(&self) -> Option<u64>;
}

/// Bytes that nobody looks into.
#[derive(Debug, Default)]
pub(crate) struct Plain;

impl Course for Plain {
    fn pass(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), End> {
        out.extend_from_slice(bytes);
        Ok(())
    }

    fn between(&self) -> bool {
        false
    }

    fn frames(&self) -> Option<u64> {
        None
    }
}

/// Why a tunnel ended before both ends had said all.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// An end breaks the protocol that was agreed on.
    Broken(&'static str),
    /// An end has said all, and the other has nobody to say more to.
    Closed,
    /// An end broke the connection off.
    Gone(String),
    /// A bound was reached.
    Limit(String),
    /// Sluice stops.
    Stopped,
}

/// Frames both ways so far: to upstream, and from it. Read by the outcome, also if the tunnel is cut.
#[derive(Debug, Default)]
pub(crate) struct FrameCount {
    sent: AtomicU64,
    received: AtomicU64,
}

impl FrameCount {
    pub(crate) fn both(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.sent), load(&self.received))
    }
}

/// One direction.
struct Way<C> {
    from: Side,
    course: C,
    bytes: u64,
    most: u64,
    tally: Tally,
    /// Whether all that was handed out has been written.
    written: bool,
}

/// Both directions, and the outcome that is owed for them.
pub(crate) struct Tunnel<C> {
    to_upstream: Way<C>,
    to_agent: Way<C>,
    idle: Duration,
    time: Duration,
    frames: Arc<FrameCount>,
    debt: Debt,
}

impl<C: Course> Tunnel<C> {
    /// A tunnel that owes `debt`.
    pub(crate) fn new(to_upstream: C, to_agent: C, limits: &Limits, mut debt: Debt) -> Self {
        let frames = Arc::new(FrameCount::default());
        if to_agent.frames().is_some() {
            debt.frames = Some(Arc::clone(&frames));
        }
        let received = Tally::default();
        debt.received = Some(received.clone());
        let way = |from, course, tally| Way {
            from,
            course,
            bytes: 0,
            most: limits.tunnel_bytes,
            tally,
            written: true,
        };
        Self {
            to_upstream: way(Side::Agent, to_upstream, debt.sent.clone()),
            to_agent: way(Side::Upstream, to_agent, received),
            idle: limits.tunnel_idle,
            time: limits.tunnel_time,
            frames,
            debt,
        }
    }

    /// Carries bytes until both ends are done, one of them fails, or a bound is reached. Says why, if it was not the first.
    pub(crate) async fn carry<AR, AW, UR, UW>(
        mut self,
        (mut from_agent, mut to_agent): (AR, AW),
        (mut from_upstream, mut to_upstream): (UR, UW),
        stop: &CancellationToken,
    ) -> Option<(Reason, String)>
    where
        AR: AsyncRead + Unpin,
        AW: AsyncWrite + Unpin,
        UR: AsyncRead + Unpin,
        UW: AsyncWrite + Unpin,
    {
        let pulse = Pulse::new();
        let ended = {
            let out =
                self.to_upstream
                    .pump(&mut from_agent, &mut to_upstream, &pulse, &self.frames.sent);
            let back = self.to_agent.pump(
                &mut from_upstream,
                &mut to_agent,
                &pulse,
                &self.frames.received,
            );
            tokio::select! {
                ended = async { tokio::try_join!(out, back) } => ended.map(|_| ()),
                end = pulse.watch(self.idle, self.time) => Err((Side::Agent, end)),
                () = stop.cancelled() => Err((Side::Agent, End::Stopped)),
            }
        };
        let Err((side, end)) = ended else {
            self.debt.relayed();
            return None;
        };
        let (code, name) = match &end {
            End::Broken(_) => (1002, "protocol error"),
            End::Closed | End::Gone(_) | End::Stopped => (1001, "going away"),
            End::Limit(_) => (1008, Reason::TunnelLimit.as_str()),
        };
        let goodbyes = async {
            let agent = self
                .to_agent
                .goodbye(&mut to_agent, Side::Agent, code, name);
            let upstream = self
                .to_upstream
                .goodbye(&mut to_upstream, Side::Upstream, code, name);
            tokio::join!(agent, upstream);
            // What nobody reads makes the kernel reset the connection, and the goodbye would be lost with it.
            if matches!(end, End::Broken(_) | End::Limit(_)) {
                let mut rest = [0; 1024];
                while let Ok(1..) = from_agent.read(&mut rest).await {}
            }
        };
        // Whoever does not take it in time does without.
        let _ = timeout(GOODBYE, goodbyes).await;
        let (reason, detail) = match (end, side) {
            (End::Closed, _) => {
                self.debt.relayed();
                return None;
            }
            (End::Stopped, _) => {
                let detail = "Sluice stopped while the connection was open.";
                self.debt.stopped(detail);
                return Some((Reason::Shutdown, detail.to_owned()));
            }
            // The outcome says that it was given up; that is no failure of anybody's.
            (End::Gone(_), Side::Agent) => return None,
            (End::Gone(detail), Side::Upstream) => (Reason::UpstreamUnreachable, detail),
            (End::Limit(detail), _) => (Reason::TunnelLimit, detail),
            (End::Broken(detail), Side::Agent) => (
                Reason::MalformedRequest,
                format!("The agent breaks the protocol: {detail}."),
            ),
            (End::Broken(detail), Side::Upstream) => (
                Reason::UpstreamUnreachable,
                format!("Upstream breaks the protocol: {detail}."),
            ),
        };
        self.debt.fail(reason, &detail);
        Some((reason, detail))
    }
}

impl<C: Course> Way<C> {
    async fn pump<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        pulse: &Pulse,
        frames: &AtomicU64,
    ) -> Result<(), (Side, End)>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (mut read, mut out) = (BytesMut::with_capacity(CHUNK), BytesMut::new());
        let other = match self.from {
            Side::Agent => Side::Upstream,
            Side::Upstream => Side::Agent,
        };
        let gone = |side: Side, error: &io::Error| {
            let who = match side {
                Side::Agent => "The agent",
                Side::Upstream => "Upstream",
            };
            (
                side,
                End::Gone(format!("{who} broke the connection off: {error}.")),
            )
        };
        loop {
            read.clear();
            let length = match from.read_buf(&mut read).await {
                Ok(length) => length,
                // TLS without a goodbye; what was sent has arrived.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(gone(self.from, &error)),
            };
            if length == 0 {
                let _ = to.shutdown().await;
                // A WebSocket ends as a whole; of other protocols one direction may go on for as long as its own end wants.
                return match self.course.frames() {
                    Some(_) => Err((self.from, End::Closed)),
                    None => Ok(()),
                };
            }
            pulse.beat();
            self.bytes = self
                .bytes
                .saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
            if self.bytes > self.most {
                let detail = format!("More than {} bytes in one direction.", self.most);
                return Err((self.from, End::Limit(detail)));
            }
            self.tally.add(&read);
            out.clear();
            let passed = self.course.pass(&read, &mut out);
            frames.store(self.course.frames().unwrap_or(0), Ordering::Relaxed);
            if !out.is_empty() {
                self.written = false;
                let write = async {
                    to.write_all(&out).await?;
                    to.flush().await
                };
                write.await.map_err(|error| gone(other, &error))?;
                self.written = true;
            }
            passed.map_err(|end| (self.from, end))?;
        }
    }

    /// Says why the tunnel ends, where that can be understood, and that it ends.
    async fn goodbye<W>(&self, to: &mut W, side: Side, code: u16, name: &str)
    where
        W: AsyncWrite + Unpin,
    {
        if self.written && self.course.between() {
            let _ = to.write_all(&closing(side, code, name)).await;
        }
        let _ = to.shutdown().await;
    }
}

/// When something last arrived from either end.
struct Pulse {
    start: Instant,
    last: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn beat(&self) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Returns when the tunnel has been silent, or open, for too long.
    async fn watch(&self, idle: Duration, time: Duration) -> End {
        let end = self.start + time;
        loop {
            let last = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed));
            let silent = last + idle;
            let now = Instant::now();
            if now >= end {
                return End::Limit(format!("Open for more than {:?}.", time));
            }
            if now >= silent {
                return End::Limit(format!("Silent for more than {:?}.", idle));
            }
            sleep_until(end.min(silent)).await;
        }
    }
}
