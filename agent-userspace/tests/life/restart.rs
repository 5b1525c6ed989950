//! The proxy process dies while agents connect: its listeners stay, and whoever comes waits for the next one.

use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::daemon::{Daemon, NAME};
use crate::host::EPERM;

#[test]
fn connections_wait_for_the_next_proxy_process_and_no_workload_takes_its_port() {
    let mut daemon = Daemon::start();
    let mut agent = daemon.agent("acme/support");
    agent.connect(NAME).unwrap();
    let port = proxy_port(&daemon);
    for _ in 0..3 {
        let worker = daemon.worker().unwrap();
        kill_process(worker, Signal::KILL).unwrap();
        // Nobody accepts now, and nobody is refused: the kernel completes the handshake, the connection waits.
        let mut waiting = Vec::new();
        while daemon.worker().is_none_or(|next| next == worker) {
            waiting.push(agent.connect(NAME).expect("not refused").0);
            assert_eq!(agent.ask(&format!("bind 127.0.0.1:{port}")), Err(EPERM));
            // The backlog has an end (net.core.somaxconn), and this is not about it.
            std::thread::sleep(Duration::from_millis(10));
        }
        waiting.push(agent.connect(NAME).expect("not refused").0);
        daemon.eventually("the next proxy process answers", |daemon| {
            daemon.ask(&["status"]).status.success()
        });
        // The next one serves what waited: to a request that is none it answers by hanging up, not by silence.
        for socket in waiting {
            agent.ask(&format!("send {socket} nonsense")).unwrap();
            let answered = agent.ask(&format!("read {socket}"));
            assert_ne!(answered, Err(libc::EAGAIN), "served, not forgotten");
        }
    }
    // The control: an ungoverned process may bind elsewhere, and nobody has the port but the daemon.
    assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_err());
}

#[test]
fn a_run_right_after_the_proxy_process_died_waits_for_the_next_one() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        let worker = daemon.worker().unwrap();
        kill_process(worker, Signal::KILL).unwrap();
        let ran = daemon.ask(&["run", "--agent", "acme/support", "--", "true"]);
        assert_eq!(ran.status.code(), Some(0), "{ran:?}\n{}", daemon.log());
        // Asked before the worker was seen to be gone, too.
        let ran = daemon.ask(&["run", "--agent", "globex/billing", "--", "true"]);
        assert_eq!(ran.status.code(), Some(0), "{ran:?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Where connections are led to, as the log of its start says.
fn proxy_port(daemon: &Daemon) -> u16 {
    let log = daemon.log();
    let after = log.split("proxy=").nth(1).expect("the port is in the log");
    after
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap()
}
