//! Running trees that are adopted: whole, under load, without the sockets of before; or left exactly as they were.

use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vm_tests::demo::Stage;
use vm_tests::leftovers::{cgroup2, instance_name};

use crate::elsewhere::{Elsewhere, server};
use crate::shell::Shell;
use crate::{AGENT, BALANCE, stage};

/// A tree that keeps a connection open and keeps starting processes, some of which lose their parent, for half a minute at most.
/// Arguments: a mark, the port to connect to, where it notes what works, and whether it makes orphans.
const TREE: &str = r#"
import os, socket, sys, time
mark, port, notes, orphans = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] == "orphans"
end = time.time() + 30
def note(name, text):
    with open(f"{notes}/{name}.new", "w") as file:
        file.write(text)
    os.rename(f"{notes}/{name}.new", f"{notes}/{name}")
def load():
    while time.time() < end:
        if os.fork() == 0:
            if orphans and os.fork() != 0:
                os._exit(0)
            time.sleep(0.03)
            os._exit(0)
        time.sleep(0.004)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
    os._exit(0)
kept = socket.create_connection(("127.0.0.1", port))
for _ in range(4):
    if os.fork() == 0:
        load()
while time.time() < end:
    try:
        kept.send(b"x")
        note("kept", "sent")
    except OSError as error:
        note("kept", f"failed {error}")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        note("new", "connected")
    except OSError as error:
        note("new", f"failed {error}")
    time.sleep(0.02)
"#;

/// A server that counts what arrives.
fn counting() -> (u16, Arc<AtomicUsize>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let arrived = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&arrived);
    std::thread::spawn(move || {
        for mut client in server.incoming().flatten() {
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = client.read(&mut bytes) {
                    count.fetch_add(length, Ordering::SeqCst);
                }
            });
        }
    });
    (port, arrived)
}

struct Tree {
    child: Child,
    mark: String,
    notes: PathBuf,
}

impl Tree {
    fn start(stage: &Stage, cgroup: Option<&Path>, port: u16, kind: &str) -> Tree {
        let mark = format!("sluice-tree-{}-{port}", std::process::id());
        let notes = stage.instance.root().join(&mark);
        fs::create_dir(&notes).unwrap();
        let enter = match cgroup {
            Some(cgroup) => format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroup.display()),
            None => "exec \"$@\"".to_owned(),
        };
        let child = Command::new("sh")
            .args(["-c", &enter, "sh", "python3", "-c", TREE, &mark])
            .args([&port.to_string(), notes.to_str().unwrap(), kind])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Tree { child, mark, notes }
    }

    /// What it says next.
    fn says(&self, name: &str) -> String {
        let file = self.notes.join(name);
        let _ = fs::remove_file(&file);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(text) = fs::read_to_string(&file) {
                return text;
            }
            assert!(Instant::now() < deadline, "it says nothing of {name}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its live processes, wherever they are, each with its cgroup.
    fn members(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let is_its = fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word == self.mark.as_bytes())
            });
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
            if let (true, Some(cgroup)) = (is_its, cgroup) {
                found.push((entry.file_name().into_string().unwrap(), cgroup.to_owned()));
            }
        }
        found
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        for _ in 0..100 {
            let left = self.members();
            for (pid, _) in &left {
                let _ = Command::new("kill")
                    .args(["-KILL", pid])
                    .stderr(Stdio::null())
                    .status();
            }
            let _ = self.child.try_wait();
            if left.is_empty() {
                break;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn adopt(stage: &Stage, what: [&str; 2]) -> vm_tests::output::Output {
    let args = ["agents", "adopt", "--agent", AGENT, what[0], what[1]];
    stage.instance.ask(&args).unwrap()
}

fn under_load(stage: &Stage, tree: &mut Tree, what: [&str; 2], arrived: &AtomicUsize) {
    // The control: it sends on what it has open, and connects anew.
    assert_eq!(tree.says("kept"), "sent");
    assert_eq!(tree.says("new"), "connected");
    std::thread::sleep(Duration::from_millis(300));
    assert!(tree.members().len() >= 5, "it is under load");

    let done = adopt(stage, what);
    assert_eq!(
        done.status.code(),
        Some(0),
        "{done} {}",
        stage.instance.log_tail()
    );
    let after = arrived.load(Ordering::SeqCst);
    assert!(
        tree.says("kept").starts_with("failed"),
        "{}",
        tree.says("kept")
    );
    assert!(
        tree.says("new").starts_with("failed"),
        "{}",
        tree.says("new")
    );
    assert!(tree.child.try_wait().unwrap().is_none(), "it lives");
    let home = tree
        .members()
        .first()
        .map(|(_, cgroup)| cgroup.clone())
        .unwrap();
    let home = if what[0] == "--pid" {
        assert!(home.contains(".adopted."), "{home}");
        home.rsplit_once('/').unwrap().0.to_owned()
    } else {
        home
    };
    // Whoever it started, and starts, is inside.
    for _ in 0..20 {
        for (pid, cgroup) in tree.members() {
            assert!(cgroup.starts_with(&home), "process {pid} is in {cgroup}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        arrived.load(Ordering::SeqCst),
        after,
        "nothing arrives any more"
    );
    let listed = stage
        .instance
        .ask(&["agents", "list", "--format", "json"])
        .unwrap();
    assert!(listed.stdout.contains("\"way\":\"adopted\""), "{listed}");
}

#[test]
fn a_tree_under_load_is_adopted_whole_and_its_open_socket_is_dead() {
    let stage = stage();
    let (port, arrived) = counting();
    let mut tree = Tree::start(&stage, None, port, "children");
    let pid = tree.child.id().to_string();
    under_load(&stage, &mut tree, ["--pid", &pid], &arrived);
}

#[test]
fn a_tree_that_has_a_cgroup_to_itself_loses_no_orphan() {
    let stage = stage();
    let (port, arrived) = counting();
    let elsewhere = Elsewhere::make();
    let mut tree = Tree::start(&stage, Some(&elsewhere.0), port, "orphans");
    let pid = tree.child.id().to_string();
    under_load(&stage, &mut tree, ["--pid", &pid], &arrived);
    let left = fs::read_to_string(elsewhere.0.join("cgroup.procs")).unwrap();
    assert_eq!(left, "");
}

#[test]
fn a_cgroup_under_load_is_adopted_where_it_is() {
    let stage = stage();
    let (port, arrived) = counting();
    let elsewhere = Elsewhere::make();
    let mut tree = Tree::start(&stage, Some(&elsewhere.0), port, "orphans");
    under_load(&stage, &mut tree, ["--cgroup", &elsewhere.name()], &arrived);
}

#[test]
fn an_adopted_shell_goes_on_as_the_agent_and_its_cgroup_ends_with_it() {
    let stage = stage();
    let (_, outside) = server();
    let pem = stage.instance.root().join("acme.pem");
    fs::write(
        &pem,
        stage.instance.ask(&["ca", "show", "acme"]).unwrap().stdout,
    )
    .unwrap();
    let call = format!(
        "curl -sS -o /dev/null --cacert {} -w '%{{http_code}}' -H 'Authorization: Bearer x' {BALANCE}",
        pem.display()
    );
    let mut shell = Shell::start(&mut Command::new("sh"));
    // The control.
    assert_eq!(shell.ask(&outside), "204");
    assert!(shell.ask(&call).contains("curl: ("));
    let pid = shell.ask("echo $$");
    let done = adopt(&stage, ["--pid", &pid]);
    assert_eq!(
        done.status.code(),
        Some(0),
        "{done} {}",
        stage.instance.log_tail()
    );
    assert!(shell.ask(&outside).contains("curl: ("));
    assert_eq!(shell.ask(&call), "200", "{}", stage.instance.log_tail());
    let places = || {
        let prefix = format!(
            "{}.adopted.",
            instance_name(&fs::canonicalize(stage.instance.runtime()).unwrap())
        );
        let entries = fs::read_dir(cgroup2().unwrap()).unwrap().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .count()
    };
    assert_eq!(places(), 1);
    drop(shell);
    let deadline = Instant::now() + Duration::from_secs(10);
    while places() > 0 {
        assert!(Instant::now() < deadline, "its cgroup is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_cannot_be_adopted_is_left_as_it_was() {
    let stage = stage();
    let (_, outside) = server();
    let elsewhere = Elsewhere::make();
    let mut shell = elsewhere.shell();
    let pid = shell.ask("echo $$");
    let before = shell.ask("cat /proc/self/cgroup");
    let holder = "import socket, time; s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0); print('held', flush=True); time.sleep(600)";
    let held = shell.ask(&format!("python3 -c \"{holder}\" > {0}/held 2>&1 & echo $!; until grep -q . {0}/held 2>/dev/null; do sleep 0.05; done", stage.instance.root().display()));
    for what in [["--pid", pid.as_str()], ["--cgroup", &elsewhere.name()]] {
        let refused = adopt(&stage, what);
        assert!(refused.stderr.contains("held_open"), "{refused}");
        assert!(refused.stderr.contains("family 17"), "{refused}");
        assert_eq!(shell.ask("cat /proc/self/cgroup"), before);
        assert_eq!(shell.ask(&outside), "204", "it goes on, and is nobody's");
    }
    shell.ask(&format!("kill {held}; wait"));

    let unknown = ["agents", "adopt", "--agent", "acme/nobody", "--pid", &pid];
    let refused = stage.instance.ask(&unknown).unwrap();
    assert!(refused.stderr.contains("agent_unknown"), "{refused}");
    let own = std::process::id().to_string();
    for (what, name) in [
        (["--pid", "4194305"], "process_gone"),
        (["--pid", "1"], "adopt_unfit"),
        (["--pid", &own], "adopt_unfit"),
        (["--cgroup", "/no/such"], "cgroup_unknown"),
    ] {
        let refused = adopt(&stage, what);
        assert_eq!(refused.status.code(), Some(1), "{what:?}: {refused}");
        assert!(refused.stderr.contains(name), "{what:?}: {refused}");
    }
    assert_eq!(shell.ask("cat /proc/self/cgroup"), before);
    assert_eq!(shell.ask(&outside), "204");
    // The control: without what was in the way it is adopted, and then it is somebody's.
    let done = adopt(&stage, ["--pid", &pid]);
    assert_eq!(
        done.status.code(),
        Some(0),
        "{done} {}",
        stage.instance.log_tail()
    );
    let twice = adopt(&stage, ["--pid", &pid]);
    assert!(twice.stderr.contains("already_governed"), "{twice}");
    assert!(shell.ask(&outside).contains("curl: ("));
}

#[test]
fn an_adoption_that_a_daemon_did_not_finish_is_undone_by_the_next() {
    let mut stage = stage();
    let (_, outside) = server();
    let elsewhere = Elsewhere::make();
    let mut shell = elsewhere.shell();
    let pid = shell.ask("echo $$");
    stage.instance.kill().unwrap();
    // As it is between the moves and the programs.
    let instance = instance_name(&fs::canonicalize(stage.instance.runtime()).unwrap());
    let place = cgroup2().unwrap().join(format!("{instance}.adopted.99"));
    let below = place.join("0");
    fs::create_dir_all(&below).unwrap();
    fs::write(place.join("cgroup.freeze"), "1").unwrap();
    let origin = format!("/{}", elsewhere.0.file_name().unwrap().to_str().unwrap());
    rustix::fs::setxattr(
        &below,
        "trusted.sluice.origin",
        origin.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    fs::write(below.join("cgroup.procs"), &pid).unwrap();
    // The control: it stands.
    let events = || fs::read_to_string(place.join("cgroup.events")).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !events().contains("frozen 1") {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    stage.instance.start().unwrap();
    assert!(shell.ask("cat /proc/self/cgroup").ends_with(&origin));
    assert_eq!(shell.ask(&outside), "204");
    assert!(!place.exists());
}
