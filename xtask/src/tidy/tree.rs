//! The files that rules look at, and the rules about files as such: where they lie and what they may not contain.
//! Invariant: text files are held whole; what is not UTF-8 is held as a name only.

use anyhow::Result;

use super::Complaint;
use crate::shell;

/// One file that git would commit.
pub(crate) struct File {
    /// Relative to the workspace, with `/`.
    pub(crate) path: String,
    /// None: not UTF-8.
    pub(crate) text: Option<String>,
}

/// Everything that git would commit.
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads the checkout.
    pub(crate) fn of_checkout() -> Result<Self> {
        let root = shell::root();
        let listed = shell::capture(std::process::Command::new("git").current_dir(&root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            // A tracked file may be deleted in the work tree.
            let Ok(bytes) = std::fs::read(root.join(path)) else {
                continue;
            };
            files.push(File {
                path: path.to_owned(),
                text: String::from_utf8(bytes).ok(),
            });
        }
        Ok(Self { files })
    }

    /// The Rust files, with their text.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// All text files.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter_map(|file| Some((file.path.as_str(), file.text.as_deref()?)))
    }

    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).into(),
            text: Some((*text).into()),
        };
        Self {
            files: files.iter().map(file).collect(),
        }
    }
}

/// The top level is fixed: what is not named here needs a decision, not a file.
const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "agent-ebpf",
    "agent-userspace",
    "clippy.toml",
    "mitm-proxy",
    "policies",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "vm-tests",
    "xtask",
];

/// Nothing new at the top level, dotfiles aside.
pub(crate) fn top_level(tree: &Tree) -> Vec<Complaint> {
    let mut tops: Vec<&str> = tree
        .files
        .iter()
        .filter_map(|file| file.path.split('/').next())
        .collect();
    tops.sort_unstable();
    tops.dedup();
    tops.into_iter()
        .filter(|top| !top.starts_with('.') && !TOP_LEVEL.contains(top))
        .map(|top| {
            Complaint::new(
                top,
                0,
                "the top level is fixed; find it a place inside a crate",
            )
        })
        .collect()
}

/// No path of one person's machine in what everybody reads.
pub(crate) fn machine_paths(tree: &Tree) -> Vec<Complaint> {
    // Spelled in pieces so that this file does not complain about itself.
    let needles = [
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/tm", "p/plan"),
    ];
    let starts_a_path = |before: Option<char>| {
        before.is_none_or(|c| !(c.is_ascii_alphanumeric() || "_.-}*$~".contains(c)))
    };
    each_line(tree, |line| {
        needles
            .iter()
            .find(|needle| {
                line.match_indices(**needle)
                    .any(|(at, _)| starts_a_path(line.get(..at).and_then(|b| b.chars().last())))
            })
            .map(|needle| format!("a path of one machine ({needle}..)"))
    })
}

/// eBPF objects and everything else that is built is built from source.
pub(crate) fn no_binaries(tree: &Tree) -> Vec<Complaint> {
    tree.files
        .iter()
        .filter(|file| file.text.is_none() || file.path.ends_with(".o"))
        .map(|file| {
            Complaint::new(
                &file.path,
                0,
                "a binary file; what is built is not committed",
            )
        })
        .collect()
}

fn each_line(tree: &Tree, complain: impl Fn(&str) -> Option<String>) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.texts().filter(|(path, _)| *path != "Cargo.lock") {
        for (index, line) in text.lines().enumerate() {
            if let Some(message) = complain(line) {
                complaints.push(Complaint::new(path, index + 1, message));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_at_the_top_level_is_a_complaint() {
        let tree = Tree::of(&[("README.md", ""), (".ci/run", ""), ("scripts/x.sh", "")]);
        let found = top_level(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "scripts");
    }

    #[test]
    fn a_path_of_one_machine_is_a_complaint_and_a_relative_one_is_not() {
        let bad = concat!("see /ho", "me/me/x");
        let good = concat!("see $HOME/x and vm-tests/ho", "me/me/x");
        let tree = Tree::of(&[("a.md", bad), ("b.md", good)]);
        let found = machine_paths(&tree);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].path.as_str(), found[0].line), ("a.md", 1));
    }

    #[test]
    fn a_binary_is_a_complaint() {
        let tree = Tree {
            files: vec![File {
                path: "agent-ebpf/program".into(),
                text: None,
            }],
        };
        assert_eq!(no_binaries(&tree).len(), 1);
    }
}
