//! The synthetic addresses of each tenant: a name has one IPv4 and one IPv6 address.
//! Place on the path: the resolver assigns, accept looks up which name a destination stands for.
//! INVARIANT: an address goes to another name only when nothing can mean the old one any more; tenants never share a table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use policies::{AgentId, Bundle, Digest, Host, Tenant};

use crate::settings::{Limits, Pools};

/// Slots are bounded so that a slot fits both families and a probe sequence stays short.
const MOST_SLOTS: u64 = 1 << 24;
/// After a search for a free address that found none, the next search waits: a search looks at every name.
const SEARCH_PAUSE: Duration = Duration::from_secs(1);

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

/// No address is left for a name, and none can be taken back yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exhausted {
    #[error("it has as many names in use as one agent may have")]
    Agent,
    #[error("its tenant has as many names in use as it may have")]
    Tenant,
}

/// Names and addresses of all tenants.
#[derive(Debug)]
pub(crate) struct NamePool {
    base4: u32,
    base6: u128,
    /// Slots 1..=slots are used; slot 0 (the network address) and the last (broadcast) never.
    slots: u32,
    /// Most names per tenant.
    most: usize,
    /// Most names that one agent of a tenant was the first to ask for.
    most_of_agent: usize,
    /// How long after its last answer a name keeps its address.
    kept: Duration,
    start: Instant,
    tenants: RwLock<HashMap<Tenant, Table>>,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Host, (u32, Arc<Entry>)>,
    by_slot: HashMap<u32, Arc<Entry>>,
    /// Names that the bundle spells out: never taken back while it does.
    pinned: HashSet<Host>,
    asked_by: HashMap<AgentId, usize>,
    searched: Option<Instant>,
}

/// One name that has an address. Whoever holds a clone keeps the address from being given to another name.
#[derive(Debug)]
struct Entry {
    host: Host,
    /// Who asked first; nobody for names that the bundle spells out.
    agent: Option<AgentId>,
    /// Milliseconds from the pool's start to the last answer that named the address.
    answered: AtomicU64,
}

/// The name that a connection was opened to; while this lives, its address stands for no other.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Entry>);

impl InUse {
    pub(crate) fn host(&self) -> &Host {
        &self.0.host
    }
}

impl NamePool {
    /// An empty pool over the two prefixes.
    pub(crate) fn new(pools: Pools, limits: &Limits) -> Result<Self, PoolError> {
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
        let slots = u32::try_from(span.saturating_sub(2)).unwrap_or(u32::MAX);
        Ok(Self {
            base4,
            base6,
            slots,
            most: limits
                .names
                .min(usize::try_from(slots).unwrap_or(usize::MAX)),
            most_of_agent: limits.names_per_agent,
            kept: limits.names_kept,
            start: Instant::now(),
            tenants: RwLock::default(),
        })
    }

    /// Assigns the exact names of all agents ahead, in an order that does not depend on who asks first. Names that no
    /// connection spells out any more can be taken back from now on, like those that were made on demand.
    pub(crate) fn preassign(&self, bundle: &Bundle, now: Instant) {
        let mut names: BTreeMap<Tenant, HashSet<Host>> = BTreeMap::new();
        for agent in bundle.agents() {
            let hosts = bundle.exact_hosts(agent.id());
            names
                .entry(agent.id().tenant.clone())
                .or_default()
                .extend(hosts.into_iter().filter(|host| !host.is_ip()));
        }
        {
            let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
            for (tenant, table) in tenants.iter_mut() {
                table.pinned = names.get(tenant).cloned().unwrap_or_default();
            }
            for (tenant, hosts) in &names {
                tenants.entry(tenant.clone()).or_default().pinned = hosts.clone();
            }
        }
        for (tenant, hosts) in names {
            let mut hosts: Vec<Host> = hosts.into_iter().collect();
            hosts.sort();
            for host in hosts {
                if self.place(&tenant, None, &host, now, |_| false).is_err() {
                    tracing::warn!(%tenant, %host, "no synthetic address left for this name");
                }
            }
        }
    }

    /// The addresses of a name that this agent asks for; new names get the slot of their hash, or the next free one.
    /// When there is no room, names are taken back that nothing can mean any more: no open connection, no answer that
    /// may still be cached, no spelling in the bundle, and not `still_meant`, by which the caller says what else counts.
    pub(crate) fn assign(
        &self,
        agent: &AgentId,
        host: &Host,
        now: Instant,
        still_meant: impl Fn(&Host) -> bool,
    ) -> Result<Synthetic, Exhausted> {
        self.place(&agent.tenant, Some(agent), host, now, still_meant)
    }

    /// The name that this address stands for in this tenant, kept for as long as the caller keeps the value.
    pub(crate) fn name_of(&self, tenant: &Tenant, address: IpAddr) -> Option<InUse> {
        let slot = self.slot(address)?;
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant)?.by_slot.get(&slot).cloned().map(InUse)
    }

    fn place(
        &self,
        tenant: &Tenant,
        agent: Option<&AgentId>,
        host: &Host,
        now: Instant,
        still_meant: impl Fn(&Host) -> bool,
    ) -> Result<Synthetic, Exhausted> {
        let answered = self.since_start(now);
        {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            let known = tenants
                .get(tenant)
                .and_then(|table| table.by_name.get(host));
            if let Some((slot, entry)) = known {
                entry.answered.fetch_max(answered, Ordering::Relaxed);
                return Ok(self.addresses(*slot));
            }
        }
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let table = tenants.entry(tenant.clone()).or_default();
        if let Some((slot, entry)) = table.by_name.get(host) {
            entry.answered.fetch_max(answered, Ordering::Relaxed);
            return Ok(self.addresses(*slot));
        }
        if self.room(table, agent).is_err() {
            self.take_back(table, now, still_meant);
        }
        self.room(table, agent)?;
        let mut slot = self.preferred(tenant, host);
        while table.by_slot.contains_key(&slot) {
            slot = slot % self.slots + 1;
        }
        let entry = Arc::new(Entry {
            host: host.clone(),
            agent: agent.cloned(),
            answered: AtomicU64::new(answered),
        });
        table.by_slot.insert(slot, Arc::clone(&entry));
        table.by_name.insert(host.clone(), (slot, entry));
        if let Some(agent) = agent {
            *table.asked_by.entry(agent.clone()).or_default() += 1;
        }
        Ok(self.addresses(slot))
    }

    fn room(&self, table: &Table, agent: Option<&AgentId>) -> Result<(), Exhausted> {
        if table.by_name.len() >= self.most {
            return Err(Exhausted::Tenant);
        }
        let has = agent.and_then(|agent| table.asked_by.get(agent)).copied();
        if has.is_some_and(|has| has >= self.most_of_agent) {
            return Err(Exhausted::Agent);
        }
        Ok(())
    }

    /// INVARIANT: the table is borrowed for writing, so nobody takes a new hold of an entry in between.
    fn take_back(&self, table: &mut Table, now: Instant, still_meant: impl Fn(&Host) -> bool) {
        if table
            .searched
            .is_some_and(|last| now.saturating_duration_since(last) < SEARCH_PAUSE)
        {
            return;
        }
        table.searched = Some(now);
        let kept = u64::try_from(self.kept.as_millis()).unwrap_or(u64::MAX);
        let now = self.since_start(now);
        let meant = |entry: &Arc<Entry>| {
            // One for each of the two maps; more are open connections.
            Arc::strong_count(entry) > 2
                || now.saturating_sub(entry.answered.load(Ordering::Relaxed)) < kept
                || table.pinned.contains(&entry.host)
                || still_meant(&entry.host)
        };
        let over: Vec<(u32, Arc<Entry>)> = table
            .by_name
            .values()
            .filter(|(_, entry)| !meant(entry))
            .cloned()
            .collect();
        for (slot, entry) in over {
            table.by_name.remove(&entry.host);
            table.by_slot.remove(&slot);
            if let Some(agent) = &entry.agent
                && let Some(has) = table.asked_by.get_mut(agent)
            {
                *has = has.saturating_sub(1);
            }
        }
        table.asked_by.retain(|_, has| *has > 0);
    }

    fn since_start(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Duration = Duration::from_secs(60);

    fn agent(name: &str) -> AgentId {
        name.parse().unwrap()
    }

    fn host(name: &str) -> Host {
        Host::parse(name).unwrap()
    }

    /// Six addresses, three of them for one agent.
    fn small() -> NamePool {
        let pools = Pools {
            v4: (Ipv4Addr::new(198, 18, 0, 0), 29),
            v6: Pools::default().v6,
        };
        let limits = Limits {
            names: 100,
            names_per_agent: 3,
            names_kept: KEPT,
            ..Limits::default()
        };
        NamePool::new(pools, &limits).unwrap()
    }

    fn fill(pool: &NamePool, who: &AgentId, names: &[&str], now: Instant) {
        for name in names {
            pool.assign(who, &host(name), now, |_| false).unwrap();
        }
    }

    #[test]
    fn an_address_is_not_given_to_another_name_while_something_may_mean_the_old_one() {
        let (pool, a) = (small(), agent("acme/a"));
        let start = Instant::now();
        let never = |_: &Host| false;
        fill(&pool, &a, &["one.test", "two.test", "three.test"], start);
        let one = pool.assign(&a, &host("one.test"), start, never).unwrap();
        let open = pool.name_of(&a.tenant, one.v4.into()).unwrap();
        let new = host("new.test");
        let full = Err(Exhausted::Agent);

        // Answers of the names may still be cached.
        let early = start + KEPT - Duration::from_millis(1);
        assert_eq!(pool.assign(&a, &new, early, never), full);
        // A connection is open to the first, and approvals mean the others.
        let late = start + KEPT + SEARCH_PAUSE;
        assert_eq!(pool.assign(&a, &new, late, |_| true), full);
        let late = late + SEARCH_PAUSE;
        let given = pool
            .assign(&a, &new, late, |name| *name == host("two.test"))
            .unwrap();
        assert_ne!(given, one);
        assert_eq!(open.host(), &host("one.test"));
        for (name, kept) in [
            ("one.test", true),
            ("two.test", true),
            ("three.test", false),
        ] {
            let tenants = pool.tenants.read().unwrap();
            assert_eq!(
                tenants[&a.tenant].by_name.contains_key(&host(name)),
                kept,
                "{name}"
            );
        }
        // Positive control: once nothing means them, they go, and the address stands for nothing or another name.
        drop(open);
        fill(&pool, &a, &["four.test"], late + KEPT + SEARCH_PAUSE);
        let later = late + KEPT + SEARCH_PAUSE * 2;
        fill(&pool, &a, &["five.test"], later);
        let now = pool.name_of(&a.tenant, one.v4.into());
        assert!(now.is_none_or(|name| name.host() != &host("one.test")));
    }

    #[test]
    fn an_answer_keeps_a_name_and_a_search_is_not_made_for_each_question() {
        let (pool, a) = (small(), agent("acme/a"));
        let start = Instant::now();
        fill(&pool, &a, &["one.test", "two.test", "three.test"], start);
        let later = start + KEPT;
        fill(&pool, &a, &["one.test", "two.test", "three.test"], later);
        let new = host("new.test");
        let ask = |at| pool.assign(&a, &new, at, |_| false);
        assert_eq!(ask(later + KEPT / 2), Err(Exhausted::Agent));
        assert!(ask(later + KEPT).is_ok());
    }

    #[test]
    fn one_agent_cannot_take_all_names_of_its_tenant() {
        let (pool, now) = (small(), Instant::now());
        let (a, b, c) = (agent("acme/a"), agent("acme/b"), agent("acme/c"));
        fill(&pool, &a, &["a1.test", "a2.test", "a3.test"], now);
        let ask = |who: &AgentId, name: &str| pool.assign(who, &host(name), now, |_| false);
        assert_eq!(ask(&a, "a4.test"), Err(Exhausted::Agent));
        // What another asked first is no more of its own.
        fill(&pool, &b, &["b1.test", "b2.test", "b3.test"], now);
        assert!(ask(&a, "b1.test").is_ok());
        assert_eq!(ask(&c, "c1.test"), Err(Exhausted::Tenant));
        // Another tenant's table is its own.
        assert!(ask(&agent("umbrella/c"), "c1.test").is_ok());
    }

    #[test]
    fn addresses_of_a_tenant_are_distinct_and_known_in_both_families() {
        let (pool, now) = (small(), Instant::now());
        let mut seen = HashSet::new();
        for (who, names) in [
            ("acme/a", ["1.test", "2.test", "3.test"]),
            ("acme/b", ["4.test", "5.test", "6.test"]),
        ] {
            for name in names {
                let given = pool
                    .assign(&agent(who), &host(name), now, |_| false)
                    .unwrap();
                assert!(seen.insert(given.v4));
                for address in [
                    IpAddr::from(given.v4),
                    given.v6.into(),
                    given.v4.to_ipv6_mapped().into(),
                ] {
                    let found = pool.name_of(&agent(who).tenant, address).unwrap();
                    assert_eq!(found.host(), &host(name));
                    assert!(pool.name_of(&agent("umbrella/c").tenant, address).is_none());
                }
            }
        }
    }
}
