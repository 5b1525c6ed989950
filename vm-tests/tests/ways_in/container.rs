//! Containers: the OCI hook governs them before their first instruction, with a network of their own or none.

use std::net::TcpListener;

use crate::bundle::{Cable, Container, Network};
use crate::elsewhere::Elsewhere;
use crate::{AGENT, BALANCE, arrived, stage};

const HOOK: Option<&[&str]> = Some(&["--agent", AGENT]);

/// A server at the host's end of the cable, and the command that calls it.
pub(crate) fn server_at(cable: &Cable) -> String {
    use std::io::Write as _;
    let server = TcpListener::bind((cable.host.as_str(), 0)).unwrap();
    let at = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in server.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    format!("curl -sS -o /dev/null -w '%{{http_code}}' --max-time 3 http://{at}/")
}

#[test]
#[cfg_attr(
    not(has_runc),
    ignore = "runc is not installed; `cargo xtask setup` installs it"
)]
fn a_container_with_a_network_of_its_own_reaches_nothing_but_the_proxy() {
    let stage = stage();
    // The control: the same container without the hook reaches the host by its cable.
    let cable = Cable::lay();
    let outside = server_at(&cable);
    let mut free = Container::make(&stage, Network::Cable(cable), None);
    assert_eq!(free.start().ask(&outside), "204");
    drop(free);

    let cable = Cable::lay();
    let outside = server_at(&cable);
    let mut governed = Container::make(&stage, Network::Cable(cable), HOOK);
    governed.start();
    let before = arrived(&stage);
    let shell = governed.shell();
    assert!(
        shell.ask("ls /sys/class/net").contains('c'),
        "it has its cable"
    );
    assert_eq!(shell.call(BALANCE), "200", "{}", stage.instance.log_tail());
    assert_eq!(arrived(&stage), before + 1);
    assert_eq!(shell.call("https://api.stripe.com/v1/unheard_of"), "403");
    let said = shell.ask(&outside);
    assert!(said.contains("curl: ("), "{said}");
    // Names go nowhere else either.
    assert!(
        shell
            .ask("cat /etc/resolv.conf")
            .contains("nameserver 198.18.0.1")
    );
    // It is on record, and listed.
    let records = stage.audit().unwrap();
    let call = records
        .iter()
        .rev()
        .find(|record| record["kind"] == "outcome");
    assert!(call.is_some(), "{records:?}");
    let listed = stage
        .instance
        .ask(&["agents", "list", "--format", "json"])
        .unwrap();
    assert!(listed.stdout.contains("\"way\":\"attached\""), "{listed}");
}

#[test]
#[cfg_attr(
    not(has_runc),
    ignore = "runc is not installed; `cargo xtask setup` installs it"
)]
fn a_container_without_a_network_reaches_its_upstream_and_does_again_after_the_daemon_was_killed() {
    let mut stage = stage();
    // The control: it has no network, and without the hook it reaches nobody.
    let mut alone = Container::make(&stage, Network::None, None);
    assert!(alone.start().call(BALANCE).contains("curl: ("));
    assert_eq!(alone.shell().ask("ls /sys/class/net"), "lo");
    drop(alone);

    let mut governed = Container::make(&stage, Network::None, HOOK);
    assert_eq!(
        governed.start().call(BALANCE),
        "200",
        "{}",
        stage.instance.log_tail()
    );
    assert_eq!(governed.shell().ask("ls /sys/class/net"), "lo");

    stage.instance.kill().unwrap();
    let said = governed.shell().call(BALANCE);
    assert!(said.contains("curl: ("), "{said}");
    stage.instance.start().unwrap();
    assert_eq!(
        governed.shell().call(BALANCE),
        "200",
        "{}",
        stage.instance.log_tail()
    );
}

#[test]
#[cfg_attr(
    not(has_runc),
    ignore = "runc is not installed; `cargo xtask setup` installs it"
)]
fn a_container_that_cannot_be_governed_does_not_start() {
    let mut stage = stage();
    // The control.
    let mut governed = Container::make(&stage, Network::None, HOOK);
    assert_eq!(governed.start().ask("echo started"), "started");
    drop(governed);

    let unknown = Container::make(&stage, Network::None, Some(&["--agent", "acme/nobody"]));
    let said = unknown.refused();
    assert!(said.contains("agent_unknown"), "{said}");
    let unnamed = Container::make(&stage, Network::None, Some(&[]));
    let said = unnamed.refused();
    assert!(said.contains("agent_missing"), "{said}");
    stage.instance.kill().unwrap();
    let left = Container::make(&stage, Network::None, HOOK);
    let said = left.refused();
    assert!(said.contains("is `sluice daemon` running?"), "{said}");
    stage.instance.start().unwrap();
}

#[test]
#[cfg_attr(
    not(has_runc),
    ignore = "runc is not installed; `cargo xtask setup` installs it"
)]
fn a_running_container_is_attached_and_what_is_wrong_has_a_name() {
    let stage = stage();
    let mut container = Container::make(&stage, Network::None, None);
    container.start();
    let pem = stage.instance.ask(&["ca", "show", "acme"]).unwrap();
    std::fs::write(container.root().join("etc/acme.pem"), &pem.stdout).unwrap();
    let call = format!(
        "curl -sS -o /dev/null --cacert /etc/acme.pem -w '%{{http_code}}' -H 'Authorization: Bearer x' {BALANCE}"
    );
    let before = container.shell().ask(&call);
    assert!(before.contains("curl: ("), "{before}");

    let pid = container.pid().to_string();
    let attach = |args: &[&str]| {
        let mut all = vec!["agents", "attach", "--agent"];
        all.extend(args);
        stage.instance.ask(&all).unwrap()
    };
    let done = attach(&[AGENT, "--pid", &pid, "--format", "json"]);
    assert_eq!(done.status.code(), Some(0), "{done}");
    assert_eq!(done.json().unwrap()["way"], "attached");
    assert_eq!(
        container.shell().ask(&call),
        "200",
        "{}",
        stage.instance.log_tail()
    );
    // Asked for again, it is as it is.
    assert_eq!(attach(&[AGENT, "--pid", &pid]).status.code(), Some(0));

    let hierarchy = vm_tests::leftovers::cgroup2()
        .unwrap()
        .display()
        .to_string();
    let elsewhere = Elsewhere::make();
    let other = elsewhere.name();
    for (args, code, name) in [
        (&["acme/nobody", "--cgroup", &other][..], 1, "agent_unknown"),
        (
            &["acme/nobody", "--cgroup", &hierarchy][..],
            1,
            "cgroup_unfit",
        ),
        (&[AGENT, "--cgroup", &hierarchy][..], 1, "cgroup_unfit"),
        (&[AGENT, "--pid", "4194305"][..], 1, "process_gone"),
        (&[AGENT, "--cgroup", "/etc"][..], 1, "cgroup_unknown"),
        (&[AGENT, "--cgroup", "/no/such"][..], 1, "cgroup_unknown"),
        (&["acme/nobody", "--pid", &pid][..], 1, "already_governed"),
        (
            &[AGENT, "--pid", &pid, "--cgroup", "/etc"][..],
            2,
            "cannot be used with",
        ),
        (&[AGENT][..], 2, "required"),
    ] {
        let refused = attach(args);
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {refused}");
        assert!(refused.stderr.contains(name), "{args:?}: {refused}");
    }
    let mut nobody = stage
        .instance
        .sluice(&["agents", "attach", "--agent", AGENT, "--cgroup", "/x"]);
    use std::os::unix::process::CommandExt as _;
    let nobody = nobody.uid(65_534).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert!(said.contains("not_root"), "{said}");
}
