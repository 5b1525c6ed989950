//! Cgroups that run as an agent because a rule of its file says so: found as they appear, stopped, governed, let go on.
//! Beside `adoptions`, which does the work; woken by inotify, and by the clock for what that missed.
//! INVARIANT: what matches runs as the agent or stands still: it is frozen before anybody is asked, and let go on only governed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use policies::{AgentId, CgroupPattern};
use tokio::sync::oneshot;

use super::Enforcer;
use crate::daemon::error::in_full;
use crate::daemon::protocol::{CgroupRef, Refusal, Running};
use crate::daemon::runs::Admission;
use crate::enforce::{hold, let_go};

/// How long a cgroup that could not be governed stands before it is tried again.
const PAUSE: Duration = Duration::from_secs(2);

/// The rules in force, and what became of their cgroups.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    rules: Vec<(AgentId, CgroupPattern)>,
    /// Cgroups that a rule means and that are not governed yet: they stand still, and are tried again then.
    standing: BTreeMap<PathBuf, Instant>,
    /// Cgroups that no rule can take, such as the daemon's own: said once.
    unfit: BTreeSet<PathBuf>,
}

impl Enforcer {
    /// Other rules are in force. What stood for a rule that is gone goes on, and is nobody's.
    pub(super) fn set_patterns(&mut self, rules: Vec<(AgentId, CgroupPattern)>) {
        self.patterns.rules = rules;
        self.patterns.unfit.clear();
        let (rules, enforcement) = (&self.patterns.rules, &self.enforcement);
        self.patterns.standing.retain(|path, _| {
            let shown = enforcement.shown(path).unwrap_or_default();
            let meant = rules.iter().any(|(_, rule)| rule.matches(&shown));
            if !meant && let Err(error) = let_go(path) {
                tracing::error!(%error, cgroup = %path.display(), "no rule means it any more, and it stands still");
            }
            meant
        });
    }

    /// Looks for cgroups that match and are nobody's yet, and takes them.
    pub(super) async fn take_matching(&mut self) {
        if self.patterns.rules.is_empty() && self.patterns.standing.is_empty() {
            return;
        }
        self.sweep_later();
        let mut watched = Vec::new();
        let mut found = Vec::new();
        for (agent, rule) in &self.patterns.rules {
            for path in matching(self.enforcement.hierarchy(), rule, &mut watched) {
                found.push((agent.clone(), path));
            }
        }
        // A directory that was made before it was watched is found by the look that follows this one.
        let is_new = self.appearing.watch(&watched);
        let enforcement = &self.enforcement;
        let waits = |path: &PathBuf| path.is_dir() && !enforcement.governs(path);
        self.patterns.standing.retain(|path, _| waits(path));
        let now = Instant::now();
        for (agent, path) in found {
            let shown = self.enforcement.shown(&path).unwrap_or_default();
            let again = self.patterns.standing.get(&path).copied();
            if self.book.governs(&shown) || again.is_some_and(|again| again > now) {
                continue;
            }
            self.take_one(&agent, path, again.is_none(), now).await;
        }
        if is_new {
            self.appearing.wake();
        }
    }

    async fn take_one(&mut self, agent: &AgentId, path: PathBuf, first: bool, now: Instant) {
        let fit = self.enforcement.fit(agent, &path);
        let held = fit
            .map_err(|error| in_full(&error))
            .and_then(|()| hold(&path).map_err(|error| in_full(&error)));
        if let Err(detail) = held {
            if self.patterns.unfit.insert(path.clone()) {
                tracing::error!(cgroup = %path.display(), %agent, detail, "a rule means this cgroup, which cannot be a workload");
            }
            return;
        }
        self.patterns.standing.insert(path.clone(), now + PAUSE);
        let complain = move |path: &Path, detail: &str| {
            if first {
                tracing::error!(cgroup = %path.display(), detail, "a rule means this cgroup, it cannot be governed, and it stands still");
            }
        };
        let wanted = Running::Cgroup(CgroupRef::Directory(path.clone()));
        let made = match self.adopt_running(agent.clone(), &wanted, true) {
            Ok(made) => made,
            Err(refusal) => return complain(&path, &refusal.to_string()),
        };
        let (reply, answer) = oneshot::channel::<Result<Admission, Refusal>>();
        let agent = agent.clone();
        tokio::spawn(async move {
            match answer.await {
                Ok(Ok(_)) => {
                    tracing::info!(cgroup = %path.display(), %agent, "governed, as a rule says");
                }
                Ok(Err(refusal)) => complain(&path, &refusal.to_string()),
                Err(_) => complain(&path, "the daemon stops"),
            }
        });
        self.admit(made, reply).await;
    }

    /// Processes of an attached workload may come to live in a network namespace of their own: it gets its listeners then.
    pub(super) async fn look_into_namespaces(&mut self) {
        for (id, path) in self.enforcement.elsewhere() {
            match self.namespaces.find_more(id, &path) {
                Ok(0) => {}
                Ok(more) => {
                    if let Some(worker) = &self.worker {
                        self.namespaces.tell_last(id, more, worker).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, cgroup = %path.display(), "a network namespace has no listeners yet");
                }
            }
        }
    }
}

/// The directories that a rule means, and in `watched` those in which another could appear.
fn matching(hierarchy: &Path, rule: &CgroupPattern, watched: &mut Vec<PathBuf>) -> Vec<PathBuf> {
    let mut found = vec![hierarchy.to_owned()];
    for component in rule.components() {
        watched.extend(found.iter().cloned());
        found = found
            .iter()
            .flat_map(|directory| below(directory, component))
            .collect();
    }
    found
}

fn below(directory: &Path, component: &str) -> Vec<PathBuf> {
    if !component.contains('*') {
        let path = directory.join(component);
        return if path.is_dir() {
            vec![path]
        } else {
            Vec::new()
        };
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let like = entries.filter(|entry| {
        let name = entry.file_name();
        let is_like = name
            .to_str()
            .is_some_and(|name| policies::is_like(component, name));
        is_like && entry.file_type().is_ok_and(|kind| kind.is_dir())
    });
    like.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_means_directories_at_its_depth_and_watches_those_above() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        for path in [
            "pods/a/bot-1",
            "pods/a/other",
            "pods/b/bot-2/below",
            "else/a/bot-3",
        ] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        fs::write(root.join("pods/a/bot-file"), "").unwrap();
        let mut watched = Vec::new();
        let mut found = matching(root, &"/pods/*/bot-*".parse().unwrap(), &mut watched);
        found.sort();
        assert_eq!(
            found,
            [root.join("pods/a/bot-1"), root.join("pods/b/bot-2")]
        );
        watched.sort();
        assert_eq!(
            watched,
            ["", "pods", "pods/a", "pods/b"].map(|path| if path.is_empty() {
                root.to_owned()
            } else {
                root.join(path)
            })
        );
    }
}
