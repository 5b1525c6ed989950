//! How a launched command lives and dies: exit codes, signals, terminal, and what happens when it cannot start.
//! Root, a plain cgroup directory, no daemon. Signals are sent to a launcher in a process of its own.
//! INVARIANT: to a shell, `sluice run CMD` behaves as CMD.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

mod launch_bench;

use std::fs::{self, Permissions};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agent_userspace::enforce::launch::{self, Account, Launch, LaunchError};
use launch_bench::{Bench, run, wait_until};

#[test]
fn the_exit_code_is_the_commands() {
    let bench = Bench::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        assert_eq!(bench.inside(script).0, code, "{script}");
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_is_no_program_126() {
    let bench = Bench::new();
    let text = bench.path("work/text");
    fs::write(&text, "no program").unwrap();
    for command in [
        "no-such-command-here",
        "/no/such/command",
        "/etc/hostname/x",
    ] {
        let error = run(bench.launch(&[command])).unwrap_err();
        assert!(matches!(error, LaunchError::NotFound { .. }), "{error}");
        assert_eq!(error.exit_code(), 127);
        assert!(error.to_string().contains(command), "{error}");
    }
    for mode in [0o644, 0o755] {
        fs::set_permissions(&text, Permissions::from_mode(mode)).unwrap();
        let error = run(bench.launch(&[text.to_str().unwrap()])).unwrap_err();
        assert!(
            matches!(error, LaunchError::CannotExecute { .. }),
            "{error}"
        );
        assert_eq!(error.exit_code(), 126);
    }
}

#[test]
fn the_command_is_found_on_its_own_path() {
    let bench = Bench::new();
    let tool = bench.path("work/tool");
    fs::write(&tool, "#!/bin/sh\nexit 42\n").unwrap();
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let mut launch = bench.launch(&["tool"]);
    launch.environment = vec![(
        "PATH".into(),
        format!("/nowhere:{}", bench.path("work").display()).into(),
    )];
    assert_eq!(run(launch).unwrap(), 42);
}

#[test]
fn an_empty_command_and_a_root_that_is_none_are_refused() {
    let bench = Bench::new();
    assert!(matches!(
        run(bench.launch(&[])),
        Err(LaunchError::BadCommand)
    ));
    assert!(matches!(
        run(bench.launch(&[""])),
        Err(LaunchError::BadCommand)
    ));
    assert!(matches!(
        run(bench.launch(&["a\0b"])),
        Err(LaunchError::BadCommand)
    ));
    let mut launch = bench.launch(&["true"]);
    launch.root_pem = "root:x:0:0:root:/root:/bin/sh\n".to_owned();
    assert!(matches!(run(launch), Err(LaunchError::BadRoot)));
}

#[test]
fn when_a_step_fails_the_command_does_not_run() {
    let bench = Bench::new();
    let marker = bench.path("work/ran");
    let launch = |change: &dyn Fn(&mut Launch)| {
        let mut launch = bench.launch(&["touch", marker.to_str().unwrap()]);
        launch.account = Some(Account::find("4711").unwrap());
        change(&mut launch);
        run(launch)
    };
    assert_eq!(launch(&|_| {}).unwrap(), 0);
    assert!(marker.exists(), "the control runs");
    fs::remove_file(&marker).unwrap();

    let step = |error: LaunchError| match error {
        LaunchError::Step { step, .. } => step,
        LaunchError::Prepare { what, .. } => format!("prepare {what}"),
        error => panic!("{error}"),
    };
    let trust = bench.path("work/missing.pem");
    let failed = launch(&|launch| launch.trust = vec![trust.clone()]).unwrap_err();
    assert_eq!(failed.exit_code(), 125);
    assert_eq!(step(failed), format!("prepare {}", trust.display()));
    let failed = launch(&|launch| launch.directory = "/no/such/directory".into()).unwrap_err();
    assert_eq!(step(failed), "enter /no/such/directory");
    let failed = launch(&|launch| launch.runtime_dir = "/no/such/runtime".into()).unwrap_err();
    assert_eq!(step(failed), "prepare /no/such/runtime");
    // The user must be able to read what it is told to trust.
    fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o700)).unwrap();
    let failed = launch(&|_| {}).unwrap_err();
    assert_eq!(
        step(failed),
        format!(
            "read {}/ca-bundle.pem as the workload's user",
            bench.path("run").display()
        )
    );
    assert!(!marker.exists());
}

#[test]
fn a_process_cannot_be_born_in_what_is_no_cgroup() {
    let bench = Bench::new();
    let marker = bench.path("work/ran");
    let mut launch = bench.launch(&["touch", marker.to_str().unwrap()]);
    launch.cgroup = fs::File::open("/tmp").unwrap().into();
    assert!(matches!(run(launch), Err(LaunchError::Clone(_))));
    assert!(!marker.exists());
}

#[test]
fn signals_sent_to_the_launcher_reach_the_command() {
    for (name, signal) in [
        ("TERM", libc::SIGTERM),
        ("INT", libc::SIGINT),
        ("HUP", libc::SIGHUP),
        ("QUIT", libc::SIGQUIT),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("WINCH", libc::SIGWINCH),
    ] {
        let bench = Bench::new();
        let script =
            format!("trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done");
        let launcher = fork(|| exit_with(run(bench.script(&script))));
        bench.wait_for("the command", |out| out.contains("ready"));
        kill(launcher, signal);
        assert_eq!(wait(launcher), 9, "SIG{name}");
        assert_eq!(bench.out(), "ready\ngot\n", "SIG{name}");
    }
}

#[test]
fn ignored_signals_stay_ignored_and_sigpipe_is_as_usual() {
    let bench = Bench::new();
    // Rust's runtime ignores SIGPIPE in this very process.
    let ignored = fs::read_to_string("/proc/self/status").unwrap();
    assert!(mask(&ignored, "SigIgn:") & (1 << (libc::SIGPIPE - 1)) != 0);
    let launcher = fork(|| {
        // SAFETY: sets an action of this process alone.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        exit_with(run(
            bench.script("kill -HUP $$; grep Sig /proc/self/status; exit 3")
        ))
    });
    assert_eq!(wait(launcher), 3);
    let out = bench.out();
    let ignored = mask(&out, "SigIgn:");
    assert!(ignored & (1 << (libc::SIGHUP - 1)) != 0, "{out}");
    assert!(ignored & (1 << (libc::SIGPIPE - 1)) == 0, "{out}");
    assert_eq!(mask(&out, "SigBlk:"), 0, "{out}");
}

#[test]
fn a_network_socket_from_outside_is_refused_as_standard_input() {
    let bench = Bench::new();
    let marker = bench.path("work/ran");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let launcher = fork(|| {
        // SAFETY: replaces this process's own standard input.
        unsafe { libc::dup2(listener.as_raw_fd(), 0) };
        match launch::start(bench.launch(&["touch", marker.to_str().unwrap()])) {
            Err(LaunchError::ForeignSocket { fd: 0 }) => 125,
            _ => 1,
        }
    });
    assert_eq!(wait(launcher), 125);
    assert!(!marker.exists());
}

#[test]
fn the_command_has_the_terminal_and_its_keys_arrive_once() {
    let bench = Bench::new();
    let terminal = Terminal::open();
    let script = format!(
        "exec >{} 2>&1; trap 'echo int' INT; trap 'echo quit; exit 4' QUIT; test -t 0 && tty; echo ready; while :; do sleep 0.05; done",
        bench.path("work/out").display()
    );
    let launcher = terminal.shell(|| exit_with(run(bench.launch(&["/bin/sh", "-c", &script]))));
    bench.wait_for("the command", |out| out.contains("ready"));
    terminal.key(b"\x03");
    bench.wait_for("the interrupt", |out| out.contains("int"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.key(b"\x1c");
    assert_eq!(wait(launcher), 4);
    let out = bench.out();
    assert!(
        out.starts_with(&format!("{}\nready\n", terminal.name)),
        "{out}"
    );
    for key in ["int", "quit"] {
        assert_eq!(out.lines().filter(|line| *line == key).count(), 1, "{out}");
    }
}

#[test]
fn the_job_can_be_stopped_and_continued_from_the_terminal() {
    let bench = Bench::new();
    let terminal = Terminal::open();
    let script = format!(
        "exec >{} 2>&1; trap 'echo continued; exit 5' CONT; sleep 60 & echo ready; wait",
        bench.path("work/out").display()
    );
    // A shell that is inside vfork() when the key comes would not stop, here as anywhere: it waits in a builtin.
    let stopped = bench.path("work/stopped");
    // A shell: it starts a job in a group of its own, sees it stop, continues it, and ends with its code.
    let shell = terminal.session(|| {
        let job = fork(|| {
            // SAFETY: the group and its terminal are this process's own.
            unsafe {
                libc::setpgid(0, 0);
                libc::signal(libc::SIGTTOU, libc::SIG_IGN);
                libc::tcsetpgrp(0, libc::getpgrp());
                libc::signal(libc::SIGTTOU, libc::SIG_DFL);
            }
            exit_with(run(bench.launch(&["/bin/sh", "-c", &script])))
        });
        let mut status = 0;
        // SAFETY: the status outlives the call.
        unsafe { libc::waitpid(job, &raw mut status, libc::WUNTRACED) };
        if !libc::WIFSTOPPED(status) {
            return 99;
        }
        fs::write(&stopped, "").unwrap();
        kill(-job, libc::SIGCONT);
        wait(job)
    });
    bench.wait_for("the command", |out| out.contains("ready"));
    terminal.key(b"\x1a");
    wait_until("the stop", || stopped.exists());
    assert_eq!(wait(shell), 5);
    assert!(
        bench.out().starts_with("ready\ncontinued\n"),
        "{}",
        bench.out()
    );
}

/// A pseudo-terminal.
struct Terminal {
    controller: OwnedFd,
    name: String,
}

impl Terminal {
    fn open() -> Terminal {
        let controller =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
                .unwrap();
        rustix::pty::grantpt(&controller).unwrap();
        rustix::pty::unlockpt(&controller).unwrap();
        let name = rustix::pty::ptsname(&controller, Vec::new())
            .unwrap()
            .into_string()
            .unwrap();
        Terminal { controller, name }
    }

    /// Runs this in a session of its own, with the terminal as its standard streams.
    fn session(&self, life: impl FnOnce() -> i32) -> i32 {
        fork(|| {
            let terminal = fs::File::options()
                .read(true)
                .write(true)
                .open(Path::new(&self.name))
                .unwrap();
            // SAFETY: the session, its terminal and the standard streams are this process's own.
            unsafe {
                libc::setsid();
                libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0);
                for fd in 0..3 {
                    libc::dup2(terminal.as_raw_fd(), fd);
                }
            }
            life()
        })
    }

    /// The session's only process is the launcher itself.
    fn shell(&self, life: impl FnOnce() -> i32) -> i32 {
        self.session(life)
    }

    fn key(&self, key: &[u8]) {
        rustix::io::write(&self.controller, key).unwrap();
    }
}

fn mask(status: &str, key: &str) -> u64 {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn exit_with(ended: Result<u8, LaunchError>) -> i32 {
    ended.map_or_else(|error| error.exit_code().into(), i32::from)
}

/// A process of its own for a launcher, which has signal handlers, a terminal or standard streams of its own.
fn fork(life: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the C library makes fork safe for its own allocator; the child uses nothing else of other threads and ends
    // without running their destructors.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life)).unwrap_or(101);
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(code) };
    }
    pid
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: the call takes two numbers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn wait(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        1000 + libc::WTERMSIG(status)
    }
}
