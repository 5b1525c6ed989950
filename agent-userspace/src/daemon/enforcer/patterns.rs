//! Cgroups that run as an agent because a rule of its file says so: found as they appear, stopped, governed, let go on.
//! Beside `adoptions`, which does the work; woken by inotify, and by the clock for what that missed.
//! INVARIANT: what matches runs as the agent or stands still: it is frozen before anybody is asked, and let go on only governed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use policies::{AgentId, CgroupPattern, Reason};
use tokio::sync::oneshot;

use super::Enforcer;
use super::admissions::unenforced;
use super::adoptions::unadopted;
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
    /// Why a cgroup is not governed, as far as it is on record: once for each reason, until it is governed or the rules change.
    recorded: BTreeSet<(PathBuf, Reason)>,
}

impl Patterns {
    /// What is on record of a cgroup.
    pub(super) fn recorded(&self, cgroup: &Path) -> Vec<Reason> {
        let of_it = self.recorded.iter().filter(|(path, _)| path == cgroup);
        of_it.map(|(_, reason)| *reason).collect()
    }

    /// From now on it is on record; whether it was not before.
    pub(super) fn is_recorded(&mut self, cgroup: &Path, refusal: &Refusal) -> bool {
        self.recorded.insert((cgroup.to_owned(), refusal.reason))
    }
}

impl Enforcer {
    /// Other rules are in force. What stood for a rule that is gone goes on, and is nobody's.
    pub(super) fn set_patterns(&mut self, rules: Vec<(AgentId, CgroupPattern)>) {
        self.patterns.rules = rules;
        self.patterns.recorded.clear();
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
        self.patterns.recorded.retain(|(path, _)| waits(path));
        let now = Instant::now();
        for (agent, path) in found {
            let shown = self.enforcement.shown(&path).unwrap_or_default();
            let again = self.patterns.standing.get(&path).copied();
            if self.book.governs(&shown) || again.is_some_and(|again| again > now) {
                continue;
            }
            self.take_one(&agent, path, now).await;
        }
        if is_new {
            self.appearing.wake();
        }
    }

    async fn take_one(&mut self, agent: &AgentId, path: PathBuf, now: Instant) {
        let fit = self.enforcement.fit(agent, &path);
        let held = fit
            .map_err(|error| unenforced(&error))
            .and_then(|()| hold(&path).map_err(|error| unadopted(&error)));
        let made = held.and_then(|()| {
            self.patterns.standing.insert(path.clone(), now + PAUSE);
            let wanted = Running::Cgroup(CgroupRef::Directory(path.clone()));
            self.adopt_running(agent.clone(), &wanted, true)
        });
        let made = match made {
            Ok(made) => made,
            Err(refusal) => {
                self.refused_of_rule(Some(agent.clone()), &path, &refusal);
                return self.tell_happenings().await;
            }
        };
        let (reply, answer) = oneshot::channel::<Result<Admission, Refusal>>();
        let agent = agent.clone();
        tokio::spawn(async move {
            match answer.await {
                Ok(Ok(_)) => {
                    tracing::info!(cgroup = %path.display(), %agent, "governed, as a rule says");
                }
                Ok(Err(refusal)) => {
                    tracing::debug!(cgroup = %path.display(), %refusal, "not governed, as a rule says");
                }
                Err(_) => {
                    tracing::warn!(cgroup = %path.display(), "it stands still: the daemon stops");
                }
            }
        });
        self.admit(made, reply).await;
    }

    /// Has it written down, counted and said that a rule's cgroup is not governed: once, however often it is tried.
    pub(super) fn refused_of_rule(
        &mut self,
        agent: Option<AgentId>,
        cgroup: &Path,
        refusal: &Refusal,
    ) {
        // One that is gone again was refused nothing.
        if !cgroup.is_dir() || !self.patterns.is_recorded(cgroup, refusal) {
            return;
        }
        let stands = self.patterns.standing.contains_key(cgroup);
        let stands = if stands { ", and it stands still" } else { "" };
        let shown = self.enforcement.shown(cgroup).unwrap_or_default();
        let detail = format!("{}; a rule means {shown}{stands}", refusal.detail);
        let reason = refusal.reason;
        self.refused(agent, &Refusal { reason, detail });
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
