//! What a connection asks of its upstream's TLS besides the usual verification, and shows of itself: pins, a client certificate.
//! Read with the agent's file; the call carries it to the handshake with upstream.
//! INVARIANT: pins only ever narrow what verification accepts; a connection without a [`Peer`] is verified like any other.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::names::serde_as_text;
use crate::{ConnectionName, CredentialId, Digest, NameError};

const PREFIX: &str = "sha256/";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 section 2.4), written `sha256/` and base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pin(Digest);

impl Pin {
    /// The pin of this SubjectPublicKeyInfo (DER, with its outer tag).
    pub fn of(spki: &[u8]) -> Pin {
        Pin(Digest::of(spki))
    }
}

impl FromStr for Pin {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Pin, NameError> {
        let rule =
            "`sha256/` and the base64 of 32 bytes, as `sha256/AAAA..AAA=` with 44 characters";
        let encoded = text.strip_prefix(PREFIX);
        encoded
            .and_then(decode)
            .map(|bytes| Pin(Digest(bytes)))
            .ok_or_else(|| NameError::new("pin", text, rule))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        for chunk in self.0.as_bytes().chunks(3) {
            let bits = chunk
                .iter()
                .chain([&0, &0])
                .take(3)
                .fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
            for at in 0..4 {
                let symbol = ALPHABET.get(bits >> (18 - 6 * at) & 63);
                let symbol = symbol.filter(|_| at <= chunk.len());
                write!(f, "{}", symbol.map_or('=', |symbol| char::from(*symbol)))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

serde_as_text!(Pin);

/// 43 symbols and `=`; the two bits beyond 32 bytes are zero, so that a pin has one spelling.
fn decode(text: &str) -> Option<[u8; 32]> {
    let symbols = text.strip_suffix('=').filter(|text| text.len() == 43)?;
    let mut bytes = Vec::with_capacity(32);
    let (mut bits, mut held) = (0_u32, 0);
    for symbol in symbols.bytes() {
        let value = ALPHABET.iter().position(|known| *known == symbol)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    if bits != 0 {
        return None;
    }
    bytes.try_into().ok()
}

/// What a connection asks of its upstream's TLS, and shows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Peer {
    /// Whose it is: connections to upstream are not shared with another.
    pub(crate) connection: ConnectionName,
    pub(crate) pins: Vec<Pin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_certificate: Option<CredentialId>,
}

impl Peer {
    /// The connection that asks.
    pub fn connection(&self) -> &ConnectionName {
        &self.connection
    }

    /// One of these keys must be in the verified chain; empty where any chain will do.
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }

    /// The certificate and key that are shown to an upstream that asks for them.
    pub fn client_certificate(&self) -> Option<&CredentialId> {
        self.client_certificate.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_is_written() {
        // RFC 7469 section 2.1.5's first example.
        let text = "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM=";
        let pin: Pin = text.parse().unwrap();
        assert_eq!(pin.to_string(), text);
        assert_eq!(pin.0.as_bytes()[..3], [0x77, 0xaa, 0xb3]);
        let all = [Pin::of(b""), Pin::of(b"a"), Pin(Digest([0xff; 32]))];
        for pin in all {
            assert_eq!(pin.to_string().parse::<Pin>().unwrap(), pin);
        }
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        for text in [
            "",
            "sha256/",
            "d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM=",
            "sha1/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM=",
            "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmM",
            "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWmN=",
            "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZWm-=",
            "sha256/d6qzRu9zOECb90Uez27xWltNsj0e1Md7GkYYkVoZ=",
        ] {
            assert!(text.parse::<Pin>().is_err(), "{text}");
        }
    }
}
