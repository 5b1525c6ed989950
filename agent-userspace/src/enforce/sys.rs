//! The bpf(2) calls that aya does not offer: updating a link in place, asking what it is attached to, links of socket options, and storage of tasks.
//! Place on the path: adoption of pins by a new daemon.
//! INVARIANT: each call passes a zeroed attribute block at least as long as the kernel's fields for that command.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info};

/// The attach type of the program on setsockopt().
pub(super) const SETSOCKOPT: bpf_attach_type = bpf_attach_type::BPF_CGROUP_SETSOCKOPT;

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// The id of the cgroup; 0 when that cgroup is gone, the link is detached, or it is of another kind.
    pub(super) cgroup: u64,
    /// The id of the program in it.
    pub(super) program: u32,
    /// Its own id.
    pub(super) link: u32,
}

/// Opens a pinned object.
pub(super) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to a cgroup; the link is all that keeps it there.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = cgroup.as_raw_fd() as u32;
    attr.link_create.attach_type = attach_type as u32;
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object.
pub(super) fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Makes the value that a task storage keeps with a process's first thread; EEXIST if there is one.
pub(super) fn task_storage_make(
    map: BorrowedFd<'_>,
    process: BorrowedFd<'_>,
    label: &agent_abi::Task,
) -> io::Result<()> {
    /// `BPF_NOEXIST`.
    const NO_EXIST: u64 = 1;
    let key = process.as_raw_fd();
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(label) as u64;
    attr.__bindgen_anon_2.flags = NO_EXIST;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Replaces the program of a cgroup link. There is no moment without a program.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link's program off, whoever else holds the link. Other objects are refused, and so are links of some kinds.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// What a cgroup link is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: all-zero bytes are a valid `bpf_link_info`.
    let mut info: bpf_link_info = unsafe { zeroed() };
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: plain integers, zero where the kernel wrote none.
    let cgroup = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    Ok(LinkInfo {
        cgroup,
        program: info.prog_id,
        link: info.id,
    })
}

/// The id of a map.
pub(super) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(map_info(map)?.id)
}

/// How long a map's values are, in bytes.
pub(super) fn map_value_size(map: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(map_info(map)?.value_size as usize)
}

fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    // SAFETY: all-zero bytes are a valid `bpf_map_info`.
    let mut info: bpf_map_info = unsafe { zeroed() };
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.info.bpf_fd = map.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_map_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// One value of a map, as bytes. `value` is as long as the map's values.
pub(super) fn map_get(map: BorrowedFd<'_>, key: u32, value: &mut [u8]) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop)
}

/// Replaces one value of a map. `value` is as long as the map's values.
pub(super) fn map_set(map: BorrowedFd<'_>, key: u32, value: &[u8]) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid `bpf_attr`.
    let mut attr: bpf_attr = unsafe { zeroed() };
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is initialised, lives across the call, and its pointers do too (see the callers).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
