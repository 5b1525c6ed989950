//! connect() and getpeername(): connections are led to the proxy, and the workload sees the peer that it asked for.
//! On the path: the first program that knows a destination; it keeps it with the socket for `origin` to copy.
//! INVARIANT: after an allowed connect the socket's stored origin is exactly what was asked, or empty for the workload's own listener.

use agent_abi::{Address, Config, Origin, PROTOCOL_UDP, is_mapped, mapped};
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::destination::{Destination, Route, route};
use crate::maps;
use crate::verdict::{ALLOW, Refusal, conclude};

pub const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();
pub const LOOPBACK6: Address = [0, 0, 0, 1_u32.to_be()];

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let to = destination4(ctx.sock_addr);
    let led = lead(&ctx, &to);
    if let Ok((Some(port), _)) = led {
        write4(ctx.sock_addr, LOOPBACK4, port);
    }
    finish(&ctx, led, &to)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let to = destination6(ctx.sock_addr);
    let led = lead(&ctx, &to);
    if let Ok((Some(port), _)) = led {
        write6(ctx.sock_addr, &loopback_like(&to.addr), port);
    }
    finish(&ctx, led, &to)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = asked(&ctx, &destination4(ctx.sock_addr)) {
        let [_, _, _, addr] = asked.addr;
        write4(ctx.sock_addr, addr, asked.port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(asked) = asked(&ctx, &destination6(ctx.sock_addr)) {
        write6(ctx.sock_addr, &asked.addr, asked.port);
    }
    ALLOW
}

/// The port to rewrite to (none for the workload's own listener), and the workload; the origin is remembered.
#[inline(always)]
pub fn lead(ctx: &SockAddrContext, to: &Destination) -> Result<(Option<u16>, u64), Refusal> {
    let config = maps::config()?;
    let (socket, workload) = maps::own_socket(config, socket_of(ctx.sock_addr))?;
    match route(ctx, config, workload, to)? {
        Route::Own => {
            // A datagram to a server of its own must not make the workload forget which resolver it asked.
            if to.protocol != PROTOCOL_UDP {
                socket.set_origin(Origin {
                    workload,
                    ..Origin::NONE
                });
            }
            Ok((None, workload))
        }
        Route::Loopback(port) => {
            socket.set_origin(to.of_workload(workload));
            Ok((Some(port), workload))
        }
    }
}

#[inline(always)]
pub fn finish(
    ctx: &SockAddrContext,
    led: Result<(Option<u16>, u64), Refusal>,
    to: &Destination,
) -> i32 {
    match led {
        Ok(_) => ALLOW,
        Err(refused) => {
            let workload = maps::unpublished_config().map_or(0, current_or_zero);
            conclude(ctx, Err(refused), &to.subject(workload))
        }
    }
}

#[inline(always)]
fn current_or_zero(config: &Config) -> u64 {
    maps::current_workload(config).unwrap_or_default()
}

/// What was asked for, where the socket's peer is the proxy or the resolver.
#[inline(always)]
pub fn asked(ctx: &SockAddrContext, peer: &Destination) -> Option<Origin> {
    let config = maps::unpublished_config()?;
    if peer.port != config.proxy_port && peer.port != config.resolver_port {
        return None;
    }
    let socket = maps::SOCKETS.get(socket_of(ctx.sock_addr).cast(), 0).ok()?;
    let asked = socket.read().origin;
    let same_form = is_mapped(&asked.addr) == is_mapped(&peer.addr);
    (asked.family != 0 && same_form && peer.addr == loopback_like(&peer.addr)).then_some(asked)
}

#[inline(always)]
pub fn loopback_like(addr: &Address) -> Address {
    if is_mapped(addr) {
        mapped(LOOPBACK4)
    } else {
        LOOPBACK6
    }
}

// Context fields are read and written one by one, volatile: the verifier knows no merged or wider access to them.

#[inline(always)]
pub fn destination4(ctx: *mut bpf_sock_addr) -> Destination {
    // SAFETY: the kernel passes a valid context; the verifier checks each field.
    let (addr, port, protocol) = unsafe {
        (
            (&raw const (*ctx).user_ip4).read_volatile(),
            (&raw const (*ctx).user_port).read_volatile(),
            (&raw const (*ctx).protocol).read_volatile(),
        )
    };
    Destination {
        addr: mapped(addr),
        port: u16::from_be(port as u16),
        protocol,
    }
}

#[inline(always)]
pub fn destination6(ctx: *mut bpf_sock_addr) -> Destination {
    // SAFETY: as in `destination4`.
    let (addr, port, protocol) = unsafe {
        let words = (&raw const (*ctx).user_ip6).cast::<u32>();
        (
            [
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ],
            (&raw const (*ctx).user_port).read_volatile(),
            (&raw const (*ctx).protocol).read_volatile(),
        )
    };
    Destination {
        addr,
        port: u16::from_be(port as u16),
        protocol,
    }
}

#[inline(always)]
pub fn write4(ctx: *mut bpf_sock_addr, addr: u32, port: u16) {
    // SAFETY: as in `destination4`; both fields are writable in these hooks.
    unsafe {
        (&raw mut (*ctx).user_ip4).write_volatile(addr);
        (&raw mut (*ctx).user_port).write_volatile(u32::from(port.to_be()));
    }
}

#[inline(always)]
pub fn write6(ctx: *mut bpf_sock_addr, addr: &Address, port: u16) {
    let [a, b, c, d] = *addr;
    // SAFETY: as in `write4`.
    unsafe {
        let words = (&raw mut (*ctx).user_ip6).cast::<u32>();
        words.write_volatile(a);
        words.add(1).write_volatile(b);
        words.add(2).write_volatile(c);
        words.add(3).write_volatile(d);
        (&raw mut (*ctx).user_port).write_volatile(u32::from(port.to_be()));
    }
}

#[inline(always)]
pub fn socket_of(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: as in `destination4`; the field is a pointer to a full socket in every sock_addr hook.
    unsafe { (&raw const (*ctx).__bindgen_anon_1.sk).read_volatile() }
}
