//! The Ed25519 key that signs checkpoints, and the public key that a verifier needs.
//! Made once per host beside the logs; its name (the host id) is part of every signature.
//! INVARIANT: a host that has logs never gets a second key by accident.

use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use signed_note::{Signer, StandardSigner, StandardVerifier, Verifier};

use crate::error::OpenError;
use crate::files;

/// Algorithm byte of Ed25519 in signed-note keys (c2sp.org/signed-note).
const ED25519: u8 = 1;

/// A public key in the form `name+hash+base64` of c2sp.org/signed-note ("verifier key").
#[derive(Clone)]
pub struct VerifierKey {
    text: String,
    verifier: StandardVerifier,
}

/// The text is not a signed-note verifier key of Ed25519.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a verifier key: expected name+hash+base64, as `sluice audit key` prints it")]
pub struct VerifierKeyError;

impl VerifierKey {
    /// The key's name: the id of the host that signs.
    pub fn name(&self) -> &str {
        self.verifier.name()
    }

    pub(crate) fn verifier(&self) -> StandardVerifier {
        self.verifier.clone()
    }
}

impl FromStr for VerifierKey {
    type Err = VerifierKeyError;

    fn from_str(text: &str) -> Result<VerifierKey, VerifierKeyError> {
        let text = text.trim().to_owned();
        let verifier = StandardVerifier::new(&text).map_err(|_| VerifierKeyError)?;
        Ok(VerifierKey { text, verifier })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({})", self.text)
    }
}

/// The host's signing key and its public half.
pub(crate) struct LogKey {
    signer: StandardSigner,
    public: VerifierKey,
}

impl LogKey {
    /// Reads the key file, or makes one named `name` where there is none and `fresh` says that there are no logs.
    ///
    /// A name in an existing file wins over `name`: renaming a host must not break its log.
    pub(crate) fn load(path: &Path, name: &str, fresh: bool) -> Result<LogKey, OpenError> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                check_mode(path)?;
                LogKey::parse(text.trim()).ok_or_else(|| OpenError::Key {
                    path: path.to_owned(),
                })
            }
            Err(source) if source.kind() == ErrorKind::NotFound && fresh => {
                LogKey::create(path, name)
            }
            Err(source) if source.kind() == ErrorKind::NotFound => Err(OpenError::KeyMissing {
                path: path.to_owned(),
            }),
            Err(source) if source.kind() == ErrorKind::InvalidData => Err(OpenError::Key {
                path: path.to_owned(),
            }),
            Err(source) => Err(files::io(path, source)),
        }
    }

    fn create(path: &Path, name: &str) -> Result<LogKey, OpenError> {
        if !signed_note::is_key_name_valid(name) || name.chars().any(char::is_control) {
            return Err(OpenError::KeyName {
                name: name.to_owned(),
            });
        }
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(OpenError::Entropy)?;
        let text = encode(name, &SigningKey::from_bytes(&seed));
        // A crash before the rename leaves no key, and the next start makes another: nothing was signed yet.
        files::create_private(path, format!("{text}\n").as_bytes())?;
        LogKey::parse(&text).ok_or_else(|| OpenError::Key {
            path: path.to_owned(),
        })
    }

    fn parse(text: &str) -> Option<LogKey> {
        let signer = StandardSigner::new(text).ok()?;
        let bytes = STANDARD.decode(text.splitn(5, '+').last()?).ok()?;
        let seed: [u8; 32] = bytes.get(1..)?.try_into().ok()?;
        let key = SigningKey::from_bytes(&seed).verifying_key();
        let public = signed_note::new_ed25519_verifier_key(signer.name(), &key)
            .parse()
            .ok()?;
        Some(LogKey { signer, public })
    }

    pub(crate) fn signer(&self) -> &StandardSigner {
        &self.signer
    }

    pub(crate) fn public(&self) -> &VerifierKey {
        &self.public
    }
}

/// The form in which signed-note tools keep a private key.
fn encode(name: &str, key: &SigningKey) -> String {
    let with_algorithm = |bytes: &[u8]| [&[ED25519], bytes].concat();
    let id = signed_note::key_id(name, &with_algorithm(key.verifying_key().as_bytes()));
    let secret = STANDARD.encode(with_algorithm(key.as_bytes()));
    format!("PRIVATE+KEY+{name}+{id:08x}+{secret}")
}

fn check_mode(path: &Path) -> Result<(), OpenError> {
    let metadata = std::fs::metadata(path).map_err(|source| files::io(path, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(OpenError::KeyMode {
        path: path.to_owned(),
        mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_file(dir: &tempfile::TempDir) -> std::path::PathBuf {
        dir.path().join("checkpoint.key")
    }

    #[test]
    fn a_key_is_made_once_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let made = LogKey::load(&key_file(&dir), "host.example", true).unwrap();
        let read = LogKey::load(&key_file(&dir), "another-name", false).unwrap();
        assert_eq!(made.public().to_string(), read.public().to_string());
        assert_eq!(read.public().name(), "host.example");
        let mode = std::fs::metadata(key_file(&dir))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_missing_key_beside_logs_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let refused = LogKey::load(&key_file(&dir), "host", false);
        assert!(matches!(refused, Err(OpenError::KeyMissing { .. })));
        assert!(!key_file(&dir).exists());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        LogKey::load(&key_file(&dir), "host", true).unwrap();
        std::fs::set_permissions(key_file(&dir), std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = LogKey::load(&key_file(&dir), "host", false);
        assert!(matches!(
            refused,
            Err(OpenError::KeyMode { mode: 0o640, .. })
        ));
    }

    #[test]
    fn a_damaged_key_or_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            LogKey::load(&key_file(&dir), "a b", true),
            Err(OpenError::KeyName { .. })
        ));
        files::create_private(&key_file(&dir), b"PRIVATE+KEY+host+00000000+AAAA\n").unwrap();
        assert!(matches!(
            LogKey::load(&key_file(&dir), "host", true),
            Err(OpenError::Key { .. })
        ));
    }
}
