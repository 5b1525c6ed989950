//! Bytes to hash that no two different values share: each field is tagged or counted, and carries its length.
//! Used for the digest an approval is bound to and for the version of a bundle.
//! INVARIANT: the encoding is injective; a change of it changes the domain string.

use sha2::{Digest as _, Sha256};

use crate::{Digest, Value};

/// A SHA-256 over a sequence of length-prefixed fields, under a domain.
pub(crate) struct Canonical(Sha256);

impl Canonical {
    pub(crate) fn new(domain: &str) -> Self {
        let mut canonical = Self(Sha256::new());
        canonical.text(domain);
        canonical
    }

    /// The length as 8 bytes, little-endian, then the bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn count(&mut self, count: usize) {
        // A usize has at most 64 bits on every target Rust supports.
        self.0.update((count as u64).to_le_bytes());
    }

    /// A tag byte, then the content; lists count their items.
    pub(crate) fn value(&mut self, value: &Value) {
        match value {
            Value::Bool(bool) => self.0.update([b'b', u8::from(*bool)]),
            Value::Integer(integer) => {
                self.0.update(b"i");
                self.0.update(integer.to_le_bytes());
            }
            Value::Text(text) => {
                self.0.update(b"t");
                self.text(text);
            }
            Value::List(items) => {
                self.0.update(b"l");
                self.count(items.len());
                for item in items {
                    self.value(item);
                }
            }
        }
    }

    pub(crate) fn digest(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}
