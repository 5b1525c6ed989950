//! io_uring by hand: one ring, one operation at a time.
//! Under the attempts that make no socket call.
//! Invariant: the rings are mapped as long as the descriptor lives, and every index is masked.
#![allow(unsafe_code, reason = "rings are shared memory")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::check;

const ENTRIES: u32 = 8;
const SETUP_SQPOLL: u32 = 1 << 1;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const OFFSET_SQ_RING: i64 = 0;
const OFFSET_CQ_RING: i64 = 0x800_0000;
const OFFSET_SQES: i64 = 0x1000_0000;

/// `struct io_uring_params` of linux/io_uring.h.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, mask, entries, flags, dropped, array, reserved, user address
    sq: [u32; 10],
    /// head, tail, mask, entries, overflow, entries' place, flags, reserved, user address
    cq: [u32; 10],
}

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Entry {
    pub(in super::super) opcode: u8,
    pub(in super::super) flags: u8,
    pub(in super::super) priority: u16,
    pub(in super::super) fd: i32,
    pub(in super::super) offset: u64,
    pub(in super::super) address: u64,
    pub(in super::super) length: u32,
    pub(in super::super) operation_flags: u32,
    pub(in super::super) user_data: u64,
    pub(in super::super) buffer_index: u16,
    pub(in super::super) personality: u16,
    /// The length of the address of SEND_ZC, or a descriptor.
    pub(in super::super) file_index: u32,
    pub(in super::super) reserved: [u64; 2],
}

/// A ring.
pub(in super::super) struct Ring {
    fd: OwnedFd,
    params: Params,
    submissions: *mut u8,
    completions: *mut u8,
    entries: *mut Entry,
    polled: bool,
}

impl Ring {
    /// A ring of this process; `polled` has the kernel look for entries by itself.
    pub(in super::super) fn new(polled: bool) -> io::Result<Ring> {
        let mut params = Params::default();
        if polled {
            params.flags = SETUP_SQPOLL;
            params.sq_thread_idle = 100;
        }
        // SAFETY: the kernel reads and writes one `io_uring_params`.
        let fd =
            check(unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) })?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let array = params.sq[6] as usize;
        let entries = params.cq[5] as usize;
        let submissions = map(&fd, array + params.sq_entries as usize * 4, OFFSET_SQ_RING)?;
        let completions = map(
            &fd,
            entries + params.cq_entries as usize * 16,
            OFFSET_CQ_RING,
        )?;
        let place = map(
            &fd,
            params.sq_entries as usize * size_of::<Entry>(),
            OFFSET_SQES,
        )?;
        Ok(Ring {
            fd,
            params,
            submissions,
            completions,
            entries: place.cast(),
            polled,
        })
    }

    /// Does one operation and gives its result. Buffers that the entry points to must live across the call.
    pub(in super::super) fn submit(&self, entry: Entry) -> io::Result<i32> {
        let [_, tail, mask, _, _, _, array, ..] = self.params.sq;
        // SAFETY: the offsets are the kernel's own, inside the mapping; the index is masked.
        unsafe {
            let tail = self.word(self.submissions, tail);
            let at = tail.load(Ordering::Acquire);
            let slot = at & self.word(self.submissions, mask).load(Ordering::Relaxed);
            self.entries.add(slot as usize).write(entry);
            let array = self.submissions.add(array as usize).cast::<u32>();
            array.add(slot as usize).write(slot);
            tail.store(at.wrapping_add(1), Ordering::Release);
        }
        fence(Ordering::SeqCst);
        let mut flags = ENTER_GETEVENTS;
        if self.polled {
            flags |= ENTER_SQ_WAKEUP;
        }
        // SAFETY: no signal mask is passed.
        check(unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                1_u32,
                1_u32,
                flags,
                std::ptr::null::<libc::c_void>(),
                0_usize,
            )
        })?;
        let [head, _, mask, _, _, entries, ..] = self.params.cq;
        // SAFETY: as above; `enter` has waited for one completion.
        let result = unsafe {
            let head = self.word(self.completions, head);
            let at = head.load(Ordering::Acquire);
            let slot = at & self.word(self.completions, mask).load(Ordering::Relaxed);
            let result = self
                .completions
                .add(entries as usize + slot as usize * 16 + 8)
                .cast::<i32>()
                .read();
            head.store(at.wrapping_add(1), Ordering::Release);
            result
        };
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        Ok(result)
    }

    /// # Safety
    /// `offset` is one of the kernel's, inside the mapping at `base`.
    unsafe fn word(&self, base: *mut u8, offset: u32) -> &AtomicU32 {
        // SAFETY: the caller's word; the mapping lives as long as `self`, and the kernel aligns its words.
        unsafe { &*base.add(offset as usize).cast::<AtomicU32>() }
    }
}

fn map(fd: &OwnedFd, length: usize, offset: i64) -> io::Result<*mut u8> {
    // SAFETY: a new mapping, of a descriptor that we hold; never unmapped, the process is short.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            fd.as_raw_fd(),
            offset,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(place.cast())
}
