//! A configuration in a temporary place, and the `sluice` binary run against it.
//! Shared by the command-line and control-socket tests.
//! INVARIANT: nothing outside the temporary directory is read or written.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

pub mod daemon;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use agent_userspace::config::Paths;
use tempfile::TempDir;

/// A temporary instance.
pub struct Instance {
    dir: TempDir,
}

/// What a command said.
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Standard output, with the instance's directory replaced by `DIR`.
    pub out: String,
    /// Standard error, likewise.
    pub err: String,
}

/// An agent at stage `draft` with a stripe connection.
pub const AGENT: &str = r#"
tenant = "acme"
name = "support"
owner = "olga"
stage = "write"

[[connections]]
name = "stripe"
connector = "stripe"
credential = "stripe-live"
"#;

impl Instance {
    /// An instance with one agent and otherwise empty configuration.
    pub fn new() -> Instance {
        let instance = Instance::empty();
        instance.write("agents.d/support.toml", AGENT);
        instance
    }

    /// An instance whose configuration directory is empty.
    pub fn empty() -> Instance {
        let dir = tempfile::Builder::new()
            .prefix("sluice-cli-")
            .tempdir()
            .unwrap();
        for name in ["config", "state", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Instance { dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Its paths as the library takes them.
    pub fn paths(&self) -> Paths {
        Paths {
            config: self.path().join("config"),
            state: self.path().join("state"),
            runtime: self.path().join("run"),
        }
    }

    /// Writes a file of the configuration directory.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join("config").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs `sluice` with these arguments on this instance.
    pub fn sluice(&self, args: &[&str]) -> Said {
        self.sluice_with(args, b"")
    }

    /// As [`Instance::sluice`], with this standard input.
    pub fn sluice_with(&self, args: &[&str], input: &[u8]) -> Said {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses its arguments does not read.
        let _ = child.stdin.take().unwrap().write_all(input);
        self.said(&child.wait_with_output().unwrap())
    }

    /// The command itself, for what the others do not do.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        for name in ["SLUICE_REDUCED", "CREDENTIALS_DIRECTORY", "NO_COLOR"] {
            command.env_remove(name);
        }
        command
            .env("SLUICE_CONFIG", self.path().join("config"))
            .env("SLUICE_STATE_DIR", self.path().join("state"))
            .env("SLUICE_RUNTIME_DIR", self.path().join("run"))
            .args(args);
        command
    }

    /// Output with the instance's directory replaced.
    pub fn said(&self, output: &Output) -> Said {
        let dir = self.path().to_str().unwrap();
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .replace(dir, "DIR")
        };
        Said {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }
}

impl Said {
    /// Everything in one text, for snapshots.
    pub fn all(&self) -> String {
        format!(
            "exit code {}\n--- out\n{}--- err\n{}",
            self.code, self.out, self.err
        )
    }

    /// Standard output as JSON objects, one per line.
    pub fn json(&self) -> Vec<serde_json::Value> {
        self.out
            .lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
            })
            .collect()
    }
}
