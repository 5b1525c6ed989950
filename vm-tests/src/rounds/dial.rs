//! Dials one address again and again until its standard input ends, then says how that went.
//! The load of the rounds, as an agent or as nobody's.
//! Invariant: it is one process from the first round to the last, and each try is counted once.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The wait between two tries: two processors are shared with everybody else.
const PAUSE: Duration = Duration::from_millis(2);
/// What it says before the first try.
const READY: &str = "dialling";

/// Where to.
#[derive(Clone, Debug, clap::Args)]
pub struct Dial {
    /// An address and port
    #[arg(long)]
    to: SocketAddr,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Dialled {
    /// How often.
    pub tried: u64,
    /// How often somebody was there.
    pub connected: u64,
    /// How often not.
    pub failed: u64,
    /// The longest try that connected.
    pub longest_ms: u64,
}

/// Dials.
///
/// # Errors
/// If standard output is closed.
pub fn run(dial: &Dial) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Whatever it is, it is the end.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        told.store(true, Ordering::Relaxed);
    });
    println!("{READY}");
    let mut dialled = Dialled::default();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        dialled.tried += 1;
        match TcpStream::connect_timeout(&dial.to, PATIENCE) {
            Ok(stream) => {
                dialled.connected += 1;
                let took = u64::try_from(begun.elapsed().as_millis())?;
                dialled.longest_ms = dialled.longest_ms.max(took);
                // Gone at once, so that no port waits.
                let reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                reset?;
            }
            Err(_) => dialled.failed += 1,
        }
        std::thread::sleep(PAUSE);
    }
    println!("{}", serde_json::to_string(&dialled)?);
    std::io::stdout().flush()?;
    Ok(())
}

/// A process that dials.
pub(super) struct Dialler {
    child: Option<Child>,
    said: BufReader<ChildStdout>,
}

impl Dialler {
    pub(super) fn start(command: &mut Command) -> Result<Dialler> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start a dialler")?;
        let said = child.stdout.take().context("no pipe")?;
        let mut dialler = Dialler {
            child: Some(child),
            said: BufReader::new(said),
        };
        let mut line = String::new();
        dialler.said.read_line(&mut line)?;
        if line.trim_end() != READY {
            bail!("a dialler did not start");
        }
        Ok(dialler)
    }

    /// Ends it and takes its counts.
    pub(super) fn stop(mut self) -> Result<Dialled> {
        let mut child = self.child.take().context("stopped already")?;
        drop(child.stdin.take());
        let mut told = String::new();
        self.said.read_to_string(&mut told)?;
        let status = child.wait()?;
        if !status.success() {
            bail!("a dialler ended with {status}");
        }
        serde_json::from_str(&told).context("a dialler's counts")
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
