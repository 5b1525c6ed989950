//! Walks a tree and finds files that hold roots: PEM bundles, Java key stores, programs with roots compiled in.
//! By content, not by name alone; names only say which files are worth opening.
//! INVARIANT: follows no symbolic link, opens regular files only, and what could not be looked at is counted.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Fewer certificates are a chain or a private CA, not a client's store.
const STORE: usize = 10;
/// Most entries of a tree.
const MOST_ENTRIES: usize = 2_000_000;
/// A program larger than this is not searched to its end.
const MOST_BYTES: u64 = 512 * 1024 * 1024;
/// How much is searched at a time.
const CHUNK: usize = 1024 * 1024;

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// Names of roots that every public store has; as text they stand in DER, too.
const ROOTS: [&[u8]; 4] = [
    b"Amazon Root CA 1",
    b"DigiCert Global Root G2",
    b"GlobalSign Root CA",
    b"ISRG Root X1",
];
const NODE: &[u8] = b"NODE_EXTRA_CA_CERTS";
const GO_FALLBACK: &[u8] = b"golang.org/x/crypto/x509roots/fallback";
/// Longest needle above.
const OVERLAP: usize = 64;

/// What holds the roots.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// A program with public roots compiled in, by their names: a hint, not a proof.
    Embedded,
    /// A Go program that brings roots for machines without any.
    GoFallback,
    /// The bundle of gRPC's own TLS.
    Grpc,
    /// `cacerts` and other stores of the JVM.
    JavaKeyStore,
    /// Node.js, which has roots compiled in and reads more.
    Node,
    /// Certificates as text.
    Pem,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Embedded => "embedded",
            Kind::GoFallback => "go fallback",
            Kind::Grpc => "grpc",
            Kind::JavaKeyStore => "java key store",
            Kind::Node => "node",
            Kind::Pem => "pem",
        }
    }
}

/// One file with roots.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) file: PathBuf,
    pub(super) kind: Kind,
    pub(super) certificates: Option<usize>,
}

/// All of a tree.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    pub(super) found: Vec<Finding>,
    /// Entries that could not be read, or came after the most.
    pub(super) left_out: usize,
}

/// Looks at every regular file below `root`.
///
/// # Errors
/// `root` is no directory that can be read.
pub(super) fn scan(root: &Path) -> io::Result<Scanned> {
    let root = fs::canonicalize(root)?;
    let mut scanned = Scanned::default();
    let mut entries = 0_usize;
    let mut waiting = vec![fs::read_dir(&root)?];
    while let Some(directory) = waiting.last_mut() {
        let Some(entry) = directory.next() else {
            waiting.pop();
            continue;
        };
        entries += 1;
        if entries > MOST_ENTRIES {
            scanned.left_out += 1;
            break;
        }
        let looked = entry.and_then(|entry| {
            let kind = entry.file_type()?;
            let path = entry.path();
            if kind.is_dir() {
                waiting.push(fs::read_dir(&path)?);
            } else if kind.is_file() {
                scanned.found.extend(look(path)?);
            }
            Ok(())
        });
        // Gone in the meantime, or not ours to read.
        scanned.left_out += usize::from(looked.is_err());
    }
    scanned.found.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(scanned)
}

/// What a file holds, if roots.
fn look(path: PathBuf) -> io::Result<Option<Finding>> {
    let mut file = File::open(&path)?;
    let mut head = [0; 4];
    let length = file.read(&mut head)?;
    let head = head.get(..length).unwrap_or_default();
    let rest = io::Cursor::new(head.to_vec()).chain(file);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let found = match head {
        // JKS, JCEKS.
        [0xfe, 0xed, 0xfe, 0xed] | [0xce, 0xce, 0xce, 0xce] => Some((Kind::JavaKeyStore, None)),
        // PKCS #12 is any DER sequence: only where the JVM looks.
        [0x30, ..] if name == "cacerts" => Some((Kind::JavaKeyStore, None)),
        [0x7f, b'E', b'L', b'F'] => compiled_in(&search(rest)?),
        _ if is_text(&name, &extension) => {
            let count = search(rest)?.certificates;
            let grpc = name == "roots.pem" && path.to_string_lossy().contains("grpc");
            let kind = if grpc { Kind::Grpc } else { Kind::Pem };
            (count >= STORE).then_some((kind, Some(count)))
        }
        _ => None,
    };
    Ok(found.map(|(kind, certificates)| Finding {
        file: path,
        kind,
        certificates,
    }))
}

fn is_text(name: &str, extension: &str) -> bool {
    matches!(
        extension,
        "bundle" | "ca" | "cer" | "cert" | "crt" | "pem" | "txt"
    ) || name.contains("cacert")
        || name.contains("ca-bundle")
}

fn compiled_in(seen: &Seen) -> Option<(Kind, Option<usize>)> {
    let roots = seen.roots.iter().filter(|seen| **seen).count();
    if seen.certificates < STORE && roots < 3 {
        return None;
    }
    let count = (seen.certificates > 0).then_some(seen.certificates);
    Some(match (seen.node, seen.go_fallback) {
        (true, _) => (Kind::Node, count),
        (_, true) => (Kind::GoFallback, count),
        _ => (Kind::Embedded, count),
    })
}

/// What a file's bytes contain.
#[derive(Debug, Default)]
struct Seen {
    certificates: usize,
    roots: [bool; ROOTS.len()],
    node: bool,
    go_fallback: bool,
}

fn search(bytes: impl Read) -> io::Result<Seen> {
    let mut bytes = bytes.take(MOST_BYTES);
    let mut seen = Seen::default();
    let mut window = Vec::with_capacity(CHUNK + OVERLAP);
    loop {
        let before = window.len();
        let read = bytes.by_ref().take(CHUNK as u64).read_to_end(&mut window)?;
        if read == 0 {
            return Ok(seen);
        }
        // A marker that ends in what was searched before was counted then.
        let new = |at: usize, needle: &[u8]| at + needle.len() > before;
        seen.certificates += memchr::memmem::find_iter(&window, BEGIN)
            .filter(|at| new(*at, BEGIN))
            .count();
        let has = |needle: &[u8]| memchr::memmem::find(&window, needle).is_some();
        for (root, found) in ROOTS.iter().zip(&mut seen.roots) {
            *found = *found || has(root);
        }
        seen.node = seen.node || has(NODE);
        seen.go_fallback = seen.go_fallback || has(GO_FALLBACK);
        let kept = window.len().saturating_sub(OVERLAP);
        window.drain(..kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(count: usize) -> String {
        "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n".repeat(count)
    }

    #[test]
    fn bundles_are_found_by_what_they_hold_and_nothing_else_is() {
        let tree = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = tree.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let elf = |inner: &[&[u8]]| {
            let padding = vec![0; CHUNK - 2];
            [b"\x7fELF", padding.as_slice(), &inner.concat()].concat()
        };
        write(
            "lib/python3.11/site-packages/certifi/cacert.pem",
            bundle(140).as_bytes(),
        );
        write(
            "grpc/_cython/_credentials/roots.pem",
            bundle(130).as_bytes(),
        );
        write("jre/lib/security/cacerts", b"\x30\x82\x01\x00");
        write("old.jks", b"\xfe\xed\xfe\xed\0\0");
        write("bin/node", &elf(&[bundle(120).as_bytes(), NODE]));
        write("bin/reqwest", &elf(&ROOTS));
        write("bin/gotool", &elf(&[&ROOTS.concat(), GO_FALLBACK]));
        // Not stores: a chain, a key, another sequence, a program that names one root, a picture.
        write("chain.pem", bundle(3).as_bytes());
        write("key.pem", b"-----BEGIN PRIVATE KEY-----\n");
        write("data.der", b"\x30\x82\x01\x00");
        write("bin/other", &elf(&[ROOTS[0]]));
        write("a.png", bundle(50).as_bytes());
        std::os::unix::fs::symlink("/etc/ssl/certs", tree.path().join("link")).unwrap();
        let scanned = scan(tree.path()).unwrap();
        let found: Vec<(String, Kind, Option<usize>)> = scanned
            .found
            .iter()
            .map(|it| {
                let name = it.file.file_name().unwrap().to_string_lossy().into_owned();
                (name, it.kind, it.certificates)
            })
            .collect();
        let expected = [
            ("gotool", Kind::GoFallback, None),
            ("node", Kind::Node, Some(120)),
            ("reqwest", Kind::Embedded, None),
            ("roots.pem", Kind::Grpc, Some(130)),
            ("cacerts", Kind::JavaKeyStore, None),
            ("cacert.pem", Kind::Pem, Some(140)),
            ("old.jks", Kind::JavaKeyStore, None),
        ];
        let expected = expected.map(|(name, kind, count)| (name.to_owned(), kind, count));
        assert_eq!(found, expected);
        assert_eq!(scanned.left_out, 0);
    }

    #[test]
    fn markers_across_the_edges_of_chunks_are_counted_once() {
        for shift in [0, 1, 13, 26, 27, 28, 63, 64, 65] {
            let mut bytes = vec![b' '; CHUNK - shift];
            bytes.extend_from_slice(bundle(30).as_bytes());
            assert_eq!(
                search(bytes.as_slice()).unwrap().certificates,
                30,
                "{shift}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_or_counted() {
        assert!(scan(Path::new("/nonexistent/x")).is_err());
        let tree = tempfile::tempdir().unwrap();
        assert!(scan(tree.path()).unwrap().found.is_empty());
    }
}
