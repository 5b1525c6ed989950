//! The programs and maps themselves, and the kernel's own ways of starting programs.
//! What unmakes walls touches those of this very instance only.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cgroups::send;
use crate::escape::order::{At, Order, Stop};
use crate::escape::{Case, Class, Trace, Who, sys};

const BPFFS: &str = "/sys/fs/bpf";

const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const MAP_NEXT_KEY: i32 = 4;
const PROG_LOAD: i32 = 5;
const OBJ_GET: i32 = 7;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const OBJ_INFO: i32 = 15;
const LINK_BY_ID: i32 = 30;
const LINK_NEXT_ID: i32 = 31;
const LINK_DETACH: i32 = 34;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E124",
        "detaches the programs",
        Class::Programs,
        Who::Root,
        detach,
    )
    .open_without(&["lsm_bpf"])
    .unmaking(),
    Case::new(
        "E125",
        "attaches programs of its own that allow",
        Class::Programs,
        Who::Root,
        attach,
    )
    .open_without(&["lsm_bpf"]),
    Case::new(
        "E126",
        "removes the pins",
        Class::Programs,
        Who::Root,
        |order| {
            if order.governed {
                for pin in pins()? {
                    fs::remove_file(pin).at("unpin")?;
                }
            }
            send(order)
        },
    )
    .unmaking(),
    Case::new("E127", "wipes the maps", Class::Programs, Who::Root, wipe)
        .open_without(&["lsm_bpf"])
        .unmaking(),
    Case::new(
        "E128",
        "has the kernel start a program for a core dump",
        Class::Programs,
        Who::Root,
        core_pattern,
    )
    .seen_by(Trace::Token)
    .launcher_closes("needs /proc/sys, which the launcher makes read-only"),
];

/// The workload's own cgroup, and the one of all agents above it.
fn own_cgroup(order: &Order) -> Result<PathBuf, Stop> {
    let own = fs::read_to_string("/proc/self/cgroup").at("look")?;
    own.lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .map(|own| order.hierarchy.join(own))
        .ok_or_else(|| Stop::because("look", "no cgroup v2"))
}

/// The pins of the instance whose workload this is.
fn pins() -> Result<Vec<PathBuf>, Stop> {
    let own = fs::read_to_string("/proc/self/cgroup").at("look")?;
    let instance = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/")?.split('/').next())
        .filter(|name| name.starts_with("sluice-"))
        .ok_or_else(|| Stop::because("look", "no instance"))?;
    let mut pins = Vec::new();
    for version in fs::read_dir(Path::new(BPFFS).join(instance)).at("look")? {
        let version = version.at("look")?.path();
        for pin in fs::read_dir(version).at("look")? {
            pins.push(pin.at("look")?.path());
        }
    }
    Ok(pins)
}

/// Two 32-bit fields of an attribute.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | (u64::from(high) << 32)
}

fn attribute(fields: &[u64]) -> [u64; 18] {
    let mut attribute = [0; 18];
    for (to, from) in attribute.iter_mut().zip(fields) {
        *to = *from;
    }
    attribute
}

fn detach(order: &Order) -> Result<(), Stop> {
    if !order.governed {
        return send(order);
    }
    let agents = own_cgroup(order)?;
    let agents = agents
        .parent()
        .ok_or_else(|| Stop::because("look", "no cgroup"))?;
    let wanted = fs::metadata(agents).at("look")?.ino();
    let mut id = 0;
    let mut detached = Err(Stop::because("look", "no link"));
    loop {
        let mut next = attribute(&[pair(id, 0)]);
        match sys::bpf(LINK_NEXT_ID, &mut next) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error).at("bpf"),
        }
        let [first, ..] = next;
        id = (first >> 32) as u32;
        // One that went away meanwhile is somebody else's.
        let Ok(link) = sys::bpf_fd(LINK_BY_ID, &mut attribute(&[u64::from(id)])) else {
            continue;
        };
        // type, id, program, pad, cgroup, attach type
        let mut info = [0_u64; 32];
        let length = size_of_val(&info) as u32;
        let told = sys::bpf(
            OBJ_INFO,
            &mut attribute(&[pair(raw(&link), length), info.as_mut_ptr() as u64]),
        );
        let [_, _, cgroup, ..] = std::hint::black_box(info);
        if told.is_ok() && cgroup == wanted {
            detached = sys::bpf(LINK_DETACH, &mut attribute(&[u64::from(raw(&link))]))
                .at("detach")
                .map(drop);
        }
    }
    detached?;
    send(order)
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// `return 1`, at the workload's own cgroup, for packets and for datagrams.
fn attach(order: &Order) -> Result<(), Stop> {
    if !order.governed {
        return send(order);
    }
    const ALLOW_OVERRIDE: u32 = 1;
    // (program type, attach type): CGROUP_SKB at egress, CGROUP_SOCK_ADDR at sendmsg4
    const PLACES: [(u32, u32); 2] = [(8, 1), (18, 14)];
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let license = c"GPL";
    let cgroup = File::open(own_cgroup(order)?).at("open")?;
    let mut attached = Vec::new();
    for (kind, place) in PLACES {
        let program = sys::bpf_fd(
            PROG_LOAD,
            &mut attribute(&[
                pair(kind, 2),
                instructions.as_ptr() as u64,
                license.as_ptr() as u64,
                0,
                0,
                0,
                0,
                0,
                pair(0, place),
            ]),
        )
        .at("load")?;
        let target = cgroup.as_raw_fd().cast_unsigned();
        let words = [pair(target, raw(&program)), pair(place, ALLOW_OVERRIDE)];
        sys::bpf(PROG_ATTACH, &mut attribute(&words)).at("attach")?;
        attached.push((program, words));
    }
    let sent = send(order);
    for (_program, words) in attached {
        let _gone = sys::bpf(PROG_DETACH, &mut attribute(&words));
    }
    sent
}

fn wipe(order: &Order) -> Result<(), Stop> {
    if !order.governed {
        return send(order);
    }
    for pin in pins()? {
        let path = CString::new(pin.as_os_str().as_encoded_bytes())
            .map_err(std::io::Error::other)
            .at("name")?;
        let map = sys::bpf_fd(OBJ_GET, &mut attribute(&[path.as_ptr() as u64])).at("open")?;
        let zero = [0_u64; 64];
        let mut key = [0_u64; 64];
        let keys = key.as_mut_ptr() as u64;
        for _ in 0..64 {
            let mut next = attribute(&[u64::from(raw(&map)), 0, keys]);
            if sys::bpf(MAP_NEXT_KEY, &mut next).is_err() {
                break;
            }
            let gone = sys::bpf(MAP_DELETE, &mut attribute(&[u64::from(raw(&map)), keys]));
            if gone.is_err() {
                // An array: zeroes instead.
                let words = [u64::from(raw(&map)), keys, zero.as_ptr() as u64];
                let _refused = sys::bpf(MAP_UPDATE, &mut attribute(&words));
            }
        }
        std::hint::black_box(&mut key);
    }
    send(order)
}

fn core_pattern(order: &Order) -> Result<(), Stop> {
    if std::env::var_os("SLUICE_TEST_GUEST").is_none() {
        return Err(Stop::because(
            "core_pattern",
            "a setting of the whole kernel: tried in test machines only",
        ));
    }
    let program = std::env::current_exe().at("name")?;
    let pattern = format!(
        "|{} upcall {} {} %P",
        program.display(),
        order.token,
        order.v4
    );
    fs::write("/proc/sys/kernel/core_pattern", pattern).at("core_pattern")?;
    let _killed = sys::process::fork(|| std::process::abort());
    std::thread::sleep(std::time::Duration::from_millis(500));
    Ok(())
}

/// What the kernel starts: in its own namespaces, so it goes to those of the process that crashed.
pub(crate) fn upcall(words: &[String]) -> Result<(), Stop> {
    let [token, address, pid] = words else {
        return Err(Stop::because("start", "no words"));
    };
    let namespace = File::open(format!("/proc/{pid}/ns/net")).at("open")?;
    sys::process::enter(std::os::fd::AsFd::as_fd(&namespace), libc::CLONE_NEWNET).at("setns")?;
    crate::escape::helper::forward(&format!("{token} {address}"));
    Ok(())
}
