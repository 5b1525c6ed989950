//! The links that a daemon holds, and the programs behind them, as the kernel tells of its descriptors.
//! Under the rounds: an upgrade must put other programs into the same links.
//! Invariant: nothing is asked of the daemon; what is compared is the kernel's own word.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// Links by their kernel id, each with the tag of its program: a digest of the instructions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Links(BTreeMap<u32, String>);

/// What became of the links over all rounds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Upgrades {
    /// How often a daemon of the other build took over.
    pub(super) done: u32,
    /// Links that got another program, summed over the upgrades.
    pub(super) updated: usize,
    /// Links of cgroups that are not the ones of before: must be 0. An agent was without that wall in between.
    pub(super) replaced: usize,
    /// Programs that are not those of the build that runs: must be 0.
    pub(super) foreign: usize,
}

impl Links {
    /// Those of cgroups that this process holds. A tracepoint's or LSM hook's link cannot be updated in place.
    pub(super) fn of(pid: u32) -> Result<Links> {
        let mut links = BTreeMap::new();
        let directory = Path::new("/proc").join(pid.to_string()).join("fdinfo");
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?
        {
            // Closed meanwhile.
            let Ok(text) = std::fs::read_to_string(entry?.path()) else {
                continue;
            };
            let word = |name: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
            };
            if word("link_type:").as_deref() != Some("cgroup") {
                continue;
            }
            let (Some(id), Some(tag)) = (word("link_id:"), word("prog_tag:")) else {
                bail!("a link without an id or a program: {text}");
            };
            links.insert(id.parse()?, tag);
        }
        if links.is_empty() {
            bail!("process {pid} holds no link of a cgroup");
        }
        Ok(Links(links))
    }

    fn tags(&self) -> BTreeSet<&str> {
        self.0.values().map(String::as_str).collect()
    }
}

/// The two builds, and what their programs are.
#[derive(Debug, Default)]
pub(super) struct Builds {
    now: Links,
    known: [Option<Links>; 2],
}

impl Builds {
    /// A daemon of this build serves: are its links those of before, and its programs its own?
    pub(super) fn see(&mut self, pid: u32, build: usize, upgrades: &mut Upgrades) -> Result<()> {
        let found = Links::of(pid)?;
        let known = self.known.get_mut(build).context("there are two builds")?;
        let first = known.is_none();
        let own = known.get_or_insert_with(|| found.clone());
        upgrades.foreign += found
            .tags()
            .iter()
            .filter(|tag| !own.tags().contains(*tag))
            .count();
        if !self.now.0.is_empty() {
            let same = |id: &&u32| found.0.contains_key(*id);
            upgrades.replaced += self.now.0.len() - self.now.0.keys().filter(same).count();
            let other = |(id, tag): &(&u32, &String)| {
                self.now.0.get(*id).is_some_and(|before| before != *tag)
            };
            let updated = found.0.iter().filter(other).count();
            if updated > 0 {
                upgrades.done += 1;
                upgrades.updated += updated;
            } else if first {
                bail!("the other build has the same programs: no upgrade was ever tried");
            }
        }
        self.now = found;
        Ok(())
    }
}
