//! A client certificate and its key: one credential, as PEM, lent to the handshake with upstream and to nothing else.
//! Between the store and TLS towards upstream: `lend` hands it out, the handshake reads it.
//! INVARIANT: the key lies in memory that is wiped; a secret of this kind is never written into a request.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use policies::CredentialId;
use zeroize::Zeroizing;

use crate::kept::Opened;
use crate::secret::Secret;

const BEGIN: &[u8] = b"-----BEGIN ";
const DASHES: &[u8] = b"-----";

/// Which of the three forms a private key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// `RSA PRIVATE KEY`, RFC 8017.
    Pkcs1,
    /// `PRIVATE KEY`, RFC 5958.
    Pkcs8,
    /// `EC PRIVATE KEY`, RFC 5915.
    Sec1,
}

/// A certificate chain and its key, as DER.
#[derive(Debug)]
pub struct Identity {
    /// The chain, the certificate of the key first.
    pub chain: Vec<Vec<u8>>,
    /// The private key. Wiped on drop.
    pub key: Secret,
    /// How the key is written.
    pub form: KeyForm,
}

/// Why a secret is no identity; says nothing of what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A section does not end, or holds something else than base64.
    #[error("it is not well-formed PEM")]
    Malformed,
    /// A key that a password protects.
    #[error("its key is encrypted; store it without a password, the vault seals it")]
    Encrypted,
    /// No certificate is in it.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// No key is in it, or more than one.
    #[error("there must be one private key in it, and there are {0}")]
    Keys(usize),
}

/// What a connection may show of itself to its upstream, should upstream ask.
#[must_use = "an identity that is not offered is not lent"]
pub struct Lent {
    id: CredentialId,
    opened: Arc<Opened>,
}

impl Lent {
    pub(crate) fn new(id: CredentialId, opened: Arc<Opened>) -> Lent {
        Lent { id, opened }
    }

    /// Which credential, and its version.
    pub fn credential(&self) -> (&CredentialId, u32) {
        (&self.id, self.opened.version)
    }

    /// The chain and the key, for one handshake.
    ///
    /// # Errors
    /// The secret is no certificate chain with its key.
    pub fn open(&self) -> Result<Identity, IdentityError> {
        read(self.opened.secret.expose())
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Whether a secret is meant to be one.
pub(crate) fn is_pem(secret: &[u8]) -> bool {
    secret.trim_ascii_start().starts_with(BEGIN)
}

/// Reads PEM (RFC 7468). What stands between the sections is explanatory text.
pub(crate) fn read(pem: &[u8]) -> Result<Identity, IdentityError> {
    let (mut chain, mut keys) = (Vec::new(), Vec::new());
    let mut lines = pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    while let Some(line) = lines.next() {
        let Some(label) = line
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(DASHES))
        else {
            continue;
        };
        // As large as all of it, so that it never moves and leaves a copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(pem.len()));
        loop {
            let line = lines.next().ok_or(IdentityError::Malformed)?;
            if line.starts_with(DASHES) {
                break;
            }
            text.extend_from_slice(line);
        }
        let form = match label {
            b"CERTIFICATE" => {
                let der = STANDARD
                    .decode(text.as_slice())
                    .map_err(|_| IdentityError::Malformed)?;
                chain.push(der);
                continue;
            }
            b"PRIVATE KEY" => KeyForm::Pkcs8,
            b"RSA PRIVATE KEY" => KeyForm::Pkcs1,
            b"EC PRIVATE KEY" => KeyForm::Sec1,
            b"ENCRYPTED PRIVATE KEY" => return Err(IdentityError::Encrypted),
            // OpenSSL writes "EC PARAMETERS" before such a key.
            _ => continue,
        };
        // Headers of the old encrypted form are no base64.
        let mut der = Vec::with_capacity(text.len());
        let decoded = STANDARD.decode_vec(text.as_slice(), &mut der);
        let der = Secret::new(der);
        decoded.map_err(|_| IdentityError::Malformed)?;
        keys.push((der, form));
    }
    let count = keys.len();
    let (Some((key, form)), 1) = (keys.pop(), count) else {
        return Err(IdentityError::Keys(count));
    };
    if chain.is_empty() {
        return Err(IdentityError::NoCertificate);
    }
    Ok(Identity { chain, key, form })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\r\nBAUG\r\nBwgJ\r\n-----END PRIVATE KEY-----";

    #[test]
    fn a_chain_and_a_key_are_read_in_any_order() {
        let check = |pem: String| {
            let found = read(pem.as_bytes()).unwrap();
            assert_eq!(found.chain, [[1, 2, 3], [1, 2, 3]]);
            assert_eq!(found.key.expose(), [4, 5, 6, 7, 8, 9]);
            assert_eq!(found.form, KeyForm::Pkcs8);
        };
        check(format!("{CERTIFICATE}{CERTIFICATE}{KEY}"));
        check(format!(
            "bag attributes\n{KEY}\n\n{CERTIFICATE}{CERTIFICATE}"
        ));
    }

    #[test]
    fn what_is_no_identity_is_named_and_never_shown() {
        let check = |pem: String, expected| {
            assert_eq!(read(pem.as_bytes()).unwrap_err(), expected, "{pem}");
        };
        check(KEY.to_owned(), IdentityError::NoCertificate);
        check(CERTIFICATE.to_owned(), IdentityError::Keys(0));
        check(format!("{CERTIFICATE}{KEY}\n{KEY}"), IdentityError::Keys(2));
        check(KEY.replace("-----END", "+"), IdentityError::Malformed);
        check(KEY.replace("BAUG", "B*UG"), IdentityError::Malformed);
        let encrypted = KEY.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        check(encrypted, IdentityError::Encrypted);
    }
}
