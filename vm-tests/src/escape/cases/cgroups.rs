//! Leaving the workload's cgroup: by writing, by birth, by a mount of one's own, by somebody else's hand.

use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};

use crate::escape::helper::Role;
use crate::escape::order::{At, Order, Stop};
use crate::escape::{Case, Class, Who, sys};

const LABEL: &[&str] = &["label"];

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E79",
        "writes itself into the root's cgroup.procs",
        Class::Cgroups,
        Who::Root,
        |order| {
            leave(&order.hierarchy)?;
            send(order)
        },
    )
    .open_without(LABEL),
    Case::new(
        "E80",
        "a child that is born in the root cgroup",
        Class::Cgroups,
        Who::Root,
        |order| {
            let root = File::options()
                .read(true)
                .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
                .open(&order.hierarchy)
                .at("open")?;
            sys::process::clone_into(root.as_fd(), || {
                send(order).map_err(|_| std::io::Error::from_raw_os_error(libc::EPERM))
            })
            .at("clone3")
        },
    )
    .open_without(LABEL),
    Case::new(
        "E81",
        "mounts the hierarchy itself, and leaves",
        Class::Cgroups,
        Who::Root,
        |order| {
            sys::process::unshare(libc::CLONE_NEWNS).at("unshare")?;
            let place = PathBuf::from(format!("/proc/self/cwd/{}", order.token));
            fs::create_dir(&place).at("mkdir")?;
            mount("cgroup2", &place, "cgroup2", MountFlags::empty(), None).at("mount")?;
            leave(&place)?;
            send(order)
        },
    )
    .open_without(LABEL),
    Case::new(
        "E82",
        "a cgroup of its own below",
        Class::Cgroups,
        Who::Root,
        |order| {
            let own = fs::read_to_string("/proc/self/cgroup").at("look")?;
            let own = own
                .lines()
                .find_map(|line| line.strip_prefix("0::/"))
                .unwrap_or_default();
            let below = order.hierarchy.join(own).join(&order.token);
            fs::create_dir(&below).at("mkdir")?;
            let sent = leave(&below).and_then(|()| send(order));
            // Nothing of ours stays in the hierarchy.
            let _back = below.parent().map(leave);
            let _removed = fs::remove_dir(&below);
            sent
        },
    ),
    Case::new(
        "E83",
        "enters the first process's namespaces, and leaves",
        Class::Cgroups,
        Who::Root,
        |order| {
            for (name, kind) in [
                ("cgroup", libc::CLONE_NEWCGROUP),
                ("mnt", libc::CLONE_NEWNS),
            ] {
                let namespace = File::open(format!("/proc/1/ns/{name}")).at("open")?;
                sys::process::enter(namespace.as_fd(), kind).at("setns")?;
            }
            leave(&order.hierarchy)?;
            send(order)
        },
    )
    .open_without(LABEL),
    Case::new(
        "E84",
        "is moved out by somebody outside",
        Class::Cgroups,
        Who::Root,
        |order| {
            fs::write(&order.helper, std::process::id().to_string()).at("ask")?;
            let deadline = Instant::now() + Duration::from_secs(5);
            while Path::new(&order.helper).exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            send(order)
        },
    )
    .with(Role::Mover)
    .open_without(LABEL),
];

fn leave(cgroup: &Path) -> Result<(), Stop> {
    fs::write(cgroup.join("cgroup.procs"), "0").at("leave")
}

/// By a new socket: what was born in the workload stays the workload's.
pub(super) fn send(order: &Order) -> Result<(), Stop> {
    UdpSocket::bind("0.0.0.0:0")
        .at("socket")?
        .send_to(order.data(), order.to4())
        .at("send")
        .map(drop)
}
