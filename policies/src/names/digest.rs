//! Digests and the ids made from bits: what binds an approval, a bundle and a record to exact bytes.
//! Made by hashing or from entropy that the caller brings (this crate draws none); written in lower-case hex or base32.
//! INVARIANT: the text form has one spelling per value, so equal text is equal value.

use super::{NameError, deserialize_from_text, serde_as_text};
use sha2::Digest as _;
use std::fmt;
use std::str::FromStr;

/// A SHA-256 digest; text is 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The SHA-256 of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(sha2::Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Digest, NameError> {
        parse_hex(text)
            .map(Digest)
            .ok_or_else(|| NameError::new("digest", text, "64 lower-case hex digits"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut text, unwritten) = ([0; 64], serde::ser::Error::custom("a digest"));
        serializer.serialize_str(hex(&self.0, &mut text).ok_or(unwritten)?)
    }
}
deserialize_from_text!(Digest);

/// The version of a bundle: the digest over everything that decides.
///
/// Display shows the first 16 hex digits; serde and [`PolicyVersion::digest`] carry all of it.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct PolicyVersion(Digest);

impl PolicyVersion {
    /// The version with this digest.
    pub fn new(digest: Digest) -> PolicyVersion {
        PolicyVersion(digest)
    }

    /// The whole digest.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self.0.0.first_chunk::<8>().unwrap_or(&[0; 8]), f)
    }
}

impl fmt::Debug for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyVersion({})", self.0)
    }
}

/// Writes up to 32 bytes as lower-case hex, in one piece: each record of a call holds several digests.
fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(hex(bytes, &mut [0; 64]).ok_or(fmt::Error)?)
}

fn hex<'a>(bytes: &[u8], text: &'a mut [u8; 64]) -> Option<&'a str> {
    let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
    let (pairs, _) = text.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [digit(byte >> 4), digit(byte & 15)];
    }
    std::str::from_utf8(text.get(..bytes.len() * 2)?).ok()
}

const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// An approval's id: `apr_` and 26 characters of lower-case base32 (RFC 4648, no padding) over 128 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApprovalId(u128);

impl ApprovalId {
    /// The id made of these 128 bits; the caller draws them from the system's random source.
    pub fn from_entropy(bits: [u8; 16]) -> ApprovalId {
        ApprovalId(u128::from_be_bytes(bits))
    }
}

impl FromStr for ApprovalId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<ApprovalId, NameError> {
        let read = || {
            let digits = text
                .strip_prefix("apr_")
                .filter(|digits| digits.len() == 26)?;
            let mut value = 0u128;
            for (at, byte) in digits.bytes().enumerate() {
                let digit = BASE32.iter().position(|known| *known == byte)? as u128;
                // 26 digits are 130 bits: the last digit carries three bits and two zeros.
                value = if at < 25 {
                    (value << 5) | digit
                } else {
                    (value << 3) | (digit >> 2)
                };
            }
            Some(ApprovalId(value)).filter(|id| id.to_string() == text)
        };
        read().ok_or_else(|| {
            NameError::new(
                "approval id",
                text,
                "`apr_` and 26 characters of a-z and 2-7",
            )
        })
    }
}

impl fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("apr_")?;
        (0..26u32).try_for_each(|at| {
            let bits = if at < 25 {
                self.0 >> (123 - 5 * at)
            } else {
                self.0 << 2
            };
            let digit = BASE32.get((bits & 31) as usize).copied().unwrap_or(b'a');
            write!(f, "{}", char::from(digit))
        })
    }
}

impl fmt::Debug for ApprovalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApprovalId({self})")
    }
}

serde_as_text!(ApprovalId);

/// A workload: the cgroup v2 id of its process tree.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct WorkloadId(pub u64);

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for WorkloadId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<WorkloadId, NameError> {
        text.parse()
            .map(WorkloadId)
            .map_err(|_| NameError::new("workload id", text, "a cgroup id, a whole number"))
    }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    let digit = |at: usize| match digits.get(at)? {
        byte @ b'0'..=b'9' => Some(byte - b'0'),
        byte @ b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(2 * at)? << 4 | digit(2 * at + 1)?;
    }
    (digits.len() == 64).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_digest_is_sha_256_in_lower_hex() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(
            PolicyVersion::new(Digest::of(b"")).to_string(),
            "e3b0c44298fc1c14"
        );
        for bad in ["", "e3", &empty.to_uppercase(), &format!("{empty}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_approval_id_has_one_spelling() {
        assert_eq!(
            ApprovalId::from_entropy([0; 16]).to_string(),
            format!("apr_{}", "a".repeat(26))
        );
        for bad in [
            "apr_",
            "apr_aaaaaaaaaaaaaaaaaaaaaaaaab",
            "APR_aaaaaaaaaaaaaaaaaaaaaaaaaa",
            "aaaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            assert!(bad.parse::<ApprovalId>().is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn approval_ids_read_back(bits: [u8; 16]) {
            let id = ApprovalId::from_entropy(bits);
            prop_assert_eq!(id.to_string().parse::<ApprovalId>().unwrap(), id);
        }
    }
}
