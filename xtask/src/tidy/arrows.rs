//! The arrows between our crates, and what each crate may never depend on.
//! The dependency order is the trust order: `policies <- audit <- vault <- mitm-proxy <- agent-userspace`.
//! Invariant: a crate that is not listed here is itself a complaint, so a new crate cannot pass unseen.

use toml::{Table, Value};

use super::{Complaint, Tree};

/// One crate: where it lies, which of ours it may use, and which of the world's it must not.
struct Rule {
    manifest: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

/// A decision is a pure function: nothing that waits, reads, draws lots or looks at a clock.
const IMPURE: &[&str] = &[
    "aya",
    "chrono",
    "getrandom",
    "hyper",
    "libc",
    "rand",
    "reqwest",
    "rustix",
    "time",
    "tokio",
];

const RULES: &[Rule] = &[
    Rule {
        manifest: "agent-ebpf/Cargo.toml",
        ours: &["agent-abi"],
        never: &["aya", "tokio"],
    },
    Rule {
        manifest: "agent-ebpf/abi/Cargo.toml",
        ours: &[],
        never: &["*"],
    },
    Rule {
        manifest: "agent-userspace/Cargo.toml",
        ours: &["agent-abi", "audit", "mitm-proxy", "policies", "vault"],
        never: &["redb"],
    },
    Rule {
        manifest: "mitm-proxy/Cargo.toml",
        ours: &["audit", "policies", "vault"],
        never: &["aya", "aya-log", "aya-obj", "redb"],
    },
    Rule {
        manifest: "mitm-proxy/audit/Cargo.toml",
        ours: &["policies"],
        never: &["aya", "aya-log", "aya-obj", "hyper"],
    },
    Rule {
        manifest: "mitm-proxy/vault/Cargo.toml",
        ours: &["audit", "policies"],
        never: &["aya", "aya-log", "aya-obj", "hyper"],
    },
    Rule {
        manifest: "policies/Cargo.toml",
        ours: &[],
        never: IMPURE,
    },
    // Drives the product from outside, as its users do.
    Rule {
        manifest: "vm-tests/Cargo.toml",
        ours: &[],
        never: &["aya", "redb"],
    },
    // Stays quick to build.
    Rule {
        manifest: "xtask/Cargo.toml",
        ours: &[],
        never: &["hyper", "rustls", "tokio"],
    },
];

const OURS: &[&str] = &[
    "agent-abi",
    "agent-ebpf",
    "agent-userspace",
    "audit",
    "mitm-proxy",
    "policies",
    "vault",
    "vm-tests",
    "xtask",
];

/// Each crate's dependencies against its rule.
pub(crate) fn crate_arrows(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, table) in manifests(tree) {
        let Some(rule) = RULES.iter().find(|rule| rule.manifest == path) else {
            complaints.push(Complaint::new(
                path,
                0,
                "a crate without a rule in tidy's arrows",
            ));
            continue;
        };
        for (name, section) in dependencies(&table) {
            // Tests may use tools that the crate itself must not.
            let tool = section == "dev-dependencies" && !OURS.contains(&name.as_str());
            let ours = OURS.contains(&name.as_str());
            let wrong = if ours {
                !rule.ours.contains(&name.as_str())
            } else {
                !tool
                    && rule
                        .never
                        .iter()
                        .any(|never| *never == "*" || *never == name)
            };
            if wrong {
                complaints.push(Complaint::new(
                    path,
                    0,
                    format!("must not depend on {name}"),
                ));
            }
        }
    }
    complaints
}

/// Versions are chosen once, in the workspace; a member names a dependency and nothing more.
pub(crate) fn one_version_per_dependency(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, table) in manifests(tree) {
        for (section, entries) in sections(&table) {
            for (name, value) in entries {
                let inherits = value.get("workspace").and_then(Value::as_bool) == Some(true);
                if !inherits {
                    let message = format!("{section}: {name} must be `workspace = true`");
                    complaints.push(Complaint::new(path, 0, message));
                }
            }
        }
        let licence = table
            .get("package")
            .and_then(|package| package.get("license"));
        if licence
            .and_then(|licence| licence.get("workspace"))
            .is_none()
        {
            complaints.push(Complaint::new(
                path,
                0,
                "package.license must be the workspace's",
            ));
        }
    }
    complaints
}

/// The members' manifests; one that does not parse is cargo's to complain about.
fn manifests(tree: &Tree) -> impl Iterator<Item = (&str, Table)> {
    tree.texts()
        .filter(|(path, _)| path.ends_with("/Cargo.toml"))
        .filter_map(|(path, text)| Some((path, text.parse::<Table>().ok()?)))
}

fn dependencies(manifest: &Table) -> Vec<(String, &'static str)> {
    sections(manifest)
        .into_iter()
        .flat_map(|(section, entries)| {
            entries.iter().map(move |(name, value)| {
                let renamed = value.get("package").and_then(Value::as_str);
                (renamed.unwrap_or(name).to_owned(), section)
            })
        })
        .collect()
}

/// Every table of dependencies, also those under `[target.*]`.
fn sections(manifest: &Table) -> Vec<(&'static str, &Table)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let per_target = targets
        .into_iter()
        .flat_map(|t| t.values().filter_map(Value::as_table));
    std::iter::once(manifest)
        .chain(per_target)
        .flat_map(|table| {
            ["build-dependencies", "dependencies", "dev-dependencies"]
                .into_iter()
                .filter_map(|name| Some((name, table.get(name)?.as_table()?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, dependencies: &str) -> usize {
        crate_arrows(&Tree::of(&[(path, dependencies)])).len()
    }

    #[test]
    fn the_arrows_of_the_design_are_allowed() {
        let all = "[dependencies]\naudit.workspace = true\npolicies.workspace = true\n";
        assert_eq!(complaints("mitm-proxy/vault/Cargo.toml", all), 0);
        assert_eq!(complaints("agent-userspace/Cargo.toml", all), 0);
    }

    #[test]
    fn an_arrow_against_the_trust_order_is_a_complaint() {
        let upwards = "[dependencies]\nvault.workspace = true\n";
        assert_eq!(complaints("mitm-proxy/audit/Cargo.toml", upwards), 1);
        assert_eq!(complaints("policies/Cargo.toml", upwards), 1);
        let hidden = "[target.'cfg(unix)'.dev-dependencies]\nvault.workspace = true\n";
        assert_eq!(complaints("policies/Cargo.toml", hidden), 1);
        let renamed = "[dependencies]\nv = { package = \"vault\", path = \"x\" }\n";
        assert_eq!(complaints("policies/Cargo.toml", renamed), 1);
    }

    #[test]
    fn the_proxy_never_knows_aya_and_policies_never_tokio() {
        let aya = "[dependencies]\naya.workspace = true\n";
        assert_eq!(complaints("mitm-proxy/Cargo.toml", aya), 1);
        assert_eq!(complaints("agent-userspace/Cargo.toml", aya), 0);
        assert_eq!(
            complaints(
                "policies/Cargo.toml",
                "[dependencies]\ntokio.workspace = true\n"
            ),
            1
        );
        let test_tool = "[dev-dependencies]\ntokio.workspace = true\n";
        assert_eq!(complaints("policies/Cargo.toml", test_tool), 0);
    }

    #[test]
    fn the_abi_depends_on_nothing_and_an_unknown_crate_has_no_rule() {
        let any = "[dependencies]\nlibc.workspace = true\n";
        assert_eq!(complaints("agent-ebpf/abi/Cargo.toml", any), 1);
        assert_eq!(complaints("new-crate/Cargo.toml", ""), 1);
    }

    #[test]
    fn a_version_outside_the_workspace_is_a_complaint() {
        let tree = Tree::of(&[(
            "policies/Cargo.toml",
            "[package]\nlicense.workspace = true\n[dependencies]\nserde = \"1\"\n",
        )]);
        assert_eq!(one_version_per_dependency(&tree).len(), 1);
    }
}
