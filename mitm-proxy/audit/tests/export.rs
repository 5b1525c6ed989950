//! The export and its proofs, as an auditor with nothing but the public key uses them.
//! The positive control of every refusal is the untouched export, which verifies.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use audit::{
    Ledger, ProofError, VerifierKey, VerifyError, verify, verify_consistency, verify_inclusion,
};
use common::*;
use proptest::prelude::*;

struct Sample {
    key: VerifierKey,
    text: Vec<u8>,
}

async fn fill(ledger: &Ledger, calls: usize) {
    for _ in 0..calls {
        ledger.outcome(intent(ledger).await, answered());
    }
    ledger.refused(refusal()).await.unwrap();
}

fn sample() -> &'static Sample {
    static SAMPLE: std::sync::OnceLock<Sample> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let ledger = open(dir.path());
            fill(&ledger, 3).await;
            Sample {
                key: ledger.public_key().parse().unwrap(),
                text: export(&ledger),
            }
        })
    })
}

fn check(text: &[u8]) -> Result<u64, VerifyError> {
    verify(&mut &*text, &sample().key).map(|verified| verified.size)
}

#[test]
fn an_export_verifies_with_the_public_key_alone() {
    let verified = verify(&mut sample().text.as_slice(), &sample().key).unwrap();
    assert_eq!(
        (verified.size, verified.origin.as_str()),
        (7, "sluice/acme")
    );
    assert_eq!(verified.tenant, tenant());
    let other = tempfile::tempdir().unwrap();
    let other: VerifierKey = open(other.path()).public_key().parse().unwrap();
    assert!(matches!(
        verify(&mut sample().text.as_slice(), &other),
        Err(VerifyError::Checkpoint(_))
    ));
}

#[test]
fn an_altered_record_is_named() {
    let text = String::from_utf8(sample().text.clone()).unwrap();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with('{'))
    {
        let forged = line.replacen("acme/support", "acme/suppost", 1);
        let index = number as u64 - 6;
        match check(text.replacen(line, &forged, 1).as_bytes()) {
            Err(VerifyError::Altered { line, index: named }) => {
                assert_eq!((line, named), (number as u64 + 1, index));
            }
            other => panic!("record {index}: {other:?}"),
        }
    }
}

#[test]
fn a_record_taken_out_put_in_or_moved_is_noticed() {
    let lines: Vec<&[u8]> = sample()
        .text
        .split_inclusive(|byte| *byte == b'\n')
        .collect();
    assert!(check(&lines.concat()).is_ok());
    let first = lines.len() - 7;
    for at in first..lines.len() {
        let (mut without, mut twice) = (lines.clone(), lines.clone());
        without.remove(at);
        twice.insert(at, lines[at]);
        assert!(check(&without.concat()).is_err(), "without line {at}");
        assert!(check(&twice.concat()).is_err(), "line {at} twice");
        if at > first {
            let mut swapped = lines.clone();
            swapped.swap(at - 1, at);
            assert!(
                check(&swapped.concat()).is_err(),
                "lines before and at {at} swapped"
            );
        }
    }
    let mut longer = sample().text.clone();
    longer.extend_from_slice(b"\n");
    assert!(check(&longer).is_err());
    assert!(check(b"").is_err());
}

#[test]
fn every_flipped_byte_of_the_checkpoint_fails() {
    let end = sample().text.iter().position(|byte| *byte == b'{').unwrap();
    for at in 0..end {
        let mut text = sample().text.clone();
        text[at] ^= 1 << (at % 8);
        assert!(check(&text).is_err(), "byte {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_altered_byte_of_an_export_fails(at in 0..sample().text.len(), mask in 1..=255_u8) {
        let mut text = sample().text.clone();
        text[at] ^= mask;
        prop_assert!(check(&text).is_err());
    }

    #[test]
    fn any_prefix_of_an_export_fails(end in 0..sample().text.len()) {
        prop_assert!(check(&sample().text[..end]).is_err());
    }

    #[test]
    fn no_bytes_make_the_verifier_panic(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(check(&text).is_err());
    }
}

#[tokio::test]
async fn inclusion_and_consistency_are_proven_at_every_size() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let key: VerifierKey = ledger.public_key().parse().unwrap();
    let mut checkpoints = Vec::new();
    for calls in 1..6 {
        fill(&ledger, calls).await;
        checkpoints.push(ledger.checkpoint(&tenant()).unwrap());
    }
    let size = verify(&mut export(&ledger).as_slice(), &key).unwrap().size;
    for index in 0..size {
        let line = ledger.show(&tenant(), index).unwrap().line().to_owned();
        let proof = ledger.prove_inclusion(&tenant(), index).unwrap();
        assert_eq!(
            verify_inclusion(line.as_bytes(), &proof, &key)
                .unwrap()
                .size,
            size
        );
        let forged = line.replacen("acme", "acne", 1);
        assert_eq!(
            verify_inclusion(forged.as_bytes(), &proof, &key),
            Err(ProofError::Hashes)
        );
    }
    for old in &checkpoints {
        let old_size = audit::verify_checkpoint(old, &key).unwrap().size;
        let proof = ledger.prove_consistency(&tenant(), old_size).unwrap();
        assert_eq!(verify_consistency(old, &proof, &key).unwrap().size, size);
        let mut wrong = proof.clone();
        wrong.old_size -= 1;
        assert_eq!(
            verify_consistency(old, &wrong, &key),
            Err(ProofError::Mismatch)
        );
    }
    assert!(ledger.prove_inclusion(&tenant(), size).is_err());
    assert!(ledger.prove_consistency(&tenant(), size + 1).is_err());
}

#[tokio::test]
async fn a_log_that_was_rewritten_does_not_fit_its_old_checkpoint() {
    // The same key, another history: what an attacker with the host's key could write.
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ledger = open(dir.path());
    fill(&ledger, 2).await;
    let old = ledger.checkpoint(&tenant()).unwrap();
    let key: VerifierKey = ledger.public_key().parse().unwrap();
    std::fs::copy(
        dir.path().join("checkpoint.key"),
        other.path().join("checkpoint.key"),
    )
    .unwrap();
    let rewritten = open(other.path());
    fill(&rewritten, 4).await;
    let proof = rewritten.prove_consistency(&tenant(), 5).unwrap();
    assert_eq!(
        verify_consistency(&old, &proof, &key),
        Err(ProofError::Hashes)
    );
}
