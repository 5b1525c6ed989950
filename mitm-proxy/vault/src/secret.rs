//! A secret in memory: bytes that are wiped when they are no longer needed.
//! Made when one is put or opened; an open one is kept for the calls of about a minute (see `kept`).
//! INVARIANT: no Clone, Display or Serialize; `Debug` shows nothing.

use std::fmt;

use zeroize::Zeroizing;

/// Bytes that must not be seen. Wiped on drop.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over; they are wiped on drop. Copies that the caller has are the caller's to wipe.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// The bytes. Whoever calls this answers for where they go.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_a_secret() {
        let secret = Secret::new(b"sk_live_very_secret".to_vec());
        assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(..) Secret(..)");
        assert_eq!(secret.expose(), b"sk_live_very_secret");
    }
}
