//! `sluice run --isolate`: a network namespace with nothing but loopback, in which the proxy listens.

use std::net::TcpListener;

use crate::shell::Shell;
use crate::{BALANCE, arrived, stage};

const INTERFACES: &str = "sed -n 's/^ *\\([^ :]*\\):.*/\\1/p' /proc/net/dev; ls /sys/class/net";

#[test]
fn an_isolated_agent_has_only_loopback_and_reaches_its_upstream_through_the_proxy() {
    let stage = stage();
    // A server of the host's, on its loopback.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || for _ in server.incoming() {});
    let to_the_host = format!("curl -sS --max-time 2 http://127.0.0.1:{port}/");

    // The control: without --isolate it shares the host's network, and the kernel side refuses what it may not reach.
    let mut open = Shell::start(&mut stage.instance.agent("acme/support", &["sh"]));
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(
        open.ask("readlink /proc/self/ns/net"),
        own.to_str().unwrap()
    );
    assert_eq!(open.call(BALANCE), "200");
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());

    let mut isolated =
        stage
            .instance
            .sluice(&["run", "--agent", "acme/support", "--isolate", "--", "sh"]);
    let mut isolated = Shell::start(&mut isolated);
    let theirs = isolated.ask("readlink /proc/self/ns/net");
    assert_ne!(theirs, own.to_str().unwrap());
    assert_eq!(isolated.ask(INTERFACES), "lo\nlo");
    let before = arrived(&stage);
    assert_eq!(
        isolated.call(BALANCE),
        "200",
        "{}",
        stage.instance.log_tail()
    );
    assert_eq!(arrived(&stage), before + 1);
    // What policy refuses is refused by name: it is the same proxy.
    assert_eq!(isolated.call("https://api.stripe.com/v1/unheard_of"), "403");

    for elsewhere in [
        to_the_host.as_str(),
        "curl -sS --max-time 2 http://192.0.2.1/",
        "curl -sS --max-time 2 http://[2001:db8::1]/",
        "curl -sS --max-time 2 https://elsewhere.example/",
    ] {
        let said = isolated.ask(elsewhere);
        assert!(said.contains("curl: ("), "{elsewhere}: {said}");
    }

    // Its own servers are its own business: the loopback works.
    let two = isolated.ask("ip -4 -o addr show lo 2>/dev/null | grep -c 127.0.0.1 || cat /proc/net/fib_trie | grep -c 127.0.0.1");
    assert_ne!(two, "0");

    // It ends, and with it its listeners; the other is not disturbed.
    drop(isolated);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!(open.call(BALANCE), "200");
}

#[test]
fn an_isolated_agent_works_again_after_the_daemon_was_killed_and_started_anew() {
    let mut stage = stage();
    let mut isolated =
        stage
            .instance
            .sluice(&["run", "--agent", "acme/support", "--isolate", "--", "sh"]);
    let mut isolated = Shell::start(&mut isolated);
    assert_eq!(isolated.call(BALANCE), "200");
    let before = arrived(&stage);

    stage.instance.kill().unwrap();
    let refused = isolated.call(BALANCE);
    assert!(refused.contains("curl: ("), "{refused}");
    assert_eq!(arrived(&stage), before);

    stage.instance.start().unwrap();
    assert_eq!(
        isolated.call(BALANCE),
        "200",
        "{}",
        stage.instance.log_tail()
    );
    assert_eq!(arrived(&stage), before + 1);

    // The proxy process alone dies: the enforcer hands the same listeners to the next one.
    let worker = stage.instance.worker_pid().unwrap();
    let killed = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
    while isolated.call(BALANCE) != "200" {
        assert!(
            std::time::Instant::now() < deadline,
            "{}",
            stage.instance.log_tail()
        );
    }
    assert_ne!(stage.instance.worker_pid(), Some(worker));
}
