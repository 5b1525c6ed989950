//! What the daemon itself refuses: one name in the answer, in the record and in the metric.

use std::process::Output;

use crate::daemon::{Daemon, Elsewhere};
use crate::puppet::Puppet;

/// How often a reason is counted, in a series that contains these labels.
pub(crate) fn counted(daemon: &Daemon, reason: &str, agent: &str) -> u64 {
    let line = format!("reason=\"{reason}\"}} ");
    let metrics = daemon.metrics();
    let found = metrics.lines().find_map(|found| {
        let count = found.split_once(&line)?.1;
        (found.starts_with("sluice_refusals_total{") && found.contains(agent))
            .then(|| count.to_owned())
    });
    found.map_or(0, |count| count.parse().unwrap())
}

/// How often it is in a tenant's log.
pub(crate) fn recorded(daemon: &Daemon, tenant: &str, reason: &str) -> usize {
    let log = daemon.told(&["audit", "list", "--tenant", tenant, "--format", "json"]);
    log.matches(&format!("\"reason\":\"{reason}\"")).count()
}

/// Where a refusal is seen: the tenant's log and the agent's series, or those of the host.
pub(crate) struct Seen {
    pub(crate) tenant: &'static str,
    pub(crate) agent: &'static str,
}

pub(crate) const ACME: Seen = Seen {
    tenant: "acme",
    agent: "agent=\"support\"",
};
pub(crate) const HOST: Seen = Seen {
    tenant: "host",
    agent: "agent=\"\"",
};

/// Has it refused, and sees it answered, written down and counted under one name, once more than before.
pub(crate) fn refused(
    daemon: &mut Daemon,
    seen: &Seen,
    reason: &str,
    act: impl FnOnce(&Daemon) -> Output,
) {
    let tally = |daemon: &Daemon| {
        let counted = counted(daemon, reason, seen.agent);
        (recorded(daemon, seen.tenant, reason) as u64, counted)
    };
    let (records, counts) = tally(daemon);
    let answer = act(daemon);
    let told = String::from_utf8(answer.stderr).unwrap();
    assert!(!answer.status.success(), "{told}");
    assert!(told.contains(&format!("{reason}: ")), "{told}");
    daemon.eventually("it is written down and counted", |daemon| {
        tally(daemon) == (records + 1, counts + 1)
    });
}

const ATTACH: [&str; 5] = ["agents", "attach", "--agent", "acme/support", "--cgroup"];
const ADOPT: [&str; 4] = ["agents", "adopt", "--agent", "acme/support"];
const DETACH: [&str; 3] = ["agents", "detach", "--cgroup"];

#[test]
fn what_the_daemon_itself_refuses_has_one_name_in_answer_record_and_metric() {
    let mut daemon = Daemon::start();
    let hierarchy = daemon.hierarchy();
    let hierarchy = hierarchy.to_str().unwrap();
    for (cgroup, reason) in [("/etc", "cgroup_unknown"), (hierarchy, "cgroup_unfit")] {
        // The control: nothing was counted or written down under that name before.
        assert_eq!(counted(&daemon, reason, ACME.agent), 0);
        assert_eq!(recorded(&daemon, "acme", reason), 0);
        refused(&mut daemon, &ACME, reason, |daemon| {
            daemon.ask(&[&ATTACH[..], &[cgroup]].concat())
        });
    }
    // What the proxy process refuses is on record in the same way; of a name that is nobody's, the host's log has it.
    refused(&mut daemon, &HOST, "agent_unknown", |daemon| {
        daemon.ask(&["run", "--agent", "initech/nobody", "--", "true"])
    });
}

#[test]
fn a_refused_adoption_is_written_down_and_counted() {
    let mut daemon = Daemon::start();
    let elsewhere = Elsewhere::make(&daemon);
    for (cgroup, reason) in [("/etc", "cgroup_unknown"), (elsewhere.name(), "held_open")] {
        let mut puppet = Puppet::start(Some(&elsewhere.0));
        // A socket that leads out past every hook, and that nobody can close from outside.
        puppet.ask("keepsocket 17 2 0").unwrap();
        refused(&mut daemon, &ACME, reason, |daemon| {
            daemon.ask(&[&ADOPT[..], &["--cgroup", cgroup]].concat())
        });
    }
    // By its pid: it is refused after it was stopped, too.
    let mut puppet = Puppet::start(Some(&elsewhere.0));
    puppet.ask("keepsocket 17 2 0").unwrap();
    let pid = puppet.pid().to_string();
    refused(&mut daemon, &ACME, "held_open", |daemon| {
        daemon.ask(&[&ADOPT[..], &["--pid", &pid]].concat())
    });
    drop(puppet);
    // The control: without such a socket, and somebody in it, it is adopted.
    let _puppet = Puppet::start(Some(&elsewhere.0));
    daemon.told(&[&ADOPT[..], &["--cgroup", elsewhere.name()]].concat());
}

#[test]
fn a_refused_detachment_is_written_down_and_counted() {
    let mut daemon = Daemon::start();
    let elsewhere = Elsewhere::make(&daemon);
    for (cgroup, reason) in [
        ("/etc", "cgroup_unknown"),
        (elsewhere.name(), "not_attached"),
    ] {
        refused(&mut daemon, &HOST, reason, |daemon| {
            daemon.ask(&[&DETACH[..], &[cgroup]].concat())
        });
    }
    daemon.told(&[&ATTACH[..], &[elsewhere.name()]].concat());
    let puppet = Puppet::start(Some(&elsewhere.0));
    // Whose it is, is known from here on.
    refused(&mut daemon, &ACME, "workload_alive", |daemon| {
        daemon.ask(&[&DETACH[..], &[elsewhere.name()]].concat())
    });
    drop(puppet);
    // The control: once it is empty, it is given back.
    daemon.eventually("it is given back", |daemon| {
        let args = [&DETACH[..], &[elsewhere.name()]].concat();
        daemon.ask(&args).status.success()
    });
}
