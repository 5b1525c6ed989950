//! Rules about Rust files: how they open, how long they are, where `unsafe` lives, what is left unfinished.
//! Invariant: works on lines, not on syntax; a rule errs towards a complaint, and a reader can see why.

use super::{Complaint, Tree};

/// At 600 lines a file has two duties.
const MOST_LINES: usize = 600;

/// The only places with `unsafe`: the kernel side, the two modules that speak to the kernel, and the
/// tests that make an attacker's system calls.
const UNSAFE_HOMES: &[&str] = &[
    "agent-ebpf/src/",
    "agent-userspace/src/enforce/",
    "agent-userspace/src/origin.rs",
    "agent-userspace/tests/",
    "vm-tests/src/escape/sys",
];

/// `//!` opens every file.
pub(crate) fn module_docs(tree: &Tree) -> Vec<Complaint> {
    tree.rust()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| {
            Complaint::new(
                path,
                1,
                "the file must open with `//!`: its duty, its place, its invariant",
            )
        })
        .collect()
}

/// No file over 600 lines.
pub(crate) fn file_length(tree: &Tree) -> Vec<Complaint> {
    tree.rust()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| {
            Complaint::new(
                path,
                0,
                format!("{lines} lines: over {MOST_LINES}, find the seam"),
            )
        })
        .collect()
}

/// `unsafe` only in its homes; every other crate root forbids it.
pub(crate) fn unsafe_stays_home(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.rust() {
        if UNSAFE_HOMES.iter().any(|home| path.starts_with(home)) {
            continue;
        }
        for (line, code) in code_lines(text) {
            if mentions(code, "unsafe") && !code.trim_start().starts_with("#[unsafe(") {
                complaints.push(Complaint::new(path, line, "`unsafe` outside its homes"));
            }
        }
        if let Some(lint) = wanted_lint(path)
            && !text.lines().any(|line| line.trim() == lint)
        {
            complaints.push(Complaint::new(
                path,
                0,
                format!("a crate root must say `{lint}`"),
            ));
        }
    }
    complaints
}

/// What a crate root must say about `unsafe`; None for other files.
fn wanted_lint(path: &str) -> Option<&'static str> {
    let inner = path.strip_suffix(".rs")?;
    let root = inner.ends_with("/src/lib")
        || inner.ends_with("/src/main")
        || inner.contains("/src/bin/") && !inner.rsplit("/src/bin/").next()?.contains('/');
    match (root, path) {
        (false, _) => None,
        // Its two homes allow it again, each for itself.
        (true, "agent-userspace/src/lib.rs" | "vm-tests/src/lib.rs") => {
            Some("#![deny(unsafe_code)]")
        }
        (true, _) => Some("#![forbid(unsafe_code)]"),
    }
}

/// A decision looks at no clock, file, socket or environment.
pub(crate) fn pure_policies(tree: &Tree) -> Vec<Complaint> {
    const IMPURE: &[&str] = &[
        "std::env",
        "std::fs",
        "TcpListener",
        "TcpStream",
        "ToSocketAddrs",
        "UdpSocket",
        "std::process",
        "std::thread",
        "SystemTime",
        "Instant::now",
    ];
    let mut complaints = Vec::new();
    for (path, text) in tree
        .rust()
        .filter(|(path, _)| path.starts_with("policies/src/"))
    {
        for (line, code) in code_lines(before_tests(text)) {
            if let Some(found) = IMPURE.iter().find(|name| code.contains(**name)) {
                complaints.push(Complaint::new(
                    path,
                    line,
                    format!("policies is pure, but uses {found}"),
                ));
            }
        }
    }
    complaints
}

/// What cannot run here says why.
pub(crate) fn reasons_for_ignore(tree: &Tree) -> Vec<Complaint> {
    let bare = concat!("#[ign", "ore]");
    let mut complaints = Vec::new();
    for (path, text) in tree.rust() {
        for (line, code) in code_lines(text).filter(|(_, code)| code.contains(bare)) {
            let message = format!("an ignored test must give its reason: {code}");
            complaints.push(Complaint::new(path, line, message));
        }
    }
    complaints
}

/// Nothing half-done.
pub(crate) fn unfinished_code(tree: &Tree) -> Vec<Complaint> {
    let needles = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
    ];
    let mut complaints = Vec::new();
    for (path, text) in tree.rust() {
        for (index, line) in text.lines().enumerate() {
            if let Some(found) = needles.iter().find(|needle| line.contains(**needle)) {
                complaints.push(Complaint::new(
                    path,
                    index + 1,
                    format!("unfinished: {found}"),
                ));
            }
        }
    }
    complaints
}

/// LICENSE speaks for all files; banners are noise.
pub(crate) fn licence_banners(tree: &Tree) -> Vec<Complaint> {
    let needles = [
        concat!("SPDX-License", "-Identifier"),
        concat!("Copy", "right ("),
    ];
    tree.rust()
        .filter(|(_, text)| {
            text.lines()
                .take(10)
                .any(|line| needles.iter().any(|n| line.contains(n)))
        })
        .map(|(path, _)| Complaint::new(path, 1, "a licence banner; LICENSE speaks for all files"))
        .collect()
}

/// A test that does not run, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ignored {
    pub(crate) path: String,
    pub(crate) test: String,
    pub(crate) reason: String,
}

/// Every ignored test of the tree.
pub(crate) fn ignored(tree: &Tree) -> Vec<Ignored> {
    let mut found = Vec::new();
    for (path, text) in tree.rust() {
        let mut reason = None;
        for (_, code) in code_lines(text) {
            let code = code.trim();
            if let Some(rest) = code.strip_prefix(concat!("#[ign", "ore = \"")) {
                reason = rest.strip_suffix("\"]").map(str::to_owned);
            } else if let (Some(why), Some(at)) = (&reason, code.find("fn ")) {
                let name = code.get(at + 3..).unwrap_or_default();
                let test = name.split('(').next().unwrap_or_default().to_owned();
                found.push(Ignored {
                    path: path.to_owned(),
                    test,
                    reason: why.clone(),
                });
                reason = None;
            }
        }
    }
    found
}

/// Lines with their 1-based number, comments and the inside of one-line strings taken out.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number, line.split(" // ").next().unwrap_or(line)))
}

/// Whether an identifier stands in this line outside of string literals.
fn mentions(code: &str, identifier: &str) -> bool {
    code.replace("\\\"", "")
        .split('"')
        .step_by(2)
        .flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')))
        .any(|word| word == identifier)
}

fn before_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]").next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(path: &str, text: &str) -> Tree {
        Tree::of(&[(path, text)])
    }

    #[test]
    fn a_file_opens_with_its_duty() {
        assert!(module_docs(&one("policies/src/a.rs", "//! Duty.\n")).is_empty());
        assert_eq!(
            module_docs(&one("policies/src/a.rs", "use std;\n//! Late.\n")).len(),
            1
        );
    }

    #[test]
    fn six_hundred_lines_are_the_most() {
        assert!(file_length(&one("a/src/a.rs", &"\n".repeat(600))).is_empty());
        assert_eq!(file_length(&one("a/src/a.rs", &"\n".repeat(601))).len(), 1);
    }

    #[test]
    fn unsafe_outside_its_homes_is_a_complaint() {
        let block = "//! x\nfn f() { unsafe { g() } }\n";
        assert_eq!(
            unsafe_stays_home(&one("mitm-proxy/src/a.rs", block)).len(),
            1
        );
        assert!(unsafe_stays_home(&one("agent-userspace/src/enforce/a.rs", block)).is_empty());
        let spoken = "//! no unsafe here\n// unsafe is bad\nlet x = \"unsafe\"; // unsafe\n";
        assert!(unsafe_stays_home(&one("mitm-proxy/src/a.rs", spoken)).is_empty());
    }

    #[test]
    fn a_crate_root_forbids_unsafe() {
        assert_eq!(
            unsafe_stays_home(&one("vault/src/lib.rs", "//! x\n")).len(),
            1
        );
        assert_eq!(
            unsafe_stays_home(&one("vm-tests/src/bin/b.rs", "//! x\n")).len(),
            1
        );
        assert!(
            unsafe_stays_home(&one("vault/src/lib.rs", "#![forbid(unsafe_code)]\n")).is_empty()
        );
        let daemon = one("agent-userspace/src/lib.rs", "#![deny(unsafe_code)]\n");
        assert!(unsafe_stays_home(&daemon).is_empty());
    }

    #[test]
    fn policies_looks_at_no_clock() {
        let clock = "fn f() { std::time::SystemTime::now(); }\n";
        assert_eq!(pure_policies(&one("policies/src/a.rs", clock)).len(), 1);
        assert!(pure_policies(&one("audit/src/a.rs", clock)).is_empty());
        let in_tests = "fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }\n";
        assert!(pure_policies(&one("policies/src/a.rs", in_tests)).is_empty());
    }

    #[test]
    fn an_ignored_test_gives_its_reason_and_is_listed_with_it() {
        let bare = concat!("#[test]\n#[ign", "ore]\nfn a() {}\n");
        assert_eq!(reasons_for_ignore(&one("a.rs", bare)).len(), 1);
        let told = concat!(
            "#[test]\n#[ign",
            "ore = \"needs a TPM\"]\nasync fn b() {}\nfn c() {}\n"
        );
        let tree = one("a.rs", told);
        assert!(reasons_for_ignore(&tree).is_empty());
        let list = ignored(&tree);
        assert_eq!(list.len(), 1);
        assert_eq!(
            (list[0].test.as_str(), list[0].reason.as_str()),
            ("b", "needs a TPM")
        );
    }

    #[test]
    fn nothing_half_done() {
        assert_eq!(
            unfinished_code(&one("a.rs", concat!("fn f() { to", "do!() }"))).len(),
            1
        );
        assert!(unfinished_code(&one("a.rs", "fn f() {}")).is_empty());
    }

    #[test]
    fn no_banner() {
        let banner = concat!("// SPDX-License", "-Identifier: MIT\n");
        assert_eq!(licence_banners(&one("a.rs", banner)).len(), 1);
    }
}
