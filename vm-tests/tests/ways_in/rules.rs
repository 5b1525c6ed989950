//! `[[processes]] cgroup = ".."`: cgroups that become workloads as they appear, because a rule of the agent's file says so.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use vm_tests::demo::Stage;

use crate::bundle::{Container, Network};
use crate::elsewhere::{Elsewhere, server};
use crate::shell::Shell;
use crate::{AGENT, BALANCE};

/// The agent's own file with a rule for the cgroups below `parent`.
fn rule(stage: &Stage, parent: &Elsewhere, pattern: &str) {
    let file = stage.instance.root().join("config/agents.d/support.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.split("[[processes]]").next().unwrap();
    let name = parent.0.file_name().unwrap().to_str().unwrap();
    let rule = format!("{text}[[processes]]\ncgroup = \"/{name}/{pattern}\"\n");
    stage
        .instance
        .configure("agents.d/support.toml", &rule)
        .unwrap();
}

fn shell_in(cgroup: &Path) -> Shell {
    let enter = format!("echo $$ > {}/cgroup.procs; exec sh", cgroup.display());
    Shell::start(Command::new("sh").args(["-c", &enter]))
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether this very directory is a workload's: the daemon notes the way in on it.
fn is_governed(cgroup: &Path) -> bool {
    rustix::fs::getxattr(cgroup, "trusted.sluice.way", &mut [0_u8; 16][..]).is_ok()
}

fn stands(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.contains("frozen 1")
}

#[test]
fn a_cgroup_that_a_rule_means_is_governed_as_it_appears() {
    let parent = Elsewhere::make();
    let mut stage = Stage::set("2s").unwrap();
    rule(&stage, &parent, "bot-*");
    let (_, outside) = server();
    // One that is there before the daemon, with somebody in it.
    let early = parent.0.join("bot-0");
    fs::create_dir(&early).unwrap();
    let mut before = shell_in(&early);
    assert_eq!(before.ask(&outside), "204");
    stage.open().unwrap();
    until("the first is governed", || is_governed(&early));
    assert!(before.ask(&outside).contains("curl: ("));

    // The control: a cgroup that no rule means.
    let free = parent.0.join("other-1");
    fs::create_dir(&free).unwrap();
    // Empty when it is found, and with somebody in it at once.
    let (empty, quick) = (parent.0.join("bot-1"), parent.0.join("bot-2"));
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&quick).unwrap();
    let mut at_once = shell_in(&quick);
    until("the empty one is governed", || {
        is_governed(&empty) && !stands(&empty)
    });
    assert!(shell_in(&empty).ask(&outside).contains("curl: ("));
    until("the quick one is governed", || is_governed(&quick));
    assert!(at_once.ask(&outside).contains("curl: ("));
    assert_eq!(shell_in(&free).ask(&outside), "204");
    assert!(!is_governed(&free));
    // One that is removed and made anew is found anew.
    drop(at_once);
    until("it is empty", || fs::remove_dir(&quick).is_ok());
    fs::create_dir(&quick).unwrap();
    until("the new one is governed", || {
        is_governed(&quick) && !stands(&quick)
    });
    assert!(shell_in(&quick).ask(&outside).contains("curl: ("));
}

#[test]
fn a_cgroup_that_a_rule_means_and_that_cannot_be_governed_stands_still() {
    let parent = Elsewhere::make();
    let mut stage = Stage::set("2s").unwrap();
    stage.open().unwrap();
    let (_, outside) = server();
    let cgroup = parent.0.join("bot-1");
    fs::create_dir(&cgroup).unwrap();
    let mut shell = shell_in(&cgroup);
    // The control: no rule means it.
    assert_eq!(shell.ask(&outside), "204");
    let holder = "import socket, time; s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0); print('held', flush=True); time.sleep(600)";
    let noted = stage.instance.root().join("held");
    let pid = shell.ask(&format!("python3 -c \"{holder}\" > {0} 2>&1 & echo $!; until grep -q . {0} 2>/dev/null; do sleep 0.05; done", noted.display()));

    // Another one holds a workload already.
    let holds = parent.0.join("bot-2/below");
    fs::create_dir_all(&holds).unwrap();
    let attach = ["agents", "attach", "--agent", AGENT, "--cgroup"];
    let attach = [&attach[..], &[holds.to_str().unwrap()]].concat();
    stage.instance.ask(&attach).unwrap().ok().unwrap();
    rule(&stage, &parent, "bot-*");
    stage.instance.reload().unwrap();
    until("it stands", || stands(&cgroup));
    until("it is named", || {
        stage.instance.log_tail().contains("held_open")
    });
    assert!(!is_governed(&cgroup));
    // Tried again and again, it is on record and counted once.
    let records = || stage.audit().unwrap();
    let tries = || {
        let is_try = |record: &&serde_json::Value| record["event"] == "workload_started";
        records().iter().filter(is_try).count()
    };
    until("it is tried again", || tries() >= 3);
    let refused = |reason: &str| {
        let records = records();
        let of_it = records.iter().filter(|record| record["reason"] == reason);
        let metrics = stage.instance.metrics().unwrap();
        let label = format!("reason=\"{reason}\"}} ");
        let counted = metrics.lines().find_map(|line| {
            let counted = line.strip_prefix("sluice_refusals_total{")?;
            Some(counted.split_once(&label)?.1.to_owned())
        });
        (of_it.count(), counted.unwrap_or_default())
    };
    assert_eq!(refused("held_open"), (1, "1".to_owned()));
    // So is one that cannot be a workload at all.
    assert_eq!(refused("cgroup_unfit"), (1, "1".to_owned()));
    // Without what is in the way it is taken, and goes on.
    assert!(
        Command::new("kill")
            .args(["-KILL", &pid])
            .status()
            .unwrap()
            .success()
    );
    until("it is governed", || {
        is_governed(&cgroup) && !stands(&cgroup)
    });
    assert!(shell.ask(&outside).contains("curl: ("));
}

#[test]
#[cfg_attr(
    not(has_runc),
    ignore = "runc is not installed; `cargo xtask setup` installs it"
)]
fn a_container_that_a_rule_means_has_the_proxy_in_its_network_namespace() {
    let parent = Elsewhere::make();
    let mut stage = Stage::set("2s").unwrap();
    rule(&stage, &parent, "bot-*");
    stage.open().unwrap();
    let pem = stage.instance.ask(&["ca", "show", "acme"]).unwrap().stdout;
    let call = format!(
        "curl -sS -o /dev/null --max-time 5 --cacert /etc/acme.pem -w '%{{http_code}}' -H 'Authorization: Bearer x' {BALANCE}"
    );
    let name = parent.0.file_name().unwrap().to_str().unwrap().to_owned();
    let start = |cgroup: &str| {
        let mut container = Container::make(&stage, Network::None, None);
        container.place_in(&format!("/{name}/{cgroup}"));
        container.start();
        fs::write(container.root().join("etc/acme.pem"), &pem).unwrap();
        container
    };
    // The control: no rule means this one, and it reaches nobody.
    let mut free = start("other-1");
    assert!(free.shell().ask(&call).contains("curl: ("));
    drop(free);
    let mut governed = start("bot-1");
    until("the proxy listens in there", || {
        governed.shell().ask(&call) == "200"
    });
    assert!(
        governed.shell().ask("cat /proc/net/dev").lines().count() <= 3,
        "it has loopback alone"
    );
}

#[test]
fn two_agents_rules_for_the_same_processes_are_refused_with_their_places() {
    let stage = Stage::set("2s").unwrap();
    let parent = Elsewhere::make();
    rule(&stage, &parent, "bot-*");
    // The control.
    let fine = stage.instance.ask(&["check"]).unwrap();
    assert_eq!(fine.status.code(), Some(0), "{fine}");
    let name = parent.0.file_name().unwrap().to_str().unwrap();
    let other = format!(
        "tenant = \"acme\"\nname = \"other\"\nowner = \"ops\"\nstage = \"read\"\n[[processes]]\ncgroup = \"/{name}/*-one\"\n"
    );
    stage
        .instance
        .configure("agents.d/zother.toml", &other)
        .unwrap();
    let refused = stage.instance.ask(&["check"]).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("can mean the same processes as"), "{said}");
    assert!(
        said.contains(AGENT) || said.contains("acme/other"),
        "{said}"
    );
    assert!(said.contains(".toml:"), "{said}");
}
