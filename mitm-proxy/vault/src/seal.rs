//! Envelope encryption: every secret under a key of its own, that key under the master key. AES-256-GCM-SIV.
//! What the vault's tables hold is made and read here only.
//! INVARIANT: a sealed secret opens only as what it was sealed as: same purpose, tenant, name and version.
//!
//! # Bytes
//! `1 ‖ nonce (12) ‖ wrapped key (32 + 16) ‖ nonce (12) ‖ sealed secret (n + 16)`.
//! The associated data of both layers is a list of texts, each as its length (32 bits, big-endian) and its bytes:
//! `"sluice vault 1"`, `"key"` or `"secret"`, purpose, tenant, name, version in decimal.

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::master::{KEY_LEN, MasterKey};
use crate::secret::Secret;

const FORMAT: u8 = 1;
const TAG_LEN: usize = 16;
const WRAPPED_LEN: usize = KEY_LEN + TAG_LEN;

/// What a sealed secret is, authenticated with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Label<'a> {
    pub(crate) purpose: Purpose,
    pub(crate) tenant: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: u32,
}

/// What a secret is for. A secret of one purpose never opens as another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Proof that the master key is the right one.
    Canary,
    /// Lent to calls.
    Credential,
    /// The host's own, such as a tenant's CA key; never lent.
    Own,
}

impl Purpose {
    fn as_str(self) -> &'static str {
        match self {
            Purpose::Canary => "canary",
            Purpose::Credential => "credential",
            Purpose::Own => "own",
        }
    }
}

/// It does not open: another master key, another label, or altered bytes.
#[derive(Debug)]
pub(crate) struct DoesNotOpen;

pub(crate) fn seal(
    master: &MasterKey,
    label: Label<'_>,
    secret: &Secret,
) -> Result<Vec<u8>, VaultError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    let mut nonces = [[0; NONCE_LEN]; 2];
    getrandom::fill(&mut *key).map_err(VaultError::Entropy)?;
    getrandom::fill(nonces.as_flattened_mut()).map_err(VaultError::Entropy)?;
    let [wrap_nonce, nonce] = nonces;

    let wrapped = encrypt(master.bytes(), wrap_nonce, &aad("key", label), &*key)?;
    let sealed = encrypt(&key, nonce, &aad("secret", label), secret.expose())?;
    Ok([&[FORMAT], &wrap_nonce[..], &wrapped, &nonce, &sealed].concat())
}

pub(crate) fn open(
    master: &MasterKey,
    label: Label<'_>,
    bytes: &[u8],
) -> Result<Secret, DoesNotOpen> {
    let rest = bytes.strip_prefix(&[FORMAT]).ok_or(DoesNotOpen)?;
    let (wrap_nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(DoesNotOpen)?;
    let (wrapped, rest) = rest.split_first_chunk::<WRAPPED_LEN>().ok_or(DoesNotOpen)?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(DoesNotOpen)?;

    let key = decrypt(master.bytes(), *wrap_nonce, &aad("key", label), wrapped)?;
    let key: &[u8; KEY_LEN] = key.expose().try_into().map_err(|_| DoesNotOpen)?;
    decrypt(key, *nonce, &aad("secret", label), sealed)
}

fn encrypt(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    plain: &[u8],
) -> Result<Vec<u8>, VaultError> {
    // Room for the tag from the start: growing would leave a copy of the plain text behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(plain.len() + TAG_LEN));
    bytes.extend_from_slice(plain);
    aead(key)
        .and_then(|key| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut *bytes)
                .ok()
        })
        .ok_or(VaultError::Seal)?;
    Ok(std::mem::take(&mut *bytes))
}

fn decrypt(
    key: &[u8; KEY_LEN],
    nonce: [u8; NONCE_LEN],
    aad: &[u8],
    sealed: &[u8],
) -> Result<Secret, DoesNotOpen> {
    let mut bytes = Zeroizing::new(sealed.to_vec());
    let key = aead(key).ok_or(DoesNotOpen)?;
    let plain = key
        .open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut bytes,
        )
        .map_err(|_| DoesNotOpen)?
        .len();
    bytes.truncate(plain);
    Ok(Secret::new(std::mem::take(&mut *bytes)))
}

fn aead(key: &[u8; KEY_LEN]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM_SIV, key)
        .ok()
        .map(LessSafeKey::new)
}

/// No two lists of texts have the same encoding: every text is preceded by its length.
fn aad(layer: &str, label: Label<'_>) -> Vec<u8> {
    let version = label.version.to_string();
    let texts = [
        "sluice vault 1",
        layer,
        label.purpose.as_str(),
        label.tenant,
        label.name,
        &version,
    ];
    let mut bytes = Vec::new();
    for text in texts {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: Label<'_> = Label {
        purpose: Purpose::Credential,
        tenant: "acme",
        name: "stripe",
        version: 1,
    };

    fn master(dir: &tempfile::TempDir, name: &str) -> MasterKey {
        MasterKey::create(&dir.path().join(name)).unwrap()
    }

    #[test]
    fn a_sealed_secret_opens_only_as_what_it_was_sealed_as() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (master(&dir, "a"), master(&dir, "b"));
        let sealed = seal(&key, LABEL, &Secret::new(b"sk_live_0123456789".to_vec())).unwrap();
        // Positive control: as itself it does.
        assert_eq!(
            open(&key, LABEL, &sealed).unwrap().expose(),
            b"sk_live_0123456789"
        );
        for label in [
            Label {
                purpose: Purpose::Own,
                ..LABEL
            },
            Label {
                tenant: "acm",
                name: "estripe",
                ..LABEL
            },
            Label {
                tenant: "evil",
                ..LABEL
            },
            Label {
                name: "github",
                ..LABEL
            },
            Label {
                version: 2,
                ..LABEL
            },
        ] {
            assert!(open(&key, label, &sealed).is_err(), "{label:?}");
        }
        assert!(open(&other, LABEL, &sealed).is_err());
    }

    #[test]
    fn any_altered_or_missing_byte_of_a_sealed_secret_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let key = master(&dir, "a");
        let sealed = seal(&key, LABEL, &Secret::new(b"sk_live_0123456789".to_vec())).unwrap();
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(open(&key, LABEL, &altered).is_err(), "byte {at}");
            assert!(open(&key, LABEL, &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_sealed_secret_does_not_show_it_and_no_two_are_alike() {
        let dir = tempfile::tempdir().unwrap();
        let key = master(&dir, "a");
        let sealed = || seal(&key, LABEL, &Secret::new(b"sk_live_0123456789".to_vec())).unwrap();
        let (one, two) = (sealed(), sealed());
        assert_ne!(one, two);
        assert!(
            !one.windows(8)
                .any(|window| b"sk_live_0123456789".windows(8).any(|part| part == window))
        );
    }
}
