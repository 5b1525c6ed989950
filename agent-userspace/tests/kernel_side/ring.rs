//! io_uring as far as the tests need it: a ring, and one entry submitted and completed.
//! No mapped memory outlives a call; the puppet is the only user of its ring.

#![allow(
    unsafe_code,
    reason = "the rings are memory shared with the kernel; each block says what lies there"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

/// `IORING_SETUP_SQPOLL`.
pub(crate) const SQPOLL: u32 = 2;
const OP_NOP: u8 = 0;
const OP_URING_CMD: u8 = 46;
const REGISTER_PERSONALITY: libc::c_long = 9;
const ENTER_GETEVENTS: libc::c_long = 1;
const ENTRIES: u32 = 1;
/// Where the parts of a ring are mapped from.
const RING: i64 = 0;
const ENTRY: i64 = 0x1000_0000;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Parameters {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, resv1, user_addr.
    sq: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1, user_addr.
    cq: [u32; 10],
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Default)]
struct Entry {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    other: [u64; 4],
    buffer: u16,
    personality: u16,
    rest: [u32; 5],
}

/// Opens a ring.
pub(crate) fn open(flags: u32) -> io::Result<OwnedFd> {
    set_up(flags).map(|(ring, _)| ring)
}

fn set_up(flags: u32) -> io::Result<(OwnedFd, Parameters)> {
    let mut parameters = Parameters {
        flags,
        ..Parameters::default()
    };
    // SAFETY: the parameters are as long as the kernel's, and outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut parameters) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok((unsafe { OwnedFd::from_raw_fd(fd as i32) }, parameters))
}

/// A command to the driver of /dev/null, which takes any.
pub(crate) fn command() -> io::Result<String> {
    let null = File::open("/dev/null")?;
    submit(|_| {
        Ok(Entry {
            opcode: OP_URING_CMD,
            fd: null.as_raw_fd(),
            ..Entry::default()
        })
    })
}

/// Nothing, done under credentials that were registered before.
pub(crate) fn personality() -> io::Result<String> {
    submit(|ring| {
        // SAFETY: this operation takes no argument.
        let registered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                ring.as_raw_fd(),
                REGISTER_PERSONALITY,
                0,
                0,
            )
        };
        if registered < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Entry {
            opcode: OP_NOP,
            fd: -1,
            personality: registered as u16,
            ..Entry::default()
        })
    })
}

/// Submits one entry to a ring of its own and says how it was completed.
fn submit(entry: impl FnOnce(&OwnedFd) -> io::Result<Entry>) -> io::Result<String> {
    let (ring, parameters) = set_up(0)?;
    let entry = entry(&ring)?;
    let (rings, entries) = (map(&ring, RING)?, map(&ring, ENTRY)?);
    let word = |offset: u32| {
        // SAFETY: inside the mapping, which is never unmapped while the process lives; the kernel writes it as a word.
        unsafe { AtomicU32::from_ptr(rings.byte_add(offset as usize).cast()) }
    };
    // SAFETY: the one entry of this ring, which the kernel reads when it is told of it below.
    unsafe { entries.cast::<Entry>().write(entry) };
    word(parameters.sq[6]).store(0, Ordering::Relaxed);
    word(parameters.sq[1]).store(1, Ordering::Release);
    // SAFETY: no pointers are passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            ENTER_GETEVENTS,
            0,
            0,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // The first completion: user_data (8 bytes), then the result.
    match word(parameters.cq[5] + 8).load(Ordering::Acquire) as i32 {
        result @ 0.. => Ok(result.to_string()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

fn map(ring: &OwnedFd, offset: i64) -> io::Result<*mut libc::c_void> {
    const LENGTH: usize = 4096;
    // SAFETY: a new shared mapping of the ring; nothing of ours lies there.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LENGTH,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            ring.as_raw_fd(),
            offset,
        )
    };
    if place == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(place)
    }
}

const _: () = assert!(size_of::<Entry>() == 64 && size_of::<Parameters>() == 120);
