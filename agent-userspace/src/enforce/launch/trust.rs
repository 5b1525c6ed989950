//! CA trust: how an unmodified client comes to believe the tenant's certificate authority.
//! Variables for the clients that read them, overlays of bundle files for the others; only inside the workload.
//! INVARIANT: no text of a file that the workload's user may choose is copied; vendored bundles are covered, not read.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{LaunchError, java};

/// Where distributions keep the system's bundle: Debian, Fedora, openSUSE, Alpine.
pub(super) const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/cert.pem",
];

/// Bundles that Python packages bring along, below a directory of packages.
const VENDORED: [&str; 4] = [
    "botocore/cacert.pem",
    "certifi/cacert.pem",
    "pip/_vendor/certifi/cacert.pem",
    "stripe/data/ca-certificates.crt",
];

/// These replace a client's whole store, so they name the combined bundle.
const COMBINED: [&str; 13] = [
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HEX_CACERTS_PATH",
    "HTTPLIB2_CA_CERTS",
    "NIX_SSL_CERT_FILE",
    "PERL_LWP_SSL_CA_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// These add to a client's store, so they name the tenant's root alone.
const ADDED: [&str; 2] = ["DENO_CERT", "NODE_EXTRA_CA_CERTS"];

/// These make a client look at the system's store, which is overlaid.
const SWITCHES: [(&str, &str); 2] = [("DENO_TLS_CA_STORE", "system"), ("NODE_USE_SYSTEM_CA", "1")];

/// Would lead a client past the combined bundle, or to a broker outside.
const REMOVED: [&str; 3] = ["DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "SSL_CERT_DIR"];

/// Most directories looked into for vendored bundles.
const MAX_PREFIXES: usize = 64;
/// Most entries of one `lib` directory looked at.
const MAX_ENTRIES: usize = 256;
/// A bundle larger than this is none.
pub(super) const MAX_BUNDLE: u64 = 16 * 1024 * 1024;

/// What the workload is given to trust.
#[derive(Debug)]
pub(super) struct Trust {
    /// The system's roots and the tenant's.
    pub(super) combined: Vec<u8>,
    /// The tenant's root.
    pub(super) root: Vec<u8>,
    /// The files that the combined bundle covers.
    pub(super) overlays: Vec<PathBuf>,
    /// The same roots as a JVM reads them.
    pub(super) java: Vec<u8>,
    /// The stores that this covers.
    pub(super) java_overlays: Vec<PathBuf>,
}

impl Trust {
    /// Combines the bundles and finds the files to cover.
    pub(super) fn new(
        root_pem: &str,
        further: &[PathBuf],
        command: Option<&Path>,
        directory: &Path,
        environment: &[(OsString, OsString)],
    ) -> Result<Trust, LaunchError> {
        let root = certificates(root_pem).ok_or(LaunchError::BadRoot)?;
        let combined = combine(&root)?;
        let mut overlays: BTreeSet<PathBuf> = system_bundles().into_iter().collect();
        let mut java_overlays = java::stores(command, environment);
        for file in further {
            let real = fs::canonicalize(file).map_err(|error| prepare(file, error))?;
            if java::is_store(&real) {
                java_overlays.insert(real);
            } else {
                overlays.insert(real);
            }
        }
        overlays.extend(vendored(command, directory, environment));
        Ok(Trust {
            java: java::store(&combined),
            java_overlays: java_overlays.into_iter().collect(),
            combined,
            root: root.into_bytes(),
            overlays: overlays.into_iter().collect(),
        })
    }
}

/// The system's roots and these, as a workload sees them.
pub(crate) fn combined_bundle(root_pem: &str) -> Result<Vec<u8>, LaunchError> {
    combine(&certificates(root_pem).ok_or(LaunchError::BadRoot)?)
}

/// What is in the first of the system's bundles that has something, with this root behind it.
fn combine(root: &str) -> Result<Vec<u8>, LaunchError> {
    let mut combined = Vec::new();
    for bundle in system_bundles() {
        if combined.is_empty() {
            combined = read_bundle(&bundle).map_err(|error| prepare(&bundle, error))?;
        }
    }
    if !combined.is_empty() && !combined.ends_with(b"\n") {
        combined.push(b'\n');
    }
    combined.extend_from_slice(root.as_bytes());
    Ok(combined)
}

/// The bundles that this system has, each once, under its own name, as they are looked for.
pub(super) fn system_bundles() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for bundle in SYSTEM_BUNDLES {
        if let Ok(real) = fs::canonicalize(bundle)
            && !found.contains(&real)
        {
            found.push(real);
        }
    }
    found
}

/// The variables that a launch sets, all naming one bundle that holds everything; and those that it removes.
pub(super) fn variables(bundle: &Path) -> (Vec<(OsString, OsString)>, &'static [&'static str]) {
    (environment(&[], bundle, bundle), &REMOVED)
}

/// What covers a bundle without being told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Overlaid {
    /// Every workload sees the combined bundle in its place.
    System,
    /// Workloads whose programs belong to this prefix do.
    Packages(PathBuf),
    /// Every workload sees a store with the combined bundle in its place.
    Jvms,
    /// Workloads whose JVM this is do.
    Jvm(PathBuf),
}

/// How a launch would cover this file, if it would.
pub(crate) fn overlaid(file: &Path) -> Option<Overlaid> {
    let is_system = |bundle: &&str| fs::canonicalize(bundle).is_ok_and(|real| real == file);
    if SYSTEM_BUNDLES.iter().any(is_system) {
        return Some(Overlaid::System);
    }
    if java::is_known(file) {
        return Some(Overlaid::Jvms);
    }
    if let Some(installation) = java::installation(file) {
        return Some(Overlaid::Jvm(installation.to_owned()));
    }
    let vendored = VENDORED.iter().find(|vendored| file.ends_with(vendored))?;
    // PREFIX/lib*/python3*/{site,dist}-packages, as `package_directories` looks for them.
    let mut above = file
        .ancestors()
        .skip(Path::new(vendored).components().count());
    let packages = above.next()?.file_name()?.to_str()?;
    let python = above.next()?.file_name()?.to_str()?;
    let library = above.next()?.file_name()?.to_str()?;
    let found = matches!(packages, "site-packages" | "dist-packages")
        && python.starts_with("python3")
        && matches!(library, "lib" | "lib64");
    found.then(|| {
        above
            .next()
            .map(|prefix| Overlaid::Packages(prefix.to_owned()))
    })?
}

/// Whether each launch sets this variable.
pub(crate) fn sets_variable(name: &str) -> bool {
    COMBINED.contains(&name) || ADDED.contains(&name)
}

/// The environment with the variables of CA trust, given where the two files will be.
pub(super) fn environment(
    inherited: &[(OsString, OsString)],
    combined: &Path,
    root: &Path,
) -> Vec<(OsString, OsString)> {
    let own = COMBINED.iter().map(|name| (*name, combined.as_os_str()));
    let own = own.chain(ADDED.iter().map(|name| (*name, root.as_os_str())));
    let own = own.chain(
        SWITCHES
            .iter()
            .map(|(name, value)| (*name, OsStr::new(*value))),
    );
    let mut environment: Vec<(OsString, OsString)> = inherited.to_vec();
    environment.retain(|(name, _)| !REMOVED.iter().any(|removed| name == removed));
    for (name, value) in own {
        environment.retain(|(present, _)| present != name);
        environment.push((name.into(), value.to_owned()));
    }
    environment
}

/// The certificates of a PEM text and nothing else of it, or none if there are none.
pub(super) fn certificates(text: &str) -> Option<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = String::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        let (body, after) = after.split_once(END)?;
        let base64 =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '\n' | '\r');
        if body.is_empty() || !body.chars().all(base64) {
            return None;
        }
        found.extend([BEGIN, body, END, "\n"]);
        rest = after;
    }
    (!found.is_empty()).then_some(found)
}

fn read_bundle(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MAX_BUNDLE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The vendored bundles within reach: those of the command's interpreter, of the virtual environment, of the
/// interpreters on PATH and of the distribution.
fn vendored(
    command: Option<&Path>,
    directory: &Path,
    environment: &[(OsString, OsString)],
) -> BTreeSet<PathBuf> {
    let variable = |name: &str| variable(environment, name);
    // Those before PATH, which can be longer than is looked into.
    let mut within = vec![directory.join(".venv"), directory.join("venv")];
    within.extend(variable("HOME").map(|home| Path::new(home).join(".local")));
    within.extend(prefixes(
        command,
        environment,
        &["VIRTUAL_ENV", "CONDA_PREFIX"],
        "python3",
    ));
    within.extend(["/usr", "/usr/local"].map(PathBuf::from));
    let mut packages: Vec<PathBuf> = Vec::new();
    packages.extend(
        variable("PYTHONPATH")
            .map(std::env::split_paths)
            .into_iter()
            .flatten(),
    );
    let mut seen = BTreeSet::new();
    for prefix in within
        .into_iter()
        .filter(|prefix| seen.insert(prefix.clone()))
        .take(MAX_PREFIXES)
    {
        packages.extend(package_directories(&prefix));
    }
    let files = packages
        .iter()
        .flat_map(|packages| VENDORED.iter().map(move |file| packages.join(file)));
    files
        .filter_map(|file| fs::canonicalize(file).ok())
        .filter(|file| file.is_file())
        .collect()
}

/// `PREFIX/lib*/python3*/{site,dist}-packages`.
fn package_directories(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for library in ["lib", "lib64"] {
        let entries = fs::read_dir(prefix.join(library))
            .into_iter()
            .flatten()
            .flatten()
            .take(MAX_ENTRIES);
        let pythons =
            entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"python3"));
        for python in pythons {
            found.extend(["site-packages", "dist-packages"].map(|name| python.path().join(name)));
        }
    }
    found
}

/// What a variable is set to.
pub(super) fn variable<'a>(
    environment: &'a [(OsString, OsString)],
    wanted: &str,
) -> Option<&'a OsStr> {
    let found = environment.iter().find(|(name, _)| name == wanted);
    found.map(|(_, value)| value.as_os_str())
}

/// The installation prefixes within reach: those that variables name, that of the command, and those of `interpreter` on PATH.
pub(super) fn prefixes(
    command: Option<&Path>,
    environment: &[(OsString, OsString)],
    variables: &[&str],
    interpreter: &str,
) -> Vec<PathBuf> {
    let named = variables.iter();
    let named = named.filter_map(|name| variable(environment, name).map(PathBuf::from));
    let on_path = variable(environment, "PATH").into_iter();
    let on_path = on_path.flat_map(std::env::split_paths);
    named
        .chain(command.into_iter().flat_map(interpreter_prefixes))
        .chain(on_path.flat_map(|bin| interpreter_prefixes(&bin.join(interpreter))))
        .collect()
}

/// The installation prefixes that a program belongs to: `/x` for `/x/bin/python` or for a script that names it, also
/// through symbolic links.
fn interpreter_prefixes(program: &Path) -> Vec<PathBuf> {
    let mut programs = vec![program.to_owned()];
    programs.extend(shebang(program));
    let real: Vec<PathBuf> = programs
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    programs.extend(real);
    let prefix = |path: PathBuf| path.parent().and_then(Path::parent).map(Path::to_owned);
    programs
        .into_iter()
        .filter(|path| path.is_file())
        .filter_map(prefix)
        .collect()
}

/// The interpreter that a script names in its first line.
fn shebang(program: &Path) -> Option<PathBuf> {
    let mut head = [0; 256];
    // Not blocking: the path is the workload's choice and may be a pipe.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = fs::File::options()
        .read(true)
        .custom_flags(flags)
        .open(program)
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let length = file.read(&mut head).ok()?;
    let line = head
        .get(..length)?
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let word = std::str::from_utf8(line).ok()?.split_whitespace().next()?;
    Some(PathBuf::from(word))
}

fn prepare(path: &Path, error: io::Error) -> LaunchError {
    LaunchError::Prepare {
        what: path.display().to_string(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";

    #[test]
    fn only_certificates_are_taken_from_the_root_file() {
        let with_more = format!("# comment\n{PEM}secret: x\n{PEM}");
        assert_eq!(certificates(&with_more).unwrap(), format!("{PEM}{PEM}"));
        for bad in [
            "",
            "root:x:0:0",
            "-----BEGIN CERTIFICATE-----\nQUJD\n",
            "-----BEGIN CERTIFICATE-----\nroot:x\n-----END CERTIFICATE-----\n",
        ] {
            assert_eq!(certificates(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn variables_replace_and_add_as_their_clients_read_them() {
        let inherited = [
            ("SSL_CERT_DIR", "/x"),
            ("SSL_CERT_FILE", "/y"),
            ("LANG", "C"),
            ("SSH_AUTH_SOCK", "/tmp/a"),
        ];
        let inherited = inherited.map(|(name, value)| (name.into(), value.into()));
        let set = environment(
            &inherited,
            Path::new("/r/all.pem"),
            Path::new("/r/root.pem"),
        );
        let value = |wanted: &str| {
            let found: Vec<_> = set
                .iter()
                .filter(|(name, _)| name == wanted)
                .map(|(_, value)| value.to_str().unwrap())
                .collect();
            assert!(found.len() < 2, "{wanted} twice");
            found.first().copied()
        };
        assert_eq!(value("SSL_CERT_DIR"), None);
        assert_eq!(value("SSH_AUTH_SOCK"), None);
        assert_eq!(value("LANG"), Some("C"));
        for name in COMBINED {
            assert_eq!(value(name), Some("/r/all.pem"), "{name}");
        }
        assert_eq!(value("NODE_EXTRA_CA_CERTS"), Some("/r/root.pem"));
        assert_eq!(value("NODE_USE_SYSTEM_CA"), Some("1"));
    }

    #[test]
    fn vendored_bundles_are_found_through_a_script_s_interpreter_and_the_virtual_environment() {
        let place = tempfile::tempdir().unwrap();
        let place = fs::canonicalize(place.path()).unwrap();
        let make = |venv: &str, file: &str| {
            let path = place
                .join(venv)
                .join("lib/python3.11/site-packages")
                .join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::create_dir_all(place.join(venv).join("bin")).unwrap();
            fs::write(place.join(venv).join("bin/python"), "").unwrap();
            fs::write(&path, "").unwrap();
            path
        };
        let by_script = make("one", "stripe/data/ca-certificates.crt");
        let by_variable = make("two", "certifi/cacert.pem");
        let elsewhere = make("three", "certifi/cacert.pem");
        let script = place.join("agent");
        fs::write(
            &script,
            format!("#!{}/one/bin/python -s\n", place.display()),
        )
        .unwrap();
        let environment = [("VIRTUAL_ENV".into(), place.join("two").into())];
        let found = vendored(Some(&script), &place, &environment);
        assert!(
            found.contains(&by_script) && found.contains(&by_variable),
            "{found:?}"
        );
        assert!(!found.contains(&elsewhere), "{found:?}");
    }
}
