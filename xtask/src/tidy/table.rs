//! SECURITY.md's table of escapes names every case of the suite, between its markers.
//! The table itself comes from a run: `cargo xtask escape --vm --kernel all`.
//! Invariant: a case that is added without a run of all kernels is a complaint.

use std::collections::BTreeSet;

use super::{Complaint, Tree};
use crate::escape::{BEGIN, END};

const DOCUMENT: &str = "SECURITY.md";
const CASES: &str = "vm-tests/src/escape/cases/";

/// The table's rows against the numbers in the cases' source.
pub(crate) fn names_every_case(tree: &Tree) -> Vec<Complaint> {
    let cases: BTreeSet<String> = tree
        .rust()
        .filter(|(path, _)| path.starts_with(CASES))
        .flat_map(|(_, text)| numbers(text))
        .collect();
    let Some((_, text)) = tree.texts().find(|(path, _)| *path == DOCUMENT) else {
        return Vec::new();
    };
    let Some(table) = text
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END))
        .map(|(table, _)| table)
    else {
        return vec![Complaint::new(
            DOCUMENT,
            0,
            "no place for the table of escapes",
        )];
    };
    let named: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| E")?.split(' ').next())
        .map(|number| format!("E{number}"))
        .collect();
    let complaint = |what: &str, number: &String| {
        let message = format!(
            "the table of escapes {what} {number}: `cargo xtask escape --vm --kernel all` writes it"
        );
        Complaint::new(DOCUMENT, 0, message)
    };
    let missing = cases
        .difference(&named)
        .map(|number| complaint("lacks", number));
    let gone = named
        .difference(&cases)
        .map(|number| complaint("still has", number));
    missing.chain(gone).collect()
}

/// Strings of `E` and digits.
fn numbers(text: &str) -> Vec<String> {
    text.split('"')
        .filter(|word| {
            word.strip_prefix('E').is_some_and(|digits| {
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            })
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(cases: &str, table: &str) -> usize {
        let document = format!("# S\n{BEGIN}\n{table}\n{END}\n");
        names_every_case(&Tree::of(&[
            ("vm-tests/src/escape/cases/a.rs", cases),
            (DOCUMENT, &document),
        ]))
        .len()
    }

    #[test]
    fn the_table_has_the_cases_and_no_others() {
        let cases = "Case::new(\"E01\", \"EOF\"), Case::new(\"E100\")";
        assert_eq!(complaints(cases, "| E01 | a |\n| E100 | b |"), 0);
        assert_eq!(complaints(cases, "| E01 | a |"), 1);
        assert_eq!(
            complaints(cases, "| E01 | a |\n| E100 | b |\n| E02 | c |"),
            1
        );
        let without = Tree::of(&[(DOCUMENT, "# S\n")]);
        assert_eq!(names_every_case(&without).len(), 1);
    }
}
