//! Far sides that speak what ours does not: WebSocket, gRPC and MCP, by the protocols' own Python libraries.
//! Place: started with the scene, from the Python kit; where that is missing, so are they.
//! Invariant: each writes down what it was sent before it answers, and ends with the scene.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Case;
use super::far::SECRET;
use crate::instance::free_port;
use crate::pki::Authority;

/// Their names, which are those of the connections that lead to them.
const NAMES: [&str; 3] = ["grpc", "mcp", "ws"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Those that run.
pub(super) struct Peers {
    children: Vec<Child>,
    ports: BTreeMap<&'static str, u16>,
    log: PathBuf,
    pace: PathBuf,
}

impl Peers {
    pub(super) fn start(authority: &Authority, place: &Path, kits: &Path) -> Result<Self> {
        let mut peers = Self {
            children: Vec::new(),
            ports: BTreeMap::new(),
            log: place.join("log"),
            pace: place.join("pace"),
        };
        fs::write(&peers.log, "")?;
        let python = kits.join("python/bin/python");
        if !kits.join("python/ready").is_file() {
            return Ok(peers);
        }
        for name in NAMES {
            let leaf = authority.leaf(&[&format!("{name}.clients.example")])?;
            let (certificate, key) = (
                place.join(format!("{name}.pem")),
                place.join(format!("{name}.key")),
            );
            fs::write(&certificate, leaf.certificate.as_bytes())?;
            fs::write(&key, leaf.key.as_bytes())?;
            let port = free_port()?;
            let child = Command::new(&python)
                .arg(kits.join("python").join(format!("far_{name}.py")))
                .arg(port.to_string())
                .args([&certificate, &key, &peers.log, &peers.pace])
                .arg(SECRET)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(place.join(format!("{name}.err")))?)
                .spawn()
                .with_context(|| format!("the far side of {name}"))?;
            peers.children.push(child);
            peers.ports.insert(name, port);
        }
        peers.wait(place)?;
        Ok(peers)
    }

    /// Until all of them listen.
    fn wait(&mut self, place: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for (name, port) in &self.ports {
            while std::net::TcpStream::connect(("127.0.0.1", *port)).is_err() {
                if Instant::now() > deadline {
                    let said = fs::read_to_string(place.join(format!("{name}.err")));
                    bail!(
                        "the far side of {name} does not listen\n{}",
                        said.unwrap_or_default()
                    );
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    pub(super) fn port(&self, name: &str) -> Option<u16> {
        self.ports.get(name).copied()
    }

    /// Forgets what was before this case.
    pub(super) fn begin(&self, _case: Case) -> Result<()> {
        fs::write(&self.log, "")?;
        fs::write(&self.pace, "")?;
        Ok(())
    }

    /// How often this was sent to one of them.
    pub(super) fn arrived(&self, note: &str) -> Result<usize> {
        Ok(fs::read_to_string(&self.log)?.matches(note).count())
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
