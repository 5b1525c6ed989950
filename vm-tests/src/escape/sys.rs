//! The system calls of an attacker, which no safe crate offers: raw addresses, any option, bpf(2), ptrace, clone3, io_uring.
//! Under the attempts and the oracle's capture; nothing here decides anything.
//! Invariant: every buffer that the kernel reads or writes outlives its call, and its length is the one that is told.
#![allow(
    unsafe_code,
    reason = "an attacker's system calls have no safe wrapper"
)]

pub(super) mod process;
pub(super) mod uring;
pub(super) mod xdp;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// -1 is errno.
pub(super) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// socket(2) with any numbers.
pub(super) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) }.into())?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// setsockopt(2) with any option.
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &[u8],
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`.
    check(
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                level,
                name,
                value.as_ptr().cast(),
                value.len() as libc::socklen_t,
            )
        }
        .into(),
    )
    .map(drop)
}

/// connect(2) to an address given as bytes.
pub(super) fn connect(socket: BorrowedFd<'_>, to: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `to`; the kernel copies it.
    check(
        unsafe {
            libc::connect(
                socket.as_raw_fd(),
                to.as_ptr().cast(),
                to.len() as libc::socklen_t,
            )
        }
        .into(),
    )
    .map(drop)
}

/// bind(2) to an address given as bytes.
pub(super) fn bind(socket: BorrowedFd<'_>, at: &[u8]) -> io::Result<()> {
    // SAFETY: as in `connect`.
    check(
        unsafe {
            libc::bind(
                socket.as_raw_fd(),
                at.as_ptr().cast(),
                at.len() as libc::socklen_t,
            )
        }
        .into(),
    )
    .map(drop)
}

/// sendto(2) to an address given as bytes.
pub(super) fn send_to(
    socket: BorrowedFd<'_>,
    data: &[u8],
    flags: i32,
    to: &[u8],
) -> io::Result<()> {
    // SAFETY: both pointers are passed with their own lengths.
    check(unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            flags,
            to.as_ptr().cast(),
            to.len() as libc::socklen_t,
        )
    } as libc::c_long)
    .map(drop)
}

/// sendmmsg(2) of one datagram, which is not the path of sendmsg(2) in every kernel.
pub(super) fn send_many(socket: BorrowedFd<'_>, data: &[u8], to: &[u8]) -> io::Result<()> {
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: all-zero bytes are a valid `mmsghdr`.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_hdr.msg_namelen = to.len() as libc::socklen_t;
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    // SAFETY: one header, whose pointers all live across the call.
    check(unsafe { libc::sendmmsg(socket.as_raw_fd(), &raw mut message, 1, 0) }.into()).map(drop)
}

/// An ioctl(2) whose argument is read and written within these bytes.
pub(super) fn ioctl(on: BorrowedFd<'_>, request: u64, argument: &mut [u8; 64]) -> io::Result<()> {
    // SAFETY: the requests used here (interface requests, TUN, packet rings) read and write at most an `ifreq` of 40 bytes.
    check(unsafe { libc::ioctl(on.as_raw_fd(), request as _, argument.as_mut_ptr()) }.into())
        .map(drop)
}

/// The index of an interface, 0 if there is none.
pub(super) fn interface_index(name: &str) -> i32 {
    let Ok(name) = std::ffi::CString::new(name) else {
        return 0;
    };
    // SAFETY: the name ends with a zero and lives across the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) as i32 }
}

/// bpf(2): a command and its attribute.
pub(super) fn bpf(command: i32, attribute: &mut [u64; 18]) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the given length; pointers inside are the caller's own buffers.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attribute.as_mut_ptr(),
            size_of_val(attribute),
        )
    })
    .map(|fd| fd as i32)
}

/// bpf(2): a command that gives a descriptor.
pub(super) fn bpf_fd(command: i32, attribute: &mut [u64; 18]) -> io::Result<OwnedFd> {
    let fd = bpf(command, attribute)?;
    // SAFETY: the caller's command gives a descriptor, which the kernel has just given to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One packet of a packet socket, without the link's own address.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe `buffer`.
    check(unsafe {
        libc::recv(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
        )
    } as libc::c_long)
    .map(|count| count as usize)
}
