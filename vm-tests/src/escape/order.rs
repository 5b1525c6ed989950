//! What an attempt is told: which case, which token, where to; as words of a command line.
//! Between the suite, which gives it, and the attacker, which carries it out.
//! Invariant: no two attempts of a run share a token or an address, so what is on the wire says whose it is.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::Who;

/// The port of the far end that takes everything.
pub(super) const PORT: u16 = 4433;

/// One attempt.
#[derive(Clone, Debug)]
pub struct Order {
    /// `E01`
    pub case: String,
    /// What must not be seen on the wire.
    pub token: String,
    /// This attempt's own address beyond the wire.
    pub v4: Ipv4Addr,
    /// The same in IPv6.
    pub v6: Ipv6Addr,
    /// Who the attacker is; None: as it was started.
    pub who: Option<Who>,
    /// The workload to join, where the launcher does not.
    pub cgroup: Option<PathBuf>,
    /// Whether anything stands in its way: what would unmake a wall is done only where there is one.
    pub governed: bool,
    /// Where the helper can be found: a path, a name, a port or a pid.
    pub helper: String,
    /// The interface that leads out.
    pub device: String,
    /// Where the hierarchy of cgroups is mounted outside.
    pub hierarchy: PathBuf,
}

/// Why an attempt went no further.
#[derive(Debug)]
pub struct Stop {
    step: &'static str,
    error: io::Error,
}

impl Stop {
    /// Without an errno.
    #[must_use]
    pub fn because(step: &'static str, why: &str) -> Stop {
        Stop {
            step,
            error: io::Error::other(why.to_owned()),
        }
    }

    /// The step's name and its error.
    #[must_use]
    pub fn words(&self) -> String {
        let name = self
            .error
            .raw_os_error()
            .and_then(errno_name)
            .map_or_else(|| self.error.to_string(), str::to_owned);
        format!("{}: {name}", self.step)
    }
}

/// Names the step at which an attempt ended.
pub(super) trait At<T> {
    /// The step, for an error.
    fn at(self, step: &'static str) -> Result<T, Stop>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &'static str) -> Result<T, Stop> {
        self.map_err(|error| Stop {
            step,
            error: error.into(),
        })
    }
}

impl Order {
    /// The words of the attacker's command line.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("case={}", self.case),
            format!("token={}", self.token),
            format!("v4={}", self.v4),
            format!("v6={}", self.v6),
            format!("helper={}", self.helper),
            format!("device={}", self.device),
            format!("governed={}", self.governed),
            format!("hierarchy={}", self.hierarchy.display()),
        ];
        if let Some(who) = self.who {
            words.push(format!("who={}", who.name()));
        }
        if let Some(cgroup) = &self.cgroup {
            words.push(format!("cgroup={}", cgroup.display()));
        }
        words
    }

    /// Reads those words.
    #[must_use]
    pub fn parse(words: &[String]) -> Option<Order> {
        let find = |name: &str| {
            words.iter().find_map(|word| {
                let (key, value) = word.split_once('=')?;
                (key == name).then_some(value)
            })
        };
        Some(Order {
            case: find("case")?.to_owned(),
            token: find("token")?.to_owned(),
            v4: find("v4")?.parse().ok()?,
            v6: find("v6")?.parse().ok()?,
            who: find("who").and_then(Who::parse),
            cgroup: find("cgroup").map(PathBuf::from),
            governed: find("governed")? == "true",
            helper: find("helper")?.to_owned(),
            device: find("device")?.to_owned(),
            hierarchy: find("hierarchy")?.into(),
        })
    }

    pub(super) fn to4(&self) -> SocketAddr {
        (self.v4, PORT).into()
    }

    pub(super) fn to6(&self) -> SocketAddr {
        (self.v6, PORT).into()
    }

    /// The IPv4 destination as an IPv6 socket names it.
    pub(super) fn to_mapped(&self) -> SocketAddr {
        (self.v4.to_ipv6_mapped(), PORT).into()
    }

    /// A multicast group that only this attempt joins; its bits are the message.
    pub(super) fn group4(&self) -> Ipv4Addr {
        let [_, _, c, d] = self.v4.octets();
        let [a, b] = self.salt();
        Ipv4Addr::new(239, a ^ b, c, d)
    }

    /// The same in IPv6.
    pub(super) fn group6(&self) -> Ipv6Addr {
        let [.., low] = self.v6.segments();
        let [_, _, c, d] = self.v4.octets();
        let [a, b] = self.salt();
        let salt = u16::from_be_bytes([a, b]);
        Ipv6Addr::new(
            0xff15,
            0x5361,
            0x6c75,
            salt,
            low,
            u16::from_be_bytes([c, d]),
            0,
            1,
        )
    }

    fn salt(&self) -> [u8; 2] {
        self.token.bytes().fold([7, 13], |[a, b], byte| {
            [a.wrapping_mul(31) ^ byte, b.wrapping_add(byte)]
        })
    }

    pub(super) fn data(&self) -> &[u8] {
        self.token.as_bytes()
    }
}

/// `struct sockaddr_in` or `sockaddr_in6` as bytes.
pub(super) fn raw(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.extend((libc::AF_INET as u16).to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend((libc::AF_INET6 as u16).to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EACCES => "EACCES",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EAGAIN => "EAGAIN",
        libc::EBUSY => "EBUSY",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::EEXIST => "EEXIST",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EINPROGRESS => "EINPROGRESS",
        libc::EINVAL => "EINVAL",
        libc::EIO => "EIO",
        libc::ENODEV => "ENODEV",
        libc::ENOENT => "ENOENT",
        libc::ENOPROTOOPT => "ENOPROTOOPT",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTCONN => "ENOTCONN",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EPERM => "EPERM",
        libc::EPIPE => "EPIPE",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::EROFS => "EROFS",
        libc::ESOCKTNOSUPPORT => "ESOCKTNOSUPPORT",
        libc::ESRCH => "ESRCH",
        libc::ETIMEDOUT => "ETIMEDOUT",
        _ => return None,
    })
}
