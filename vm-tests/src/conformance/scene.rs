//! The scene of the suites: one instance with one agent, and a far side for each suite, reached directly or as that agent.
//! Place: set up once, asked by every suite.
//! Invariant: both ways run the same program with the same arguments against the same far side; no credential is lent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::demo::stage::is_open_to_all;
use crate::instance::{Instance, free_port};
use crate::leftovers;
use crate::output::{self, Output};
use crate::pki::Authority;

const AGENT: &str = "acme/cases";
/// For a whole suite.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// For a far side to listen.
const START: Duration = Duration::from_secs(60);

/// A suite, the program of the kit behind Sluice, and what the control meets where that is another.
const FAR: [(&str, &str, Option<&str>); 4] = [
    ("grpc", "grpc_far.py", None),
    ("websocket", "websocket_far.py", None),
    ("h2", "http_far.py", Some(NGHTTPD)),
    ("h2-clients", "http_far.py", Some(NGHTTPD)),
];
const NGHTTPD: &str = "nghttpd";

/// Everything that a suite needs.
pub(super) struct Scene {
    instance: Instance,
    /// Of each suite: where the control is met.
    controls: Vec<(&'static str, u16)>,
    /// Ended with the scene.
    children: Vec<Child>,
    kit: PathBuf,
    kit_is_open: bool,
}

impl Scene {
    pub(super) fn set(kits: &Path, keep: bool) -> Result<Self> {
        let _removed = leftovers::clean();
        let kit = kits.join("conformance");
        if let Ok(reason) = fs::read_to_string(kit.join("failed")) {
            bail!("the suites could not be installed: {reason}");
        }
        let mut instance = Instance::new()?;
        if keep {
            instance.keep();
        }
        let authority = Authority::new()?;
        instance.configure("ca.pem", authority.pem())?;
        let mut scene = Self {
            kit_is_open: is_open_to_all(&kit),
            controls: Vec::new(),
            children: Vec::new(),
            instance,
            kit,
        };
        let mut settings =
            "[proxy]\nextra_roots = [\"ca.pem\"]\nuser = \"65534\"\n\n[proxy.connect_to]\n"
                .to_owned();
        let mut agent =
            "tenant = \"acme\"\nname = \"cases\"\nowner = \"the suites\"\nstage = \"write\"\n"
                .to_owned();
        for (suite, program, control) in FAR {
            let host = host(suite);
            let port = scene.start(suite, program, &authority)?;
            let control = match control {
                Some(control) => scene.start(suite, control, &authority)?,
                None => port,
            };
            settings.push_str(&format!("\"{host}:443\" = \"127.0.0.1:{port}\"\n"));
            agent.push_str(&format!(
                "\n[[connections]]\nname = \"{suite}\"\nconnector = \"generic-http\"\nhosts = [\"{host}\"]\n"
            ));
            scene.controls.push((suite, control));
        }
        scene.instance.configure("config.toml", &settings)?;
        scene.instance.configure("agents.d/cases.toml", &agent)?;
        scene.instance.start()?;
        Ok(scene)
    }

    /// Starts a far side, waits until it listens, and says where.
    fn start(&mut self, suite: &str, program: &str, authority: &Authority) -> Result<u16> {
        let place = self.instance.root().join("far").join(suite).join(program);
        fs::create_dir_all(&place)?;
        let leaf = authority.leaf(&[&host(suite)])?;
        let [certificate, key, said] = ["pem", "key", "err"].map(|name| place.join(name));
        fs::write(&certificate, leaf.certificate.as_bytes())?;
        fs::write(&key, leaf.key.as_bytes())?;
        let port = free_port()?;
        let mut command = if program == NGHTTPD {
            for file in ["index.html", "echo"] {
                fs::write(place.join(file), "hello, this is the control\n")?;
            }
            let mut command = Command::new(NGHTTPD);
            command.arg("-d").arg(&place).arg(port.to_string());
            command.args([&key, &certificate]);
            command
        } else {
            let mut command = Command::new(self.kit.join("bin/python"));
            command.arg(self.kit.join(program)).arg(port.to_string());
            command.args([&certificate, &key]);
            command
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        self.children.push(child);
        let deadline = Instant::now() + START;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                let said = fs::read_to_string(said).unwrap_or_default();
                bail!("{program} does not listen\n{said}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(port)
    }

    /// The suite's program against its far side, without Sluice.
    pub(super) fn directly(&self, suite: &str, cases: &str, more: &[String]) -> Result<Output> {
        let found = self.controls.iter().find(|(name, _)| *name == suite);
        let (_, port) = found.context("a suite without a far side")?;
        let mut command = Command::new(self.kit.join("bin/python"));
        command
            .arg(self.kit.join(cases))
            .args(["--host", &host(suite), "--address", "127.0.0.1"])
            .args(["--port", &port.to_string(), "--roots"])
            .arg(self.instance.root().join("config/ca.pem"))
            .args(more);
        output::run(&mut command, PATIENCE)
    }

    /// The same as an agent, which knows nothing but the name.
    pub(super) fn through(&self, suite: &str, cases: &str, more: &[String]) -> Result<Output> {
        let mut words = vec!["run", "--agent", AGENT];
        // What lies below somebody's closed home is closed to the agent's own uid.
        if !self.kit_is_open {
            words.extend(["--user", "root"]);
        }
        words.push("--");
        let mut command = self.instance.sluice(&words);
        command
            .arg(self.kit.join("bin/python"))
            .arg(self.kit.join(cases))
            .args(["--host", &host(suite)])
            .args(more);
        output::run(&mut command, PATIENCE)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn host(suite: &str) -> String {
    format!("{suite}.cases.example")
}
