//! Services of a real systemd: each start is governed before the first instruction, or there is none.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use vm_tests::demo::Stage;

use crate::elsewhere::server;
use crate::systemd::Systemd;
use crate::{AGENT, BALANCE, arrived, stage};

const UNIT: &str = "bot.service";

/// Where the service writes what it found; root's, which it is without capabilities.
fn notes(stage: &Stage) -> PathBuf {
    let notes = stage.instance.root().join("notes");
    fs::create_dir_all(&notes).unwrap();
    notes
}

/// A service that tries the way out before and while it runs, and says how it is confined.
fn probe(stage: &Stage, outside: &str) -> String {
    let notes = notes(stage);
    let script = notes.join("probe.sh");
    let run = stage.instance.runtime();
    let text = format!(
        "#!/bin/sh\ncd {notes}\n\
         case $1 in pre) {outside} > pre 2>&1; exit 0;; esac\n\
         {outside} > main 2>&1\n\
         curl -sS -o /dev/null --max-time 10 -H 'Authorization: Bearer placeholder' -w '%{{http_code}}' {BALANCE} > vendor 2>&1\n\
         grep -E 'NoNewPrivs|CapBnd' /proc/self/status > walls\n\
         ls {run} >> walls 2>&1\n\
         test -w /sys/fs/cgroup && echo writable >> walls\n\
         echo done > over\n",
        notes = notes.display(),
        run = run.display(),
    );
    fs::write(&script, text).unwrap();
    let script = script.display();
    format!("Type=oneshot\nExecStartPre=/bin/sh {script} pre\nExecStart=/bin/sh {script} main")
}

/// What the service wrote: pre, main, vendor, walls. Each is read once.
fn wrote(stage: &Stage) -> [String; 4] {
    ["pre", "main", "vendor", "walls"].map(|name| {
        let file = notes(stage).join(name);
        let text = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        text.trim().to_owned()
    })
}

fn attach(systemd: &Systemd, stage: &Stage, unit: &str) -> Output {
    let args = ["agents", "attach", "--agent", AGENT, "--unit", unit];
    systemd.sluice(stage, &args)
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
#[cfg_attr(
    not(has_systemd),
    ignore = "systemd is not installed; `cargo xtask setup` installs it"
)]
fn each_start_of_an_attached_unit_is_governed_from_its_first_instruction() {
    let stage = stage();
    let systemd = Systemd::boot(&stage);
    let (_server, outside) = server();
    systemd.unit(UNIT, &probe(&stage, &outside));
    // The control: before, it reaches what it likes.
    systemd.tell("systemctl start bot.service");
    let [pre, main, _, walls] = wrote(&stage);
    assert_eq!((pre.as_str(), main.as_str()), ("204", "204"));
    assert!(walls.contains("writable"), "{walls}");
    assert!(walls.contains("enforcer.sock"), "{walls}");

    let said = done(&attach(&systemd, &stage, UNIT));
    assert!(
        said.contains("/etc/systemd/system/bot.service.d/zz-sluice.conf"),
        "{said}"
    );
    let verified = systemd.ask("systemd-analyze verify bot.service");
    assert!(verified.status.success(), "{verified:?}");
    assert_eq!(String::from_utf8_lossy(&verified.stderr), "");
    // Each start has a cgroup of its own, of the same name.
    for start in 1..=3 {
        let before = arrived(&stage);
        let started = systemd.ask("systemctl start bot.service");
        assert!(
            started.status.success(),
            "{started:?} {}",
            stage.instance.log_tail()
        );
        let [pre, main, vendor, walls] = wrote(&stage);
        assert!(pre.contains("curl: ("), "start {start}: {pre}");
        assert!(main.contains("curl: ("), "start {start}: {main}");
        assert_eq!(vendor, "200", "{}", stage.instance.log_tail());
        assert_eq!(arrived(&stage), before + 1);
        assert!(walls.contains("NoNewPrivs:\t1"), "{walls}");
        assert!(walls.contains("CapBnd:\t0000000000000000"), "{walls}");
        assert!(!walls.contains("enforcer.sock"), "{walls}");
        assert!(!walls.contains("writable"), "{walls}");
    }
    // Attached twice is attached once.
    done(&attach(&systemd, &stage, UNIT));
    systemd.tell("systemctl start bot.service");
    assert!(wrote(&stage)[1].contains("curl: ("));
    let records = stage.audit().unwrap();
    let starts = |kind: &str| {
        records
            .iter()
            .filter(|record| record["event"] == kind)
            .count()
    };
    assert!(starts("workload_started") >= 4, "{records:?}");

    done(&systemd.sluice(&stage, &["agents", "detach", "--unit", UNIT]));
    systemd.tell("systemctl start bot.service");
    assert_eq!(wrote(&stage)[1], "204", "it is nobody's again");
    let again = systemd.sluice(&stage, &["agents", "detach", "--unit", UNIT]);
    assert!(refused(&again).contains("not_attached"));
}

#[test]
#[cfg_attr(
    not(has_systemd),
    ignore = "systemd is not installed; `cargo xtask setup` installs it"
)]
fn a_unit_that_cannot_be_governed_does_not_start() {
    let mut stage = stage();
    let systemd = Systemd::boot(&stage);
    let (_server, outside) = server();
    systemd.unit(UNIT, &probe(&stage, &outside));
    done(&attach(&systemd, &stage, UNIT));
    // The control.
    systemd.tell("systemctl start bot.service");
    assert_eq!(wrote(&stage)[2], "200", "{}", stage.instance.log_tail());

    let fails = |why: &str| {
        let started = systemd.ask("systemctl start bot.service");
        assert!(!started.status.success(), "{why}: {started:?}");
        assert_eq!(wrote(&stage), ["", "", "", ""], "{why}: nothing of it ran");
        assert_eq!(
            systemd.tell("systemctl show -P Result bot.service"),
            "exit-code",
            "{why}"
        );
    };
    stage.instance.ask(&["agents", "disable", AGENT]).unwrap();
    fails("a disabled agent");
    stage.instance.ask(&["agents", "enable", AGENT]).unwrap();
    systemd.tell("systemctl start bot.service");
    assert_eq!(wrote(&stage)[2], "200");
    let _told_of_reduced_mode = stage.instance.ask(&["panic"]).unwrap();
    fails("a panic");
    stage.instance.ask(&["panic", "--lift"]).unwrap();
    stage.instance.kill().unwrap();
    let started = systemd.ask("systemctl start bot.service");
    assert!(!started.status.success(), "no daemon: {started:?}");
    assert_eq!(wrote(&stage), ["", "", "", ""]);
    stage.instance.start().unwrap();
    systemd.tell("systemctl start bot.service");
    assert_eq!(wrote(&stage)[2], "200", "{}", stage.instance.log_tail());
}

#[test]
#[cfg_attr(
    not(has_systemd),
    ignore = "systemd is not installed; `cargo xtask setup` installs it"
)]
fn what_a_unit_leaves_running_stays_governed_and_is_given_back_only_dead() {
    let stage = stage();
    let systemd = Systemd::boot(&stage);
    let (_server, outside) = server();
    let notes = notes(&stage);
    let shell = format!(
        "Type=exec\nKillMode=process\nRestart=no\n\
         ExecStart=/bin/sh -c '(while sleep 0.1; do {outside} > {0}/loop.new 2>&1; mv {0}/loop.new {0}/loop; done) & {outside} > {0}/main 2>&1; echo over >> {0}/main; exec sleep 600'",
        notes.display(),
        outside = outside.replace('%', "%%").replace('\'', "\""),
    );
    systemd.unit(UNIT, &shell);
    let reached = |file: &str| {
        let file = notes.join(file);
        let _ = fs::remove_file(&file);
        for _ in 0..200 {
            std::thread::sleep(std::time::Duration::from_millis(50));
            if let Ok(text) = fs::read_to_string(&file)
                && (text.contains("204") || text.contains("curl: ("))
            {
                return text.contains("204");
            }
        }
        panic!("{} says nothing", file.display());
    };
    // The control.
    systemd.tell("systemctl start bot.service");
    assert!(reached("loop"));
    systemd.tell("systemctl kill -s KILL --kill-whom=all bot.service; systemctl stop bot.service; systemctl reset-failed bot.service || true");

    done(&attach(&systemd, &stage, UNIT));
    systemd.tell("systemctl start bot.service");
    assert!(!reached("loop"));
    // The main process alone is killed: what it left keeps the cgroup, and the next start finds it governed.
    systemd.tell("systemctl stop bot.service");
    assert!(systemd.cgroup_of(UNIT).is_dir(), "something is left");
    let _ = fs::remove_file(notes.join("main"));
    systemd.tell("systemctl start bot.service");
    assert!(!reached("loop"));

    // The drop-in goes, and who lives does not become nobody's.
    let said = done(&systemd.sluice(&stage, &["agents", "detach", "--unit", UNIT]));
    assert!(said.contains("stays governed"), "{said}");
    assert!(!reached("loop"));
    let cgroup = systemd.cgroup_of(UNIT).display().to_string();
    let detach = |args: &[&str]| {
        let all = [&["agents", "detach", "--cgroup", &cgroup], args].concat();
        stage.instance.ask(&all).unwrap()
    };
    let alive = detach(&[]);
    assert_eq!(alive.status.code(), Some(1), "{alive}");
    assert!(alive.stderr.contains("workload_alive"), "{alive}");
    assert!(!reached("loop"));
    let killed = detach(&["--kill"]);
    assert_eq!(killed.status.code(), Some(0), "{killed}");
    let _ = fs::remove_file(notes.join("loop"));
    systemd.tell("systemctl stop bot.service; systemctl reset-failed bot.service || true");
    systemd.tell("systemctl start bot.service");
    assert!(reached("loop"), "a new start is nobody's");
}

#[test]
#[cfg_attr(
    not(has_systemd),
    ignore = "systemd is not installed; `cargo xtask setup` installs it"
)]
fn a_unit_that_could_run_something_first_is_refused_by_name() {
    let stage = stage();
    let systemd = Systemd::boot(&stage);
    let file = |unit: &str| format!("/etc/systemd/system/{unit}.d/zz-sluice.conf");
    // The control.
    systemd.unit("plain.service", "ExecStart=/bin/true");
    done(&attach(&systemd, &stage, "plain.service"));
    systemd.tell(&format!("test -f {}", file("plain.service")));
    for (service, name) in [
        ("ExecStart=/bin/true\nExecCondition=/bin/true", "unit_unfit"),
        ("ExecStart=/bin/true\nType=notify", "unit_unfit"),
        ("ExecStart=/bin/true\nPrivateNetwork=yes", "unit_unfit"),
        ("", "unit_unknown"),
    ] {
        if service.is_empty() {
            systemd.tell("rm -f /run/systemd/system/odd.service; systemctl daemon-reload");
        } else {
            systemd.unit("odd.service", service);
        }
        let said = refused(&attach(&systemd, &stage, "odd.service"));
        assert!(said.contains(name), "{service}: {said}");
        systemd.tell(&format!("test ! -e {}", file("odd.service")));
    }
    // A later drop-in that takes the hook away again is seen, and nothing is left half-done.
    systemd.unit("odd.service", "ExecStart=/bin/true");
    systemd.tell("mkdir -p /etc/systemd/system/odd.service.d; printf '[Service]\\nExecCondition=\\n' > /etc/systemd/system/odd.service.d/zzz.conf");
    let said = refused(&attach(&systemd, &stage, "odd.service"));
    assert!(said.contains("unit_unfit"), "{said}");
    systemd.tell(&format!("test ! -e {}", file("odd.service")));
    // Not from within anything else either.
    let said = refused(&systemd.sluice(
        &stage,
        &["unit-hook", "--agent", AGENT, "--unit", "plain.service"],
    ));
    assert!(said.contains("unit_unfit"), "{said}");
}
