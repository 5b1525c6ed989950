//! What the daemon itself refuses: one name in the answer, in the record and in the metric.

use crate::daemon::Daemon;

#[test]
fn what_the_daemon_itself_refuses_has_one_name_in_answer_record_and_metric() {
    let mut daemon = Daemon::start();
    let counted = |daemon: &Daemon, reason: &str, agent: &str| {
        let line = format!("reason=\"{reason}\"}} ");
        let metrics = daemon.metrics();
        let found = metrics.lines().find_map(|found| {
            let count = found.split_once(&line)?.1;
            (found.starts_with("sluice_refusals_total{") && found.contains(agent))
                .then(|| count.to_owned())
        });
        found.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    let recorded = |daemon: &Daemon, tenant: &str, reason: &str| {
        let log = daemon.ask(&["audit", "list", "--tenant", tenant, "--format", "json"]);
        // Until the refused cgroup is forgotten, within half a second, the control socket may take everybody for one of its processes.
        if !log.status.success() {
            return usize::MAX;
        }
        let log = String::from_utf8(log.stdout).unwrap();
        log.matches(&format!("\"reason\":\"{reason}\"")).count()
    };
    let hierarchy = daemon.hierarchy();
    let hierarchy = hierarchy.to_str().unwrap();
    for (cgroup, reason) in [("/etc", "cgroup_unknown"), (hierarchy, "cgroup_unfit")] {
        // The control: nothing was counted or written down under that name before.
        assert_eq!(counted(&daemon, reason, "agent=\"support\""), 0);
        assert_eq!(recorded(&daemon, "acme", reason), 0);
        let refused = daemon.ask(&[
            "agents",
            "attach",
            "--agent",
            "acme/support",
            "--cgroup",
            cgroup,
        ]);
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("{reason}: ")), "{told}");
        daemon.eventually("it is written down and counted", |daemon| {
            recorded(daemon, "acme", reason) == 1
                && counted(daemon, reason, "agent=\"support\"") == 1
        });
    }
    // What the proxy process refuses is on record in the same way; of a name that is nobody's, the host's log has it.
    let refused = daemon.ask(&["run", "--agent", "initech/nobody", "--", "true"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("agent_unknown: "), "{told}");
    daemon.eventually("it is written down and counted", |daemon| {
        recorded(daemon, "host", "agent_unknown") == 1
            && counted(daemon, "agent_unknown", "agent=\"\"") == 1
    });
}
