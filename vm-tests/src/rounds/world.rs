//! Two network namespaces and a wire between them: the host's, in which all of the rounds happens, and the rest of the world.
//! Under the rounds; the world has one server that agents must not reach, which counts, and one for everybody else.
//! Invariant: nothing of the real host's network is touched, and the namespaces go with this process.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use anyhow::{Context, Result, bail};
use rustix::thread::UnshareFlags;

/// Whoever is governed must never get there.
pub(super) const FORBIDDEN: &str = "192.0.2.1:443";
/// Where the ungoverned process dials.
pub(super) const ALLOWED: &str = "192.0.2.1:80";
const HOST: &str = "192.0.2.2/24";
const OUTSIDE: &str = "192.0.2.1/24";

/// The world.
pub(super) struct World {
    reached: Arc<AtomicU64>,
}

impl World {
    /// Makes it. From here on this process and what it starts live in the host's namespace.
    pub(super) fn make() -> Result<World> {
        unshare().context("a network namespace (this needs root)")?;
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"])?;
        let reached = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&reached);
        let (told, tells) = mpsc::channel();
        let (moved, arrived) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let there = unshare().map(|()| rustix::thread::gettid().as_raw_nonzero().to_string());
            if told.send(there).is_err() || arrived.recv().is_err() {
                return;
            }
            // The namespace lives as long as these servers do.
            if told.send(serve(counter).map(|()| String::new())).is_ok() {
                std::thread::park();
            }
        });
        let thread = tells.recv().context("the world is gone")??;
        ip(&["link", "set", "far", "netns", &thread])?;
        moved.send(()).context("the world is gone")?;
        tells.recv().context("the world is gone")??;
        ip(&["addr", "add", HOST, "dev", "near"])?;
        ip(&["link", "set", "near", "up"])?;
        Ok(World { reached })
    }

    /// How many have reached the forbidden server so far.
    pub(super) fn reached(&self) -> u64 {
        self.reached.load(Ordering::SeqCst)
    }
}

fn serve(reached: Arc<AtomicU64>) -> Result<()> {
    ip(&["link", "set", "lo", "up"])?;
    ip(&["addr", "add", OUTSIDE, "dev", "far"])?;
    ip(&["link", "set", "far", "up"])?;
    let forbidden = TcpListener::bind(FORBIDDEN)?;
    let allowed = TcpListener::bind(ALLOWED)?;
    std::thread::spawn(move || {
        for _connection in forbidden.incoming().flatten() {
            reached.fetch_add(1, Ordering::SeqCst);
        }
    });
    std::thread::spawn(move || allowed.incoming().for_each(drop));
    Ok(())
}

fn unshare() -> Result<()> {
    #[expect(
        deprecated,
        reason = "its unsafe successor guards descriptor tables, which are not unshared here"
    )]
    Ok(rustix::thread::unshare(UnshareFlags::NEWNET)?)
}

fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(words).output().context("ip(8)")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
