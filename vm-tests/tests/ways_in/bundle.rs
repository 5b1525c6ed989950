//! A container of a real runtime (runc, from Debian's packages) with a Debian-like root: /usr of the host, the rest its own.
//! Invariant: dropping it ends the container and removes its cgroup, its network namespace and its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use vm_tests::demo::Stage;
use vm_tests::instance::sluice_binary;

use crate::shell::Shell;

/// What the container's network is.
pub(crate) enum Network {
    /// A namespace with nothing but loopback.
    None,
    /// A namespace with a cable to the host.
    Cable(Cable),
}

/// A network namespace that reaches the host by a pair of virtual interfaces.
pub(crate) struct Cable {
    name: String,
    /// The host's end.
    pub(crate) host: String,
}

/// A bundle, and the container that runs from it.
pub(crate) struct Container {
    directory: PathBuf,
    id: String,
    _network: Network,
    shell: Option<Shell>,
}

fn number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

impl Cable {
    /// Makes the namespace and lays the cable.
    pub(crate) fn lay() -> Cable {
        let number = std::process::id() % 10_000;
        let name = format!("sluice-w{number}");
        // A /30 of the range for documentation and tests of this size.
        let net = format!("192.0.2.{}", (number % 60) * 4);
        let last: u32 = net.rsplit('.').next().unwrap().parse().unwrap();
        let (host, theirs) = (
            format!("192.0.2.{}", last + 1),
            format!("192.0.2.{}", last + 2),
        );
        ip(&format!("netns add {name}"));
        let cable = Cable { name, host };
        let name = &cable.name;
        ip(&format!(
            "link add h{number} type veth peer name c{number} netns {name}"
        ));
        ip(&format!("addr add {}/30 dev h{number}", cable.host));
        ip(&format!("link set h{number} up"));
        ip(&format!("-n {name} addr add {theirs}/30 dev c{number}"));
        ip(&format!("-n {name} link set c{number} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} route add default via {}", cable.host));
        cable
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The cable goes with the namespace.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

impl Container {
    /// Makes a bundle below the instance's directory. `hook` is the hook's arguments; without any it is not governed.
    pub(crate) fn make(stage: &Stage, network: Network, hook: Option<&[&str]>) -> Container {
        let id = format!("sluice-w{}-{}", std::process::id(), number());
        let directory = stage.instance.root().join("bundles").join(&id);
        root(&directory.join("rootfs"));
        let made = Command::new("runc")
            .arg("spec")
            .current_dir(&directory)
            .status()
            .unwrap();
        assert!(made.success());
        let file = directory.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["sh"]);
        // As container engines do it, with the capabilities that they leave.
        let usr = json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]});
        config["mounts"].as_array_mut().unwrap().push(usr);
        if let Network::Cable(cable) = &network {
            for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
                if namespace["type"] == "network" {
                    namespace["path"] = json!(cable.path());
                }
            }
        }
        if let Some(args) = hook {
            let mut all = vec!["sluice", "oci-hook"];
            all.extend(args);
            let root = stage.instance.root();
            config["hooks"] = json!({"createRuntime": [{
                "path": sluice_binary(),
                "args": all,
                "env": [
                    format!("SLUICE_CONFIG={}", root.join("config").display()),
                    format!("SLUICE_STATE_DIR={}", stage.instance.state().display()),
                    format!("SLUICE_RUNTIME_DIR={}", stage.instance.runtime().display()),
                ],
            }]});
        }
        fs::write(&file, config.to_string()).unwrap();
        Container {
            directory,
            id,
            _network: network,
            shell: None,
        }
    }

    /// Gives it this cgroup, as the hierarchy names it.
    pub(crate) fn place_in(&self, cgroup: &str) {
        let file = self.directory.join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        config["linux"]["cgroupsPath"] = json!(cgroup);
        fs::write(&file, config.to_string()).unwrap();
    }

    fn runc(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.join("state"));
        command
    }

    fn run(&self) -> Command {
        let mut command = self.runc();
        command
            .arg("run")
            .arg("--bundle")
            .arg(&self.directory)
            .arg(&self.id);
        command
    }

    /// Starts it and speaks to its shell.
    pub(crate) fn start(&mut self) -> &mut Shell {
        let shell = Shell::start(&mut self.run());
        self.shell.insert(shell)
    }

    /// Its shell.
    pub(crate) fn shell(&mut self) -> &mut Shell {
        self.shell.as_mut().unwrap()
    }

    /// Tries to start it, and says what the runtime complained.
    pub(crate) fn refused(&self) -> String {
        let output = self
            .run()
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success(), "it was started: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The pid of its first process, on the host.
    pub(crate) fn pid(&self) -> u32 {
        let output = self.runc().args(["state", &self.id]).output().unwrap();
        let state: Value = serde_json::from_slice(&output.stdout).unwrap();
        u32::try_from(state["pid"].as_u64().unwrap()).unwrap()
    }

    /// Its root directory.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("rootfs")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(self.shell.take());
        let _ = self.runc().args(["delete", "--force", &self.id]).output();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A merged-/usr root as Debian's is.
pub(crate) fn root(root: &Path) {
    for directory in ["dev", "etc/ssl/certs", "proc", "run", "sys", "tmp", "usr"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link)).unwrap();
    }
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    fs::copy(Path::new("/").join(bundle), root.join(bundle)).unwrap();
    for file in ["passwd", "group", "nsswitch.conf"] {
        fs::copy(Path::new("/etc").join(file), root.join("etc").join(file)).unwrap();
    }
    fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.53\n").unwrap();
}
