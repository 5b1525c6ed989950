//! `sluice trust scan DIR`: where a tree keeps roots of its own, and what makes its programs trust the tenant's CA.
//! Looks at files only; needs no daemon and no root.
//! INVARIANT: a bundle is called covered only if what `sluice run` does by itself reaches it; exit code 1 if one is not.

mod scan;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use self::scan::{Finding, Kind};
use super::output::{clean, counted};
use super::{Failure, Global, Output};
use crate::enforce::launch::{Overlaid, overlaid, sets_variable};

/// What to look at.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Find the CA bundles in a directory tree, and say which `sluice run` covers
    Scan(ScanArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct ScanArgs {
    /// The tree: a virtual environment, a project, an image's root
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(super) fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let Command::Scan(args) = command;
    let scanned = scan::scan(&args.directory).map_err(|source| Failure::Io {
        path: args.directory.clone(),
        source,
    })?;
    let rows: Vec<Row> = scanned.found.into_iter().map(Row::of).collect();
    let output = Output::new(global);
    let covered = rows.iter().all(|row| row.covered);
    let columns = ["COVERED", "KIND", "FILE", "HOW"];
    output.table(&rows, &columns, "no CA bundles", |row| {
        vec![
            if row.covered { "yes" } else { "no" }.to_owned(),
            row.kind.as_str().to_owned(),
            clean(&row.file.display().to_string()),
            row.how.clone(),
        ]
    })?;
    if scanned.left_out > 0 {
        let left = counted(scanned.left_out, "entry");
        Output::complain(&format!("sluice: warning: {left} could not be looked at"));
    }
    Ok(ExitCode::from(u8::from(!covered || scanned.left_out > 0)))
}

/// One bundle and what reaches it.
#[derive(Debug, Serialize)]
struct Row {
    file: PathBuf,
    kind: Kind,
    /// How many certificates, where they can be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificates: Option<usize>,
    covered: bool,
    how: String,
}

impl Row {
    fn of(finding: Finding) -> Row {
        let (covered, how) = coverage(&finding);
        Row {
            file: finding.file,
            kind: finding.kind,
            certificates: finding.certificates,
            covered,
            how,
        }
    }
}

/// Whether the launcher reaches it by itself, and how; or what to set.
fn coverage(finding: &Finding) -> (bool, String) {
    match overlaid(&finding.file) {
        Some(Overlaid::System) => return (true, "overlaid: the system's bundle".to_owned()),
        Some(Overlaid::Packages(prefix)) => {
            let how = format!(
                "overlaid for programs of {}: by VIRTUAL_ENV, the command's interpreter or PATH",
                prefix.display()
            );
            return (true, clean(&how));
        }
        Some(Overlaid::Jvms) => return (true, "overlaid: a store of JVMs".to_owned()),
        Some(Overlaid::Jvm(installation)) => {
            let how = format!(
                "overlaid for programs of {}: by JAVA_HOME, the command or PATH",
                installation.display()
            );
            return (true, clean(&how));
        }
        None => {}
    }
    let by_variable = |name: &'static str| {
        debug_assert!(sets_variable(name), "{name}");
        (true, format!("{name} names the combined bundle instead"))
    };
    match finding.kind {
        Kind::Grpc => by_variable("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
        Kind::Node => by_variable("NODE_EXTRA_CA_CERTS"),
        Kind::GoFallback => by_variable("SSL_CERT_FILE"),
        Kind::Pem => (false, "`sluice run --trust FILE` overlays it".to_owned()),
        Kind::JavaKeyStore => {
            let how = "`sluice run --trust FILE` overlays it; if it has a password, that must be `changeit`";
            (false, how.to_owned())
        }
        Kind::Embedded => {
            let how = "roots are compiled in (such as Rust's webpki-roots): build with the system's roots (rustls-native-certs), or configure the program's own CA option";
            (false, how.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_how_it_is_reached() {
        let found = |file: &str, kind| Finding {
            file: file.into(),
            kind,
            certificates: None,
        };
        for (file, kind, covered, word) in [
            (
                "/x/lib/python3.11/site-packages/certifi/cacert.pem",
                Kind::Pem,
                true,
                "/x",
            ),
            (
                "/x/lib/python3/dist-packages/botocore/cacert.pem",
                Kind::Pem,
                true,
                "/x",
            ),
            ("/x/certifi/cacert.pem", Kind::Pem, false, "--trust"),
            (
                "/x/lib/python3.11/site-packages/other/cacert.pem",
                Kind::Pem,
                false,
                "--trust",
            ),
            (
                "/x/grpc/_cython/_credentials/roots.pem",
                Kind::Grpc,
                true,
                "GRPC_DEFAULT",
            ),
            (
                "/x/lib/security/cacerts",
                Kind::JavaKeyStore,
                true,
                "JAVA_HOME",
            ),
            (
                "/x/app/truststore.jks",
                Kind::JavaKeyStore,
                false,
                "--trust",
            ),
            ("/x/bin/node", Kind::Node, true, "NODE_EXTRA_CA_CERTS"),
            ("/x/bin/tool", Kind::GoFallback, true, "SSL_CERT_FILE"),
            ("/x/bin/tool", Kind::Embedded, false, "rustls-native-certs"),
        ] {
            let (is, how) = coverage(&found(file, kind));
            assert_eq!(is, covered, "{file}");
            assert!(how.contains(word), "{file}: {how}");
        }
    }
}
