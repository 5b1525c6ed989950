//! Which processes run as an agent without being started by it: patterns of cgroups, `[[processes]] cgroup = "/machine.slice/bot-*.scope"`.
//! Read with the agent's file; the daemon governs each cgroup that matches, as it appears.
//! INVARIANT: a pattern begins at the hierarchy's root and names its first directory literally: it never means everybody.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::NameError;

/// The longest pattern, in bytes.
const LONGEST: usize = 512;
const RULE: &str = "a path from the root of the cgroup hierarchy, such as /machine.slice/bot-*.scope: `*` stands for any run of characters within one directory's name, and the first directory is named without one";

/// A path in the cgroup v2 hierarchy, as `/proc/PID/cgroup` shows it, with `*` within the names of directories.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPattern(String);

impl CgroupPattern {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of its directories, from the root on; each may hold `*`.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').skip(1)
    }

    /// Whether it means this cgroup itself; what lies below it is governed with it.
    pub fn matches(&self, cgroup: &str) -> bool {
        let Some(names) = cgroup.strip_prefix('/') else {
            return false;
        };
        let names: Vec<&str> = names.split('/').collect();
        names.len() == self.components().count()
            && self
                .components()
                .zip(names)
                .all(|(pattern, name)| is_like(pattern, name))
    }

    /// Whether some cgroup could match both, or one that matches the one could lie within one that matches the other.
    pub fn meets(&self, other: &CgroupPattern) -> bool {
        self.components()
            .zip(other.components())
            .all(|(one, other)| share(one, other))
    }
}

/// Whether a directory's name is what a component of a pattern means.
pub fn is_like(pattern: &str, name: &str) -> bool {
    // A name has no `*` of its own that would mean anything: systemd and container runtimes make none.
    !name.is_empty() && !name.contains('*') && share(pattern, name)
}

impl FromStr for CgroupPattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<CgroupPattern, NameError> {
        let refused = || NameError::new("cgroup pattern", text, RULE);
        let names: Vec<&str> = text
            .strip_prefix('/')
            .ok_or_else(refused)?
            .split('/')
            .collect();
        let plain = |name: &&str| {
            !matches!(*name, "" | "." | "..")
                && !name.contains("**")
                && name.chars().all(|c| !c.is_control() && !c.is_whitespace())
        };
        let first_is_literal = names.first().is_some_and(|first| !first.contains('*'));
        if text.len() > LONGEST || !names.iter().all(plain) || !first_is_literal {
            return Err(refused());
        }
        Ok(CgroupPattern(text.to_owned()))
    }
}

impl fmt::Display for CgroupPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::names::serde_as_text!(CgroupPattern);

/// Whether there is a text that both mean. Every pair of places that both can be read up to is visited once.
fn share(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut seen = BTreeSet::from([(0, 0)]);
    let mut open = vec![(0_usize, 0_usize)];
    while let Some((at, beside)) = open.pop() {
        let next = match (one.get(at), other.get(beside)) {
            (None, None) => return true,
            // A `*` means nothing more, or one character more of the other.
            (Some(b'*'), there) => [Some((at + 1, beside)), there.map(|_| (at, beside + 1))],
            (here, Some(b'*')) => [Some((at, beside + 1)), here.map(|_| (at + 1, beside))],
            (Some(here), Some(there)) if here == there => [Some((at + 1, beside + 1)), None],
            _ => [None, None],
        };
        for place in next.into_iter().flatten() {
            if seen.insert(place) {
                open.push(place);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> CgroupPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_means_whole_names_at_its_own_depth() {
        let check = |text: &str, cgroup: &str, expected: bool| {
            assert_eq!(pattern(text).matches(cgroup), expected, "{text} {cgroup}");
        };
        check(
            "/system.slice/bot.service",
            "/system.slice/bot.service",
            true,
        );
        check(
            "/system.slice/bot.service",
            "/system.slice/bot.service/a",
            false,
        );
        check("/system.slice/bot.service", "/system.slice", false);
        check(
            "/system.slice/bot-*.service",
            "/system.slice/bot-1.service",
            true,
        );
        check(
            "/system.slice/bot-*.service",
            "/system.slice/robot-1.service",
            false,
        );
        check(
            "/system.slice/bot-*.service",
            "/system.slice/bot-1.services",
            false,
        );
        check(
            "/kubepods.slice/*/cri-*.scope",
            "/kubepods.slice/pod1/cri-a.scope",
            true,
        );
        check(
            "/kubepods.slice/*/cri-*.scope",
            "/kubepods.slice/a/b/cri-a.scope",
            false,
        );
        check("/a/*", "/a/", false);
        check("/a/x*y*z", "/a/xyyz", true);
    }

    #[test]
    fn two_patterns_meet_where_one_cgroup_could_be_both_or_within() {
        let check = |one: &str, other: &str, expected: bool| {
            assert_eq!(
                pattern(one).meets(&pattern(other)),
                expected,
                "{one} {other}"
            );
            assert_eq!(
                pattern(other).meets(&pattern(one)),
                expected,
                "{other} {one}"
            );
        };
        check("/a/bot-*", "/a/*-one", true);
        check("/a/bot-*", "/a/robot-*", false);
        check("/a/*", "/a/b/c", true);
        check("/a/b", "/a/b/*", true);
        check("/a/b", "/b/b", false);
        check("/a/x*1", "/a/x*2", false);
        check("/a/*a*", "/a/*b*", true);
    }

    #[test]
    fn a_pattern_that_could_mean_everybody_is_none() {
        for bad in [
            "", "/", "*", "/*", "/*/a", "a/b", "/a//b", "/a/", "/a/../b", "/a/**", "/a/b c",
            "/a*/b",
        ] {
            let refused = bad.parse::<CgroupPattern>().unwrap_err().to_string();
            assert!(refused.contains("cgroup pattern"), "{bad}: {refused}");
        }
        assert!(
            format!("/a/{}", "x".repeat(600))
                .parse::<CgroupPattern>()
                .is_err()
        );
    }
}
