//! The least that a proxy can do: bytes from one socket to another, without a look at them. What TLS, HTTP and Sluice cost comes on top.
//! A process of its own on the CPU of the systems under test.
//! Invariant: NODELAY on both sides; ends with its value.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, TcpStream};

use crate::instance::{PATIENCE, free_port};

/// The arguments of the relay's own process.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Relay {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// Where every connection goes
    #[arg(long)]
    to: SocketAddr,
}

/// Relays until it is killed.
///
/// # Errors
/// If the address cannot be had.
pub fn run(relay: &Relay) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(relay.listen).await?;
        loop {
            let (near, _) = listener.accept().await?;
            tokio::spawn(pass(near, relay.to));
        }
    })
}

async fn pass(mut near: TcpStream, to: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(to).await else {
        return;
    };
    drop(near.set_nodelay(true));
    drop(far.set_nodelay(true));
    drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
}

/// A running relay.
pub(super) struct Running {
    child: Child,
    pub(super) address: SocketAddr,
}

impl Running {
    /// Starts one in front of this address.
    pub(super) fn start(to: SocketAddr) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let child = Command::new(std::env::current_exe()?)
            .args([
                "relay",
                "--listen",
                &address.to_string(),
                "--to",
                &to.to_string(),
            ])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start the relay")?;
        let mut running = Self { child, address };
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(address).is_err() {
            if running.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("the relay did not start");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
