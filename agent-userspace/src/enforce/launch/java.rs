//! The trust store of Java: a JVM reads no variable for it and no PEM, so its `cacerts` is overlaid by one of ours.
//! Place: beside `trust`, which has the roots; the launcher writes the store and overlays what is found here.
//! INVARIANT: certificates only; nothing of a store that the workload's user may choose is copied or parsed.
//!
//! The form is JKS, version 2, which every JVM since 1.2 reads, whatever its `keystore.type` (`keystore.type.compat`, JDK 8 and
//! later): `FEEDFEED`, version, count; for each certificate the tag 2, an alias, a time, `X.509`, the DER; then SHA-1 over the
//! password in UTF-16, the words `Mighty Aphrodite` and all that is before. JVMs read their own store without a password.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use super::trust::{prefixes, variable};

/// Where distributions keep the store of all their JVMs.
const SYSTEM: [&str; 3] = [
    "/etc/pki/ca-trust/extracted/java/cacerts",
    "/etc/pki/java/cacerts",
    "/etc/ssl/certs/java/cacerts",
];

/// Directories of installations, each an installation itself.
const INSTALLATIONS: [&str; 4] = ["/opt", "/opt/java", "/usr/lib/jvm", "/usr/local"];
/// The same below a home: of sdkman, of IDEs, of mise and asdf.
const AT_HOME: [&str; 4] = [
    ".asdf/installs/java",
    ".jdks",
    ".local/share/mise/installs/java",
    ".sdkman/candidates/java",
];
const VARIABLES: [&str; 3] = ["GRAALVM_HOME", "JAVA_HOME", "JDK_HOME"];
/// Below an installation; what is called `jssecacerts` goes before `cacerts`.
const STORES: [&str; 4] = [
    "jre/lib/security/cacerts",
    "jre/lib/security/jssecacerts",
    "lib/security/cacerts",
    "lib/security/jssecacerts",
];
/// Most entries of one directory looked at.
const MAX_ENTRIES: usize = 256;

/// What everybody who opens a JVM's own store with a password uses.
const PASSWORD: &str = "changeit";
const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];

/// The variable that leads any JVM to a store, at the price of a line on its standard error.
pub(super) const VARIABLE: &str = "JAVA_TOOL_OPTIONS";

/// Whether a file is a store and not a bundle of PEM, by its beginning and name.
pub(super) fn is_store(file: &Path) -> bool {
    use std::io::Read as _;
    let mut head = [0; 4];
    let read = fs::File::open(file).and_then(|mut file| file.read_exact(&mut head));
    let named = || {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        matches!(name, "cacerts" | "jssecacerts") || name.ends_with(".p12")
    };
    // PKCS #12 is a DER sequence, as much else is.
    read.is_ok() && (head == MAGIC || head.first() == Some(&0x30) && named())
}

/// The installation that a store belongs to, by its path.
pub(super) fn installation(store: &Path) -> Option<&Path> {
    let below = STORES.iter().find(|below| store.ends_with(below))?;
    store.ancestors().nth(Path::new(below).components().count())
}

/// Whether a launch overlays this file, whatever the command.
pub(super) fn is_known(store: &Path) -> bool {
    stores(None, &[]).contains(store)
}

/// The stores within reach: the distribution's, and those of the command's JVM, of JAVA_HOME and of PATH.
pub(super) fn stores(
    command: Option<&Path>,
    environment: &[(OsString, OsString)],
) -> BTreeSet<PathBuf> {
    let mut prefixes = prefixes(command, environment, &VARIABLES, "java");
    let home = variable(environment, "HOME").map(Path::new);
    let at_home = home
        .into_iter()
        .flat_map(|home| AT_HOME.map(|below| home.join(below)));
    for directory in INSTALLATIONS.iter().map(PathBuf::from).chain(at_home) {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        prefixes.extend(entries.take(MAX_ENTRIES).map(|entry| entry.path()));
    }
    let of_prefixes = prefixes
        .iter()
        .flat_map(|prefix| STORES.map(|store| prefix.join(store)));
    SYSTEM
        .iter()
        .map(PathBuf::from)
        .chain(of_prefixes)
        .filter_map(|file| fs::canonicalize(file).ok())
        .filter(|file| file.is_file())
        .collect()
}

/// `-Djavax.net.ssl.trustStore=`, before what the environment has already; where that names a store itself, it stays.
pub(super) fn options(store: &Path, inherited: Option<&OsStr>) -> OsString {
    let mut own = OsString::from("-Djavax.net.ssl.trustStore=");
    own.push(store);
    own.push(" -Djavax.net.ssl.trustStoreType=JKS");
    if let Some(inherited) = inherited.filter(|text| !text.is_empty()) {
        own.push(" ");
        own.push(inherited);
    }
    own
}

/// A store with every certificate of this PEM text; what is no base64 is left out.
pub(super) fn store(pem: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(pem);
    let certificates: Vec<Vec<u8>> = text
        .split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .filter_map(|rest| rest.split("-----END CERTIFICATE-----").next())
        .filter_map(|body| {
            let body: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            STANDARD.decode(body).ok()
        })
        .collect();
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
    let mut store = Vec::with_capacity(pem.len());
    store.extend(MAGIC);
    store.extend(2_u32.to_be_bytes());
    store.extend(number(certificates.len()));
    for (at, certificate) in certificates.iter().enumerate() {
        store.extend(2_u32.to_be_bytes());
        short(&mut store, &format!("sluice-{at}"));
        store.extend(0_u64.to_be_bytes());
        short(&mut store, "X.509");
        store.extend(number(certificate.len()));
        store.extend(certificate);
    }
    let mut digest = Sha1::new();
    for unit in PASSWORD.encode_utf16() {
        digest.update(unit.to_be_bytes());
    }
    digest.update("Mighty Aphrodite");
    digest.update(&store);
    store.extend(digest.finalize());
    store
}

/// A text as Java's `writeUTF` has it; ours are short and ASCII.
fn short(store: &mut Vec<u8>, text: &str) {
    store.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    store.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &[u8] = b"# comment\n-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_store_has_the_form_that_every_jvm_reads() {
        let store = store(PEM);
        let mut wanted = vec![
            0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 8,
        ];
        wanted.extend(b"sluice-0");
        wanted.extend([0; 8]);
        wanted.extend([0, 5]);
        wanted.extend(b"X.509");
        wanted.extend([0, 0, 0, 3]);
        wanted.extend(b"ABC");
        let (body, digest) = store.split_at(store.len() - 20);
        assert_eq!(body, wanted);
        // As `keytool` verifies it.
        let mut all = b"\0c\0h\0a\0n\0g\0e\0i\0tMighty Aphrodite".to_vec();
        all.extend(&wanted);
        assert_eq!(digest, Sha1::digest(all).as_slice());
    }

    #[test]
    fn stores_are_found_through_java_home_and_the_command() {
        let place = tempfile::tempdir().unwrap();
        let place = fs::canonicalize(place.path()).unwrap();
        let make = |jdk: &str, store: &str| {
            let store = place.join(jdk).join(store);
            fs::create_dir_all(store.parent().unwrap()).unwrap();
            fs::create_dir_all(place.join(jdk).join("bin")).unwrap();
            fs::write(place.join(jdk).join("bin/java"), "").unwrap();
            fs::write(&store, MAGIC).unwrap();
            store
        };
        let by_home = make("one", "lib/security/cacerts");
        let by_command = make("two", "jre/lib/security/jssecacerts");
        let elsewhere = make("three", "lib/security/cacerts");
        let environment = [("JAVA_HOME".into(), place.join("one").into())];
        let found = stores(Some(&place.join("two/bin/java")), &environment);
        assert!(
            found.contains(&by_home) && found.contains(&by_command),
            "{found:?}"
        );
        assert!(!found.contains(&elsewhere));
        assert!(is_store(&by_home));
        assert_eq!(installation(&by_command), Some(place.join("two").as_path()));
    }

    #[test]
    fn options_that_were_there_stay_behind_ours() {
        let own = options(Path::new("/r/store"), None);
        assert_eq!(
            own,
            "-Djavax.net.ssl.trustStore=/r/store -Djavax.net.ssl.trustStoreType=JKS"
        );
        let both = options(Path::new("/r/store"), Some(OsStr::new("-Xmx1g")));
        assert!(both.to_str().unwrap().ends_with(" -Xmx1g"));
    }
}
