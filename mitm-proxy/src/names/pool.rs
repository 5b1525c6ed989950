//! The synthetic addresses of each tenant: a name has one IPv4 and one IPv6 address, the same after a restart.
//! Place on the path: the resolver assigns, accept looks up which name a destination stands for.
//! INVARIANT: within a tenant an address stands for one name for as long as the process lives; tenants never share a table.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{PoisonError, RwLock};

use policies::{Bundle, Digest, Host, Tenant};

use crate::settings::Pools;

/// Slots are bounded so that a slot fits both families and a probe sequence stays short.
const MOST_SLOTS: u64 = 1 << 24;

/// The two addresses of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Synthetic {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// A pool that cannot hold names.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The prefix is not aligned: bits below it are set.
    #[error("{0}/{1} has bits set below its prefix")]
    Unaligned(IpAddr, u8),
    /// The prefix leaves fewer than two usable addresses, or is longer than the address.
    #[error("{0}/{1} is too small for a pool of names")]
    TooSmall(IpAddr, u8),
}

/// Names and addresses of all tenants.
#[derive(Debug)]
pub(crate) struct NamePool {
    base4: u32,
    base6: u128,
    /// Slots 1..=slots are used; slot 0 (the network address) and the last (broadcast) never.
    slots: u32,
    /// Most names per tenant.
    limit: usize,
    tenants: RwLock<HashMap<Tenant, Table>>,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Host, u32>,
    by_slot: HashMap<u32, Host>,
}

impl NamePool {
    /// An empty pool over the two prefixes.
    pub(crate) fn new(pools: Pools, limit: usize) -> Result<Self, PoolError> {
        let (v4, bits4) = pools.v4;
        let (v6, bits6) = pools.v6;
        let host4 = 32_u8.checked_sub(bits4).filter(|host| *host >= 2);
        let host6 = 128_u8.checked_sub(bits6).filter(|host| *host >= 2);
        let host4 = host4.ok_or(PoolError::TooSmall(v4.into(), bits4))?;
        let host6 = host6.ok_or(PoolError::TooSmall(v6.into(), bits6))?;
        let (base4, base6) = (u32::from(v4), u128::from(v6));
        if host4 < 32 && base4 & ((1 << host4) - 1) != 0 {
            return Err(PoolError::Unaligned(v4.into(), bits4));
        }
        if host6 < 128 && base6 & ((1 << host6) - 1) != 0 {
            return Err(PoolError::Unaligned(v6.into(), bits6));
        }
        let span = (1_u64 << host4.min(host6).min(24)).min(MOST_SLOTS);
        Ok(Self {
            base4,
            base6,
            slots: u32::try_from(span.saturating_sub(2)).unwrap_or(u32::MAX),
            limit,
            tenants: RwLock::default(),
        })
    }

    /// Assigns the exact names of all agents ahead, in an order that does not depend on who asks first.
    pub(crate) fn preassign(&self, bundle: &Bundle) {
        let mut names: BTreeSet<(Tenant, Host)> = BTreeSet::new();
        for agent in bundle.agents() {
            for host in bundle.exact_hosts(agent.id()) {
                if !host.is_ip() {
                    names.insert((agent.id().tenant.clone(), host));
                }
            }
        }
        for (tenant, host) in names {
            if self.assign(&tenant, &host).is_none() {
                tracing::warn!(%tenant, %host, "no synthetic address left for this name");
            }
        }
    }

    /// The addresses of a name; new names get the slot of their hash, or the next free one.
    /// `None` when the tenant has as many names as it may have.
    pub(crate) fn assign(&self, tenant: &Tenant, host: &Host) -> Option<Synthetic> {
        if let Some(table) = self
            .tenants
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(tenant)
            && let Some(slot) = table.by_name.get(host)
        {
            return Some(self.addresses(*slot));
        }
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let table = tenants.entry(tenant.clone()).or_default();
        if let Some(slot) = table.by_name.get(host) {
            return Some(self.addresses(*slot));
        }
        if table.by_name.len() >= self.limit
            || table.by_name.len() >= usize::try_from(self.slots).ok()?
        {
            return None;
        }
        let mut slot = self.preferred(tenant, host);
        while table.by_slot.contains_key(&slot) {
            slot = slot % self.slots + 1;
        }
        table.by_name.insert(host.clone(), slot);
        table.by_slot.insert(slot, host.clone());
        Some(self.addresses(slot))
    }

    /// The name that this address stands for in this tenant.
    pub(crate) fn name_of(&self, tenant: &Tenant, address: IpAddr) -> Option<Host> {
        let slot = self.slot(address)?;
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant)?.by_slot.get(&slot).cloned()
    }

    fn slot(&self, address: IpAddr) -> Option<u32> {
        let slot = match address.to_canonical() {
            IpAddr::V4(v4) => u32::from(v4).checked_sub(self.base4)?,
            IpAddr::V6(v6) => u32::try_from(u128::from(v6).checked_sub(self.base6)?).ok()?,
        };
        (1..=self.slots).contains(&slot).then_some(slot)
    }

    fn addresses(&self, slot: u32) -> Synthetic {
        Synthetic {
            v4: Ipv4Addr::from(self.base4.wrapping_add(slot)),
            v6: Ipv6Addr::from(self.base6.wrapping_add(u128::from(slot))),
        }
    }

    /// 1..=slots, from SHA-256(tenant, NUL, name).
    fn preferred(&self, tenant: &Tenant, host: &Host) -> u32 {
        let digest = Digest::of(format!("{tenant}\0{host}").as_bytes());
        let number = digest
            .0
            .first_chunk::<4>()
            .map_or(0, |bytes| u32::from_be_bytes(*bytes));
        number % self.slots + 1
    }
}
