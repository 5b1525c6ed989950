//! A probe as its owner sees it: started, told a line, heard.
//! Under the measurements of the kernel side.
//! Invariant: it ends when it is dropped.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::instance::Instance;

pub(super) const AGENT: &str = "acme/bench";
const AGENT_FILE: &str =
    "tenant = \"acme\"\nname = \"bench\"\nowner = \"bench\"\nstage = \"write\"\n";

/// An instance with one agent that has no connections: its packets end at the proxy's door.
pub(super) fn instance() -> Result<Instance> {
    let instance = Instance::new()?;
    instance.configure("config.toml", "[proxy]\nuser = \"65534\"\n")?;
    instance.configure("agents.d/bench.toml", AGENT_FILE)?;
    Ok(instance)
}

/// A probe that runs.
pub(super) struct Talk {
    child: Child,
    told: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
    /// What it said first.
    pub(super) first: String,
}

impl Talk {
    /// Outside of every workload.
    pub(super) fn plain(words: &[&str]) -> Result<Talk> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("probe").args(words);
        Talk::start(&mut command)
    }

    /// As the agent.
    pub(super) fn agent(instance: &Instance, words: &[&str]) -> Result<Talk> {
        let own = std::env::current_exe()?;
        let own = own.to_string_lossy();
        let mut all = vec!["run", "--agent", AGENT, "--", &own, "probe"];
        all.extend(words);
        Talk::start(&mut instance.sluice(&all))
    }

    fn start(command: &mut Command) -> Result<Talk> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start a probe")?;
        let told = child.stdin.take();
        let said = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut talk = Talk {
            child,
            told,
            said,
            first: String::new(),
        };
        talk.first = talk.hear()?;
        Ok(talk)
    }

    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let told = self.told.as_mut().context("the probe has ended")?;
        writeln!(told, "{line}").context("the probe does not listen")
    }

    pub(super) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.said.read_line(&mut line)? == 0 {
            bail!("the probe ended: {}", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    pub(super) fn ask<T: DeserializeOwned>(&mut self, line: &str) -> Result<T> {
        self.tell(line)?;
        Ok(serde_json::from_str(&self.hear()?)?)
    }

    /// Waits for its own end.
    pub(super) fn end(mut self) -> Result<()> {
        drop(self.told.take());
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.told.take());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
