//! The control socket of a running proxy process, asked by the `sluice` binary.
//! Who may ask for what, and what comes back.
//! Each refusal stands beside the same request when it is allowed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;

use agent_userspace::app::{Event, KernelRefusal};
use agent_userspace::config::ProcessFacts;
use policies::WorkloadId;
use support::daemon::Daemon;
use support::{Instance, Said};

const ELSEWHERE: &str = "/sluice-test/agents";

fn own_cgroup() -> String {
    ProcessFacts::read(std::process::id()).unwrap().cgroup
}

/// Runs `sluice` as a local user that is not root.
fn as_user(instance: &Instance, uid: u32, gid: u32, args: &[&str]) -> Said {
    std::fs::set_permissions(instance.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    instance.said(&instance.command(args).uid(uid).gid(gid).output().unwrap())
}

#[test]
fn status_and_doctor_tell_what_runs() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    daemon.admit("acme/support", 7).unwrap();
    let said = instance.sluice(&["status", "--format", "json"]);
    assert_eq!(said.code, 0, "{}", said.all());
    let [status] = said.json().try_into().unwrap();
    assert_eq!(status["policy_version"], daemon.ready.version.to_string());
    assert_eq!(status["workloads"][0]["agent"], "acme/support");
    assert_eq!(status["reload"]["ok"], true);
    let said = instance.sluice(&["status"]);
    assert!(
        said.out.contains("7 of 8 live; see `sluice doctor`"),
        "{}",
        said.all()
    );
    let said = instance.sluice(&["doctor"]);
    assert_eq!(said.code, 0, "reduced, and as asked: {}", said.all());
    insta::assert_snapshot!(said.out);
    let said = instance.sluice(&["agents", "list"]);
    assert!(said.out.contains("acme/support"), "{}", said.all());
    daemon.stop();
}

/// As the enforcer tells of a refusal of workload 7.
fn kernel_refused(daemon: &Daemon, kind: &str, to: Option<&str>) {
    let refusal = KernelRefusal {
        workload: Some(WorkloadId(7)),
        kind: kind.to_owned(),
        destination: to.map(|to| to.parse().unwrap()),
    };
    let event = Event::KernelRefused(refusal);
    daemon.events.blocking_send(event).unwrap();
}

#[test]
fn kernel_refusals_are_on_record_with_agent_reason_and_destination_and_damped() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    daemon.admit("acme/support", 7).unwrap();
    for _ in 0..50 {
        kernel_refused(&daemon, "datagram", Some("[2606:4700::1]:9999"));
    }
    kernel_refused(&daemon, "packet", None);
    daemon
        .events
        .blocking_send(Event::Retire(WorkloadId(7)))
        .unwrap();
    // The FIN of a socket whose workload is gone.
    kernel_refused(&daemon, "workload_unknown", Some("127.0.0.1:8443"));
    daemon.stop();
    let list = ["audit", "list", "--agent", "acme/support"];
    let said = instance.sluice(&[&list[..], &["--format", "json"]].concat());
    let refused: Vec<_> = said
        .json()
        .into_iter()
        .filter(|record| record["event"] == "kernel_refusal")
        .collect();
    let details: Vec<&str> = refused
        .iter()
        .map(|record| record["detail"].as_str().unwrap())
        .collect();
    assert_eq!(
        details,
        [
            "datagram: to [2606:4700::1]:9999",
            "packet",
            "datagram: to [2606:4700::1]:9999; 49 more within 60 s"
        ]
    );
    for record in &refused {
        assert_eq!(record["tenant"], "acme");
        assert_eq!(record["decision"], "deny");
        assert_eq!(record["reason"], "kernel_refused");
        assert_eq!(record["workload"]["id"], 7);
    }
    assert_eq!(refused[0]["host"], "2606:4700::1");
    let said = instance.sluice(&list);
    let first =
        "kernel_refusal 2606:4700::1  deny    kernel_refused  datagram: to [2606:4700::1]:9999";
    assert!(said.out.contains(first), "{}", said.all());
    let all = instance.sluice(&["audit", "list"]);
    assert!(!all.out.contains("workload_unknown"), "{}", all.all());
}

#[test]
fn a_process_inside_a_governed_cgroup_is_refused_and_recorded() {
    let instance = Instance::new();
    // Positive control: the same command from the same place is served where the cgroup is not governed.
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    assert_eq!(instance.sluice(&["status"]).code, 0);
    daemon.stop();
    let daemon = Daemon::start(&instance.paths(), &own_cgroup()).unwrap();
    for args in [["approvals", "list"], ["vault", "list"], ["agents", "list"]] {
        let said = instance.sluice(&args);
        assert_eq!(said.code, 1, "{}", said.all());
        assert!(
            said.err.contains("a process inside the governed cgroup"),
            "{}",
            said.all()
        );
        assert_eq!(said.out, "");
    }
    daemon.stop();
    let said = instance.sluice(&["audit", "list", "--kind", "event", "--format", "json"]);
    let recorded = said
        .json()
        .iter()
        .filter(|record| record["event"] == "control_refused")
        .count();
    assert_eq!(
        recorded,
        1,
        "recorded, and at most once a second: {}",
        said.all()
    );
}

#[test]
fn only_root_and_the_control_group_are_heard() {
    let instance = Instance::new();
    instance.write("config.toml", "[control]\ngroup = \"4242\"\n");
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let outsider = as_user(&instance, 4711, 4711, &["status"]);
    assert_eq!(outsider.code, 1, "{}", outsider.all());
    assert!(
        outsider
            .err
            .contains("user uid:4711 may not use the control socket"),
        "{}",
        outsider.all()
    );
    let member = as_user(&instance, 4711, 4242, &["status"]);
    assert_eq!(member.code, 0, "{}", member.all());
    let member = as_user(
        &instance,
        4711,
        4242,
        &["agents", "disable", "acme/support"],
    );
    assert_eq!(member.code, 1, "{}", member.all());
    assert!(
        member.err.contains("only root may do this"),
        "{}",
        member.all()
    );
    let member = instance
        .command(&["vault", "revoke", "acme/stripe-live"])
        .uid(4711)
        .gid(4242)
        .output()
        .unwrap();
    assert!(instance.said(&member).err.contains("only root may do this"));
    assert_eq!(
        instance.sluice(&["agents", "disable", "acme/support"]).code,
        0
    );
    daemon.stop();
}

#[test]
fn what_is_no_request_is_refused() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let ask = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(instance.paths().control_socket()).unwrap();
        // The daemon may answer and hang up before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    };
    assert!(ask(b"{\"op\":\"status\"}\n").contains("policy_version"));
    for request in [
        b"GET / HTTP/1.1\r\n".as_slice(),
        b"{\"op\":\"reveal\"}\n",
        b"{\"op\":\"status\",\"as\":\"root\"}\n",
        b"{\"op\":\"status\"}",
        b"",
    ] {
        assert!(
            ask(request).contains("\"code\":\"malformed\""),
            "{}",
            String::from_utf8_lossy(request)
        );
    }
    let long = [b"{\"op\":\"".as_slice(), &[b'x'; 200_000], b"\"}\n"].concat();
    assert!(ask(&long).contains("a request is one line of at most"));
    daemon.stop();
}

#[test]
fn the_kill_switch_reaches_the_kernel_and_survives_a_restart() {
    let instance = Instance::new();
    let mut daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    daemon.admit("acme/support", 1).unwrap();
    let said = instance.sluice(&["agents", "disable", "acme/support"]);
    assert_eq!(said.code, 0, "{}", said.all());
    assert!(
        said.out
            .contains("is switched off: 1 workloads, 2 sockets cut"),
        "{}",
        said.all()
    );
    let support: policies::AgentId = "acme/support".parse().unwrap();
    assert_eq!(daemon.switched(), (support.clone(), true));
    let refused = daemon.admit("acme/support", 2).unwrap_err();
    assert_eq!(refused.reason, policies::Reason::AgentDisabled);
    daemon.stop();
    let mut daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    assert_eq!(daemon.ready.disabled, ["acme/support".parse().unwrap()]);
    assert_eq!(
        daemon.admit("acme/support", 3).unwrap_err().reason,
        policies::Reason::AgentDisabled
    );
    assert_eq!(
        instance.sluice(&["agents", "enable", "acme/support"]).code,
        0
    );
    assert_eq!(daemon.switched(), (support, false));
    daemon.admit("acme/support", 4).unwrap();
    assert_eq!(
        instance.sluice(&["agents", "disable", "acme/nobody"]).code,
        1
    );
    daemon.stop();
    let said = instance.sluice(&["audit", "list", "--tenant", "acme", "--format", "json"]);
    // An event's name, or a refusal's.
    let name = |record: &serde_json::Value| {
        let named = record["event"].as_str().or(record["reason"].as_str());
        named.unwrap().to_owned()
    };
    let names: Vec<String> = said.json().iter().map(name).collect();
    assert_eq!(
        names,
        [
            "workload_started",
            "agent_disabled",
            "agent_disabled",
            "agent_disabled",
            "agent_enabled",
            "workload_started"
        ]
    );
}

#[test]
fn an_unknown_agent_is_not_admitted() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    assert_eq!(
        daemon.admit("acme/nobody", 1).unwrap_err().reason,
        policies::Reason::AgentUnknown
    );
    daemon.admit("acme/support", 1).unwrap();
    daemon.stop();
}

#[test]
fn a_broken_policy_changes_nothing_and_is_recorded() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let before = daemon.ready.version.to_string();
    instance.write(
        "policies/more.cedar",
        "forbid (principal, action, resource) when { context.nonsense };\n",
    );
    let refused = daemon.reload(&instance.paths()).unwrap_err();
    assert!(refused.to_string().contains("more.cedar:1:"), "{refused}");
    let [status] = instance
        .sluice(&["status", "--format", "json"])
        .json()
        .try_into()
        .unwrap();
    assert_eq!(status["policy_version"], before);
    assert_eq!(status["reload"]["ok"], false);
    let said = instance.sluice(&["status"]);
    assert!(
        said.out.contains("the one before is in force"),
        "{}",
        said.all()
    );
    // Positive control: a good policy takes effect.
    instance.write(
        "policies/more.cedar",
        "@id(\"nothing\")\nforbid (principal, action, resource);\n",
    );
    let ready = daemon.reload(&instance.paths()).unwrap();
    assert_ne!(ready.version.to_string(), before);
    let [status] = instance
        .sluice(&["status", "--format", "json"])
        .json()
        .try_into()
        .unwrap();
    assert_eq!(status["policy_version"], ready.version.to_string());
    assert_eq!(status["reload"]["ok"], true);
    daemon.stop();
    let said = instance.sluice(&["audit", "list", "--tenant", "host", "--format", "json"]);
    let events: Vec<String> = said
        .json()
        .iter()
        .map(|record| record["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        events,
        [
            "daemon_started",
            "bundle_loaded",
            "bundle_rejected",
            "bundle_loaded",
            "daemon_stopped"
        ]
    );
}

#[test]
fn a_vault_that_cannot_be_decrypted_ends_the_start() {
    let instance = Instance::new();
    assert_eq!(
        instance
            .sluice_with(&["vault", "put", "acme/stripe-live"], b"sk_live_0123456789")
            .code,
        0
    );
    let key = instance.paths().master_key_file();
    let good = std::fs::read(&key).unwrap();
    let mut other = good.clone();
    other[0] = if other[0] == b'0' { b'1' } else { b'0' };
    std::fs::write(&key, other).unwrap();
    let refused = Daemon::start(&instance.paths(), ELSEWHERE)
        .err()
        .expect("it must not start");
    assert!(
        matches!(refused, agent_userspace::app::StartError::Vault(_)),
        "{refused}"
    );
    std::fs::write(&key, good).unwrap();
    Daemon::start(&instance.paths(), ELSEWHERE).unwrap().stop();
}

#[test]
fn a_vault_change_through_the_daemon_counts_at_once() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let said = instance.sluice(&["doctor"]);
    assert!(
        said.out.contains("no usable credential acme/stripe-live"),
        "{}",
        said.all()
    );
    assert_eq!(
        instance
            .sluice_with(&["vault", "put", "acme/stripe-live"], b"sk_live_0123456789")
            .code,
        0
    );
    let said = instance.sluice(&["doctor"]);
    assert!(!said.out.contains("no usable credential"), "{}", said.all());
    let said = instance.sluice(&["vault", "list", "--format", "json"]);
    assert_eq!(said.json()[0]["credential"], "acme/stripe-live");
    assert_eq!(instance.sluice(&["audit", "verify"]).code, 0);
    daemon.stop();
}

#[test]
fn the_root_certificate_is_where_the_launcher_looks() {
    let instance = Instance::new();
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let said = instance.sluice(&["ca", "show", "acme"]);
    assert!(
        said.out.starts_with("-----BEGIN CERTIFICATE-----"),
        "{}",
        said.all()
    );
    let file = std::fs::read_to_string(instance.path().join("run/ca/acme.pem")).unwrap();
    assert_eq!(file.trim_end(), said.out.trim_end());
    assert_eq!(instance.sluice(&["ca", "show", "other"]).code, 1);
    daemon.stop();
    // The certificate is the same after a restart: the key is in the vault.
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    assert_eq!(instance.sluice(&["ca", "show", "acme"]).out, said.out);
    daemon.stop();
}

#[test]
fn metrics_are_scraped_where_the_settings_say() {
    let instance = Instance::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    instance.write(
        "config.toml",
        &format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n"),
    );
    let daemon = Daemon::start(&instance.paths(), ELSEWHERE).unwrap();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    for line in [
        "sluice_layer{layer=\"lsm\",state=\"absent\"} 1",
        "sluice_approvals_pending 0",
        "sluice_reload_success 1",
        "# EOF",
    ] {
        assert!(answer.contains(line), "{line} is missing: {answer}");
    }
    assert!(get("/").starts_with("HTTP/1.1 404"));
    daemon.stop();
}
