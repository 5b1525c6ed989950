//! The vault as operators use it: versions, revocation, the master key, what a crash or a wrong key leaves.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use policies::{CredentialId, Timestamp};
use vault::{MasterKey, MasterKeySource, SealedError, Secret, Vault, VaultError};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            dir: tempfile::tempdir().unwrap(),
        };
        MasterKey::create(&bench.key_file()).unwrap();
        bench
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("vault.redb")
    }

    fn key_file(&self) -> PathBuf {
        self.dir.path().join("master.key")
    }

    fn open(&self) -> Result<Vault, VaultError> {
        Vault::open(&self.path(), load(&self.key_file()))
    }
}

fn load(path: &Path) -> MasterKey {
    MasterKey::load(&MasterKeySource::KeyFile(path.to_owned())).unwrap()
}

fn id(text: &str) -> CredentialId {
    text.parse().unwrap()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn secret(text: &str) -> Secret {
    Secret::new(text.into())
}

const STRIPE: &str = "acme/stripe-live";
const VALUE: &str = "sk_live_0123456789";

#[test]
fn versions_count_up_and_a_credential_is_put_once() {
    let bench = Bench::new();
    let vault = bench.open().unwrap();
    assert_eq!(vault.put(&id(STRIPE), secret(VALUE), at(1)).unwrap(), 1);
    assert!(matches!(
        vault.put(&id(STRIPE), secret(VALUE), at(2)),
        Err(VaultError::Exists(_))
    ));
    assert_eq!(
        vault
            .rotate(&id(STRIPE), secret("sk_live_second"), at(3))
            .unwrap(),
        2
    );
    vault.revoke(&id(STRIPE), at(4)).unwrap();
    vault.revoke(&id(STRIPE), at(5)).unwrap();
    let rotated = vault.rotate(&id(STRIPE), secret(VALUE), at(6));
    assert!(matches!(rotated, Err(VaultError::Revoked(_))));
    let listed = vault.list().unwrap();
    assert_eq!(
        (
            listed[0].version,
            listed[0].created_at,
            listed[0].changed_at
        ),
        (2, at(1), at(3))
    );
    assert_eq!(listed[0].revoked_at, Some(at(4)));
    // Put anew, under a version that was never used.
    assert_eq!(vault.put(&id(STRIPE), secret(VALUE), at(7)).unwrap(), 3);
    assert_eq!(vault.list().unwrap()[0].revoked_at, None);
    let unknown = id("acme/github");
    assert!(matches!(
        vault.rotate(&unknown, secret(VALUE), at(8)),
        Err(VaultError::NotFound(_))
    ));
    assert!(matches!(
        vault.revoke(&unknown, at(8)),
        Err(VaultError::NotFound(_))
    ));
}

#[test]
fn a_secret_that_could_not_be_lent_or_scrubbed_is_refused() {
    let bench = Bench::new();
    let vault = bench.open().unwrap();
    let put = |text: &str| vault.put(&id(STRIPE), secret(text), at(1));
    assert!(matches!(put("1234567"), Err(VaultError::TooShort)));
    assert!(matches!(
        put("sk_live_0123\n"),
        Err(VaultError::ControlCharacter)
    ));
    assert!(matches!(put("********"), Err(VaultError::Asterisks)));
    assert!(matches!(
        put(&"x".repeat(vault::MAX_SECRET + 1)),
        Err(VaultError::TooLong)
    ));
    assert_eq!(vault.list().unwrap(), []);
    assert_eq!(put("12345678").unwrap(), 1);
}

#[test]
fn a_wrong_master_key_is_an_error_and_changes_nothing() {
    let bench = Bench::new();
    bench
        .open()
        .unwrap()
        .put(&id(STRIPE), secret(VALUE), at(1))
        .unwrap();
    let other = bench.dir.path().join("other.key");
    let error = Vault::open(&bench.path(), MasterKey::create(&other).unwrap()).unwrap_err();
    assert!(matches!(error, VaultError::WrongKey(_)), "{error}");
    assert!(error.to_string().contains("another master key"), "{error}");
    // Positive control: with its own key everything is still there.
    let vault = bench.open().unwrap();
    assert_eq!(vault.list().unwrap().len(), 1);
    assert_eq!(vault.rotate(&id(STRIPE), secret(VALUE), at(2)).unwrap(), 2);
}

#[test]
fn the_file_is_private_and_shows_no_secret() {
    let bench = Bench::new();
    let vault = bench.open().unwrap();
    vault.put(&id(STRIPE), secret(VALUE), at(1)).unwrap();
    let tenant = "acme".parse().unwrap();
    vault
        .sealed(&tenant, "ca", || {
            Ok::<_, VaultError>(secret("the-private-key-of-the-ca"))
        })
        .unwrap();
    let mode = std::fs::metadata(bench.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(vault);
    let bytes = std::fs::read(bench.path()).unwrap();
    let holds = |text: &str| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    // Positive control: names are found where they are.
    assert!(holds(STRIPE));
    assert!(!holds(VALUE) && !holds("the-private-key"));
}

#[test]
fn a_damaged_vault_is_an_error() {
    let bench = Bench::new();
    let vault = bench.open().unwrap();
    vault.put(&id(STRIPE), secret(VALUE), at(1)).unwrap();
    assert!(
        matches!(bench.open(), Err(VaultError::Locked(_))),
        "one process at a time"
    );
    drop(vault);
    let good = std::fs::read(bench.path()).unwrap();
    for broken in [&b"not a database"[..], &good[..good.len() / 2]] {
        std::fs::write(bench.path(), broken).unwrap();
        assert!(bench.open().is_err());
    }
    std::fs::write(bench.path(), &good).unwrap();
    assert_eq!(bench.open().unwrap().list().unwrap().len(), 1);
}

#[test]
fn the_hosts_own_keys_are_made_once_and_are_no_credentials() {
    let bench = Bench::new();
    let tenant = "acme".parse().unwrap();
    let make = |text: &'static str| move || Ok::<_, VaultError>(secret(text));
    let vault = bench.open().unwrap();
    let first = vault
        .sealed(&tenant, "ca", make("first-private-key"))
        .unwrap();
    drop(vault);
    let vault = bench.open().unwrap();
    let second = vault.sealed(&tenant, "ca", make("never-made")).unwrap();
    assert_eq!(first.expose(), second.expose());
    let other = vault
        .sealed(&"beta".parse().unwrap(), "ca", make("others-private-key"))
        .unwrap();
    assert_ne!(first.expose(), other.expose());
    assert_eq!(vault.list().unwrap(), []);
    let failed = vault.sealed(&tenant, "fresh", || Err("no entropy"));
    assert!(matches!(failed, Err(SealedError::Make("no entropy"))));
    // What failed left nothing behind.
    assert_eq!(
        vault
            .sealed(&tenant, "fresh", make("made-at-last"))
            .unwrap()
            .expose(),
        b"made-at-last"
    );
}
