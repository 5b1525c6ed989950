//! Real addresses of names, asked of the host's resolver only after a call was decided.
//! Place on the path: the first step of leaving.
//! INVARIANT: a name never leads to loopback, a private network or a metadata service: only what an operator wrote down does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use policies::{Endpoint, Reason};
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::upstream::Failed;

/// Where an endpoint is, as of `at`.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) addresses: Arc<[SocketAddr]>,
    pub(crate) at: Instant,
}

/// Resolves `endpoint`, or the fixed `host:port` that the operator set for it.
pub(crate) async fn resolve(
    endpoint: &Endpoint,
    fixed: Option<&str>,
    within: Duration,
) -> Result<Resolved, Failed> {
    let found = |addresses: Vec<SocketAddr>| Resolved {
        addresses: addresses.into(),
        at: Instant::now(),
    };
    // A connection that names the literal is the operator's word, too.
    if let (Some(address), None) = (endpoint.host.ip(), fixed) {
        return Ok(found(vec![SocketAddr::new(address, endpoint.port)]));
    }
    let target = fixed.map_or_else(
        || format!("{}:{}", endpoint.host, endpoint.port),
        str::to_owned,
    );
    let unreachable = |error: &dyn std::fmt::Display| {
        Failed::new(
            Reason::UpstreamUnreachable,
            format!("{endpoint} has no address: {error}."),
        )
    };
    let answer = timeout(within, lookup_host(target))
        .await
        .map_err(|_| {
            Failed::new(
                Reason::UpstreamTimeout,
                format!("{endpoint} was not resolved in time."),
            )
        })?
        .map_err(|error| unreachable(&error))?;
    let all: Vec<SocketAddr> = answer.collect();
    if fixed.is_some() {
        return Ok(found(all));
    }
    let public: Vec<SocketAddr> = all
        .iter()
        .copied()
        .filter(|address| is_public(address.ip()))
        .collect();
    if public.is_empty() && !all.is_empty() {
        let detail = format!(
            "{endpoint} resolves only to private or local addresses; if that is meant, an operator can set \
             [proxy.connect_to] for it."
        );
        return Err(Failed::new(Reason::UpstreamUnreachable, detail));
    }
    Ok(found(public))
}

/// Whether an address is on the public internet (IANA special-purpose registries, RFC 6890 and its updates).
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared address space, also some clouds' metadata (RFC 6598).
        || (a == 100 && (b & 0xc0) == 64)
        // Protocol assignments, benchmarking (our own pool by default).
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b & 0xfe) == 18))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let first = segments.first().copied().unwrap_or(0);
    let second = segments.get(1).copied().unwrap_or(0);
    // Embedded IPv4 (NAT64, 6to4) leads wherever the embedded address does.
    let [.., e, f, g, h] = address.octets();
    if first == 0x64 && second == 0xff9b {
        return is_public_v4(Ipv4Addr::new(e, f, g, h));
    }
    let [_, _, a, b, c, d, ..] = address.octets();
    if first == 0x2002 {
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // Only 2000::/3 is global unicast; documentation, Teredo and other assignments in it are not.
    (first & 0xe000) == 0x2000
        && !(first == 0x2001 && (second < 0x0200 || second == 0x0db8))
        && first != 0x3fff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_to_private_or_local_addresses() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.192",
            "192.168.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        // Positive control: the check does not refuse everything.
        for address in [
            "1.1.1.1",
            "52.94.236.248",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }
}
