//! Cgroups that were there before: who counts as an agent's process, and from when on.

use std::process::Command;

use crate::daemon::{Daemon, Elsewhere};

#[test]
fn of_a_cgroup_that_cannot_be_governed_nobody_counts_as_an_agents_process() {
    let daemon = Daemon::start();
    let attach = |cgroup: &str| {
        let agent = "acme/support";
        daemon.ask(&["agents", "attach", "--agent", agent, "--cgroup", cgroup])
    };
    // The control: who lives in a cgroup that is governed is refused.
    let elsewhere = Elsewhere::make(&daemon);
    let attached = attach(elsewhere.name());
    assert!(attached.status.success(), "{attached:?}");
    let status = daemon.sluice(&["status"]);
    let mut inside = Command::new("sh");
    inside.args(["-c", "echo $$ > \"$0/cgroup.procs\"; exec \"$@\""]);
    inside.args([elsewhere.name().as_ref(), status.get_program()]);
    inside.args(status.get_args());
    for (name, value) in status.get_envs() {
        if let Some(value) = value {
            inside.env(name, value);
        }
    }
    let inside = inside.output().unwrap();
    let told = String::from_utf8_lossy(&inside.stderr);
    assert!(told.contains("may not use the control socket"), "{told}");

    // Everybody lives below the root.
    let root = daemon.hierarchy();
    for _ in 0..5 {
        let refused = attach(root.to_str().unwrap());
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(told.contains("cgroup_unfit: "), "{told}");
        daemon.told(&["status"]);
    }
}
