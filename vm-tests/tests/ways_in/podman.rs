//! Containers of podman (with runc, both from Debian's packages): its hooks directory names Sluice's hook, an annotation the agent.
//! Invariant: dropping one ends the container and removes its storage, cgroups and network namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use vm_tests::demo::Stage;
use vm_tests::instance::sluice_binary;

use crate::bundle::{self, Cable, Network};
use crate::container::server_at;
use crate::shell::Shell;
use crate::systemd::removed;
use crate::{AGENT, BALANCE, arrived, stage};

/// What is installed as `/etc/containers/oci/hooks.d/sluice.json`.
const HOOK: &str = include_str!("../../../agent-userspace/deploy/hooks.d/sluice.json");

struct Pod {
    directory: PathBuf,
    /// podman takes no path longer than 50 characters.
    run: PathBuf,
    name: String,
    network: Network,
    shell: Option<Shell>,
}

impl Pod {
    fn make(stage: &Stage, network: Network) -> Pod {
        static NUMBER: AtomicU32 = AtomicU32::new(900);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-test-{}-{number}", std::process::id());
        let directory = stage.instance.root().join("pods").join(&name);
        bundle::root(&directory.join("rootfs"));
        // As it is shipped, but for this test's binary and instance.
        let mut hook: Value = serde_json::from_str(HOOK).unwrap();
        let root = stage.instance.root();
        hook["hook"]["path"] = json!(sluice_binary());
        hook["hook"]["env"] = json!([
            format!("SLUICE_CONFIG={}", root.join("config").display()),
            format!("SLUICE_STATE_DIR={}", stage.instance.state().display()),
            format!("SLUICE_RUNTIME_DIR={}", stage.instance.runtime().display()),
        ]);
        fs::create_dir(directory.join("hooks")).unwrap();
        fs::write(directory.join("hooks/sluice.json"), hook.to_string()).unwrap();
        let run = std::env::temp_dir().join(format!("sluice-p{}-{number}", std::process::id()));
        Pod {
            directory,
            run,
            name,
            network,
            shell: None,
        }
    }

    fn podman(&self) -> Command {
        let mut command = Command::new("podman");
        command
            .arg("--root")
            .arg(self.directory.join("storage"))
            .arg("--runroot")
            .arg(&self.run)
            .arg("--hooks-dir")
            .arg(self.directory.join("hooks"))
            .arg("--tmpdir")
            .arg(self.directory.join("tmp"))
            .args(["--log-level", "error", "--storage-driver", "vfs"])
            .args(["--events-backend", "none", "--runtime", "runc"])
            // No systemd is asked for a scope, and no limit asks for a controller that a test machine may lack.
            .args(["--cgroup-manager", "cgroupfs"]);
        command
    }

    fn run(&self, agent: Option<&str>) -> Command {
        let mut command = self.podman();
        command
            .args(["run", "--interactive", "--rm", "--pids-limit=-1"])
            .args([
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
            ])
            .arg(format!("--name={}", self.name))
            .arg(format!("--cgroup-parent=/{}", self.name))
            .args(["--volume", "/usr:/usr:ro"]);
        match &self.network {
            Network::None => command.arg("--network=none"),
            Network::Cable(cable) => command.arg(format!("--network=ns:{}", cable.path())),
        };
        if let Some(agent) = agent {
            command.arg(format!("--annotation=io.sluice.agent={agent}"));
        }
        command.arg("--rootfs").arg(self.directory.join("rootfs"));
        command.arg("sh");
        command
    }

    fn start(&mut self, agent: Option<&str>) -> &mut Shell {
        let shell = Shell::start(&mut self.run(agent));
        self.shell.insert(shell)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.shell.take());
        let _ = self
            .podman()
            .args(["rm", "--force", "--time=0", &self.name])
            .output();
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            removed_if_there(&hierarchy.path().join(&self.name));
        }
        removed_if_there(&Path::new("/sys/fs/cgroup").join(&self.name));
        let _ = fs::remove_dir_all(&self.run);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn removed_if_there(cgroup: &Path) {
    if cgroup.is_dir() {
        removed(cgroup);
    }
}

#[test]
#[cfg_attr(
    not(all(has_podman, has_runc)),
    ignore = "podman or runc is not installed; `apt install podman runc` installs them"
)]
fn a_podman_container_with_a_network_of_its_own_reaches_nothing_but_the_proxy() {
    let stage = stage();
    // The control: the same container without the annotation reaches the host by its cable.
    let cable = Cable::lay();
    let outside = server_at(&cable);
    let mut free = Pod::make(&stage, Network::Cable(cable));
    assert_eq!(free.start(None).ask(&outside), "204");
    drop(free);

    let cable = Cable::lay();
    let outside = server_at(&cable);
    let mut governed = Pod::make(&stage, Network::Cable(cable));
    let shell = governed.start(Some(AGENT));
    let before = arrived(&stage);
    assert!(
        shell.ask("cat /proc/net/dev").contains(" c"),
        "it has its cable"
    );
    assert_eq!(shell.call(BALANCE), "200", "{}", stage.instance.log_tail());
    assert_eq!(arrived(&stage), before + 1);
    assert_eq!(shell.call("https://api.stripe.com/v1/unheard_of"), "403");
    let said = shell.ask(&outside);
    assert!(said.contains("curl: ("), "{said}");
    assert!(
        shell
            .ask("cat /etc/resolv.conf")
            .contains("nameserver 198.18.0.1")
    );
}

#[test]
#[cfg_attr(
    not(all(has_podman, has_runc)),
    ignore = "podman or runc is not installed; `apt install podman runc` installs them"
)]
fn a_podman_container_without_a_network_reaches_its_upstream_or_does_not_start() {
    let mut stage = stage();
    // The control: it has no network, and without the annotation it reaches nobody.
    let mut alone = Pod::make(&stage, Network::None);
    assert!(alone.start(None).call(BALANCE).contains("curl: ("));
    drop(alone);

    let mut governed = Pod::make(&stage, Network::None);
    let shell = governed.start(Some(AGENT));
    assert_eq!(shell.call(BALANCE), "200", "{}", stage.instance.log_tail());
    assert_eq!(shell.ask("ls /sys/class/net"), "lo");
    drop(governed);

    let unknown = Pod::make(&stage, Network::None);
    let refused = unknown.run(Some("acme/nobody")).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("agent_unknown"),
        "{said}"
    );
    stage.instance.kill().unwrap();
    let left = Pod::make(&stage, Network::None);
    let refused = left.run(Some(AGENT)).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("is `sluice daemon` running?"),
        "{said}"
    );
}
