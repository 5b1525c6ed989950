//! The plan of a launch: every step of the child, with its texts, before there is a child.
//! All looking up happens here, in the parent; what the child does is fixed when it is born.
//! INVARIANT: mounts come before credentials, credentials before no_new_privs, the filter last before execve.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};

use super::landlock::Domain;
use super::seccomp::Filter;
use super::step::{Act, Step};
use super::trust::{self, Trust};
use super::{Account, Launch, LaunchError, child, hide, java};

/// What `PATH` means to a command that is started without one.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The child's steps and the command it becomes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// The files to try, in order.
    pub(super) candidates: Vec<CString>,
    pub(super) arguments: Texts,
    pub(super) environment: Texts,
    command: String,
}

/// An array of C strings as execve takes it.
#[derive(Debug)]
pub(super) struct Texts {
    pointers: Vec<*const libc::c_char>,
    /// What the pointers point to; never changed after they were taken.
    _texts: Vec<CString>,
}

impl Plan {
    /// Plans the launch.
    pub(super) fn new(launch: &Launch, landlock: Domain) -> Result<Plan, LaunchError> {
        let program = launch
            .command
            .first()
            .filter(|program| !program.is_empty())
            .ok_or(LaunchError::BadCommand)?;
        let runtime = canonical(&launch.runtime_dir)?;
        let files = Files {
            combined: runtime.join("ca-bundle.pem"),
            root: runtime.join("tenant-ca.pem"),
            java: runtime.join("tenant-ca.jks"),
        };
        let mut environment = trust::environment(&launch.environment, &files.combined, &files.root);
        if let Some(account) = &launch.account {
            introduce(account, &mut environment);
        }
        let candidates = candidates(program, &environment);
        let found = candidates
            .iter()
            .map(|path| launch.directory.join(path))
            .find(|path| path.is_file());
        let trust = Trust::new(
            &launch.root_pem,
            &launch.trust,
            found.as_deref(),
            &launch.directory,
            &environment,
        )?;
        // Where no store is in sight to be overlaid, a JVM that is there nevertheless is told.
        if trust.java_overlays.is_empty() {
            lead_java(&files.java, &mut environment);
        }

        let mut steps = Steps::default();
        if let Some(netns) = &launch.netns {
            let netns = netns.try_clone().map_err(|error| LaunchError::Prepare {
                what: "the network namespace".to_owned(),
                error,
            })?;
            steps.add("enter its network namespace", Act::Network(netns));
        }
        steps.add("make a mount and a cgroup namespace", Act::Namespaces);
        steps.add("make mounts private", Act::Private);
        steps.hide(launch, &runtime, &trust, &files)?;
        if launch.netns.is_some() {
            // After the covers below /sys, which it covers in turn.
            steps.add("show its network namespace in /sys", Act::Sysfs);
        }
        steps.read_only()?;
        steps.add(
            format!("enter {}", launch.directory.display()),
            Act::Enter {
                directory: text(launch.directory.as_os_str())?,
            },
        );
        steps.become_unprivileged(launch.account.as_ref(), &files, landlock)?;
        Ok(Plan {
            steps: steps.0,
            candidates: candidates
                .iter()
                .map(|path| text(path.as_os_str()))
                .collect::<Result<_, _>>()?,
            arguments: Texts::new(
                launch
                    .command
                    .iter()
                    .map(|argument| text(argument))
                    .collect::<Result<_, _>>()?,
            ),
            environment: Texts::new(
                environment
                    .iter()
                    .map(assignment)
                    .collect::<Result<_, _>>()?,
            ),
            command: program.to_string_lossy().into_owned(),
        })
    }

    /// What the child reported, in words.
    pub(super) fn explain(&self, place: u32, errno: i32) -> LaunchError {
        let error = io::Error::from_raw_os_error(errno);
        if child::is_exec(place) {
            let command = self.command.clone();
            return match errno {
                libc::ENOENT | libc::ENOTDIR => LaunchError::NotFound { command },
                _ => LaunchError::CannotExecute { command, error },
            };
        }
        let step = usize::try_from(place)
            .ok()
            .and_then(|place| self.steps.get(place));
        let step = step.map_or_else(|| format!("perform step {place}"), |step| step.name.clone());
        LaunchError::Step { step, error }
    }
}

impl Texts {
    fn new(texts: Vec<CString>) -> Texts {
        let mut pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Texts {
            pointers,
            _texts: texts,
        }
    }

    pub(super) fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

/// Where the workload finds its CA files: in a file system of its own that covers the runtime directory.
struct Files {
    combined: PathBuf,
    root: PathBuf,
    java: PathBuf,
}

#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    fn add(&mut self, name: impl Into<String>, act: Act) {
        self.0.push(Step {
            name: name.into(),
            act,
        });
    }

    fn cover(&mut self, at: &Path) -> Result<(), LaunchError> {
        let options = c"mode=755,size=4k,nr_inodes=64".to_owned();
        self.add(
            format!("hide {}", at.display()),
            Act::Cover {
                at: text(at.as_os_str())?,
                options,
            },
        );
        Ok(())
    }

    /// Covers what must not be seen, and puts the workload's own files in place.
    fn hide(
        &mut self,
        launch: &Launch,
        runtime: &Path,
        trust: &Trust,
        files: &Files,
    ) -> Result<(), LaunchError> {
        let (directories, sockets) = hide::brokers(&named_sockets(&launch.environment));
        let kernel = hide::file_systems().map_err(|error| LaunchError::Prepare {
            what: "/proc/self/mountinfo".to_owned(),
            error,
        })?;
        let mut hidden: Vec<PathBuf> = Vec::new();
        for directory in launch.hidden.iter().filter(|directory| directory.exists()) {
            hidden.push(canonical(directory)?);
        }
        hidden.extend(directories);
        hidden.extend(kernel);
        // Outer ones first: what lies below is covered with them.
        hidden.sort();
        hidden.dedup();
        let outermost: Vec<PathBuf> = hidden
            .iter()
            .filter(|path| !hide::is_below(path, &hidden) && path.as_path() != runtime)
            .cloned()
            .collect();
        for directory in &outermost {
            self.cover(directory)?;
        }
        self.own_directory(runtime, &outermost)?;
        self.own_files(launch, runtime, trust, files)?;
        let masked = runtime.join("masked");
        let visible =
            |path: &&PathBuf| !hide::is_below(path, &outermost) && !path.starts_with(runtime);
        for socket in sockets.iter().filter(visible) {
            self.overlay("hide", &masked, socket)?;
        }
        for bundle in trust.overlays.iter().filter(visible) {
            self.overlay("overlay the CA bundle", &files.combined, bundle)?;
        }
        for store in trust.java_overlays.iter().filter(visible) {
            self.overlay("overlay the JVM's trust store", &files.java, store)?;
        }
        if let Ok(resolv) = std::fs::canonicalize("/etc/resolv.conf")
            && visible(&&resolv)
        {
            self.overlay("overlay", &runtime.join("resolv.conf"), &resolv)?;
        }
        for covered in outermost.iter().map(PathBuf::as_path).chain([runtime]) {
            let name = format!("make {} read-only", covered.display());
            self.add(
                name,
                Act::ReadOnly {
                    at: text(covered.as_os_str())?,
                    recursive: false,
                },
            );
        }
        Ok(())
    }

    /// Covers the runtime directory by the file system for the workload's own files; makes the way to it where an
    /// outer directory has just been covered.
    fn own_directory(&mut self, runtime: &Path, covered: &[PathBuf]) -> Result<(), LaunchError> {
        let missing = runtime
            .ancestors()
            .filter(|path| hide::is_below(path, covered));
        for directory in missing.collect::<Vec<_>>().into_iter().rev() {
            self.add(
                format!("make {}", directory.display()),
                Act::Directory {
                    at: text(directory.as_os_str())?,
                },
            );
        }
        let options = c"mode=755,size=32m,nr_inodes=64".to_owned();
        self.add(
            format!("cover {}", runtime.display()),
            Act::Cover {
                at: text(runtime.as_os_str())?,
                options,
            },
        );
        Ok(())
    }

    fn own_files(
        &mut self,
        launch: &Launch,
        runtime: &Path,
        trust: &Trust,
        files: &Files,
    ) -> Result<(), LaunchError> {
        let resolv = format!(
            "nameserver {}\noptions edns0 timeout:2 attempts:2\n",
            launch.nameserver
        );
        let readable = Mode::from_raw_mode(0o444);
        let contents = [
            (files.combined.clone(), trust.combined.clone(), readable),
            (files.root.clone(), trust.root.clone(), readable),
            (files.java.clone(), trust.java.clone(), readable),
            (runtime.join("resolv.conf"), resolv.into_bytes(), readable),
            (runtime.join("masked"), Vec::new(), Mode::empty()),
        ];
        for (path, content, mode) in contents {
            let act = Act::File {
                at: text(path.as_os_str())?,
                content,
                mode,
            };
            self.add(format!("write {}", path.display()), act);
        }
        Ok(())
    }

    fn overlay(&mut self, verb: &str, file: &Path, onto: &Path) -> Result<(), LaunchError> {
        let act = Act::Overlay {
            file: text(file.as_os_str())?,
            onto: text(onto.as_os_str())?,
        };
        self.add(format!("{verb} {}", onto.display()), act);
        Ok(())
    }

    /// Takes the kernel's settings out of the hands of a uid 0 without capabilities.
    fn read_only(&mut self) -> Result<(), LaunchError> {
        for path in hide::read_only() {
            let at = text(path.as_os_str())?;
            self.add(
                format!("bind {}", path.display()),
                Act::Bind { at: at.clone() },
            );
            self.add(
                format!("make {} read-only", path.display()),
                Act::ReadOnly {
                    at,
                    recursive: true,
                },
            );
        }
        self.add(
            "make /sys read-only",
            Act::ReadOnly {
                at: c"/sys".to_owned(),
                recursive: true,
            },
        );
        Ok(())
    }

    fn become_unprivileged(
        &mut self,
        account: Option<&Account>,
        files: &Files,
        landlock: Domain,
    ) -> Result<(), LaunchError> {
        self.add("empty the capability bounding set", Act::Bounding);
        if let Some(account) = account {
            let name = account.name.as_ref().map_or_else(
                || account.uid.to_string(),
                |name| name.to_string_lossy().into_owned(),
            );
            let act = Act::Account {
                uid: Uid::from_raw(account.uid),
                gid: Gid::from_raw(account.gid),
                groups: account.groups.iter().copied().map(Gid::from_raw).collect(),
            };
            self.add(format!("become user {name}"), act);
        }
        self.add("drop all capabilities", Act::Capabilities);
        for file in [&files.combined, &files.root] {
            let name = format!("read {} as the workload's user", file.display());
            self.add(
                name,
                Act::Readable {
                    file: text(file.as_os_str())?,
                },
            );
        }
        self.add("set no_new_privs", Act::NoNewPrivileges);
        self.add("enter a Landlock domain", Act::Landlock(landlock));
        self.add("close descriptors above 2", Act::Descriptors);
        self.add("restore SIGPIPE", Act::Signals);
        self.add(
            "install the system call filter",
            Act::Seccomp(Filter::workload()),
        );
        Ok(())
    }
}

/// Names the trust store to every JVM, unless the environment names one already.
fn lead_java(store: &Path, environment: &mut Vec<(OsString, OsString)>) {
    let inherited = environment
        .iter()
        .find(|(name, _)| name == java::VARIABLE)
        .map(|(_, value)| value.clone());
    let options = java::options(store, inherited.as_deref());
    environment.retain(|(name, _)| name != java::VARIABLE);
    environment.push((java::VARIABLE.into(), options));
}

/// The files that execvp would try for this command.
fn candidates(program: &OsStr, environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    let path = environment
        .iter()
        .find(|(name, _)| name == "PATH")
        .map_or(OsStr::new(DEFAULT_PATH), |(_, path)| path);
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .collect()
}

/// Unix sockets of brokers that the environment leads to.
fn named_sockets(environment: &[(OsString, OsString)]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (name, value) in environment {
        let path = match name.as_bytes() {
            b"SSH_AUTH_SOCK" => Some(value.as_bytes()),
            b"DOCKER_HOST" | b"CONTAINER_HOST" => value.as_bytes().strip_prefix(b"unix://"),
            b"DBUS_SESSION_BUS_ADDRESS" => {
                let address = value.as_bytes().strip_prefix(b"unix:path=");
                address.and_then(|address| address.split(|byte| matches!(byte, b',' | b';')).next())
            }
            _ => None,
        };
        found.extend(
            path.filter(|path| path.starts_with(b"/"))
                .map(|path| PathBuf::from(OsStr::from_bytes(path))),
        );
    }
    found
}

/// Who the account is, as login programs tell it.
fn introduce(account: &Account, environment: &mut Vec<(OsString, OsString)>) {
    let name = account.name.clone();
    let home = account.home.clone().map(OsString::from);
    for (variable, value) in [("HOME", home), ("LOGNAME", name.clone()), ("USER", name)] {
        environment.retain(|(present, _)| present != variable);
        environment.extend(value.map(|value| (OsString::from(variable), value)));
    }
}

fn canonical(path: &Path) -> Result<PathBuf, LaunchError> {
    std::fs::canonicalize(path).map_err(|error| LaunchError::Prepare {
        what: path.display().to_string(),
        error,
    })
}

fn assignment((name, value): &(OsString, OsString)) -> Result<CString, LaunchError> {
    let mut assignment = name.clone();
    assignment.push("=");
    assignment.push(value);
    text(&assignment)
}

fn text(text: &OsStr) -> Result<CString, LaunchError> {
    CString::new(text.as_bytes()).map_err(|_| LaunchError::BadCommand)
}
