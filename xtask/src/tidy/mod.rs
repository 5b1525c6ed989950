//! `cargo xtask tidy`: the house rules that neither the compiler nor clippy holds.
//! Each rule is a pure function from the tree's files to complaints, so that it is tested on trees made of strings.
//! Invariant: sees what git would commit (tracked, or new and not ignored), and nothing else.

mod arrows;
mod sources;
mod table;
mod tree;

use anyhow::{Result, bail};

use tree::Tree;

/// One violation of a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Complaint {
    pub(crate) path: String,
    /// 1-based; 0 where the file as a whole is meant.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Complaint {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Every rule, in the order of the house style.
const RULES: &[fn(&Tree) -> Vec<Complaint>] = &[
    arrows::crate_arrows,
    arrows::one_version_per_dependency,
    sources::module_docs,
    sources::file_length,
    sources::unsafe_stays_home,
    sources::pure_policies,
    sources::reasons_for_ignore,
    sources::unfinished_code,
    sources::licence_banners,
    tree::top_level,
    tree::machine_paths,
    tree::no_binaries,
    table::names_every_case,
];

/// Runs every rule on the checkout.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::of_checkout()?;
    let mut complaints: Vec<_> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    complaints.sort();
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    if !complaints.is_empty() {
        bail!("tidy: {} complaints", complaints.len());
    }
    println!(
        "tidy: {} files, {} rules, nothing to complain about",
        tree.files.len(),
        RULES.len()
    );
    Ok(())
}

/// The ignored tests of the tree with their reasons, for the summary of a test run.
pub(crate) fn ignored_tests() -> Result<Vec<sources::Ignored>> {
    Ok(sources::ignored(&Tree::of_checkout()?))
}
