//! How many questions one agent may ask in a while: a question costs its sender nothing and us a look-up and a count.
//! Place on the path: before a DNS message is read.
//! INVARIANT: what one agent asks takes nothing from another's allowance.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use policies::AgentId;

/// Agents that are remembered; beyond, those that have asked nothing lately are forgotten.
const AGENTS: usize = 4_096;

/// A bucket per agent, and one for everybody whom the kernel does not know.
#[derive(Debug, Default)]
pub(crate) struct Rate(Mutex<HashMap<Option<AgentId>, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rate {
    /// Whether this agent may ask now; an allowance of `burst` that `per_second` refills.
    pub(crate) fn admit(
        &self,
        agent: Option<&AgentId>,
        per_second: u32,
        burst: u32,
        now: Instant,
    ) -> bool {
        let (per_second, burst) = (f64::from(per_second), f64::from(burst));
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refilled = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + since * per_second).min(burst)
        };
        let key = agent.cloned();
        if buckets.len() >= AGENTS && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| refilled(bucket) < burst);
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            left: burst,
            at: now,
        });
        bucket.left = refilled(bucket);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_agent_has_a_burst_and_then_its_rate_and_takes_nothing_from_another() {
        let rate = Rate::default();
        let start = Instant::now();
        let (a, b): (AgentId, AgentId) = ("acme/a".parse().unwrap(), "acme/b".parse().unwrap());
        let admitted = |who: Option<&AgentId>, at: Instant| {
            (0..100).filter(|_| rate.admit(who, 10, 20, at)).count()
        };
        assert_eq!(admitted(Some(&a), start), 20);
        assert_eq!(admitted(Some(&a), start + Duration::from_secs(1)), 10);
        assert_eq!(admitted(Some(&b), start + Duration::from_secs(1)), 20);
        assert_eq!(admitted(None, start), 20);
        assert_eq!(admitted(Some(&a), start + Duration::from_secs(60)), 20);
    }
}
