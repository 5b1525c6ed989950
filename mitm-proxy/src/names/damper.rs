//! A bound on how many records one source of noise can cause: DNS queries and bare connections are cheap to make.
//! Place on the path: between a refusal that no request carries and its audit record; metrics count every one.
//! INVARIANT: the first refusals of each key are recorded, and a later record says how many were left out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Records per key and window.
const BURST: u32 = 10;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(10);
/// Keys that are remembered; beyond, the oldest windows are dropped first.
const KEYS: usize = 4_096;

/// Lets a burst per key through and counts the rest.
#[derive(Debug)]
pub(crate) struct Damper<K> {
    windows: Mutex<HashMap<K, Window>>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    seen: u32,
    left_out: u64,
}

impl<K: Eq + Hash> Default for Damper<K> {
    fn default() -> Self {
        Self {
            windows: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash> Damper<K> {
    /// `Some(n)`: record this one, and say that `n` before it were not recorded. `None`: only count it.
    pub(crate) fn admit(&self, key: K, now: Instant) -> Option<u64> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= KEYS && !windows.contains_key(&key) {
            windows.retain(|_, window| now.duration_since(window.since) < WINDOW);
            if windows.len() >= KEYS {
                return None;
            }
        }
        let window = windows.entry(key).or_insert(Window {
            since: now,
            seen: 0,
            left_out: 0,
        });
        if now.duration_since(window.since) >= WINDOW {
            window.since = now;
            window.seen = 0;
        }
        if window.seen >= BURST {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.seen += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_recorded_and_the_rest_is_counted() {
        let damper = Damper::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(damper.admit("name", start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(damper.admit("name", start), None);
        }
        assert_eq!(
            damper.admit("other", start),
            Some(0),
            "keys do not share a window"
        );
        assert_eq!(
            damper.admit("name", start + WINDOW),
            Some(7),
            "the next record says how many were left out"
        );
    }
}
