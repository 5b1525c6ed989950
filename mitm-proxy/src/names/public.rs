//! Which addresses are on the public internet, and what the others are for.
//! Place on the path: asked about every address that a name led to, before one is dialled.
//! INVARIANT: an address of no known public range is not public; IPv4 inside IPv6 is judged as what it leads to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::meter::AddressKind;

/// What an address is for, if it is not public (IANA special-purpose registries, RFC 6890 and its updates).
pub(crate) fn not_public(address: IpAddr) -> Option<AddressKind> {
    match address.to_canonical() {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

fn not_public_v4(address: Ipv4Addr) -> Option<AddressKind> {
    use AddressKind as Kind;
    match address.octets() {
        [0, 0, 0, 0] => Some(Kind::Unspecified),
        [127, ..] => Some(Kind::Loopback),
        // Azure's and Oracle's; the others' are link-local, shared or unique local.
        [168, 63, 129, 16] | [192, 0, 0, 192] | [100, 100, 100, 200] => Some(Kind::Metadata),
        [169, 254, 169, 254] | [169, 254, 170, 2 | 23] => Some(Kind::Metadata),
        [169, 254, ..] => Some(Kind::LinkLocal),
        // Private (RFC 1918), and shared address space (RFC 6598).
        [10, ..] | [192, 168, ..] => Some(Kind::Private),
        [172, b, ..] if b & 0xf0 == 16 => Some(Kind::Private),
        [100, b, ..] if b & 0xc0 == 64 => Some(Kind::Private),
        // Relays of 6to4 (RFC 7526).
        [192, 88, 99, _] => Some(Kind::Embedded),
        [224..=239, ..] | [255, 255, 255, 255] => Some(Kind::Multicast),
        // "This" network, protocol assignments, documentation, benchmarking (our own pool by default), class E.
        [0, ..] | [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [240..=255, ..] => {
            Some(Kind::Reserved)
        }
        [198, b, ..] if b & 0xfe == 18 => Some(Kind::Reserved),
        _ => None,
    }
}

fn not_public_v6(address: Ipv6Addr) -> Option<AddressKind> {
    use AddressKind as Kind;
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(Kind::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(Kind::Loopback),
        // NAT64 with the well-known prefix (RFC 6052) leads wherever the embedded address does; networks without IPv4
        // reach everything through it. With a prefix of local use (RFC 8215) nobody outside can know where it leads.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            not_public_v4(Ipv4Addr::new(a, b, c, d))
        }
        // What is below ::/8 besides: v4-compatible, local-use NAT64, IPv4-translated. 6to4 (RFC 7526), Teredo.
        [0..=0xff, ..] | [0x2002, ..] | [0x2001, 0, ..] => Some(Kind::Embedded),
        // EC2, and Google's.
        [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] => Some(Kind::Metadata),
        [0xfc00..=0xfdff, ..] => Some(Kind::Private),
        // Link-local, and the site-local addresses of old.
        [0xfe80..=0xfeff, ..] => Some(Kind::LinkLocal),
        [0xff00..=0xffff, ..] => Some(Kind::Multicast),
        // Protocol assignments and documentation inside of global unicast.
        [0x2001, 1..=0x1ff | 0xdb8, ..] | [0x3fff, ..] => Some(Kind::Reserved),
        [0x2000..=0x3fff, ..] => None,
        _ => Some(Kind::Reserved),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> Option<&'static str> {
        not_public(address.parse().unwrap()).map(AddressKind::as_str)
    }

    #[test]
    fn names_do_not_lead_to_private_or_local_addresses() {
        for (address, expected) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "reserved"),
            ("10.1.2.3", "private"),
            ("100.64.0.1", "private"),
            ("100.100.100.200", "metadata"),
            ("100.127.255.255", "private"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.255", "loopback"),
            ("168.63.129.16", "metadata"),
            ("169.254.0.1", "link_local"),
            ("169.254.169.254", "metadata"),
            ("169.254.170.2", "metadata"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.192", "metadata"),
            ("192.0.2.1", "reserved"),
            ("192.88.99.1", "embedded"),
            ("192.168.0.1", "private"),
            ("198.18.0.1", "reserved"),
            ("198.19.255.254", "reserved"),
            ("203.0.113.80", "reserved"),
            ("224.0.0.1", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "multicast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::7f00:1", "embedded"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "metadata"),
            ("::ffff:0:7f00:1", "embedded"),
            ("64:ff9b::a00:1", "private"),
            ("64:ff9b::a9fe:a9fe", "metadata"),
            ("64:ff9b:1::101:101", "embedded"),
            ("100::1", "reserved"),
            ("2001::1", "embedded"),
            ("2001:20::1", "reserved"),
            ("2001:db8::1", "reserved"),
            ("2002:7f00:1::", "embedded"),
            ("2002:101:101::", "embedded"),
            ("3fff::1", "reserved"),
            ("5f00::1", "reserved"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "metadata"),
            ("fd20:ce::254", "metadata"),
            ("fe80::1", "link_local"),
            ("fec0::1", "link_local"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(kind(address), Some(expected), "{address}");
        }
        // Positive control: the check does not refuse everything.
        for address in [
            "1.1.1.1",
            "52.94.236.248",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "64:ff9b::101:101",
        ] {
            assert_eq!(kind(address), None, "{address}");
        }
    }
}
