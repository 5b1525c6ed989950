//! The kill switch of one agent and the big one of all, as a person pulls them.

use std::io::Read as _;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::daemon::{Daemon, NAME};
use crate::host::EPERM;
use crate::puppet::Puppet;

/// Connects, and waits in a read for what comes.
fn hold(agent: &mut Puppet) -> usize {
    agent.connect(NAME).unwrap().0
}

#[test]
fn a_disabled_agent_is_cut_off_and_others_are_not() {
    let daemon = Daemon::start();
    let mut agent = daemon.agent("acme/support");
    let mut other = daemon.agent("globex/billing");
    let (open, kept) = (hold(&mut agent), hold(&mut other));
    agent.tell(&format!("read {open}"));
    let pulled = Instant::now();
    daemon.told(&["agents", "disable", "acme/support"]);
    // An error, or the end: in either case it is over.
    let seen = agent.answer();
    println!(
        "cut {:?} after the command began: {seen:?}",
        pulled.elapsed()
    );
    assert_ne!(
        agent.ask(&format!("send {open} x")),
        Ok(vec!["1".to_owned()])
    );
    assert_eq!(agent.connect(NAME), Err(EPERM));
    let refused = daemon.ask(&["run", "--agent", "acme/support", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    // The controls: another agent's connection is open and takes what it sends, and enabling brings all back.
    other.ask(&format!("send {kept} x")).unwrap();
    other.connect(NAME).unwrap();
    daemon.told(&["agents", "enable", "acme/support"]);
    let deadline = Instant::now() + Duration::from_secs(5);
    while agent.connect(NAME).is_err() {
        assert!(Instant::now() < deadline, "it is not switched on again");
    }
}

#[test]
fn a_switch_is_confirmed_only_when_the_kernel_side_has_switched() {
    let daemon = Daemon::start();
    let mut agent = daemon.agent("acme/support");
    kill_process(daemon.enforcer(), Signal::STOP).unwrap();
    let mut command = daemon
        .sluice(&["agents", "disable", "acme/support"])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let early = command.try_wait().unwrap();
    // The control: nobody has switched the kernel side yet.
    let connected = agent.connect(NAME);
    kill_process(daemon.enforcer(), Signal::CONT).unwrap();
    assert!(early.is_none(), "{early:?}");
    connected.unwrap();
    assert!(command.wait().unwrap().success());
    assert_eq!(agent.connect(NAME), Err(EPERM));
}

#[test]
fn a_panic_stops_every_tenant_at_once_and_survives_a_restart() {
    let mut daemon = Daemon::start();
    let mut agents = [daemon.agent("acme/support"), daemon.agent("globex/billing")];
    let open = agents.each_mut().map(hold);
    for (agent, open) in agents.iter_mut().zip(open) {
        agent.tell(&format!("read {open}"));
    }
    let pulled = Instant::now();
    let told = daemon.told(&["panic"]);
    assert!(told.contains("every agent is stopped"), "{told}");
    for agent in &mut agents {
        let seen = agent.answer();
        println!(
            "cut {:?} after the command began: {seen:?}",
            pulled.elapsed()
        );
        assert_eq!(agent.connect(NAME), Err(EPERM));
    }
    let refused = |daemon: &Daemon| {
        let refused = daemon.ask(&["run", "--agent", "acme/support", "--", "true"]);
        assert_eq!(refused.status.code(), Some(125));
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(told.contains("panic: every agent is stopped"), "{told}");
    };
    refused(&daemon);
    assert!(daemon.told(&["status"]).contains("every agent is stopped"));
    daemon.kill();
    daemon.restart();
    refused(&daemon);
    assert_eq!(agents[0].connect(NAME), Err(EPERM));
    // The control: lifted, everything works again, and both are on record once.
    daemon.told(&["panic", "--lift"]);
    for agent in &mut agents {
        agent.connect(NAME).unwrap();
    }
    assert!(
        daemon
            .ask(&["run", "--agent", "acme/support", "--", "true"])
            .status
            .success()
    );
    let log = daemon.host_log();
    assert_eq!(log.matches("panic_engaged").count(), 1, "{log}");
    assert_eq!(log.matches("panic_lifted").count(), 1, "{log}");
}

#[test]
fn a_panic_without_a_daemon_holds_for_the_next_one_and_is_written_down_then() {
    let mut daemon = Daemon::start();
    let mut agent = daemon.agent("acme/support");
    daemon.kill();
    let told = daemon.told(&["panic"]);
    assert!(told.contains("no daemon answered"), "{told}");
    assert_eq!(agent.connect(NAME), Err(EPERM));
    daemon.restart();
    assert_eq!(agent.connect(NAME), Err(EPERM));
    daemon.eventually("it is written down", |daemon| {
        daemon.host_log().contains("panic_engaged")
    });
    // Lifted without a daemon, too: the next one publishes.
    daemon.kill();
    daemon.told(&["panic", "--lift"]);
    assert_eq!(agent.connect(NAME), Err(EPERM), "nothing is published yet");
    daemon.restart();
    agent.connect(NAME).unwrap();
    daemon.eventually("the lifting is written down", |daemon| {
        daemon.host_log().contains("panic_lifted")
    });
}

#[test]
fn only_root_may_panic() {
    let daemon = Daemon::start();
    let mut agent = daemon.agent("acme/support");
    let mut command = daemon.sluice(&["panic"]);
    use std::os::unix::process::CommandExt as _;
    command
        .uid(65534)
        .gid(65534)
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut told = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut told)
        .unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(told.contains("only root"), "{told}");
    agent.connect(NAME).unwrap();
}
