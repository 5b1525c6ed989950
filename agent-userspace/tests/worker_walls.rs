//! What the proxy process can no longer do once it is confined, each first seen done by the same code unconfined.
//! A process of its own per attempt, as root throughout: the walls must hold without the change of uid, too.
//! INVARIANT: a wall without its control proves nothing; each attempt has both.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test helper that cannot go on fails its test"
)]

use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_userspace::enforce::launch::confine_proxy;
use agent_userspace::layers::{LayerReport, LayerState};

/// What one attempt came to: 0, or the errno.
type Outcome = i32;

/// The directories that the proxy process may write, and one beside them.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "ca", "beside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            let file = dir.path().join(name).join("file");
            fs::write(&file, "text").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        }
        Place { dir }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn confine(&self) -> Vec<LayerReport> {
        rustix::thread::set_no_new_privs(true).unwrap();
        confine_proxy(&[&self.path("state"), &self.path("ca")], &[]).unwrap()
    }

    /// The attempt outside, and inside.
    fn both(&self, attempt: impl Fn() -> io::Result<()>) -> (Outcome, Outcome) {
        let outside = outcome(&attempt);
        let inside = outcome(|| {
            self.confine();
            attempt()
        });
        (outside, inside)
    }
}

/// Runs this in a process of its own.
fn outcome(attempt: impl FnOnce() -> io::Result<()>) -> Outcome {
    // SAFETY: the C library makes fork safe for its own allocator; the child uses nothing else of other threads and ends
    // without running their destructors.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        let attempt = std::panic::AssertUnwindSafe(attempt);
        let code = match std::panic::catch_unwind(attempt) {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => error.raw_os_error().unwrap_or(254),
            Err(_) => 255,
        };
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the status outlives the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "ended by a signal: {status:#x}");
    libc::WEXITSTATUS(status)
}

/// A raw system call's result.
fn call(number: libc::c_long, arguments: [libc::c_long; 6]) -> io::Result<libc::c_long> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: every caller passes pointers that live across the call, or numbers; no call here changes this process's memory
    // but in places that the caller owns.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn pointer<T>(value: &T) -> libc::c_long {
    std::ptr::from_ref(value) as libc::c_long
}

/// A call by number alone.
fn plain(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<()> {
    let [a, b, c] = arguments;
    call(number, [a, b, c, 0, 0, 0]).map(drop)
}

fn execute() -> io::Result<()> {
    let argv = [c"true".as_ptr(), std::ptr::null()];
    // Replaces the process, which then ends with 0.
    call(
        libc::SYS_execve,
        [
            c"/bin/true".as_ptr() as libc::c_long,
            pointer(&argv),
            0,
            0,
            0,
            0,
        ],
    )
    .map(drop)
}

fn execute_by_descriptor() -> io::Result<()> {
    let argv = [c"true".as_ptr(), std::ptr::null()];
    let path = c"/bin/true".as_ptr() as libc::c_long;
    call(
        libc::SYS_execveat,
        [libc::AT_FDCWD.into(), path, pointer(&argv), 0, 0, 0],
    )
    .map(drop)
}

fn make_a_process() -> io::Result<()> {
    // SAFETY: the child does nothing but end.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends this process at once.
        0 => unsafe { libc::_exit(0) },
        _ => Ok(()),
    }
}

fn read_by_pid() -> io::Result<()> {
    let (from, mut to) = ([7_u8; 8], [0_u8; 8]);
    let theirs = libc::iovec {
        iov_base: from.as_ptr().cast_mut().cast(),
        iov_len: from.len(),
    };
    let ours = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let pid = std::process::id().into();
    call(
        libc::SYS_process_vm_readv,
        [pid, pointer(&ours), 1, pointer(&theirs), 1, 0],
    )
    .map(drop)
}

fn take_a_descriptor() -> io::Result<()> {
    let pidfd = call(
        libc::SYS_pidfd_open,
        [std::process::id().into(), 0, 0, 0, 0, 0],
    )?;
    call(libc::SYS_pidfd_getfd, [pidfd, 0, 0, 0, 0, 0]).map(drop)
}

/// `union bpf_attr` of `BPF_MAP_CREATE`, as far as it is used here.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    rest: [u64; 14],
}

/// `union bpf_attr` of the commands on a map's elements.
#[repr(C)]
struct ElementAttributes {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

fn make_a_map() -> io::Result<libc::c_long> {
    let attributes = MapAttributes {
        kind: 2,
        key_size: 4,
        value_size: 8,
        max_entries: 1,
        rest: [0; 14],
    };
    let size = size_of::<MapAttributes>() as libc::c_long;
    call(libc::SYS_bpf, [0, pointer(&attributes), size, 0, 0, 0])
}

fn on_element(command: libc::c_long, map: libc::c_long) -> io::Result<()> {
    let (key, value) = (0_u32, 0_u64);
    let attributes = ElementAttributes {
        map: map as u64,
        key: pointer(&key) as u64,
        value: pointer(&value) as u64,
        flags: 0,
    };
    let size = size_of::<ElementAttributes>() as libc::c_long;
    call(
        libc::SYS_bpf,
        [command, pointer(&attributes), size, 0, 0, 0],
    )
    .map(drop)
}

fn watch_by_perf() -> io::Result<()> {
    // `struct perf_event_attr`: PERF_TYPE_SOFTWARE, its size, PERF_COUNT_SW_TASK_CLOCK.
    let mut attributes = [0_u64; 16];
    attributes[0] = 1 | ((size_of_val(&attributes) as u64) << 32);
    attributes[1] = 1;
    call(
        libc::SYS_perf_event_open,
        [pointer(&attributes), 0, -1, -1, 0, 0],
    )
    .map(drop)
}

fn ring() -> io::Result<()> {
    let parameters = [0_u64; 15];
    call(
        libc::SYS_io_uring_setup,
        [1, pointer(&parameters), 0, 0, 0, 0],
    )
    .map(drop)
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    plain(
        libc::SYS_socket,
        [family.into(), kind.into(), protocol.into()],
    )
}

fn map_memory(protection: i32) -> io::Result<libc::c_long> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call(
        libc::SYS_mmap,
        [0, 4096, protection.into(), flags.into(), -1, 0],
    )
}

#[test]
fn no_program_no_process_and_nobody_elses_memory() {
    let place = Place::new();
    let eperm = (0, libc::EPERM);
    assert_eq!(place.both(execute), eperm, "execve");
    assert_eq!(place.both(execute_by_descriptor), eperm, "execveat");
    assert_eq!(place.both(make_a_process), eperm, "fork");
    assert_eq!(
        place.both(|| plain(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0])),
        eperm,
        "ptrace"
    );
    assert_eq!(place.both(read_by_pid), eperm, "process_vm_readv");
    assert_eq!(place.both(take_a_descriptor), eperm, "pidfd_getfd");
}

#[test]
fn no_namespace_no_mount_and_no_other_root() {
    let place = Place::new();
    let eperm = (0, libc::EPERM);
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWUTS,
    ] {
        assert_eq!(
            place.both(|| plain(libc::SYS_unshare, [flag.into(), 0, 0])),
            eperm,
            "unshare {flag:#x}"
        );
    }
    assert_eq!(
        place.both(|| {
            let own = c"/proc/self/ns/uts".as_ptr() as libc::c_long;
            // Not opened through /proc inside, where that is another wall's matter: the filter answers before the descriptor.
            let namespace = call(libc::SYS_openat, [libc::AT_FDCWD.into(), own, 0, 0, 0, 0]);
            plain(libc::SYS_setns, [namespace.unwrap_or(-1), 0, 0])
        }),
        eperm,
        "setns"
    );
    let fs_type = c"tmpfs".as_ptr() as libc::c_long;
    assert_eq!(
        place.both(|| plain(libc::SYS_fsopen, [fs_type, 0, 0])),
        eperm,
        "fsopen"
    );
    let root = c"/".as_ptr() as libc::c_long;
    assert_eq!(
        place.both(|| plain(libc::SYS_open_tree, [libc::AT_FDCWD.into(), root, 1])),
        eperm,
        "open_tree"
    );
    assert_eq!(
        place.both(|| plain(libc::SYS_chroot, [root, 0, 0])),
        eperm,
        "chroot"
    );
}

#[test]
fn no_other_user() {
    let place = Place::new();
    for (name, number) in [
        ("setuid", libc::SYS_setuid),
        ("setgid", libc::SYS_setgid),
        ("setgroups", libc::SYS_setgroups),
        ("setresuid", libc::SYS_setresuid),
    ] {
        assert_eq!(
            place.both(|| plain(number, [0, 0, 0])),
            (0, libc::EPERM),
            "{name}"
        );
    }
}

#[test]
fn no_way_into_the_kernel_but_reading_the_maps_it_was_given() {
    let place = Place::new();
    assert_eq!(
        place.both(|| make_a_map().map(drop)),
        (0, libc::EPERM),
        "bpf"
    );
    assert_eq!(
        place.both(watch_by_perf),
        (0, libc::EPERM),
        "perf_event_open"
    );
    assert_eq!(place.both(ring), (0, libc::ENOSYS), "io_uring_setup");
    // KEYCTL_GET_KEYRING_ID of the session keyring, which is there or made.
    assert_eq!(
        place.both(|| plain(libc::SYS_keyctl, [0, -3, 1])),
        (0, libc::EPERM),
        "keyctl"
    );
    assert_eq!(
        place.both(|| plain(libc::SYS_userfaultfd, [0, 0, 0])),
        (0, libc::EPERM),
        "userfaultfd"
    );
    const LOOKUP: libc::c_long = 1;
    const UPDATE: libc::c_long = 2;
    let map = make_a_map().unwrap();
    assert_eq!(place.both(|| on_element(LOOKUP, map)), (0, 0), "lookup");
    assert_eq!(
        place.both(|| on_element(UPDATE, map)),
        (0, libc::EPERM),
        "update"
    );
}

#[test]
fn sockets_are_unix_tcp_and_udp() {
    let place = Place::new();
    let absent = (0, libc::EAFNOSUPPORT);
    assert_eq!(
        place.both(|| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
        absent,
        "raw"
    );
    assert_eq!(
        place.both(|| socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
        absent,
        "raw6"
    );
    assert_eq!(
        place.both(|| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
        absent,
        "packet"
    );
    assert_eq!(
        place.both(|| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
        absent,
        "netlink"
    );
    let udp_lite = 136;
    assert_eq!(
        place.both(|| socket(libc::AF_INET, libc::SOCK_DGRAM, udp_lite)),
        (0, libc::EPROTONOSUPPORT),
        "UDP-Lite"
    );
}

#[test]
fn memory_is_writable_or_executable() {
    let place = Place::new();
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    assert_eq!(
        place.both(|| map_memory(read | write | execute).map(drop)),
        (0, libc::EPERM),
        "mmap"
    );
    assert_eq!(
        place.both(|| {
            let memory = map_memory(read | write)?;
            plain(libc::SYS_mprotect, [memory, 4096, (read | execute).into()])
        }),
        (0, libc::EPERM),
        "mprotect"
    );
}

#[test]
fn only_the_listed_files_exist() {
    let place = Place::new();
    needs_landlock(&place);
    let denied = (0, libc::EACCES);
    let read = |path: PathBuf| move || fs::read(&path).map(drop);
    assert_eq!(place.both(read(place.path("beside/file"))), denied);
    assert_eq!(place.both(read("/bin/true".into())), denied);
    assert_eq!(
        place.both(|| fs::write(place.path("beside/file"), "x")),
        denied
    );
    assert_eq!(place.both(|| fs::write(place.path("top"), "x")), denied);
    assert_eq!(place.both(|| fs::read_dir("/").map(drop)), denied);
    assert_eq!(place.both(|| fs::read_dir("/etc").map(drop)), denied);
    assert_eq!(
        place.both(|| File::options().append(true).open("/etc/hosts").map(drop)),
        denied
    );
    // What the proxy works with is there.
    for directory in ["state", "ca"] {
        let at = |name: &str| place.path(directory).join(name);
        let work = || {
            fs::write(at("new"), "text")?;
            File::options().write(true).open(at("new"))?.set_len(1)?;
            fs::rename(at("new"), at("file"))?;
            File::open(at("."))?.sync_all()?;
            fs::create_dir_all(at("."))?;
            fs::create_dir(at("sub"))?;
            fs::remove_dir(at("sub"))?;
            fs::read(at("file")).map(drop)
        };
        assert_eq!(place.both(work), (0, 0), "{directory}");
        // No device, pipe or link, and nothing to execute.
        assert_eq!(
            place.both(|| {
                let link = at("link");
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink("/etc/shadow", link)
            }),
            denied,
            "{directory}"
        );
    }
    for listed in ["/etc/hosts", "/proc/1/status", "/proc/1/cgroup"] {
        assert_eq!(place.both(read(listed.into())), (0, 0), "{listed}");
    }
    for listed in ["/etc/ssl/certs", "/usr/lib"] {
        assert!(Path::new(listed).is_dir(), "this test needs {listed}");
        assert_eq!(
            place.both(|| fs::read_dir(listed).map(drop)),
            (0, 0),
            "{listed}"
        );
    }
}

#[test]
fn other_processes_are_out_of_reach() {
    let place = Place::new();
    needs_landlock(&place);
    // This very process is the other one: its child has the same uid.
    let other = std::process::id();
    assert_eq!(
        place.both(|| File::open(format!("/proc/{other}/mem")).map(drop)),
        (0, libc::EACCES)
    );
    assert_eq!(
        place.both(|| plain(libc::SYS_kill, [other.into(), 0, 0])),
        (0, libc::EPERM)
    );
}

#[test]
fn what_a_proxy_does_still_works() {
    let place = Place::new();
    let work = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let thread = std::thread::spawn(move || listener.accept().map(drop));
        TcpStream::connect(address)?;
        thread.join().unwrap()?;
        UdpSocket::bind("[::1]:0")?;
        UnixStream::pair()?;
        ("localhost", 80).to_socket_addrs().map(drop)?;
        fs::read_to_string("/etc/ssl/certs/ca-certificates.crt").map(drop)
    };
    assert_eq!(place.both(work), (0, 0));
}

#[test]
fn threads_are_confined_as_the_process_is() {
    let place = Place::new();
    assert_eq!(
        place.both(|| std::thread::spawn(enter_a_namespace).join().unwrap()),
        (0, libc::EPERM)
    );
}

fn enter_a_namespace() -> io::Result<()> {
    plain(libc::SYS_unshare, [libc::CLONE_NEWUTS.into(), 0, 0])
}

#[test]
fn a_process_with_threads_is_not_half_confined() {
    let place = Place::new();
    let refused = outcome(|| {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || held.recv());
        rustix::thread::set_no_new_privs(true)?;
        let confined = confine_proxy(&[&place.path("state")], &[]);
        assert!(confined.is_err(), "{confined:?}");
        drop(hold);
        let _ = thread.join();
        Ok(())
    });
    assert_eq!(refused, 0);
}

#[test]
fn without_no_new_privs_or_a_directory_the_start_ends() {
    let place = Place::new();
    let missing = outcome(|| {
        rustix::thread::set_no_new_privs(true)?;
        let error = confine_proxy(&[&place.path("not-there")], &[]).unwrap_err();
        assert!(error.to_string().contains("not-there"), "{error}");
        Ok(())
    });
    assert_eq!(missing, 0);
    let privileged = outcome(|| {
        // Root may set a filter without it; somebody else may not.
        rustix::thread::set_thread_res_uid(
            rustix::thread::Uid::from_raw(65534),
            rustix::thread::Uid::from_raw(65534),
            rustix::thread::Uid::from_raw(65534),
        )?;
        assert!(confine_proxy(&[], &[]).is_err());
        Ok(())
    });
    assert_eq!(privileged, 0);
}

#[test]
fn both_walls_are_reported() {
    let place = Place::new();
    let reported = outcome(|| {
        let layers = place.confine();
        let names: Vec<_> = layers.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["proxy_landlock", "proxy_seccomp"]);
        assert_eq!(layers[1].state, LayerState::Live);
        for layer in &layers {
            assert_eq!(
                layer.leaves_open.is_empty(),
                layer.state == LayerState::Live
            );
        }
        Ok(())
    });
    assert_eq!(reported, 0);
}

fn needs_landlock(place: &Place) {
    let live = outcome(|| match place.confine()[0].state {
        LayerState::Live => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
    });
    assert_eq!(
        live, 0,
        "this test needs a kernel with Landlock 6 (Linux 6.12)"
    );
}
