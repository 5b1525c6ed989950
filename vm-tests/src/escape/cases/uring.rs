//! Socket calls that no socket call makes: the same hooks must fire for io_uring, which passes system call filters by.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::escape::order::{At, Order, Stop, raw};
use crate::escape::sys::uring::{Entry, Ring};
use crate::escape::{Case, Class, Who, sys};

const OP_CONNECT: u8 = 16;
const OP_SEND: u8 = 26;
const OP_SOCKET: u8 = 45;
const OP_SEND_ZC: u8 = 47;

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E45",
        "socket, connect and send by a ring",
        Class::IoUring,
        Who::User,
        |order| all(order, &Ring::new(false).at("ring")?),
    ),
    Case::new(
        "E46",
        "connect by a ring",
        Class::IoUring,
        Who::User,
        |order| {
            let ring = Ring::new(false).at("ring")?;
            let socket = sys::socket(libc::AF_INET6, libc::SOCK_STREAM, 0).at("socket")?;
            connect(&ring, socket.as_raw_fd(), &raw(order.to6()))?;
            send(&ring, socket.as_raw_fd(), order)
        },
    ),
    Case::new(
        "E47",
        "datagram by a ring",
        Class::IoUring,
        Who::User,
        |order| {
            let ring = Ring::new(false).at("ring")?;
            let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).at("socket")?;
            connect(&ring, socket.as_raw_fd(), &raw(order.to4()))?;
            send(&ring, socket.as_raw_fd(), order)
        },
    ),
    Case::new(
        "E48",
        "datagram without a copy by a ring",
        Class::IoUring,
        Who::User,
        zero_copy,
    ),
    Case::new(
        "E49",
        "a ring that the kernel polls",
        Class::IoUring,
        Who::User,
        |order| all(order, &Ring::new(true).at("ring")?),
    ),
];

fn all(order: &Order, ring: &Ring) -> Result<(), Stop> {
    let socket = ring
        .submit(Entry {
            opcode: OP_SOCKET,
            fd: libc::AF_INET,
            offset: libc::SOCK_STREAM as u64,
            ..Entry::default()
        })
        .at("socket")?;
    connect(ring, socket, &raw(order.to4()))?;
    send(ring, socket, order)
}

fn connect(ring: &Ring, socket: i32, to: &[u8]) -> Result<(), Stop> {
    ring.submit(Entry {
        opcode: OP_CONNECT,
        fd: socket,
        address: to.as_ptr() as u64,
        offset: to.len() as u64,
        ..Entry::default()
    })
    .at("connect")
    .map(drop)
}

fn send(ring: &Ring, socket: i32, order: &Order) -> Result<(), Stop> {
    ring.submit(Entry {
        opcode: OP_SEND,
        fd: socket,
        address: order.data().as_ptr() as u64,
        length: order.data().len() as u32,
        ..Entry::default()
    })
    .at("send")
    .map(drop)
}

fn zero_copy(order: &Order) -> Result<(), Stop> {
    let ring = Ring::new(false).at("ring")?;
    let socket = UdpSocket::bind("0.0.0.0:0").at("socket")?;
    let to = raw(order.to4());
    let socket = OwnedFd::from(socket);
    ring.submit(Entry {
        opcode: OP_SEND_ZC,
        fd: socket.as_raw_fd(),
        offset: to.as_ptr() as u64,
        file_index: to.len() as u32,
        address: order.data().as_ptr() as u64,
        length: order.data().len() as u32,
        ..Entry::default()
    })
    .at("send")
    .map(drop)
}
