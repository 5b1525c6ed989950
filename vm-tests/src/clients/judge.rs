//! One cell: the client is run as an agent, watched while it runs, and believed only as far as the far side agrees.
//! Place: between a row of the table and the scene.
//! Invariant: what is refused must not have arrived, what is written must have arrived exactly once.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Case;
use super::rows::Row;
use super::scene::Scene;

/// Longest that any client may take: some import half of PyPI first.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest reason that is shown.
const MOST: usize = 220;

/// What a client must have been answered.
pub(super) const READ: &str = "lavender-42";
pub(super) const WRITTEN: &str = "placed-17";
/// What its write carries.
pub(super) const NOTE: &str = "juniper";
/// The pieces of a streamed answer.
pub(super) const EVENTS: [&str; 3] = ["event-1", "event-2", "event-3"];
/// What is sent instead of a piece whose predecessor nobody acknowledged.
pub(super) const LATE: &str = "unacknowledged";

/// How a cell went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Cell {
    /// As it does without Sluice, and as the far side confirms.
    Ok,
    /// It did not, for a reason that is known and written down.
    Explained(String),
    /// It did not.
    Failed(String),
    /// It was not tried.
    NotRun(String),
}

impl Cell {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Cell::Ok => "ok",
            Cell::Explained(_) => "no",
            Cell::Failed(_) => "FAILED",
            Cell::NotRun(_) => "-",
        }
    }

    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Cell::Ok => "ok",
            Cell::Explained(_) => "explained",
            Cell::Failed(_) => "failed",
            Cell::NotRun(_) => "not_run",
        }
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Cell::Ok => None,
            Cell::Explained(reason) | Cell::Failed(reason) | Cell::NotRun(reason) => Some(reason),
        }
    }
}

/// Runs one case of one client.
pub(super) fn cell(row: &Row, case: Case, scene: &Scene) -> Cell {
    match attempt(row, case, scene) {
        Ok(()) => Cell::Ok,
        Err(error) => Cell::Failed(format!("{error:#}")),
    }
}

/// What a finished client has said.
struct Said {
    stdout: String,
    stderr: String,
    ended: Option<std::process::ExitStatus>,
}

impl Said {
    fn both(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// The last thing it said, for a reason.
    fn last(&self) -> String {
        let own = |line: &&str| {
            !line.trim().is_empty()
                && !line.starts_with("sluice: warning:")
                && !line.trim_start().starts_with("at ")
                && !line.starts_with("\t... ")
        };
        let both = self.both();
        let mut line = both
            .lines()
            .rev()
            .find(own)
            .unwrap_or_default()
            .trim()
            .to_owned();
        if line.chars().count() > MOST {
            line = line.chars().take(MOST).collect::<String>() + "..";
        }
        match (self.ended, line.is_empty()) {
            (None, _) => format!("it did not end within {} s: {line}", PATIENCE.as_secs()),
            (Some(status), true) => format!("it said nothing and ended with {status}"),
            (Some(_), false) => line,
        }
    }
}

fn attempt(row: &Row, case: Case, scene: &Scene) -> Result<()> {
    scene.begin(case)?;
    let mut approved = 0;
    let mut shown = 0;
    let said = watch(row, case, scene, |stdout| {
        if case == Case::Held {
            approved += scene.approve_all()?;
        }
        // A piece is acknowledged once the client has shown it.
        while EVENTS
            .get(shown)
            .is_some_and(|event| stdout.contains(event))
        {
            shown += 1;
            scene.acknowledge()?;
        }
        Ok(())
    })?;
    let arrived = scene.arrived()?;
    let wants = |wanted: &str| -> Result<()> {
        if !said.stdout.contains(wanted) {
            bail!("{}", said.last());
        }
        Ok(())
    };
    match case {
        Case::Read => wants(row.read.unwrap_or(READ)),
        Case::Write | Case::Held => {
            wants(row.written.unwrap_or(WRITTEN))?;
            if arrived != 1 {
                bail!("the write arrived {arrived} times");
            }
            if case == Case::Held && approved == 0 {
                bail!("it went through without an approval");
            }
            Ok(())
        }
        Case::Stream => {
            for event in EVENTS {
                wants(event)?;
            }
            if said.stdout.contains(LATE) {
                bail!("a piece was sent before the client had shown the one before");
            }
            Ok(())
        }
        Case::Refused => {
            if arrived != 0 {
                bail!("a refused write arrived {arrived} times");
            }
            let told = said.both().to_ascii_lowercase();
            // The last is all that the MCP SDK says of any status.
            let words = [
                "403",
                "forbidden",
                "permission_denied",
                "permission denied",
                "server returned an error response",
            ];
            if !words.iter().any(|word| told.contains(word)) {
                bail!("the client does not tell of a refusal: {}", said.last());
            }
            Ok(())
        }
    }
}

/// Runs the client, calling `look` with what it has printed, until it ends.
fn watch(
    row: &Row,
    case: Case,
    scene: &Scene,
    mut look: impl FnMut(&str) -> Result<()>,
) -> Result<Said> {
    let mut command = scene.client(row, case);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start sluice run")?;
    let (stdout, stderr) = (Shared::default(), Shared::default());
    let readers = [
        stdout.fill(child.stdout.take()),
        stderr.fill(child.stderr.take()),
    ];
    let deadline = Instant::now() + PATIENCE;
    let watched = loop {
        if let Err(error) = look(&stdout.text()) {
            end(&mut child)?;
            break Err(error);
        }
        if let Some(status) = child.try_wait()? {
            break Ok(Some(status));
        }
        if Instant::now() > deadline {
            end(&mut child)?;
            break Ok(None);
        }
        std::thread::sleep(Duration::from_millis(25));
    };
    for reader in readers {
        drop(reader.join());
    }
    Ok(Said {
        stdout: stdout.text(),
        stderr: stderr.text(),
        ended: watched?,
    })
}

/// Ends a client that hangs: `sluice run` passes the signal on, which a kill would not.
fn end(child: &mut Child) -> Result<()> {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a stream has given so far.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn fill(&self, stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<()> {
        let all = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let Some(mut stream) = stream else { return };
            let mut buffer = [0_u8; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                let read = buffer.get(..length).unwrap_or_default();
                all.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(read);
            }
        })
    }

    fn text(&self) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&all).into_owned()
    }
}
