//! Every case, in the order of its number. Numbers are stable: a case that goes leaves a gap, a new one goes to the end.
//! Data for the suite, and beside it what the attacker does.
//! Invariant: an attempt tries until it is stopped; it never decides whether it got through.

mod cgroups;
mod datagrams;
mod deputies;
mod families;
mod foreign;
mod names;
mod namespaces;
mod processes;
mod programs;
mod protocols;
mod streams;
mod uring;
mod ways;

pub(super) use names::{ALLOWED, REBOUND, allowed};
pub(super) use namespaces::OWN;
pub(super) use programs::upcall;

use super::Case;

/// All cases.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        streams::CASES,
        datagrams::CASES,
        protocols::CASES,
        families::CASES,
        uring::CASES,
        ways::CASES,
        foreign::CASES,
        processes::CASES,
        cgroups::CASES,
        namespaces::CASES,
        deputies::CASES,
        names::CASES,
        programs::CASES,
    ]
    .concat();
    // E9 before E10.
    cases.sort_by_key(|case| (case.id.len(), case.id));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_there_are_sixty_cases_or_more() {
        let cases = all();
        for pair in cases.windows(2) {
            assert_ne!(pair[0].id, pair[1].id);
        }
        assert!(cases.len() >= 60, "{}", cases.len());
    }
}
