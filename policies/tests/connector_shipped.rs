//! The shipped connectors: every file loads, every example goes as told, and every file says enough to be used.
//! The files are the tests: a new capability brings its own examples.
//! INVARIANT: what is in `policies/connectors` is what is compiled in.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use policies::{Catalogue, Connector};
use std::collections::BTreeSet;
use std::sync::Arc;

fn shipped() -> Vec<Arc<Connector>> {
    Connector::shipped().unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_shipped_file_is_compiled_in() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/connectors");
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".toml"))
        .collect();
    let compiled: BTreeSet<String> = Connector::shipped_sources()
        .iter()
        .map(|source| {
            source
                .path
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(files, compiled);
    for connector in shipped() {
        assert!(compiled.contains(&format!("{}.toml", connector.id())));
    }
    Catalogue::build(Vec::new(), Vec::new()).unwrap();
}

#[test]
fn every_shipped_example_goes_as_told() {
    let mut ran = 0;
    let mut failures = Vec::new();
    for result in shipped().iter().flat_map(|connector| connector.test()) {
        ran += 1;
        if let Some(failure) = &result.failure {
            let wanted = if result.hit { "hit" } else { "miss" };
            failures.push(format!(
                "{}: {} must {wanted} {}: {failure}",
                result.place, result.request, result.capability
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {ran} examples:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(ran > 1000, "only {ran} examples ran");
}

#[test]
fn every_shipped_capability_has_a_hit_and_a_miss_and_the_vendors_page() {
    for connector in shipped() {
        let results = connector.test();
        for capability in connector.capabilities() {
            let of = |hit| {
                results
                    .iter()
                    .any(|result| result.capability == *capability.id() && result.hit == hit)
            };
            assert!(
                of(true) && of(false),
                "{} lacks an example",
                capability.id()
            );
            assert!(
                capability.docs().is_some(),
                "{} names no page",
                capability.id()
            );
        }
    }
}
