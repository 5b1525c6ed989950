//! A connection whose peer takes nothing that is written to it ends after a while: slow readers hold memory and places.
//! Place on the path: between TLS and the HTTP server, on the agent's leg, write side only.
//! INVARIANT: nothing is timed while writing goes on; the clock runs only from a write that found no room.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A stream that fails with `TimedOut` once a write has waited for `patience`.
#[derive(Debug)]
pub(crate) struct Impatient<IO> {
    io: IO,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    stalled: Arc<AtomicBool>,
}

impl<IO> Impatient<IO> {
    /// `stalled` is set when patience ends.
    pub(crate) fn new(io: IO, patience: Duration, stalled: Arc<AtomicBool>) -> Self {
        Self {
            io,
            patience,
            waiting: None,
            stalled,
        }
    }

    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        self.stalled.store(true, Ordering::Release);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the agent did not read its answer in time",
        )))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Impatient<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Impatient<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.judge(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.judge(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.judge(cx, shut)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_reads_nothing_is_given_up_and_who_reads_slowly_is_not() {
        let patience = Duration::from_millis(500);
        let (near, mut far) = tokio::io::duplex(64);
        let stalled = Arc::new(AtomicBool::new(false));
        let mut near = Impatient::new(near, patience, Arc::clone(&stalled));
        let writing = tokio::spawn(async move {
            near.write_all(&[0; 640]).await.unwrap();
            near.write_all(&[0; 640]).await.unwrap_err().kind()
        });
        // Longer than patience altogether, and within it each time.
        let mut part = [0; 64];
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(80)).await;
            far.read_exact(&mut part).await.unwrap();
        }
        assert!(!stalled.load(Ordering::Acquire));
        assert_eq!(writing.await.unwrap(), io::ErrorKind::TimedOut);
        assert!(stalled.load(Ordering::Acquire));
    }
}
