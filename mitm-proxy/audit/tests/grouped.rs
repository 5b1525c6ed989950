//! Reads whose intents share a commit: what may leave before its intent is on disk, what must wait, and what the log says after.
//! The positive control of each is the durable mode, or a call that does more than read.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use audit::record::OutcomeName;
use audit::{ApprovalEvent, Guarantee, Kind, Reads};
use common::*;

#[tokio::test]
async fn only_a_read_leaves_on_a_queued_intent_and_only_where_that_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let durable = ledger.intent(permit(), facts()).await.unwrap();
    assert_eq!(durable.guarantee(), Guarantee::Durable);
    assert!(durable.index().is_some());

    ledger.set_reads(Reads::Grouped);
    let queued = ledger.intent(permit(), facts()).await.unwrap();
    assert_eq!(queued.guarantee(), Guarantee::Queued);

    let held = held();
    let mut approval = requested(&held, 1);
    let stored = ledger.approval(ApprovalEvent::Requested, &approval).await;
    stored.unwrap();
    approve(&mut approval);
    let stored = ledger.approval(ApprovalEvent::Answered, &approval).await;
    stored.unwrap();
    let refund = ledger
        .intent(permit_by(&mut approval, held), facts())
        .await
        .unwrap();
    assert_eq!(refund.guarantee(), Guarantee::Durable);

    ledger.set_reads(Reads::Durable);
    let again = ledger.intent(permit(), facts()).await.unwrap();
    assert_eq!(again.guarantee(), Guarantee::Durable);
}

#[tokio::test]
async fn a_queued_intent_is_written_by_itself_and_has_its_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.set_reads(Reads::Grouped);
    // In one commit with its outcome, and in an earlier one.
    ledger.outcome(intent(&ledger).await, answered());
    let early = intent(&ledger).await;
    drop(intent(&ledger).await);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while early.index().is_none() {
        assert!(std::time::Instant::now() < deadline, "never written");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    ledger.outcome(early, answered());

    let records = settled(&ledger).await;
    let intents = records.iter().filter(|one| one.kind == Kind::Intent);
    let mut ends = Vec::new();
    for intent in intents {
        let mut outcomes = records
            .iter()
            .filter(|one| one.intent == Some(intent.index));
        let outcome = outcomes.next().unwrap();
        assert!(outcomes.next().is_none());
        assert!(outcome.index > intent.index);
        ends.push(outcome.outcome.unwrap());
    }
    assert_eq!(
        ends,
        [
            OutcomeName::Answered,
            OutcomeName::Answered,
            OutcomeName::Aborted
        ]
    );
    let key = ledger.public_key().parse().unwrap();
    audit::verify(&mut export(&ledger).as_slice(), &key).unwrap();
}
