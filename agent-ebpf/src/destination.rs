//! Where a destination leads: to the proxy, to the resolver, to the workload itself, or nowhere.
//! On the path: connect and datagram ask here after they know whose socket it is.
//! INVARIANT: an address that is neither synthetic, literal nor the workload's own listener is refused; so are the proxy's ports.

use agent_abi::{
    Address, Config, FAMILY_V4, FAMILY_V6, Origin, PROTOCOL_TCP, PROTOCOL_UDP, is_mapped, mapped,
    refusal,
};
use aya_ebpf::programs::SockAddrContext;

use crate::maps;
use crate::own;
use crate::verdict::{Refusal, Subject};

/// The port that names are asked at, whatever the address.
const DOMAIN: u16 = 53;

/// Where the kernel side lets a destination lead.
#[derive(Clone, Copy)]
pub enum Route {
    /// Untouched: the workload's own listener on loopback.
    Own,
    /// Rewritten to this port on the loopback address of the same family.
    Loopback(u16),
}

/// A destination as a workload named it.
#[derive(Clone, Copy)]
pub struct Destination {
    pub addr: Address,
    pub port: u16,
    pub protocol: u32,
}

impl Destination {
    /// The family that counts: a v4-mapped address is IPv4.
    #[inline(always)]
    pub fn family(&self) -> u16 {
        if is_mapped(&self.addr) {
            FAMILY_V4
        } else {
            FAMILY_V6
        }
    }

    #[inline(always)]
    pub fn of_workload(&self, workload: u64) -> Origin {
        Origin {
            workload,
            addr: self.addr,
            port: self.port,
            family: self.family(),
            protocol: self.protocol,
        }
    }

    #[inline(always)]
    pub fn subject(&self, workload: u64) -> Subject {
        Subject {
            workload,
            addr: self.addr,
            port: self.port,
            family: self.family(),
            protocol: self.protocol,
        }
    }

    /// 127.0.0.0/8, ::1, and the unspecified addresses, which Linux takes for loopback.
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.addr;
        if is_mapped(&self.addr) {
            return d == 0 || d & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be();
        }
        a == 0 && b == 0 && c == 0 && (d == 0 || d == 1_u32.to_be())
    }

    #[inline(always)]
    fn in_pool(&self, config: &Config) -> bool {
        let [a, b, c, d] = self.addr;
        if is_mapped(&self.addr) {
            return config.pool4_mask != 0 && d & config.pool4_mask == config.pool4;
        }
        let [ma, mb, mc, md] = config.pool6_mask;
        let [pa, pb, pc, pd] = config.pool6;
        ma != 0 && a & ma == pa && b & mb == pb && c & mc == pc && d & md == pd
    }

    /// The address that the kernel will really dial when a workload names an unspecified one.
    #[inline(always)]
    pub fn dialled(&self) -> Address {
        let [_, _, _, d] = self.addr;
        if d != 0 {
            return self.addr;
        }
        if is_mapped(&self.addr) {
            mapped(0x7f00_0001_u32.to_be())
        } else {
            [0, 0, 0, 1_u32.to_be()]
        }
    }
}

/// Decides where a destination leads. TCP goes to the proxy, names to the resolver, UDP nowhere else.
#[inline(always)]
pub fn route(
    ctx: &SockAddrContext,
    config: &Config,
    workload: u64,
    to: &Destination,
) -> Result<Route, Refusal> {
    if to.protocol != PROTOCOL_TCP && to.protocol != PROTOCOL_UDP {
        return Err(Refusal(refusal::FAMILY));
    }
    if to.port == DOMAIN {
        return Ok(Route::Loopback(config.resolver_port));
    }
    if to.is_loopback() {
        if to.port == config.proxy_port || to.port == config.resolver_port {
            return Err(Refusal(refusal::PROXY_PORT));
        }
        if own::listens(ctx, workload, to) {
            return Ok(Route::Own);
        }
    }
    let named = to.in_pool(config) || maps::is_literal(&to.addr);
    match (to.protocol, named) {
        (PROTOCOL_TCP, true) => Ok(Route::Loopback(config.proxy_port)),
        (PROTOCOL_TCP, false) => Err(Refusal(refusal::DESTINATION_UNKNOWN)),
        (_, true) => Err(Refusal(refusal::DATAGRAM_NAME)),
        (_, false) => Err(Refusal(refusal::DATAGRAM)),
    }
}
