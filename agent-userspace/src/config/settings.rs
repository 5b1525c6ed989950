//! The settings of `config.toml` and `config.d/*.toml`, as typed values with their defaults.
//! Made by `merge` from the files' texts; read by the enforcer, the proxy process and the command line.
//! INVARIANT: a value of these types is valid; nothing downstream checks it again.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use audit::Reads;
use policies::{Approver, Endpoint, Group};
use serde::{Deserialize, Serialize};

/// Everything the settings files say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// `[approvals]`
    pub approvals: Approvals,
    /// `[audit]`
    pub audit: Audit,
    /// `[control]`
    pub control: Control,
    /// `[enforcement]`
    pub enforcement: Enforcement,
    /// `[launch]`
    pub launch: Launch,
    /// `[limits]`
    pub limits: mitm_proxy::Limits,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[names]`
    pub names: Names,
    /// `[proxy]`
    pub proxy: Proxy,
    /// `[vault]`
    pub vault: Vault,
}

/// `[proxy]`: the process that sees agent bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Further trust anchors for upstream servers, as PEM files; absolute here.
    pub extra_roots: Vec<PathBuf>,
    /// A proxy, `host:port`, that every upstream but those of `connect_to` is reached through by `CONNECT`.
    pub outbound: Option<String>,
    /// Name servers that are asked for upstreams, instead of those of `/etc/resolv.conf`.
    pub nameservers: Vec<SocketAddr>,
    /// The account the proxy process runs as: a name or a number.
    pub user: String,
    /// Fixed addresses for names, `host:port` to `host:port`. The certificate is still verified against the name.
    pub connect_to: BTreeMap<Endpoint, String>,
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy {
            extra_roots: Vec::new(),
            outbound: None,
            nameservers: Vec::new(),
            user: "sluice".to_owned(),
            connect_to: BTreeMap::new(),
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Where `/metrics` is served; nowhere unless set.
    pub listen: Option<SocketAddr>,
}

/// `[approvals]`
#[derive(Clone, Debug, PartialEq)]
pub struct Approvals {
    /// How long a held call's connection is kept waiting for a person.
    pub hold: Duration,
    /// Who is in which approver group. Uid 0 is in every group.
    pub groups: BTreeMap<Group, Vec<Approver>>,
}

impl Approvals {
    /// The groups that a local user is in.
    #[must_use]
    pub fn groups_of(&self, approver: &Approver) -> Vec<Group> {
        self.groups
            .iter()
            .filter(|(_, members)| members.contains(approver))
            .map(|(group, _)| group.clone())
            .collect()
    }
}

impl Default for Approvals {
    fn default() -> Approvals {
        Approvals {
            hold: Duration::from_secs(10),
            groups: BTreeMap::new(),
        }
    }
}

/// `[audit]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Audit {
    /// When a call that only reads may leave: when its intent is on disk, or when it is queued.
    pub reads: Reads,
}

/// `[control]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Control {
    /// The system group whose members may look, and answer approvals of their groups. Without it only uid 0 may.
    pub group: Option<String>,
}

/// `[enforcement]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Enforcement {
    /// Run although the kernel's LSM programs do not load, with the escapes that leaves open.
    pub reduced: bool,
}

/// `[launch]`: how `sluice run` starts commands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launch {
    /// The uids that agents get where no user is named, one each.
    pub uids: UidRange,
}

/// A range of uids, both ends included; never 0.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct UidRange {
    first: u32,
    last: u32,
}

impl UidRange {
    /// The range, unless it is empty or has a uid that means something else: root, nobody, "leave as it is".
    #[must_use]
    pub fn new(first: u32, last: u32) -> Option<UidRange> {
        const NOBODY: u32 = 65_534;
        const NONE_OF_16_BITS: u32 = 65_535;
        let range = UidRange { first, last };
        let special = [0, NOBODY, NONE_OF_16_BITS, u32::MAX];
        let usable = first <= last && !special.iter().any(|uid| range.contains(*uid));
        usable.then_some(range)
    }

    /// Whether a uid lies in it.
    #[must_use]
    pub fn contains(&self, uid: u32) -> bool {
        (self.first..=self.last).contains(&uid)
    }

    /// Its uids, each once, beginning somewhere in it.
    pub fn starting_at(&self, offset: u32) -> impl Iterator<Item = u32> + use<> {
        let (first, length) = (self.first, u64::from(self.last - self.first) + 1);
        (0..length).map(move |step| {
            let place = (u64::from(offset) + step) % length;
            first.saturating_add(u32::try_from(place).unwrap_or_default())
        })
    }
}

/// Above the uids of accounts and of distributions' ranges, below those that subordinate uids are taken from.
impl Default for UidRange {
    fn default() -> UidRange {
        UidRange {
            first: 70_000,
            last: 79_999,
        }
    }
}

impl TryFrom<(u32, u32)> for UidRange {
    type Error = &'static str;

    fn try_from((first, last): (u32, u32)) -> Result<UidRange, &'static str> {
        UidRange::new(first, last).ok_or("not a range of uids for agents")
    }
}

impl From<UidRange> for (u32, u32) {
    fn from(range: UidRange) -> (u32, u32) {
        (range.first, range.last)
    }
}

impl std::fmt::Display for UidRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// `[names]`: the pools of addresses that stand for names, each an address and a prefix length.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// The IPv4 pool.
    pub pool4: (Ipv4Addr, u8),
    /// The IPv6 pool.
    pub pool6: (Ipv6Addr, u8),
}

impl Default for Names {
    fn default() -> Names {
        Names {
            pool4: (Ipv4Addr::new(198, 18, 0, 0), 15),
            pool6: (Ipv6Addr::new(0xfd53, 0x6c75, 0x6963, 0x65, 0, 0, 0, 0), 64),
        }
    }
}

/// `[vault]`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vault {
    /// The file with the master key; absolute here. Without it: a systemd credential, else `master.key` of the state directory.
    pub key_file: Option<PathBuf>,
}
