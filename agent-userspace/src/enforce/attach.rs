//! Attaches the programs, or puts them into the links that an earlier daemon left, without a moment in between.
//! Place on the path: after the maps exist and before any port is published; the egress floor comes first.
//! INVARIANT: every link is pinned, and attached to the live cgroup of that name; anything else is made anew.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, Lsm, Program,
    ProgramError, SockOps,
};
use aya::{Btf, Ebpf};

use super::cgroup::{self, Open, Tree};
use super::error::EnforceError;
use super::mounts;
use super::outside::Outside;
use super::pins::Pins;
use super::sys;
use super::types;

/// Which cgroup a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// All governed processes.
    Agents,
    /// The sockets that the proxy listens with.
    Proxy,
    /// Everybody: these programs ask who the task is before anything else.
    Root,
}

/// The programs in the order in which they are attached: the floor first, redirection last.
pub(super) const PROGRAMS: [(&str, Place); 22] = [
    ("egress", Place::Agents),
    ("ingress", Place::Agents),
    ("sock_create", Place::Agents),
    ("set_option", Place::Agents),
    ("root_connect4", Place::Root),
    ("root_connect6", Place::Root),
    ("root_sendmsg4", Place::Root),
    ("root_sendmsg6", Place::Root),
    ("bind4", Place::Agents),
    ("bind6", Place::Agents),
    ("post_bind4", Place::Agents),
    ("post_bind6", Place::Agents),
    ("sendmsg4", Place::Agents),
    ("sendmsg6", Place::Agents),
    ("recvmsg4", Place::Agents),
    ("recvmsg6", Place::Agents),
    ("getpeername4", Place::Agents),
    ("getpeername6", Place::Agents),
    ("accepted", Place::Proxy),
    ("flows", Place::Agents),
    ("connect4", Place::Agents),
    ("connect6", Place::Agents),
];

/// The programs on tracepoints; they write the labels.
const TRACEPOINTS: [(&str, &str); 4] = [
    ("label_attach", "cgroup_attach_task"),
    ("label_birth", "task_newtask"),
    ("label_exec", "sched_process_exec"),
    ("label_keep", "sched_prepare_exec"),
];

/// Programs at the root that know the label: task storage in such programs came later than everything else here.
pub(super) const STRAY: [&str; 5] = [
    "stray_create",
    "stray_connect4",
    "stray_connect6",
    "stray_sendmsg4",
    "stray_sendmsg6",
];

/// The LSM programs with their hooks; each is tried by itself, and some kernels refuse all of them.
const LSM: [(&str, &str); 19] = [
    ("socket_create", "socket_create"),
    ("socket_post_create", "socket_post_create"),
    ("socket_connect", "socket_connect"),
    ("socket_sendmsg", "socket_sendmsg"),
    ("socket_setsockopt", "socket_setsockopt"),
    ("socket_bind", "socket_bind"),
    ("socket_listen", "socket_listen"),
    ("socket_accept", "socket_accept"),
    ("file_receive", "file_receive"),
    ("unix_stream_connect", "unix_stream_connect"),
    ("unix_may_send", "unix_may_send"),
    ("ptrace_access_check", "ptrace_access_check"),
    ("bpf_call", "bpf"),
    ("task_alloc", "task_alloc"),
    ("execute", "bprm_check_security"),
    ("no_capability", "capable"),
    ("uring_sqpoll", "uring_sqpoll"),
    ("uring_override_creds", "uring_override_creds"),
    ("uring_cmd", "uring_cmd"),
];

/// What became of each program that a kernel may refuse: in force, or why not.
pub(super) type Tried = Vec<(&'static str, Result<(), String>)>;

/// Loads every program and attaches it, or updates the link that is pinned already.
pub(super) fn attach_all(object: &mut Ebpf, tree: &Tree, pins: &Pins) -> Result<(), EnforceError> {
    for (name, place) in PROGRAMS {
        let program = program(object, name)?;
        once(load(program)).map_err(|source| EnforceError::Load {
            program: Some(name),
            source: Box::new(source),
        })?;
        let path = directory(tree, place);
        attach(program, name, path, &cgroup::open(path)?, pins.version())?;
    }
    Ok(())
}

/// The same programs, loaded already, for a workload whose cgroup lies elsewhere; its links have a directory of their own.
pub(super) fn attach_outside(
    object: &mut Ebpf,
    path: &Path,
    cgroup: &Open,
    pins: &Path,
) -> Result<(), EnforceError> {
    for (name, _) in of_workloads() {
        attach(program(object, name)?, name, path, cgroup, pins)?;
    }
    Ok(())
}

/// The programs that each workload is under.
pub(super) fn of_workloads() -> impl Iterator<Item = (&'static str, Place)> {
    PROGRAMS
        .into_iter()
        .filter(|(_, place)| *place == Place::Agents)
}

/// Tries what a kernel may refuse: the labels first, then the programs that ask for them. A program is live if it loads and
/// attaches, and for BPF LSM if the kernel runs such programs at all.
pub(super) fn try_all(object: &mut Ebpf, tree: &Tree, pins: &Pins) -> Tried {
    let kernel = types::places()
        .map(drop)
        .map_err(std::string::ToString::to_string)
        .and_then(|()| {
            Btf::from_sys_fs().map_err(|error| format!("the kernel has no BTF: {error}"))
        });
    let lsm = kernel_runs_bpf_lsm().then_some(()).ok_or_else(|| {
        "`bpf` is not among the kernel's active LSMs (boot with lsm=...,bpf)".to_owned()
    });
    let labels = TRACEPOINTS.into_iter().map(|(name, point)| {
        let tried = kernel
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|types| try_tracepoint(object, pins, types, name, point));
        (name, tried)
    });
    let mut tried: Tried = labels.collect();
    tried.extend(STRAY.into_iter().map(|name| {
        let tried = kernel.as_ref().map_err(Clone::clone);
        (name, tried.and_then(|_| try_root(object, tree, pins, name)))
    }));
    tried.extend(LSM.into_iter().map(|(name, hook)| {
        let types = lsm.clone().and(kernel.as_ref().map_err(Clone::clone));
        let tried = types.and_then(|types| try_lsm(object, pins, types, name, hook));
        (name, tried)
    }));
    tried
}

fn try_tracepoint(
    object: &mut Ebpf,
    pins: &Pins,
    types: &Btf,
    name: &str,
    point: &str,
) -> Result<(), String> {
    let program: &mut BtfTracePoint = object
        .program_mut(name)
        .ok_or("the program is missing")?
        .try_into()
        .map_err(|error| format!("{error}"))?;
    once(program.load(point, types)).map_err(refuses("load", name))?;
    let link = program.attach().map_err(refuses("attach", name))?;
    let link = program
        .take_link(link)
        .map_err(|error| format!("{error}"))?;
    pin_anew(link.into(), name, pins)
}

fn try_root(object: &mut Ebpf, tree: &Tree, pins: &Pins, name: &'static str) -> Result<(), String> {
    let program = program(object, name).map_err(|error| error.to_string())?;
    once(load(program)).map_err(refuses("load", name))?;
    let cgroup = cgroup::open(tree.root()).map_err(|error| error.to_string())?;
    attach(program, name, tree.root(), &cgroup, pins.version()).map_err(refuses("attach", name))
}

fn try_lsm(
    object: &mut Ebpf,
    pins: &Pins,
    types: &Btf,
    name: &str,
    hook: &str,
) -> Result<(), String> {
    let program: &mut Lsm = object
        .program_mut(name)
        .ok_or("the program is missing")?
        .try_into()
        .map_err(|error| format!("{error}"))?;
    once(program.load(hook, types)).map_err(refuses("load", name))?;
    let link = program.attach().map_err(refuses("attach", name))?;
    let link = program
        .take_link(link)
        .map_err(|error| format!("{error}"))?;
    pin_anew(link.into(), name, pins)
}

/// Pins a link that cannot be updated in place, where the one of an earlier daemon was.
fn pin_anew(link: FdLink, name: &str, pins: &Pins) -> Result<(), String> {
    // The new one is in force already, the old one goes now; a crash in between leaves a second pin, which the next start replaces.
    let (path, next) = (
        pins.path(&link_name(name)),
        pins.path(&format!("next_{name}")),
    );
    let _no_stale_pin = fs::remove_file(&next);
    let _pinned = link
        .pin(&next)
        .map_err(|error| format!("the link could not be pinned: {}", root_cause(&error)))?;
    fs::rename(&next, &path).map_err(|error| format!("the link could not be pinned: {error}"))
}

/// Whether the pinned links of a program are attached to the live cgroups: the instance's own, and those of workloads elsewhere.
pub(super) fn is_live(
    name: &str,
    tree: &Tree,
    outside: &[Outside],
    pins: &Pins,
) -> Result<bool, EnforceError> {
    let place = PROGRAMS
        .iter()
        .find(|(program, _)| *program == name)
        .map_or(Place::Agents, |(_, place)| *place);
    let own = cgroup::id(directory(tree, place))?;
    if pinned(name, own, pins.version())?.is_none() {
        return Ok(false);
    }
    if place != Place::Agents {
        return Ok(true);
    }
    for workload in outside {
        // Where the cgroup is gone, nobody is left to be governed.
        if workload.open()?.is_some() && pinned(name, workload.id, &workload.pins(pins))?.is_none()
        {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn directory(tree: &Tree, place: Place) -> &Path {
    match place {
        Place::Agents => tree.agents(),
        Place::Proxy => tree.proxy(),
        Place::Root => tree.root(),
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, EnforceError> {
    let missing = || EnforceError::Load {
        program: Some(name),
        source: "not in the object".into(),
    };
    object.program_mut(name).ok_or_else(missing)
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// A repair attaches what was loaded at the start.
fn once(loaded: Result<(), ProgramError>) -> Result<(), ProgramError> {
    match loaded {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        loaded => loaded,
    }
}

/// `path` is what the opened cgroup is called in errors.
fn attach(
    program: &mut Program,
    name: &'static str,
    path: &Path,
    cgroup: &Open,
    pins: &Path,
) -> Result<(), EnforceError> {
    let failed = |source: ProgramError| EnforceError::Attach {
        program: name,
        source: Box::new(source),
    };
    let pin = pins.join(link_name(name));
    if let Some(link) = pinned(name, cgroup.id, pins)? {
        let program = program.fd().map_err(failed)?.as_fd();
        return sys::link_update(link.as_fd(), program).map_err(bpf_error("BPF_LINK_UPDATE", &pin));
    }
    // A link to a cgroup that is gone: it governs nobody, and its pin is in the way.
    let make_way = || match pin.exists() {
        true => fs::remove_file(&pin).map_err(EnforceError::io("removing", &pin)),
        false => Ok(()),
    };
    if let Program::CgroupSockopt(program) = program {
        // aya does not give such a link away.
        let program = program.fd().map_err(failed)?.as_fd();
        let link = sys::link_create(program, cgroup.file.as_fd(), sys::SETSOCKOPT)
            .map_err(bpf_error("BPF_LINK_CREATE", path))?;
        make_way()?;
        return sys::obj_pin(link.as_fd(), &pin).map_err(bpf_error("BPF_OBJ_PIN", &pin));
    }
    let link = attach_new(program, &cgroup.file).map_err(failed)?;
    make_way()?;
    link.pin(&pin).map(drop).map_err(|source| EnforceError::Io {
        what: "pinning",
        path: pin,
        source: std::io::Error::other(source),
    })
}

/// The pinned link, if there is one and it is attached to this very cgroup.
fn pinned(name: &str, cgroup: u64, pins: &Path) -> Result<Option<OwnedFd>, EnforceError> {
    let path = pins.join(link_name(name));
    if !path.exists() {
        return Ok(None);
    }
    let link = sys::obj_get(&path).map_err(bpf_error("BPF_OBJ_GET", &path))?;
    let info = sys::link_info(link.as_fd()).map_err(bpf_error("BPF_OBJ_GET_INFO_BY_FD", &path))?;
    // A removed cgroup that was made again under the same name has another id.
    Ok((info.cgroup == cgroup).then_some(link))
}

/// Links always share a cgroup with other links; `Single` is how aya spells "no flags".
fn attach_new(program: &mut Program, cgroup: &fs::File) -> Result<FdLink, ProgramError> {
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    fn taken<L>(link: L) -> Result<FdLink, ProgramError>
    where
        FdLink: TryFrom<L>,
    {
        // Before Linux 5.7 there are no links; such kernels are refused.
        FdLink::try_from(link).map_err(|_not_a_link| ProgramError::NotAttached)
    }
    match program {
        Program::CgroupSkb(program) => {
            let direction = *program.expected_attach_type();
            let direction = direction.ok_or(ProgramError::UnexpectedProgramType)?;
            let id = program.attach(cgroup, direction, MODE)?;
            taken(CgroupSkb::take_link(program, id)?)
        }
        Program::CgroupSock(program) => {
            let id = program.attach(cgroup, MODE)?;
            taken(CgroupSock::take_link(program, id)?)
        }
        Program::CgroupSockAddr(program) => {
            let id = program.attach(cgroup, MODE)?;
            taken(CgroupSockAddr::take_link(program, id)?)
        }
        Program::SockOps(program) => {
            let id = program.attach(cgroup, MODE)?;
            taken(SockOps::take_link(program, id)?)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn refuses<E: std::error::Error>(act: &str, name: &str) -> impl FnOnce(E) -> String {
    move |error| format!("the kernel refuses to {act} {name}: {}", root_cause(&error))
}

/// Links lie beside maps: a prefix keeps their names apart.
pub(super) fn link_name(program: &str) -> String {
    format!("link_{program}")
}

/// BPF LSM programs load and attach without ever running where `bpf` is not in the list.
fn kernel_runs_bpf_lsm() -> bool {
    mounts::active_lsms().is_some_and(|list| list.trim().split(',').any(|lsm| lsm == "bpf"))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

pub(super) fn bpf_error(
    call: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> EnforceError {
    let subject = path.display().to_string();
    move |source| EnforceError::Bpf {
        call,
        subject,
        source,
    }
}
