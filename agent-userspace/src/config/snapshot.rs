//! The texts of a configuration directory at one moment, read by whoever may read them.
//! The enforcer reads them as root and hands them to the proxy process, whose own uid need not see the directory.
//! INVARIANT: settings and sources come from the same moment; a file that cannot be read fails the whole snapshot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use policies::{Diagnostic, Diagnostics, Source, Sources};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::merge::merge;
use super::settings::Config;
use super::{Accounts, Paths};

/// A file larger than this is not a configuration file.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Every text that the settings and a bundle are made of.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    dir: PathBuf,
    accounts: Accounts,
    settings: Vec<TextFile>,
    agents: Vec<TextFile>,
    connectors: Vec<TextFile>,
    policies: Vec<TextFile>,
    roots: Vec<TextFile>,
    unreadable: Vec<Unreadable>,
}

/// One file's path and content.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TextFile {
    /// Where it was read.
    pub path: PathBuf,
    /// What it said.
    pub text: String,
}

/// A diagnostic on its way to the process that rejects the snapshot.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Unreadable {
    file: PathBuf,
    line: u32,
    column: u32,
    message: String,
    hint: Option<String>,
}

impl From<Diagnostic> for Unreadable {
    fn from(diagnostic: Diagnostic) -> Unreadable {
        let Diagnostic {
            file,
            line,
            column,
            message,
            hint,
        } = diagnostic;
        Unreadable {
            file,
            line,
            column,
            message,
            hint,
        }
    }
}

impl Unreadable {
    fn diagnostic(&self) -> Diagnostic {
        let Unreadable {
            file,
            line,
            column,
            message,
            hint,
        } = self.clone();
        Diagnostic {
            file,
            line,
            column,
            message,
            hint,
        }
    }
}

impl TextFile {
    /// The same, as the parsers take it.
    #[must_use]
    pub fn source(&self) -> Source {
        Source {
            path: self.path.clone(),
            text: self.text.clone(),
        }
    }
}

impl Snapshot {
    /// Reads the configuration directory, and the files with trust anchors that its settings name.
    ///
    /// # Errors
    /// The directory is missing, or a file cannot be read, is too large or is not UTF-8; or the settings are
    /// broken, since they say which further files to read.
    pub fn read(paths: &Paths) -> Result<Snapshot, Diagnostics> {
        let snapshot = Snapshot::gather(paths);
        snapshot.config()?;
        Ok(snapshot)
    }

    /// As [`Snapshot::read`], for a reload: what is wrong travels along, so that whoever rejects it records it.
    /// Such a snapshot has no settings.
    #[must_use]
    pub fn gather(paths: &Paths) -> Snapshot {
        let dir = paths.config.as_path();
        let mut errors = Vec::new();
        if !dir.is_dir() {
            let hint =
                Some("make it, or name another with --config DIR or SLUICE_CONFIG".to_owned());
            errors.push(whole_file(
                dir,
                "there is no configuration directory here".to_owned(),
                hint,
            ));
        }
        let mut settings = Vec::new();
        let main = dir.join("config.toml");
        if main.exists() {
            settings.extend(read_text(&main, &mut errors));
        }
        settings.extend(read_directory(&dir.join("config.d"), "toml", &mut errors));
        let mut snapshot = Snapshot {
            dir: dir.to_owned(),
            accounts: Accounts::read(),
            settings,
            agents: read_directory(&dir.join("agents.d"), "toml", &mut errors),
            connectors: read_directory(&dir.join("connectors.d"), "toml", &mut errors),
            policies: read_directory(&dir.join("policies"), "cedar", &mut errors),
            roots: Vec::new(),
            unreadable: Vec::new(),
        };
        if let Ok(config) = snapshot.config() {
            snapshot.roots = config
                .proxy
                .extra_roots
                .iter()
                .filter_map(|root| read_text(root, &mut errors))
                .collect();
        }
        snapshot.unreadable = errors.into_iter().map(Unreadable::from).collect();
        snapshot
    }

    /// The settings.
    ///
    /// # Errors
    /// One diagnostic for each thing that is wrong.
    pub fn config(&self) -> Result<Config, Diagnostics> {
        let mut problems =
            Diagnostics(self.unreadable.iter().map(Unreadable::diagnostic).collect());
        match problems.keep(merge(&self.dir, &self.settings)) {
            Some(config) => problems.or(config),
            None => Err(problems),
        }
    }

    /// What a bundle is loaded from.
    #[must_use]
    pub fn sources(&self) -> Sources {
        let sources = |files: &[TextFile]| files.iter().map(TextFile::source).collect();
        Sources {
            agents: sources(&self.agents),
            connectors: sources(&self.connectors),
            policies: sources(&self.policies),
        }
    }

    /// The local users and groups.
    #[must_use]
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The certificates of `[proxy] extra_roots`.
    ///
    /// # Errors
    /// A file is not PEM, or has no certificate in it.
    pub fn trust_anchors(&self) -> Result<Vec<CertificateDer<'static>>, Diagnostics> {
        let mut errors = Diagnostics::default();
        let mut anchors = Vec::new();
        for file in &self.roots {
            let found: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(file.text.as_bytes()).collect();
            match found {
                Ok(found) if !found.is_empty() => anchors.extend(found),
                Ok(_) => errors.0.push(whole_file(
                    &file.path,
                    "there is no certificate in this file".to_owned(),
                    None,
                )),
                Err(error) => errors.0.push(whole_file(
                    &file.path,
                    format!("this is not a PEM file: {error}"),
                    None,
                )),
            }
        }
        errors.or(anchors)
    }
}

/// The files of `dir` with this extension, by name. A missing directory is an empty one.
fn read_directory(dir: &Path, extension: &str, errors: &mut Vec<Diagnostic>) -> Vec<TextFile> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            errors.push(whole_file(
                dir,
                format!("the directory cannot be read: {error}"),
                None,
            ));
            return Vec::new();
        }
    };
    let mut paths = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => paths.push(entry.path()),
            Err(error) => errors.push(whole_file(
                dir,
                format!("the directory cannot be read: {error}"),
                None,
            )),
        }
    }
    // Editors leave `.name.toml.swp`, `.#name.toml` and the like beside the file that is meant.
    let hidden = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    };
    paths.retain(|path| path.extension().is_some_and(|found| found == extension) && !hidden(path));
    paths.sort();
    paths
        .iter()
        .filter_map(|path| read_text(path, errors))
        .collect()
}

/// The text of one file that an operator named, such as a decision case or an exported log's key.
///
/// # Errors
/// The file cannot be read, is too large or is not UTF-8.
pub fn read_one(path: &Path) -> Result<TextFile, Diagnostics> {
    let mut errors = Vec::new();
    read_text(path, &mut errors).ok_or(Diagnostics(errors))
}

/// The TOML files of a directory that an operator named, by name.
///
/// # Errors
/// The directory is missing, or a file cannot be read.
pub fn read_toml_files(dir: &Path) -> Result<Vec<TextFile>, Diagnostics> {
    let mut errors = Diagnostics::default();
    if !dir.is_dir() {
        errors.0.push(whole_file(
            dir,
            "there is no such directory".to_owned(),
            None,
        ));
    }
    let files = read_directory(dir, "toml", &mut errors.0);
    errors.or(files)
}

fn read_text(path: &Path, errors: &mut Vec<Diagnostic>) -> Option<TextFile> {
    match read_limited(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => {
                return Some(TextFile {
                    path: path.to_owned(),
                    text,
                });
            }
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let text =
                    String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default())
                        .into_owned();
                let head = Source {
                    path: path.to_owned(),
                    text,
                };
                errors.push(head.diagnostic(valid..valid, "the file is not UTF-8 text"));
            }
        },
        Err(error) => errors.push(whole_file(
            path,
            format!("the file cannot be read: {error}"),
            None,
        )),
    }
    None
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 4 MiB",
        ));
    }
    Ok(bytes)
}

fn whole_file(path: &Path, message: String, hint: Option<String>) -> Diagnostic {
    Diagnostic {
        file: path.to_owned(),
        line: 1,
        column: 1,
        message,
        hint,
    }
}
