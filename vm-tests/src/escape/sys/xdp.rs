//! AF_XDP by hand: one frame, sent past the whole network stack.
//! Under one attempt.
//! Invariant: the kernel is given one page of memory, which is mapped until the process ends.
#![allow(unsafe_code, reason = "rings are shared memory")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{bind, check, set_option, socket};

const SOL_XDP: i32 = 283;
const XDP_MMAP_OFFSETS: i32 = 1;
const XDP_TX_RING: i32 = 3;
const XDP_UMEM_REG: i32 = 4;
const XDP_UMEM_FILL_RING: i32 = 5;
const XDP_UMEM_COMPLETION_RING: i32 = 6;
const XDP_COPY: u16 = 2;
const PGOFF_TX_RING: i64 = 0x8000_0000;
const PAGE: usize = 4096;
const ENTRIES: i32 = 4;

/// Sends one Ethernet frame by this interface.
pub(in super::super) fn send(interface: i32, frame: &[u8]) -> io::Result<()> {
    let socket = socket(libc::AF_XDP, libc::SOCK_RAW, 0)?;
    let memory = map(-1, PAGE * 4, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0)?;
    if frame.len() > PAGE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the mapping is longer than the frame, as was just checked.
    unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), memory, frame.len()) };
    // address, length, chunk size and headroom
    let registration: Vec<u8> = [
        (memory as u64).to_ne_bytes(),
        (PAGE as u64 * 4).to_ne_bytes(),
        (PAGE as u64).to_ne_bytes(),
        [0; 8],
    ]
    .concat();
    set_option(socket.as_fd(), SOL_XDP, XDP_UMEM_REG, &registration)?;
    for ring in [XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_TX_RING] {
        set_option(socket.as_fd(), SOL_XDP, ring, &ENTRIES.to_ne_bytes())?;
    }
    // For each of rx, tx, fill and completion: producer, consumer, descriptors, flags.
    let mut offsets = [0_u64; 16];
    let mut length = size_of_val(&offsets) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `offsets`.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            SOL_XDP,
            XDP_MMAP_OFFSETS,
            offsets.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    check(told.into())?;
    let [_, _, _, _, producer, _, descriptors, ..] = offsets;
    let size = descriptors as usize + ENTRIES as usize * 16;
    let ring = map(
        socket.as_raw_fd(),
        size,
        libc::MAP_SHARED | libc::MAP_POPULATE,
        PGOFF_TX_RING,
    )?;
    let mut at = Vec::from((libc::AF_XDP as u16).to_ne_bytes());
    at.extend(XDP_COPY.to_ne_bytes());
    at.extend(interface.to_ne_bytes());
    at.extend([0; 8]);
    bind(socket.as_fd(), &at)?;
    // SAFETY: the offsets are the kernel's, inside the mapping; the first descriptor names the start of our page.
    unsafe {
        let descriptor = ring.add(descriptors as usize);
        descriptor.cast::<u64>().write(0);
        descriptor.add(8).cast::<u32>().write(frame.len() as u32);
        descriptor.add(12).cast::<u32>().write(0);
        (*ring.add(producer as usize).cast::<AtomicU32>()).store(1, Ordering::Release);
    }
    // SAFETY: nothing is passed but the kick.
    check(unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    } as libc::c_long)?;
    std::thread::sleep(std::time::Duration::from_millis(50));
    Ok(())
}

fn map(fd: i32, length: usize, flags: i32, offset: i64) -> io::Result<*mut u8> {
    // SAFETY: a new mapping; never unmapped, the process is short.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            fd,
            offset,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(place.cast())
}
