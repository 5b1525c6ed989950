//! The program that the measurements of the kernel side start: as an agent, as nobody's process, or as the server of both.
//! One line in, one line of JSON out; ends with its standard input.
//! Invariant: times are of the clock that every process of the host shares, and are taken right beside the system call.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// How long something may take that is to be quick.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries of somebody who waits to be refused.
const STEP: Duration = Duration::from_micros(200);

/// What to be.
#[derive(Clone, Debug, clap::Args)]
pub struct Probe {
    #[command(subcommand)]
    role: Role,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Role {
    /// For each line, a number: connect so many times and tell what socket() and connect() cost
    Connect {
        /// Where to
        #[arg(long)]
        to: SocketAddr,
    },
    /// For each line: hold a connection and open others until both end
    Cut {
        /// Where to
        #[arg(long)]
        to: SocketAddr,
    },
    /// Accept and hang up
    Serve {
        /// Where; port 0 takes any
        #[arg(long)]
        at: SocketAddr,
        /// Enter this cgroup first
        #[arg(long)]
        cgroup: Option<PathBuf>,
    },
}

/// What connecting cost, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct Cost {
    /// Median of socket().
    pub(super) socket_ns: u64,
    /// Median of connect().
    pub(super) connect_ns: u64,
    /// 99th percentile of connect().
    pub(super) connect_p99_ns: u64,
}

/// When it was over, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Over {
    /// The first connection that was refused.
    pub(super) refused_ns: u64,
    /// The end of the connection that was open; nothing if it stood still instead.
    pub(super) cut_ns: Option<u64>,
}

/// Is it.
///
/// # Errors
/// A system call that is not expected to fail does.
pub fn run(probe: &Probe) -> Result<()> {
    match &probe.role {
        Role::Connect { to } => each_line(|line| connect(*to, line.parse()?)),
        Role::Cut { to } => each_line(|_| cut(*to)),
        Role::Serve { at, cgroup } => serve(*at, cgroup.as_ref()),
    }
}

/// Nanoseconds of the clock that all processes share.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

fn each_line<T: Serialize>(mut act: impl FnMut(&str) -> Result<T>) -> Result<()> {
    tell("ready")?;
    for line in io::stdin().lines() {
        let found = act(line?.trim())?;
        tell(&serde_json::to_string(&found)?)?;
    }
    Ok(())
}

fn tell(line: &str) -> Result<()> {
    println!("{line}");
    Ok(io::stdout().flush()?)
}

fn connect(to: SocketAddr, count: usize) -> Result<Cost> {
    let (mut sockets, mut connects) = (Vec::with_capacity(count), Vec::with_capacity(count));
    // The first tenth warms up.
    for number in 0..count + count / 10 {
        let begun = Instant::now();
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        let made = Instant::now();
        // Gone at once, so that no port waits.
        socket.set_linger(Some(Duration::ZERO))?;
        let ready = Instant::now();
        socket.connect(&to.into())?;
        let connected = ready.elapsed();
        if number >= count / 10 {
            sockets.push((made - begun).as_nanos() as u64);
            connects.push(connected.as_nanos() as u64);
        }
    }
    Ok(Cost {
        socket_ns: percentile(&mut sockets, 50),
        connect_ns: percentile(&mut connects, 50),
        connect_p99_ns: percentile(&mut connects, 99),
    })
}

/// The smallest value that this share of all does not exceed.
pub(super) fn percentile(values: &mut [u64], percent: usize) -> u64 {
    values.sort_unstable();
    let at = (values.len() * percent).div_ceil(100);
    values
        .get(at.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

fn cut(to: SocketAddr) -> Result<Over> {
    let deadline = Instant::now() + PATIENCE;
    let mut held = loop {
        match TcpStream::connect(to) {
            Ok(held) => break held,
            // It is being switched on again.
            Err(_) if Instant::now() < deadline => std::thread::sleep(STEP),
            Err(error) => return Err(error).context("the agent is not let through"),
        }
    };
    held.set_read_timeout(Some(PATIENCE / 2))?;
    let reading = std::thread::spawn(move || match held.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        // An error, or the end: in either case it is over.
        _ => Some(now()),
    });
    tell("open")?;
    let deadline = Instant::now() + PATIENCE;
    let refused_ns = loop {
        match TcpStream::connect(to) {
            Ok(stream) => {
                let reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                // It may be cut already.
                drop(reset);
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => break now(),
            // One that was cut while it connected is not refused yet.
            Err(_) => {}
        }
        if Instant::now() > deadline {
            bail!("the agent is never refused");
        }
        std::thread::sleep(STEP);
    };
    let cut_ns = reading.join().unwrap_or(None);
    Ok(Over { refused_ns, cut_ns })
}

fn serve(at: SocketAddr, cgroup: Option<&PathBuf>) -> Result<()> {
    if let Some(cgroup) = cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0")?;
    }
    let listener = TcpListener::bind(at)?;
    tell(&listener.local_addr()?.to_string())?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for line in io::stdin().lock().lines() {
        line?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut values, 50), 100);
        assert_eq!(percentile(&mut values, 99), 198);
        assert_eq!(percentile(&mut [7], 99), 7);
        assert_eq!(percentile(&mut [], 50), 0);
    }
}
