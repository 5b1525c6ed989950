//! The ledger as the path of a request uses it: what is durable when, what a crash leaves, what is refused.
//! A crash is simulated by copying the files of a live ledger, which is what a killed process leaves behind.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use audit::record::{DecisionName, Event, OutcomeName};
use audit::{
    ApprovalEvent, AuditError, Guarantee, HostEvent, Kind, Ledger, OpenError, Options, Query,
};
use common::*;
use policies::{ApprovalState, Reason};

/// What a `kill -9` would leave: the files as they are, with the ledger still open.
fn killed(live: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(live).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

#[tokio::test]
async fn an_intent_is_durable_before_it_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    // Positive control: the same look at the files before the intent finds nothing.
    assert_eq!(records(&open(killed(dir.path()).path()), &tenant()), []);

    let recorded = ledger.intent(permit(), facts()).await.unwrap();
    let after = open(killed(dir.path()).path());
    let intent = &records(&after, &tenant())[0];
    assert_eq!(
        (intent.kind, Some(intent.index)),
        (Kind::Intent, recorded.index())
    );
    assert_eq!(recorded.guarantee(), Guarantee::Durable);
    assert_eq!(
        intent.path.as_deref(),
        Some("/tickets/7"),
        "never the query"
    );
    assert_eq!(
        intent.capability.as_ref().unwrap().to_string(),
        "desk/tickets.read"
    );
    assert_eq!(
        recorded.call().capability(),
        intent.capability.as_ref().unwrap()
    );
}

#[tokio::test]
async fn an_intent_that_a_crash_left_alone_is_recovered_as_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let finished = intent(&ledger).await;
    let cut_off = intent(&ledger).await;
    ledger.outcome(finished, answered());
    let before = settled(&ledger).await.len();

    let copy = killed(dir.path());
    let recovered = records(&open(copy.path()), &tenant());
    let unknown: Vec<_> = recovered
        .iter()
        .filter(|r| r.outcome == Some(OutcomeName::Unknown))
        .collect();
    assert_eq!(unknown.len(), 1);
    assert_eq!(unknown[0].intent, cut_off.index());
    assert_eq!(unknown[0].agent, recovered[0].agent);
    assert_eq!(
        recovered.len(),
        before + 2,
        "the refusal that `settled` adds, and the recovery"
    );
    // A second start has nothing left to recover.
    assert_eq!(records(&open(copy.path()), &tenant()), recovered);
}

#[tokio::test]
async fn an_outcome_follows_its_intent_and_says_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.outcome(intent(&ledger).await, answered());
    let failed = audit::Outcome {
        reason: Some(Reason::UpstreamTimeout),
        ..audit::Outcome::new(now())
    };
    ledger.outcome(intent(&ledger).await, failed);
    ledger.outcome(
        intent(&ledger).await,
        audit::Outcome {
            aborted: true,
            ..answered()
        },
    );
    drop(intent(&ledger).await);

    let records = settled(&ledger).await;
    let outcomes: Vec<_> = records.iter().filter(|r| r.kind == Kind::Outcome).collect();
    let names: Vec<_> = outcomes
        .iter()
        .map(|r| (r.outcome.unwrap(), r.status, r.reason))
        .collect();
    assert_eq!(
        names,
        [
            (OutcomeName::Answered, Some(200), None),
            (OutcomeName::Failed, None, Some(Reason::UpstreamTimeout)),
            (OutcomeName::Aborted, Some(200), None),
            (OutcomeName::Aborted, None, None),
        ]
    );
    assert_eq!(
        outcomes[0].credential.as_ref().unwrap().to_string(),
        "acme/desk-live"
    );
    assert_eq!(outcomes[0].credential_version, Some(3));
    assert_eq!(outcomes[0].upstream_us, Some(1234));
    let intents: Vec<_> = outcomes.iter().map(|r| r.intent.unwrap()).collect();
    assert!(
        intents.is_sorted()
            && intents
                .iter()
                .all(|at| records[*at as usize].kind == Kind::Intent)
    );
}

#[tokio::test]
async fn a_caller_that_goes_away_while_it_waits_leaves_an_aborted_call() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let other = ledger.clone();
    drop(intent(&ledger).await);
    let task = tokio::spawn(async move { drop(other.intent(permit(), facts()).await) });
    tokio::task::yield_now().await;
    task.abort();
    drop(task.await);
    settled(&ledger).await;
    // Whether the intent got in or not: none is left without an outcome.
    let records = settled(&ledger).await;
    let count = |kind| records.iter().filter(|r| r.kind == kind).count();
    assert_eq!(count(Kind::Intent), count(Kind::Outcome));
}

#[tokio::test]
async fn an_approval_is_used_with_its_intent_and_never_twice() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let held = held();
    let mut approval = requested(&held, 7);
    ledger
        .approval(ApprovalEvent::Requested, &approval)
        .await
        .unwrap();
    approve(&mut approval);
    ledger
        .approval(ApprovalEvent::Answered, &approval)
        .await
        .unwrap();
    let stored = open(killed(dir.path()).path()).open_approvals().unwrap();
    assert_eq!(
        stored,
        [approval.clone()],
        "a killed daemon finds it again, with its answers"
    );

    // Two processes, or a bug, with the same approved state in memory.
    let mut second = approval.clone();
    let recorded = ledger
        .intent(permit_by(&mut approval, held), facts())
        .await
        .unwrap();
    assert_eq!(recorded.approval(), Some(&approval.id));
    let after = open(killed(dir.path()).path());
    assert_eq!(
        after.open_approvals().unwrap()[0].state,
        ApprovalState::Used,
        "in the same transaction"
    );
    let again = ledger
        .intent(permit_by(&mut second, common::held()), facts())
        .await;
    assert!(matches!(&again, Err(AuditError::ApprovalSpent(id)) if *id == approval.id));
    assert_eq!(again.unwrap_err().reason(), Reason::ApprovalRequired);

    // And nothing opens it again.
    let mut reopened = approval.clone();
    reopened.state = ApprovalState::Approved;
    let refused = ledger.approval(ApprovalEvent::Answered, &reopened).await;
    assert!(matches!(refused, Err(AuditError::ApprovalSpent(_))));

    let records = records(&ledger, &tenant());
    let kinds: Vec<_> = records
        .iter()
        .map(|r| (r.kind, r.event, r.decision))
        .collect();
    assert_eq!(
        kinds,
        [
            (
                Kind::Approval,
                Some(Event::Requested),
                Some(DecisionName::Hold)
            ),
            (
                Kind::Approval,
                Some(Event::Answered),
                Some(DecisionName::Hold)
            ),
            (Kind::Intent, None, Some(DecisionName::Allow)),
        ],
        "a refused record leaves no trace"
    );
    assert_eq!(records[2].answers[0].approver.as_str(), "alice");
}

#[tokio::test]
async fn an_approval_that_was_never_stored_lets_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let held = held();
    let mut approval = requested(&held, 9);
    approve(&mut approval);
    let refused = ledger.intent(permit_by(&mut approval, held), facts()).await;
    assert!(matches!(refused, Err(AuditError::ApprovalSpent(_))));
}

#[tokio::test]
async fn concurrent_calls_share_commits_and_leave_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let commits = Arc::new(AtomicUsize::new(0));
    let counted = commits.clone();
    let on_commit = Arc::new(move |stats: audit::CommitStats| {
        assert!(stats.records > 0 && !stats.duration.is_zero());
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let ledger = Ledger::open(
        dir.path(),
        Options {
            on_commit,
            ..Options::default()
        },
    )
    .unwrap();

    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let owed = intent(&ledger).await;
                let index = owed.index();
                ledger.outcome(owed, answered());
                index
            })
        })
        .collect();
    let mut indexes = Vec::new();
    for task in tasks {
        indexes.push(task.await.unwrap());
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!(indexes.len(), 200, "every intent has its own index");

    let records = settled(&ledger).await;
    assert_eq!(records.len(), 400);
    assert!(
        records
            .iter()
            .enumerate()
            .all(|(at, r)| r.index == at as u64)
    );
    assert!(
        commits.load(Ordering::Relaxed) < 200,
        "{commits:?} commits for 400 records"
    );
    let key = ledger.public_key().parse().unwrap();
    assert_eq!(
        audit::verify(&mut export(&ledger).as_slice(), &key)
            .unwrap()
            .size,
        401
    );
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(
        dir.path(),
        Options {
            queue: 0,
            ..Options::default()
        },
    )
    .unwrap();
    let refused = ledger.intent(permit(), facts()).await;
    assert!(matches!(refused, Err(AuditError::Overloaded)));
    assert_eq!(refused.unwrap_err().reason(), Reason::AuditUnavailable);
}

#[tokio::test]
async fn tenants_have_logs_of_their_own_and_the_host_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.refused(refusal()).await.unwrap();
    ledger.event(None, HostEvent::DaemonStopped).await.unwrap();
    assert_eq!(records(&ledger, &tenant()).len(), 1);
    assert_eq!(records(&ledger, &Ledger::host_tenant()).len(), 1);
    let names: Vec<_> = ledger.tenants().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["acme", "host"]);

    let mut approval = requested(&held(), 1);
    approval.agent.tenant = Ledger::host_tenant();
    let refused = ledger.approval(ApprovalEvent::Requested, &approval).await;
    assert!(matches!(refused, Err(AuditError::TenantReserved)));
}

#[tokio::test]
async fn lists_filter_and_follow() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for _ in 0..3 {
        ledger.outcome(intent(&ledger).await, answered());
    }
    ledger
        .event(Some(&tenant()), HostEvent::DaemonStopped)
        .await
        .unwrap();
    ledger.event(None, HostEvent::DaemonStopped).await.unwrap();
    let indexes = |query: Query| -> Vec<u64> {
        ledger
            .list(&query)
            .unwrap()
            .iter()
            .map(|entry| entry.record().index)
            .collect()
    };
    let acme = || Query {
        tenant: Some(tenant()),
        ..Query::default()
    };
    let intents = records(&ledger, &tenant())
        .iter()
        .filter(|r| r.kind == Kind::Intent)
        .count();
    assert_eq!(indexes(acme()), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(
        indexes(Query { limit: 2, ..acme() }),
        [5, 6],
        "the last ones"
    );
    assert_eq!(
        indexes(Query {
            limit: 2,
            from: Some(3),
            ..acme()
        }),
        [3, 4],
        "the next ones"
    );
    assert_eq!(
        indexes(Query {
            from: Some(7),
            ..acme()
        }),
        Vec::<u64>::new()
    );
    assert_eq!(
        indexes(Query {
            kind: Some(Kind::Intent),
            ..acme()
        })
        .len(),
        intents
    );
    assert_eq!(
        indexes(Query {
            kind: Some(Kind::Event),
            ..Query::default()
        })
        .len(),
        2,
        "all logs"
    );
    let agent = Some("acme/support".parse().unwrap());
    assert_eq!(
        indexes(Query {
            agent,
            ..Query::default()
        })
        .len(),
        6
    );
    let later = now() + std::time::Duration::from_millis(1);
    assert!(
        !indexes(Query {
            since: Some(later),
            ..acme()
        })
        .contains(&0)
    );

    let entry = ledger.show(&tenant(), 0).unwrap();
    assert_eq!(serde_json::to_string(&entry).unwrap(), entry.line());
    let beyond = ledger.show(&tenant(), 7);
    assert!(matches!(
        beyond,
        Err(AuditError::NoRecord {
            index: 7,
            size: 7,
            ..
        })
    ));
    let nobody = ledger.show(&"nobody".parse().unwrap(), 0);
    assert!(matches!(nobody, Err(AuditError::NoLog(_))));
}

#[tokio::test]
async fn a_damaged_log_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for _ in 0..20 {
        drop(intent(&ledger).await);
    }
    drop(ledger);
    // Positive control: untouched, it opens.
    drop(open(dir.path()));

    let path = dir.path().join("acme.redb");
    let good = std::fs::read(&path).unwrap();
    let at = good
        .windows(12)
        .position(|window| window == b"tickets.read")
        .unwrap();
    let mut altered = good.clone();
    altered[at] = b'T';
    std::fs::write(&path, &altered).unwrap();
    assert!(Ledger::open(dir.path(), Options::default()).is_err());

    for broken in [&b"not a database at all"[..], &good[..good.len() / 2]] {
        std::fs::write(&path, broken).unwrap();
        let error = Ledger::open(dir.path(), Options::default()).err().unwrap();
        assert!(error.to_string().contains("acme.redb"), "{error}");
    }
}

#[tokio::test]
async fn a_log_is_opened_once_and_a_stray_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let second = Ledger::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(second, OpenError::Locked { .. }), "{second}");
    drop(ledger);
    std::fs::write(dir.path().join("Not A Tenant.redb"), b"").unwrap();
    let stray = Ledger::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(stray, OpenError::FileName { .. }), "{stray}");
}

#[tokio::test]
async fn a_log_under_another_key_is_not_taken_for_ours() {
    let dir = tempfile::tempdir().unwrap();
    drop(intent(&open(dir.path())).await);
    std::fs::remove_file(dir.path().join("checkpoint.key")).unwrap();
    let missing = Ledger::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(missing, OpenError::KeyMissing { .. }), "{missing}");

    let elsewhere = tempfile::tempdir().unwrap();
    drop(open(elsewhere.path()));
    std::fs::copy(
        elsewhere.path().join("checkpoint.key"),
        dir.path().join("checkpoint.key"),
    )
    .unwrap();
    let foreign = Ledger::open(dir.path(), Options::default()).err().unwrap();
    assert!(matches!(foreign, OpenError::Corrupt { .. }), "{foreign}");
}
