//! All policies of a bundle: the shipped ones, less those that the operator replaces, and the operator's.
//! Load time only.
//! INVARIANT: no two rules share an id, and the kill switch is always among them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::KILL_SWITCH;
use super::rules::{Rule, parse};
use crate::{Diagnostic, Diagnostics, PolicyId, Source};

/// The shipped policies: the files of `policies/default`. A test compares the list with the directory.
pub(crate) const SHIPPED: [(&str, &str); 3] = [
    (
        "kill-switch.cedar",
        include_str!("../../default/kill-switch.cedar"),
    ),
    ("risk.cedar", include_str!("../../default/risk.cedar")),
    ("stages.cedar", include_str!("../../default/stages.cedar")),
];

/// Every rule of the bundle, and a notice for each shipped one that is replaced.
pub(crate) fn load(
    operator: &[Source],
    problems: &mut Diagnostics,
) -> (Vec<Rule>, Vec<Diagnostic>) {
    let mut rules = shipped(problems);
    let mut own = Vec::new();
    for source in operator {
        own.extend(parse(&Arc::new(source.clone()), false, problems));
    }
    let mut own = each_once(own, problems);

    let mut notices = Vec::new();
    for rule in &own {
        let Some(replaced) = rules.iter().find(|shipped| shipped.id == rule.id) else {
            continue;
        };
        if rule.id.as_str() == KILL_SWITCH {
            let hint = "give the policy another `@id`; a forbid of yours adds to the kill switch";
            problems.0.push(
                rule.diagnostic("the kill switch cannot be replaced")
                    .hint(hint),
            );
        } else {
            let file = replaced.file();
            let message = format!(
                "replaces the shipped policy `{}` of {}",
                rule.id,
                file.display()
            );
            notices.push(rule.diagnostic(message));
        }
    }
    rules.retain(|shipped| !own.iter().any(|rule| rule.id == shipped.id));
    rules.append(&mut own);
    (rules, notices)
}

fn shipped(problems: &mut Diagnostics) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (name, text) in SHIPPED {
        let source = Source {
            path: Path::new("default").join(name),
            text: text.to_owned(),
        };
        rules.extend(parse(&Arc::new(source), true, problems));
    }
    rules
}

/// Cedar itself takes two policies of one `@id` without a word; decisions name policies by it.
fn each_once(rules: Vec<Rule>, problems: &mut Diagnostics) -> Vec<Rule> {
    let mut first: BTreeMap<PolicyId, (PathBuf, u32)> = BTreeMap::new();
    let mut kept = Vec::new();
    for rule in rules {
        if let Some((file, line)) = first.get(&rule.id) {
            let message = format!(
                "the `@id` `{}` is taken by {}:{line}",
                rule.id,
                file.display()
            );
            problems.0.push(
                rule.diagnostic(message)
                    .hint("every policy has an id of its own"),
            );
            kept.extend(rule.renamed());
        } else {
            first.insert(rule.id.clone(), (rule.file(), rule.line()));
            kept.push(rule);
        }
    }
    kept
}
