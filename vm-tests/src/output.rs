//! What a program said and how it ended, for checks that quote it when they fail.
//! Invariant: runs end within their time; a client that hangs is an answer, not a hang of the test.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A finished program.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was run.
    pub command: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Output {
    /// Both streams in one text, without the launcher's own warnings.
    #[must_use]
    pub fn text(&self) -> String {
        let said = |line: &&str| !line.starts_with("sluice: warning:");
        let lines: Vec<&str> = self
            .stdout
            .lines()
            .chain(self.stderr.lines())
            .filter(said)
            .collect();
        lines.join("\n")
    }

    /// The one JSON value on stdout.
    ///
    /// # Errors
    /// If there is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(self.stdout.trim()).with_context(|| format!("not JSON: {self}"))
    }

    /// One JSON value per line of stdout, or the members of the one array there.
    ///
    /// # Errors
    /// If a line is not JSON.
    pub fn json_lines(&self) -> Result<Vec<serde_json::Value>> {
        if let Ok(serde_json::Value::Array(all)) = serde_json::from_str(self.stdout.trim()) {
            return Ok(all);
        }
        self.stdout
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// Fails unless the program succeeded.
    ///
    /// # Errors
    /// With everything it said.
    pub fn ok(self) -> Result<Self> {
        if !self.status.success() {
            bail!("{self}");
        }
        Ok(self)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        for line in self.stdout.lines().chain(self.stderr.lines()).take(40) {
            write!(f, "\n      | {line}")?;
        }
        Ok(())
    }
}

/// A program that was started and is waited for later.
pub struct Started {
    child: Child,
    command: String,
    since: Instant,
}

/// Starts a program with both streams captured and nothing on stdin.
///
/// # Errors
/// If it cannot be started.
pub fn start(command: &mut Command) -> Result<Started> {
    start_with(command, Stdio::null())
}

fn start_with(command: &mut Command, stdin: Stdio) -> Result<Started> {
    let shown = show(command);
    let child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    Ok(Started {
        child,
        command: shown,
        since: Instant::now(),
    })
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be started or does not end in time.
pub fn run(command: &mut Command, patience: Duration) -> Result<Output> {
    start(command)?.wait(patience)
}

/// Runs a program with this as its standard input; one that outlasts the patience is killed, and what it said until then counts.
///
/// # Errors
/// If it cannot be started.
pub fn run_at_most(command: &mut Command, stdin: Stdio, patience: Duration) -> Result<Output> {
    start_with(command, stdin)?.end(patience, true)
}

impl Started {
    /// Waits for the end; a program that outlasts the patience is killed.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn wait(self, patience: Duration) -> Result<Output> {
        self.end(patience, false)
    }

    fn end(mut self, patience: Duration, may_be_killed: bool) -> Result<Output> {
        let readers = (
            drain(self.child.stdout.take()),
            drain(self.child.stderr.take()),
        );
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= deadline {
                self.child.kill()?;
                let status = self.child.wait()?;
                if may_be_killed {
                    break status;
                }
                bail!(
                    "`{}` did not end within {} s",
                    self.command,
                    patience.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
        Ok(Output {
            command: self.command,
            status,
            stdout: text(readers.0),
            stderr: text(readers.1),
            took: self.since.elapsed(),
        })
    }
}

fn drain(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // A broken pipe ends the text where it broke.
            drop(stream.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The command without the parts that are the same for every call of an instance.
fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().replace('\n', "; "))
        .collect::<Vec<_>>()
        .join(" ")
}
