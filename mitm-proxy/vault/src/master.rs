//! The master key: wraps every secret's own key. From a key file or systemd's credentials directory.
//! Read once at the start, before the process gives up the rights to read it.
//! INVARIANT: 32 bytes that leave this crate in no form; a key file is never overwritten.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::{Zeroize, Zeroizing};

use crate::error::VaultError;

pub(crate) const KEY_LEN: usize = 32;

/// The most bytes of a key file that are looked at.
const MAX_FILE: u64 = 1024;

/// Where the master key is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MasterKeySource {
    /// A file that only its owner may read: 64 hex digits, as [`MasterKey::create`] writes it.
    KeyFile(PathBuf),
    /// A credential that systemd decrypted for this service (`LoadCredential=`, `LoadCredentialEncrypted=`).
    Systemd {
        /// `$CREDENTIALS_DIRECTORY`. systemd makes it readable for the service alone.
        directory: PathBuf,
        /// Name of the credential.
        name: String,
    },
}

/// The key that wraps the keys. Wiped on drop; not printable.
pub struct MasterKey(Zeroizing<[u8; KEY_LEN]>);

impl MasterKey {
    /// Reads the key.
    ///
    /// # Errors
    /// It is not there, not a key, or readable by others.
    pub fn load(source: &MasterKeySource) -> Result<MasterKey, VaultError> {
        match source {
            MasterKeySource::KeyFile(path) => MasterKey::read(path, Readers::OwnerOnly),
            MasterKeySource::Systemd { directory, name } => {
                MasterKey::read(&directory.join(name), Readers::SystemdDecides)
            }
        }
    }

    /// Makes a key and writes it to `path`, mode 0600.
    ///
    /// A crash leaves the complete file or none under that name.
    ///
    /// # Errors
    /// There is a file already, or it cannot be written.
    pub fn create(path: &Path) -> Result<MasterKey, VaultError> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *key).map_err(VaultError::Entropy)?;
        let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN + 1));
        key.iter().for_each(|byte| push_hex(&mut text, *byte));
        text.push('\n');
        write_new(path, text.as_bytes()).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => VaultError::KeyExists(path.to_owned()),
            _ => VaultError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
        Ok(MasterKey(key))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    fn read(path: &Path, readers: Readers) -> Result<MasterKey, VaultError> {
        let io = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => VaultError::KeyMissing(path.to_owned()),
            _ => VaultError::Io {
                path: path.to_owned(),
                source,
            },
        };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if readers == Readers::OwnerOnly && mode & 0o077 != 0 {
            return Err(VaultError::KeyMode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(2 * KEY_LEN + 2));
        file.take(MAX_FILE).read_to_end(&mut text).map_err(io)?;
        parse(text.trim_ascii()).ok_or_else(|| VaultError::KeyFormat(path.to_owned()))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Readers {
    OwnerOnly,
    SystemdDecides,
}

fn parse(text: &[u8]) -> Option<MasterKey> {
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != KEY_LEN || !rest.is_empty() {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(MasterKey(key))
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

fn push_hex(text: &mut String, byte: u8) {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    text.push(digit(byte >> 4));
    text.push(digit(byte & 15));
}

/// Writes beside `path` and links it there, which fails where a file is already.
fn write_new(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(std::io::Error::other)?;
    let partial = path.with_extension(format!("partial-{:016x}", u64::from_be_bytes(suffix)));
    suffix.zeroize();
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::hard_link(&partial, path));
    let removed = std::fs::remove_file(&partial);
    written?;
    removed?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_private_read_back_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let made = MasterKey::create(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let read = MasterKey::load(&MasterKeySource::KeyFile(path.clone())).unwrap();
        assert_eq!(made.bytes(), read.bytes());
        assert!(matches!(
            MasterKey::create(&path),
            Err(VaultError::KeyExists(_))
        ));
        let again = MasterKey::load(&MasterKeySource::KeyFile(path)).unwrap();
        assert_eq!(made.bytes(), again.bytes());
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_key_is_read_from_systemds_directory() {
        let dir = tempfile::tempdir().unwrap();
        let made = MasterKey::create(&dir.path().join("sluice.master")).unwrap();
        // systemd 252 makes credentials 0440 with an ACL; the directory is what protects them.
        let path = dir.path().join("sluice.master");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
        let name = "sluice.master".to_owned();
        let source = MasterKeySource::Systemd {
            directory: dir.path().to_owned(),
            name,
        };
        assert_eq!(MasterKey::load(&source).unwrap().bytes(), made.bytes());
        assert!(matches!(
            MasterKey::load(&MasterKeySource::KeyFile(path)),
            Err(VaultError::KeyMode { mode: 0o440, .. })
        ));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master.key");
        let load = || MasterKey::load(&MasterKeySource::KeyFile(path.clone()));
        assert!(matches!(load(), Err(VaultError::KeyMissing(_))));
        for wrong in ["", "00", &"g".repeat(64), &"0".repeat(65), &"0".repeat(66)] {
            drop(std::fs::remove_file(&path));
            write_new(&path, wrong.as_bytes()).unwrap();
            assert!(matches!(load(), Err(VaultError::KeyFormat(_))), "{wrong}");
        }
    }
}
