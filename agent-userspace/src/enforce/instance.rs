//! Names: of a daemon's instance (its cgroups and pins) and of a workload's cgroup.
//! Place on the path: everything that lies outside this process is found again by these names.
//! INVARIANT: a name parses back to exactly what made it; instances with different runtime directories never meet.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use policies::AgentId;
use sha2::{Digest as _, Sha256};

/// The runtime directory whose instance has no suffix.
const DEFAULT_RUNTIME: &str = "/run/sluice";

/// The name under which one daemon's cgroups and pins live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance(String);

impl Instance {
    /// The instance of a runtime directory: `sluice`, or `sluice-<8 hex of its SHA-256>` where it is not `/run/sluice`.
    #[must_use]
    pub fn of(runtime_dir: &Path) -> Self {
        if runtime_dir == Path::new(DEFAULT_RUNTIME) {
            return Self("sluice".to_owned());
        }
        let digest = Sha256::digest(runtime_dir.as_os_str().as_encoded_bytes());
        let hex: String = digest
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self(format!("sluice-{hex}"))
    }

    /// The instance that a label stands for: `sluice-<label>`. Characters that do not fit a file name become `-`.
    #[must_use]
    pub fn named(label: &str) -> Self {
        let label: String = label
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        Self(format!("sluice-{label}"))
    }

    /// The name as a directory.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a workload's cgroup: `<tenant>.<agent>.<number>`. Neither name can contain a dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadName {
    /// The agent that it runs as.
    pub agent: AgentId,
    /// Tells the workloads of one agent apart; never used twice while the daemon lives.
    pub number: u64,
}

/// A directory name that is not a workload's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not <tenant>.<agent>.<number>")]
pub struct NotAWorkload(String);

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{}.{}",
            self.agent.tenant, self.agent.name, self.number
        )
    }
}

impl FromStr for WorkloadName {
    type Err = NotAWorkload;

    fn from_str(text: &str) -> Result<Self, NotAWorkload> {
        let parse = || {
            let mut parts = text.split('.');
            let (tenant, name, number) = (parts.next()?, parts.next()?, parts.next()?);
            let agent = AgentId {
                tenant: tenant.parse().ok()?,
                name: name.parse().ok()?,
            };
            let name = Self {
                agent,
                number: number.parse().ok()?,
            };
            // The round trip refuses "007", a fourth part, and whatever else would be two names for one directory.
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or_else(|| NotAWorkload(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_follow_their_runtime_directory() {
        assert_eq!(Instance::of(Path::new("/run/sluice")).as_str(), "sluice");
        let other = Instance::of(Path::new("/tmp/x"));
        assert_eq!(other.as_str().len(), "sluice-".len() + 8);
        assert_ne!(other, Instance::of(Path::new("/tmp/y")));
    }

    #[test]
    fn workload_names_round_trip() {
        for text in [
            "acme.support.1",
            "a.b.0",
            "t-1.agent_2.18446744073709551615",
        ] {
            assert_eq!(
                text.parse::<WorkloadName>().map(|name| name.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "acme.support",
            "acme.support.007",
            "acme.support.1.2",
            "ACME.support.1",
            "acme.support.-1",
        ] {
            assert!(text.parse::<WorkloadName>().is_err(), "{text}");
        }
    }
}
