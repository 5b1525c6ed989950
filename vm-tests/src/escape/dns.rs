//! Questions and answers of RFC 1035, as small as the suite needs them.
//! For the attacker, who writes questions that no library would, and for the far end, which answers a few names.
//! Invariant: what cannot be read is no question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const A: u16 = 1;
pub(super) const TXT: u16 = 16;
pub(super) const AAAA: u16 = 28;
pub(super) const SVCB: u16 = 64;
pub(super) const HTTPS: u16 = 65;
pub(super) const ANY: u16 = 255;
pub(super) const IN: u16 = 1;
pub(super) const CHAOS: u16 = 3;
/// An option for local use (RFC 6891).
const LOCAL_OPTION: u16 = 65_001;
const HEADER: usize = 12;

/// A name as labels.
pub(super) fn name(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in text.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// One question, with an EDNS option if there is something to put into it.
pub(super) fn question(text: &str, kind: u16, class: u16, option: &[u8]) -> Vec<u8> {
    // Identifier, recursion desired, one question.
    let mut bytes = vec![
        0x51,
        0x1c,
        1,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        u8::from(!option.is_empty()),
    ];
    bytes.extend(name(text));
    bytes.extend(kind.to_be_bytes());
    bytes.extend(class.to_be_bytes());
    if !option.is_empty() {
        let length = option.len() as u16;
        // The root's OPT record: size, no flags, one option.
        bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0]);
        bytes.extend((length + 4).to_be_bytes());
        bytes.extend(LOCAL_OPTION.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(option);
    }
    bytes
}

/// The name of the first question, its kind, and where it ends.
fn asked(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = HEADER;
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).into_owned());
        at += length;
    }
    let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
    Some((labels.join(".").to_ascii_lowercase(), kind, at + 4))
}

/// The far end's answer: the address that it knows, or none.
pub(super) fn answer(message: &[u8], known: impl Fn(&str) -> Option<IpAddr>) -> Option<Vec<u8>> {
    let (name, kind, end) = asked(message)?;
    let data = match (kind, known(&name)) {
        (A, Some(IpAddr::V4(address))) => address.octets().to_vec(),
        (AAAA, Some(IpAddr::V6(address))) => address.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut bytes = message.get(..2)?.to_vec();
    bytes.extend([0x81, 0x80, 0, 1, 0, u8::from(!data.is_empty()), 0, 0, 0, 0]);
    bytes.extend(message.get(HEADER..end)?);
    if !data.is_empty() {
        // The name again, class IN, no time to live.
        bytes.extend([0xc0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 0]);
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
    }
    Some(bytes)
}

/// The first address in an answer.
pub(super) fn address(message: &[u8]) -> Option<IpAddr> {
    let (_, kind, end) = asked(message)?;
    if message.get(7).copied().unwrap_or_default() == 0 {
        return None;
    }
    // A pointer or the name itself, then kind, class, time to live, length.
    let mut at = end;
    while let Some(length) = message.get(at).copied() {
        if length & 0xc0 == 0xc0 {
            at += 2;
            break;
        }
        at += 1 + usize::from(length);
        if length == 0 {
            break;
        }
    }
    let data = message.get(at + 10..)?;
    match kind {
        A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data.get(..4)?).ok()?).into()),
        AAAA => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data.get(..16)?).ok()?).into()),
        _ => None,
    }
}

/// The response code.
pub(super) fn code(message: &[u8]) -> u8 {
    message.get(3).copied().unwrap_or_default() & 15
}

pub(super) fn code_name(code: u8) -> &'static str {
    match code {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        _ => "another code",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_with_what_is_known() {
        let known = |name: &str| (name == "a.test").then(|| Ipv4Addr::new(1, 2, 3, 4).into());
        let told = answer(&question("A.test", A, IN, b"x"), known).unwrap();
        assert_eq!(address(&told), Some(Ipv4Addr::new(1, 2, 3, 4).into()));
        let none = answer(&question("b.test", A, IN, &[]), known).unwrap();
        assert_eq!((address(&none), code(&none)), (None, 0));
        assert_eq!(answer(b"short", known), None);
    }
}
