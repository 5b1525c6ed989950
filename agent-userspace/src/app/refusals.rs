//! The kernel's refusals on their way into the audit log: whose each was, and how many of a kind are too many.
//! Between the enforcer's events and the ledger; the metric is fed apart from this and has every one.
//! INVARIANT: of one workload, kind and destination there is the first, then one summary a minute; nothing is lost uncounted.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use audit::{HostEvent, WorkloadFacts};
use mitm_proxy::Workload;
use policies::{AgentId, WorkloadId};

use super::KernelRefusal;
use super::state::{Shared, facts};

/// How long refusals that equal a recorded one are only counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Destinations of one workload and kind that get records of their own at a time; the others share one.
const DESTINATIONS: usize = 16;
/// Workloads that ended and are still remembered, for their sockets' last packets.
const ENDED: usize = 1024;
/// The kernel's word for a task or a socket of no admitted workload.
const WORKLOAD_UNKNOWN: &str = "workload_unknown";

/// What was refused lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    windows: HashMap<Like, Window>,
    ended: VecDeque<Whose>,
}

/// What makes one refusal like another.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Like {
    workload: Option<WorkloadId>,
    kind: String,
    to: Destination,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Destination {
    At(SocketAddr),
    /// More of them than are told apart.
    Further,
    /// The refusal had none.
    Nowhere,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    left_out: u64,
    whose: Option<Whose>,
}

#[derive(Clone, Debug)]
struct Whose {
    agent: AgentId,
    workload: WorkloadFacts,
}

impl Whose {
    fn of(workload: &Workload) -> Whose {
        Whose {
            agent: workload.agent.clone(),
            workload: facts(workload),
        }
    }
}

impl Refusals {
    /// Remembers a workload that ended: what its sockets still send is refused, and is nobody's attack.
    pub(super) fn ended(&mut self, workload: &Workload) {
        if self.ended.len() == ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(Whose::of(workload));
    }

    /// Records a refusal, unless one like it was recorded lately.
    pub(super) async fn record(&mut self, shared: &Shared, refusal: KernelRefusal) {
        let live = refusal.workload.and_then(|id| shared.workloads.get(id));
        if let Some(event) = self.admit(refusal, live.as_ref(), Instant::now()) {
            write(shared, event).await;
        }
    }

    /// Records how many were left out where a minute is over.
    pub(super) async fn summarise(&mut self, shared: &Shared) {
        for event in self.due(Instant::now(), WINDOW) {
            write(shared, event).await;
        }
    }

    /// Records how many were left out so far, before the daemon stops.
    pub(super) async fn finish(&mut self, shared: &Shared) {
        for event in self.due(Instant::now(), Duration::ZERO) {
            write(shared, event).await;
        }
    }

    fn admit(
        &mut self,
        refusal: KernelRefusal,
        live: Option<&Workload>,
        now: Instant,
    ) -> Option<HostEvent> {
        let KernelRefusal {
            workload,
            kind,
            destination,
        } = refusal;
        let former = || {
            let found = self
                .ended
                .iter()
                .find(|whose| Some(whose.workload.id) == workload);
            found.cloned()
        };
        let whose = match live {
            Some(live) => Some(Whose::of(live)),
            None => match former() {
                // A retired workload has no process left: these are the last packets of its sockets.
                Some(_) if kind == WORKLOAD_UNKNOWN => return None,
                former => former,
            },
        };
        let mut like = Like {
            workload,
            kind,
            to: destination.map_or(Destination::Nowhere, Destination::At),
        };
        if !self.windows.contains_key(&like) && self.crowded(&like) {
            like.to = Destination::Further;
        }
        if let Some(window) = self.windows.get_mut(&like) {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        let event = event(&like, whose.as_ref(), 0);
        let window = Window {
            since: now,
            left_out: 0,
            whose,
        };
        self.windows.insert(like, window);
        Some(event)
    }

    /// Whether so many destinations are told apart already that one more would let an agent fill the log.
    fn crowded(&self, like: &Like) -> bool {
        let alike = |other: &&Like| other.workload == like.workload && other.kind == like.kind;
        self.windows.keys().filter(alike).count() >= DESTINATIONS
    }

    /// The summaries of windows at least `age` old. A window in which nothing was left out is forgotten.
    fn due(&mut self, now: Instant, age: Duration) -> Vec<HostEvent> {
        let mut events = Vec::new();
        self.windows.retain(|like, window| {
            if now.saturating_duration_since(window.since) < age {
                return true;
            }
            if window.left_out == 0 {
                return false;
            }
            events.push(event(like, window.whose.as_ref(), window.left_out));
            window.since = now;
            window.left_out = 0;
            true
        });
        events
    }
}

async fn write(shared: &Shared, event: HostEvent) {
    let tenant = match &event {
        HostEvent::KernelRefusal { agent, .. } => agent.as_ref().map(|agent| agent.tenant.clone()),
        _ => None,
    };
    shared.record(tenant.as_ref(), event).await;
}

fn event(like: &Like, whose: Option<&Whose>, left_out: u64) -> HostEvent {
    let to = match like.to {
        Destination::At(address) => Some(format!("to {address}")),
        Destination::Further => Some("to further destinations".to_owned()),
        Destination::Nowhere => None,
    };
    let more = (left_out > 0).then(|| format!("{left_out} more within {} s", WINDOW.as_secs()));
    let words: Vec<String> = [to, more].into_iter().flatten().collect();
    // Nothing else is known of a cgroup in which no workload was admitted.
    let unknown = |id| WorkloadFacts {
        id,
        pid: None,
        exe: None,
        cgroup: None,
    };
    HostEvent::KernelRefusal {
        agent: whose.map(|whose| whose.agent.clone()),
        workload: whose
            .map(|whose| whose.workload.clone())
            .or_else(|| like.workload.map(unknown)),
        kind: like.kind.clone(),
        destination: match like.to {
            Destination::At(address) => Some(address.ip()),
            Destination::Further | Destination::Nowhere => None,
        },
        detail: words.join("; "),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]
mod tests {
    use super::*;

    fn workload(id: u64) -> Workload {
        Workload {
            id: WorkloadId(id),
            agent: "acme/support".parse().unwrap(),
            pid: Some(7),
            exe: None,
            cgroup: "/sluice/agents/acme.support.7".to_owned(),
            way: mitm_proxy::Way::Run,
        }
    }

    fn refusal(id: u64, kind: &str, to: Option<&str>) -> KernelRefusal {
        KernelRefusal {
            workload: Some(WorkloadId(id)),
            kind: kind.to_owned(),
            destination: to.map(|to| to.parse().unwrap()),
        }
    }

    fn told(event: &HostEvent) -> (Option<String>, String) {
        match event {
            HostEvent::KernelRefusal { agent, detail, .. } => {
                (agent.as_ref().map(ToString::to_string), detail.clone())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_is_told_and_then_a_count_each_minute() {
        let (mut refusals, live, start) = (Refusals::default(), workload(1), Instant::now());
        let once = || refusal(1, "datagram", Some("192.0.2.1:9999"));
        let agent = Some("acme/support".to_owned());
        let first = refusals.admit(once(), Some(&live), start).unwrap();
        assert_eq!(
            told(&first),
            (agent.clone(), "to 192.0.2.1:9999".to_owned())
        );
        for _ in 0..41 {
            assert!(refusals.admit(once(), Some(&live), start).is_none());
        }
        assert!(refusals.due(start + WINDOW / 2, WINDOW).is_empty());
        let summaries = refusals.due(start + WINDOW, WINDOW);
        let [summary] = &summaries[..] else {
            panic!("{summaries:?}")
        };
        let words = "to 192.0.2.1:9999; 41 more within 60 s".to_owned();
        assert_eq!(told(summary), (agent, words));
        // A quiet minute ends it; the next one is a first one again.
        assert!(refusals.due(start + WINDOW * 2, WINDOW).is_empty());
        assert!(
            refusals
                .admit(once(), Some(&live), start + WINDOW * 2)
                .is_some()
        );
    }

    #[test]
    fn another_workload_kind_or_destination_is_told_by_itself() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for (id, kind, to) in [
            (1, "datagram", Some("192.0.2.1:9999")),
            (2, "datagram", Some("192.0.2.1:9999")),
            (1, "packet", Some("192.0.2.1:9999")),
            (1, "datagram", Some("192.0.2.2:9999")),
            (1, "datagram", None),
        ] {
            let told = refusals.admit(refusal(id, kind, to), Some(&workload(id)), now);
            assert!(told.is_some(), "{id} {kind} {to:?}");
        }
    }

    #[test]
    fn a_scan_over_many_destinations_does_not_fill_the_log() {
        let (mut refusals, live, now) = (Refusals::default(), workload(1), Instant::now());
        let mut recorded = 0;
        for port in 1..1000 {
            let to = format!("192.0.2.1:{port}");
            let scan = refusal(1, "datagram", Some(&to));
            recorded += usize::from(refusals.admit(scan, Some(&live), now).is_some());
        }
        assert_eq!(recorded, DESTINATIONS + 1);
        let left_out: Vec<String> = refusals
            .due(now + WINDOW, WINDOW)
            .iter()
            .map(|event| told(event).1)
            .collect();
        assert_eq!(left_out, ["to further destinations; 982 more within 60 s"]);
    }

    #[test]
    fn last_packets_of_an_ended_workload_are_no_attack() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let unknown = || refusal(1, WORKLOAD_UNKNOWN, Some("192.0.2.1:443"));
        refusals.ended(&workload(1));
        assert!(refusals.admit(unknown(), None, now).is_none());
        // Positive controls: of a workload that never was admitted, and another kind of the ended one.
        let stranger = refusal(2, WORKLOAD_UNKNOWN, Some("192.0.2.1:443"));
        let stranger = refusals.admit(stranger, None, now).unwrap();
        assert_eq!(told(&stranger).0, None);
        let packet = refusals.admit(refusal(1, "packet", None), None, now);
        assert_eq!(
            told(&packet.unwrap()),
            (Some("acme/support".to_owned()), String::new())
        );
    }
}
