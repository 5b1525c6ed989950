//! Host names, endpoints and host patterns: where a call may go.
//! Parsed from connector and agent files, SNI, `Host`, `:authority` and DNS questions; compared as values ever after.
//! INVARIANT: one host has one spelling (lower case, no trailing dot, addresses in their shortest form), so equality is identity.

use super::{NameError, serde_as_text};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

const HOST_RULE: &str =
    "a DNS name of letters, digits, `-` and `_` without a trailing dot, or an IP address";
const ENDPOINT_RULE: &str = "written HOST:PORT";
const PATTERN_RULE: &str = "a host, an IP address or `*.SUFFIX`, with an optional `:PORT`";

/// A lower-case DNS name without trailing dot, or an IP address.
///
/// IPv4-mapped IPv6 addresses are the IPv4 address. Names that resolvers read as numbers (`127.1`, `0x7f.1`) are no hosts.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    text: Arc<str>,
    ip: Option<IpAddr>,
}

impl Host {
    /// Reads a host; letters are lower-cased, IPv6 may stand in brackets.
    pub fn parse(text: &str) -> Result<Host, NameError> {
        if let Some(ip) = parse_ip(text) {
            return Ok(Host {
                text: Arc::from(ip.to_string()),
                ip: Some(ip),
            });
        }
        if is_dns_name(text) {
            return Ok(Host {
                text: Arc::from(text.to_ascii_lowercase()),
                ip: None,
            });
        }
        Err(NameError::new("host", text, HOST_RULE))
    }

    /// The host as text; IPv6 without brackets.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address, where the host is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// Whether the host is an address.
    pub fn is_ip(&self) -> bool {
        self.ip.is_some()
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Host {
        let ip = ip.to_canonical();
        Host {
            text: Arc::from(ip.to_string()),
            ip: Some(ip),
        }
    }
}

impl FromStr for Host {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Host, NameError> {
        Host::parse(text)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({self})")
    }
}

serde_as_text!(Host);

/// A host and a TCP port, written `api.stripe.com:443` or `[::1]:443`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The host that was asked for.
    pub host: Host,
    /// The TCP port, never 0.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Endpoint, NameError> {
        match split_port(text) {
            Some((host, Some(port))) => Ok(Endpoint {
                host: Host::parse(host)?,
                port,
            }),
            _ => Err(NameError::new("endpoint", text, ENDPOINT_RULE)),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

serde_as_text!(Endpoint);

/// Which hosts a connector or a connection names: exactly one, or `*.suffix` for exactly one label in front of the suffix.
///
/// Without a port the pattern is for 443. `*.slack.com` is `files.slack.com`, neither `slack.com` nor `a.b.slack.com`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern {
    wildcard: bool,
    /// The host, or the suffix behind `*.`.
    host: Host,
    port: u16,
}

impl HostPattern {
    /// The port this pattern is for; 443 where the text had none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The one host that this pattern names, unless it is a wildcard.
    pub fn exact(&self) -> Option<&Host> {
        (!self.wildcard).then_some(&self.host)
    }

    /// Whether the pattern names this host, on some port.
    pub fn names(&self, host: &Host) -> bool {
        if !self.wildcard {
            return self.host == *host;
        }
        let first_label = host
            .as_str()
            .strip_suffix(self.host.as_str())
            .and_then(|rest| rest.strip_suffix('.'));
        !host.is_ip() && first_label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
    }

    /// Whether the pattern names this host and port.
    pub fn matches(&self, at: &Endpoint) -> bool {
        self.port == at.port && self.names(&at.host)
    }

    /// Whether some endpoint matches both patterns.
    pub fn overlaps(&self, other: &HostPattern) -> bool {
        let hosts = match (self.wildcard, other.wildcard) {
            (false, _) => other.names(&self.host),
            (true, false) => self.names(&other.host),
            (true, true) => self.host == other.host,
        };
        hosts && self.port == other.port
    }
}

impl FromStr for HostPattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<HostPattern, NameError> {
        let wrong = || NameError::new("host pattern", text, PATTERN_RULE);
        let (wildcard, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (host, port) = split_port(rest).ok_or_else(wrong)?;
        let host = Host::parse(host)?;
        // `*.com` would name every company: a wildcard's suffix has at least two labels and is no address.
        if wildcard && (host.is_ip() || !host.as_str().contains('.')) {
            return Err(wrong());
        }
        Ok(HostPattern {
            wildcard,
            host,
            port: port.unwrap_or(443),
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.wildcard { "*." } else { "" };
        match (self.host.ip, self.port) {
            (_, 443) => write!(f, "{star}{}", self.host),
            (Some(IpAddr::V6(ip)), port) => write!(f, "[{ip}]:{port}"),
            (_, port) => write!(f, "{star}{}:{port}", self.host),
        }
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostPattern({self})")
    }
}

serde_as_text!(HostPattern);

/// `host`, `host:port`, `[v6]:port` or a bare v6; the port without leading zeros and not 0.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, None));
    }
    let colon = match text.rfind(']') {
        Some(bracket) => text.get(bracket..)?.find(':').map(|at| bracket + at),
        None => text.find(':'),
    };
    let Some(colon) = colon else {
        return Some((text, None));
    };
    let (host, port) = (text.get(..colon)?, text.get(colon + 1..)?);
    let plain = !port.starts_with('0') && port.bytes().all(|b| b.is_ascii_digit());
    Some((host, Some(port.parse().ok().filter(|_| plain)?)))
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Some(IpAddr::V4(ip));
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    inner
        .parse::<Ipv6Addr>()
        .ok()
        .map(|ip| IpAddr::V6(ip).to_canonical())
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label that is a number (or 0x..) makes libc and browsers read the whole as an IPv4 address.
    let last = text
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let number = last.bytes().all(|b| b.is_ascii_digit())
        || last
            .strip_prefix("0x")
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    text.len() <= 253 && !number && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_one_spelling() {
        for (given, canonical) in [
            ("API.Stripe.com", "api.stripe.com"),
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "::1"),
            ("0:0:0:0:0:0:0:1", "::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(Host::parse(given).unwrap().as_str(), canonical, "{given}");
        }
        let long = format!("{}.com", "a".repeat(64));
        for bad in [
            "",
            ".",
            "a.",
            "a..b",
            "-a.com",
            "a-.com",
            "127.1",
            "0x7f.1",
            "1",
            "a b",
            "a/b",
            "ä.com",
            "fe80::1%eth0",
            &long,
        ] {
            assert!(Host::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn endpoints_name_host_and_port() {
        for good in ["api.stripe.com:443", "[::1]:8443", "127.0.0.1:1"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in [
            "api.stripe.com",
            "a:0",
            "a:+1",
            "a:01",
            "a:65536",
            "a:",
            ":1",
            "a:1:2",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_wildcard_is_exactly_one_label() {
        let pattern: HostPattern = "*.slack.com".parse().unwrap();
        let host = |text| Host::parse(text).unwrap();
        assert!(pattern.names(&host("files.slack.com")));
        for other in [
            "slack.com",
            "a.b.slack.com",
            "evilslack.com",
            "slack.com.evil.com",
            "10.0.0.1",
        ] {
            assert!(!pattern.names(&host(other)), "{other}");
        }
        for bad in [
            "*.com",
            "*",
            "a.*.com",
            "*.*.com",
            "*.1.2.3.4",
            "**.a.com",
            "https://a.com",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn patterns_overlap_when_some_endpoint_matches_both() {
        let check = |a: &str, b: &str, expected: bool| {
            let (left, right): (HostPattern, HostPattern) =
                (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(left.overlaps(&right), expected, "{a} {b}");
            assert_eq!(right.overlaps(&left), expected, "{b} {a}");
        };
        check("a.example.com", "*.example.com", true);
        check("a.example.com", "a.example.com:443", true);
        check("a.example.com", "a.example.com:8443", false);
        check("*.example.com", "*.b.example.com", false);
        check("*.example.com", "*.example.com", true);
    }
}
