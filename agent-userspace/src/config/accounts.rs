//! Local users and groups by name, and what `/proc` says of a process.
//! The accounts travel in the snapshot, since the proxy process need not read `/etc`.
//! INVARIANT: a number without an account is shown as a number; it never becomes somebody's name.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// The names of local users and groups.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Accounts {
    users: Vec<(String, u32)>,
    groups: Vec<(String, u32)>,
}

impl Accounts {
    /// Reads `/etc/passwd` and `/etc/group`; a file that is not there has no accounts.
    #[must_use]
    pub fn read() -> Accounts {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        Accounts::parse(&text("/etc/passwd"), &text("/etc/group"))
    }

    /// Reads the texts of passwd(5) and group(5).
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Accounts {
        let entries = |text: &str| {
            text.lines()
                .filter_map(|line| {
                    let mut fields = line.split(':');
                    let name = fields.next().filter(|name| !name.is_empty())?;
                    let number = fields.nth(1)?.parse().ok()?;
                    Some((name.to_owned(), number))
                })
                .collect()
        };
        Accounts {
            users: entries(passwd),
            groups: entries(group),
        }
    }

    /// The name of a user, or `uid:N`.
    #[must_use]
    pub fn user_name(&self, uid: u32) -> String {
        let found = self.users.iter().find(|(_, number)| *number == uid);
        found.map_or_else(|| format!("uid:{uid}"), |(name, _)| name.clone())
    }

    /// The number of a user's name.
    #[must_use]
    pub fn user_id(&self, name: &str) -> Option<u32> {
        self.users
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, number)| *number)
    }

    /// The number of a group's name; a text that is a number stands for itself.
    #[must_use]
    pub fn group_id(&self, name: &str) -> Option<u32> {
        let found = self
            .groups
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, number)| *number);
        found.or_else(|| name.parse().ok())
    }
}

/// What `/proc` says of one process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProcessFacts {
    /// Its effective uid.
    pub uid: u32,
    /// Its effective and supplementary gids.
    pub groups: Vec<u32>,
    /// Its path in the cgroup v2 hierarchy.
    pub cgroup: String,
}

impl ProcessFacts {
    /// Reads the facts of a live process.
    ///
    /// # Errors
    /// The process is gone or hidden, or is in no cgroup v2.
    pub fn read(pid: u32) -> io::Result<ProcessFacts> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        ProcessFacts::parse(&status, &cgroup)
            .ok_or_else(|| io::Error::other("/proc does not describe the process"))
    }

    fn parse(status: &str, cgroup: &str) -> Option<ProcessFacts> {
        let numbers = |key: &str| -> Option<Vec<u32>> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace()
                .map(|number| number.parse().ok())
                .collect()
        };
        let uid = numbers("Uid:")?.get(1).copied()?;
        let mut groups = numbers("Groups:")?;
        groups.push(numbers("Gid:")?.get(1).copied()?);
        let cgroup = cgroup
            .lines()
            .find_map(|line| line.strip_prefix("0::"))?
            .to_owned();
        Some(ProcessFacts {
            uid,
            groups,
            cgroup,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_files_and_numbers_stay_numbers() {
        let accounts = Accounts::parse(
            "root:x:0:0::/root:/bin/sh\nbroken\nalice:x:1000:1000::/:/bin/sh\n",
            "ops:x:27:alice\n",
        );
        assert_eq!(accounts.user_name(0), "root");
        assert_eq!(accounts.user_name(1000), "alice");
        assert_eq!(accounts.user_name(1001), "uid:1001");
        assert_eq!(accounts.user_id("alice"), Some(1000));
        assert_eq!(accounts.group_id("ops"), Some(27));
        assert_eq!(accounts.group_id("28"), Some(28));
        assert_eq!(accounts.group_id("none"), None);
    }

    #[test]
    fn a_process_is_described_by_its_effective_ids() {
        let status = "Name:\tsh\nUid:\t1000\t1001\t1000\t1000\nGid:\t5\t6\t5\t5\nGroups:\t27 28 \n";
        let facts =
            ProcessFacts::parse(status, "1:name=systemd:/x\n0::/sluice/agents/acme.bot.1\n")
                .unwrap();
        let expected = ProcessFacts {
            uid: 1001,
            groups: vec![27, 28, 6],
            cgroup: "/sluice/agents/acme.bot.1".to_owned(),
        };
        assert_eq!(facts, expected);
        assert_eq!(ProcessFacts::parse(status, "1:name=systemd:/x\n"), None);
    }
}
