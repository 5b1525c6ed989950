//! What each agent takes of what all of them share: connections, calls under way, buffered bytes, turns at the log and at dialling.
//! Place on the path: a connection finds its agent's share when it is accepted; each call and each buffer takes its place from it.
//! INVARIANT: where something runs short, an agent that has less than its even part gets its place all the same.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use policies::AgentId;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Records of one agent that wait for the log at the same time; more wait their turn here, so that the log's queue
/// (4,096 places) has room for everybody else's.
const RECORDS: usize = 256;
/// Connections to upstream that one agent opens at the same time; more wait their turn.
const DIALS: usize = 128;

/// What all agents share.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    all: Arc<All>,
    agents: Mutex<HashMap<AgentId, Arc<Share>>>,
}

#[derive(Debug, Default)]
struct All {
    connections: Whole,
    calls: Whole,
    buffered: Whole,
}

/// How much of one thing is taken, and by how many agents.
#[derive(Debug, Default)]
struct Whole {
    taken: AtomicUsize,
    takers: AtomicUsize,
}

/// One agent's part.
#[derive(Debug)]
pub(crate) struct Share {
    all: Arc<All>,
    connections: AtomicUsize,
    calls: AtomicUsize,
    buffered: AtomicUsize,
    records: Semaphore,
    dials: Semaphore,
}

/// What is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Buffered,
    Calls,
    Connections,
}

/// How much there is of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// For one agent, whatever the others have.
    pub(crate) each: usize,
    /// For all together; beyond, an agent gets its even part and no more.
    pub(crate) all: usize,
}

/// A part that was taken; given back when dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Place {
    share: Arc<Share>,
    of: Of,
    many: usize,
}

impl Shares {
    /// The share of this agent.
    pub(crate) fn of(&self, agent: &AgentId) -> Arc<Share> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = agents.get(agent) {
            return Arc::clone(share);
        }
        let share = Arc::new(Share {
            all: Arc::clone(&self.all),
            connections: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            buffered: AtomicUsize::new(0),
            records: Semaphore::new(RECORDS),
            dials: Semaphore::new(DIALS),
        });
        agents.insert(agent.clone(), Arc::clone(&share));
        share
    }
}

impl Share {
    /// Takes one place, or says that there is none for this agent.
    pub(crate) fn take(self: &Arc<Self>, of: Of, bound: Bound) -> Option<Place> {
        let mut place = Place {
            share: Arc::clone(self),
            of,
            many: 0,
        };
        place.grow(1, bound).then_some(place)
    }

    /// A place of nothing, to be grown.
    pub(crate) fn nothing(self: &Arc<Self>, of: Of) -> Place {
        Place {
            share: Arc::clone(self),
            of,
            many: 0,
        }
    }

    /// This agent's turn at the log; never closed, so that waiting is the only thing that can happen.
    pub(crate) async fn record(&self) -> Option<SemaphorePermit<'_>> {
        self.records.acquire().await.ok()
    }

    /// This agent's turn at dialling.
    pub(crate) async fn dial(&self) -> Option<SemaphorePermit<'_>> {
        self.dials.acquire().await.ok()
    }

    fn mine(&self, of: Of) -> &AtomicUsize {
        match of {
            Of::Buffered => &self.buffered,
            Of::Calls => &self.calls,
            Of::Connections => &self.connections,
        }
    }

    fn whole(&self, of: Of) -> &Whole {
        match of {
            Of::Buffered => &self.all.buffered,
            Of::Calls => &self.all.calls,
            Of::Connections => &self.all.connections,
        }
    }

    fn release(&self, of: Of, many: usize) {
        if many == 0 {
            return;
        }
        let whole = self.whole(of);
        whole.taken.fetch_sub(many, Ordering::AcqRel);
        if self.mine(of).fetch_sub(many, Ordering::AcqRel) == many {
            whole.takers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Place {
    /// Takes `more` on top; false, and nothing taken, where that is too much.
    pub(crate) fn grow(&mut self, more: usize, bound: Bound) -> bool {
        if more == 0 {
            return true;
        }
        let whole = self.share.whole(self.of);
        let before = self.share.mine(self.of).fetch_add(more, Ordering::AcqRel);
        let takers = if before == 0 {
            whole.takers.fetch_add(1, Ordering::AcqRel) + 1
        } else {
            whole.takers.load(Ordering::Acquire)
        };
        let taken = whole.taken.fetch_add(more, Ordering::AcqRel) + more;
        let mine = before + more;
        // INVARIANT: all parts together stay below twice `bound.all`: beyond it everybody has at most an even part of it.
        let fits = mine <= bound.each && (taken <= bound.all || mine <= bound.all / takers.max(1));
        if fits {
            self.many += more;
        } else {
            self.share.release(self.of, more);
        }
        fits
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.share.release(self.of, self.many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Bound = Bound { each: 8, all: 10 };

    fn agent(name: &str) -> AgentId {
        format!("acme/{name}").parse().unwrap()
    }

    #[test]
    fn one_agent_takes_at_most_its_own_bound() {
        let shares = Shares::default();
        let share = shares.of(&agent("a"));
        let mut places: Vec<_> = (0..8)
            .map(|_| share.take(Of::Calls, BOUND).unwrap())
            .collect();
        assert!(share.take(Of::Calls, BOUND).is_none());
        assert!(share.take(Of::Connections, BOUND).is_some());
        places.pop();
        assert!(shares.of(&agent("a")).take(Of::Calls, BOUND).is_some());
    }

    #[test]
    fn who_has_less_than_an_even_part_gets_a_place_from_a_full_house() {
        let shares = Shares::default();
        let greedy = shares.of(&agent("greedy"));
        let more = shares.of(&agent("more"));
        let late = shares.of(&agent("late"));
        let _first: Vec<_> = (0..8)
            .map(|_| greedy.take(Of::Calls, BOUND).unwrap())
            .collect();
        let _second: Vec<_> = (0..5)
            .map(|_| more.take(Of::Calls, BOUND).unwrap())
            .collect();
        // All ten are gone, and both have had their even part; a third agent gets its own, and no more.
        assert!(more.take(Of::Calls, BOUND).is_none());
        let third: Vec<_> = (0..3)
            .map(|_| late.take(Of::Calls, BOUND).unwrap())
            .collect();
        assert!(late.take(Of::Calls, BOUND).is_none());
        assert!(greedy.take(Of::Calls, BOUND).is_none());
        drop(third);
        drop(_first);
        assert!(more.take(Of::Calls, BOUND).is_some());
    }

    #[test]
    fn what_was_taken_is_given_back_and_what_was_refused_counts_for_nothing() {
        let shares = Shares::default();
        let share = shares.of(&agent("a"));
        let mut buffer = share.nothing(Of::Buffered);
        assert!(buffer.grow(5, BOUND));
        assert!(!buffer.grow(4, BOUND));
        assert!(buffer.grow(3, BOUND));
        drop(buffer);
        assert!(share.nothing(Of::Buffered).grow(8, BOUND));
        assert_eq!(share.all.buffered.taken.load(Ordering::Acquire), 0);
        assert_eq!(share.all.buffered.takers.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn turns_of_one_agent_are_not_those_of_another() {
        let shares = Shares::default();
        let (one, other) = (shares.of(&agent("a")), shares.of(&agent("b")));
        let mut turns = Vec::new();
        for _ in 0..RECORDS {
            turns.push(one.record().await.unwrap());
        }
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, one.record()).await.is_err());
        assert!(tokio::time::timeout(soon, other.record()).await.is_ok());
    }
}
