//! A failing disk under the real database: every way it fails is an error that is told, and nothing is lost or half-written.
//! The backend keeps its bytes in memory, so that "what is on disk" can be looked at after each failure.

use std::io::{Error, ErrorKind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redb::{Builder, StorageBackend};

use super::*;
use crate::error::CommitFailure;
use crate::facts::Outcome;
use crate::record::{Kind, OutcomeName};

/// How the disk behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Disk {
    Healthy,
    /// No write beyond the present length, and no growth: ENOSPC.
    Full,
    /// A write stores the first half of its bytes and then fails.
    ShortWrite,
    /// `fdatasync` fails; what was written may or may not stay.
    SyncFails,
    /// The nth write from now fails, the ones before it succeed.
    FailsAfter(usize),
}

#[derive(Debug)]
struct Platter {
    bytes: Vec<u8>,
    disk: Disk,
}

mod journal;

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Platter>>);

impl Backend {
    fn new() -> Backend {
        Backend(Arc::new(Mutex::new(Platter {
            bytes: Vec::new(),
            disk: Disk::Healthy,
        })))
    }

    fn set(&self, disk: Disk) {
        self.0.lock().unwrap().disk = disk;
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let platter = self.0.lock().unwrap();
        let from = offset as usize;
        let bytes = platter
            .bytes
            .get(from..from + out.len())
            .ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        let mut platter = self.0.lock().unwrap();
        if platter.disk != Disk::Healthy && len as usize > platter.bytes.len() {
            return Err(ErrorKind::StorageFull.into());
        }
        platter.bytes.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), Error> {
        match self.0.lock().unwrap().disk {
            Disk::SyncFails => Err(Error::other("fdatasync")),
            _ => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut platter = self.0.lock().unwrap();
        let stored = match platter.disk {
            Disk::Healthy | Disk::SyncFails => data.len(),
            Disk::Full => 0,
            Disk::ShortWrite => data.len() / 2,
            Disk::FailsAfter(0) => 0,
            Disk::FailsAfter(writes) => {
                platter.disk = Disk::FailsAfter(writes - 1);
                data.len()
            }
        };
        let from = offset as usize;
        let target = platter
            .bytes
            .get_mut(from..from + stored)
            .ok_or(ErrorKind::StorageFull)?;
        target.copy_from_slice(&data[..stored]);
        if stored == data.len() {
            Ok(())
        } else {
            Err(ErrorKind::StorageFull.into())
        }
    }
}

struct Bench {
    backend: Backend,
    /// Under the journal; on the same disk.
    journal: Backend,
    /// How long opening the files takes, and how often it was done.
    slowness: Duration,
    opened: Arc<AtomicUsize>,
    key: Arc<LogKey>,
    log: Option<Log>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let key = LogKey::load(&dir.path().join("checkpoint.key"), "test", true).unwrap();
        let mut bench = Bench {
            backend: Backend::new(),
            journal: Backend::new(),
            slowness: Duration::ZERO,
            opened: Arc::default(),
            key: Arc::new(key),
            log: None,
            _dir: dir,
        };
        bench.reopen().unwrap();
        bench
    }

    /// Another one with the same key.
    fn new_with(other: &Bench) -> Bench {
        let mut bench = Bench::new();
        bench.key = other.key.clone();
        bench
    }

    fn reopen(&mut self) -> Result<(), OpenError> {
        self.log = None;
        let (backend, journal) = (self.backend.clone(), self.journal.clone());
        let (slowness, opened) = (self.slowness, self.opened.clone());
        let opener: Opener = Arc::new(move || {
            opened.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(slowness);
            let db = Builder::new().create_with_backend(backend.clone());
            let db = db.map_err(|error| OpenError::Database {
                path: "test".into(),
                source: Box::new(error.into()),
            })?;
            let journal = Box::new(journal.clone());
            Ok(Opened { db, journal })
        });
        let tenant = "acme".parse().unwrap();
        let on_commit: OnCommit = Arc::new(|_| {});
        self.log = Some(Log::open(
            tenant,
            "test".into(),
            opener,
            self.key.clone(),
            64,
            on_commit,
        )?);
        Ok(())
    }

    fn set(&self, disk: Disk) {
        self.backend.set(disk);
        self.journal.set(disk);
    }

    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn draft(kind: Kind, detail: &str) -> Box<Record> {
        let detail = Some(detail.to_owned());
        Box::new(Record {
            detail,
            ..Record::new("acme".parse().unwrap(), kind, Timestamp::from_millis(0))
        })
    }

    async fn refusal(&self, detail: &str) -> Result<u64, AuditError> {
        self.log()
            .append(Bench::draft(Kind::Refusal, detail), ApprovalWrite::None)
            .await
    }

    /// Queued at once; waited for by whoever awaits it.
    fn refusal_of(&self, length: usize) -> tokio::sync::oneshot::Receiver<Result<u64, AuditError>> {
        let (caller, answer) = tokio::sync::oneshot::channel();
        let item = Item {
            record: Bench::draft(Kind::Refusal, &"x".repeat(length)),
            approval: ApprovalWrite::None,
            reply: Reply::Index(caller),
        };
        assert!(self.log().shared.queue.push(item).is_ok());
        answer
    }

    async fn intent(&self, detail: &str) -> Result<Owed, AuditError> {
        self.log()
            .intent(Bench::draft(Kind::Intent, detail), ApprovalWrite::None)
            .await
            .map(DurablyOwed::into_owed)
    }

    fn records(&self) -> Vec<Record> {
        let size = self.log().shared.read(store::size).unwrap();
        let show = |index| {
            crate::query::show(&self.log().shared, index)
                .unwrap()
                .record()
                .clone()
        };
        (0..size).map(show).collect()
    }

    /// Index continuity, links and signature, as an auditor would check them.
    fn verify(&self) {
        let mut export = Vec::new();
        self.log()
            .shared
            .read(|snapshot| crate::export::write(snapshot, &mut export))
            .unwrap();
        crate::verify(&mut export.as_slice(), self.key.public()).unwrap();
    }
}

fn details(records: &[Record]) -> Vec<&str> {
    records
        .iter()
        .filter_map(|record| record.detail.as_deref())
        .collect()
}

/// Every disk that fails at once.
const FAILING: [Disk; 4] = [
    Disk::Full,
    Disk::ShortWrite,
    Disk::SyncFails,
    Disk::FailsAfter(0),
];

#[tokio::test]
async fn a_failing_disk_refuses_and_loses_nothing() {
    for disk in FAILING {
        let mut bench = Bench::new();
        // Positive control: on a healthy disk the same record is written.
        assert_eq!(bench.refusal("before").await.unwrap(), 0, "{disk:?}");
        bench.set(disk);
        for _ in 0..3 {
            let refused = bench.intent("during").await;
            assert!(
                matches!(refused, Err(AuditError::Commit(_))),
                "{disk:?}: {refused:?}"
            );
        }
        // The process dies here; the next one finds a disk that works again.
        bench.set(Disk::Healthy);
        bench.reopen().unwrap();
        bench.refusal("after").await.unwrap();
        bench.verify();
        let records = bench.records();
        let kept = details(&records);
        assert_eq!(
            (kept.first(), kept.last()),
            (Some(&"before"), Some(&"after")),
            "{disk:?}"
        );
        assert_no_open_intent(&records);
    }
}

#[tokio::test]
async fn a_disk_that_recovers_is_used_again_without_a_restart() {
    for disk in FAILING {
        let bench = Bench::new();
        bench.refusal("before").await.unwrap();
        bench.set(disk);
        assert!(bench.intent("during").await.is_err(), "{disk:?}");
        bench.set(Disk::Healthy);
        bench
            .refusal("after")
            .await
            .unwrap_or_else(|error| panic!("{disk:?}: {error}"));
        bench.verify();
        assert_no_open_intent(&bench.records());
    }
}

/// A failed commit may turn out to be durable; then its intents must not be left without an outcome.
fn assert_no_open_intent(records: &[Record]) {
    for intent in records.iter().filter(|record| record.kind == Kind::Intent) {
        let outcome = records
            .iter()
            .find(|record| record.intent == Some(intent.index));
        assert!(outcome.is_some(), "intent {} has no outcome", intent.index);
    }
}

#[tokio::test]
async fn a_disk_that_fails_at_any_write_leaves_all_or_nothing() {
    for writes in 0..24 {
        let mut bench = Bench::new();
        for _ in 0..4 {
            bench.refusal("before").await.unwrap();
        }
        bench.set(Disk::FailsAfter(writes));
        let told = bench.refusal("during").await;
        bench.set(Disk::Healthy);
        bench
            .reopen()
            .unwrap_or_else(|error| panic!("write {writes}: {error}"));
        bench.verify();
        let records = bench.records();
        let during = details(&records)
            .iter()
            .filter(|detail| **detail == "during")
            .count();
        assert_eq!(records.len(), 4 + during, "write {writes}");
        // What was promised is there.
        assert!(
            during == 1 || told.is_err(),
            "write {writes}: promised and lost"
        );
    }
}

#[tokio::test]
async fn an_outcome_outlives_a_full_disk() {
    let bench = Bench::new();
    let owed = bench.intent("call").await.unwrap();
    bench.set(Disk::Full);
    owed.settle(Outcome {
        status: Some(200),
        ..Outcome::new(Timestamp::from_millis(1))
    });
    assert!(bench.refusal("during").await.is_err());
    bench.set(Disk::Healthy);
    // Nobody asks for anything: the writer tries again by itself.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let size = bench.log().shared.read(store::size);
        if size.is_ok_and(|size| size == 2) {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the outcome was never written"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let outcome = &bench.records()[1];
    assert_eq!(
        (outcome.outcome, outcome.status),
        (Some(OutcomeName::Answered), Some(200))
    );
    assert_eq!(outcome.intent, Some(0));
    bench.verify();
}

#[tokio::test]
async fn a_queued_intent_outlives_a_full_disk_and_the_next_one_waits() {
    let bench = Bench::new();
    let queue = |detail| {
        bench
            .log()
            .queued_intent(Bench::draft(Kind::Intent, detail))
    };
    bench.set(Disk::Full);
    let Ok(owed) = queue("queued") else {
        panic!("the log was well")
    };
    owed.settle(Outcome {
        status: Some(200),
        ..Outcome::new(Timestamp::from_millis(1))
    });
    assert!(bench.refusal("during").await.is_err());
    // Positive control of the refusal: a log that is not well lets no further call go on a queued intent.
    assert!(matches!(queue("next"), Err(NotQueued::MustWait(_))));
    bench.set(Disk::Healthy);
    bench.refusal("after").await.unwrap();
    assert!(queue("last").is_ok());
    bench.refusal("end").await.unwrap();
    bench.verify();
    let records = bench.records();
    let intent = records
        .iter()
        .find(|record| record.detail.as_deref() == Some("queued"));
    let outcome = records
        .iter()
        .find(|record| record.status == Some(200))
        .unwrap();
    assert_eq!(outcome.intent, intent.map(|intent| intent.index));
}

#[tokio::test]
async fn a_call_under_way_is_not_taken_for_lost_when_the_log_is_reopened() {
    let bench = Bench::new();
    let owed = bench.intent("under way").await.unwrap();
    bench.set(Disk::Full);
    assert!(bench.refusal("during").await.is_err());
    bench.set(Disk::Healthy);
    bench.refusal("after").await.unwrap();
    owed.settle(Outcome::new(Timestamp::from_millis(1)));
    bench.refusal("last").await.unwrap();
    let outcomes: Vec<_> = bench
        .records()
        .iter()
        .filter_map(|record| record.outcome)
        .collect();
    assert_eq!(outcomes, [OutcomeName::Answered]);
}

#[tokio::test]
async fn intents_without_outcome_are_found_however_old_they_are() {
    let mut bench = Bench::new();
    let old = bench.intent("old").await.unwrap();
    let settled = bench.intent("settled late").await.unwrap();
    for _ in 0..40 {
        bench.refusal("between").await.unwrap();
    }
    settled.settle(Outcome::new(Timestamp::from_millis(1)));
    let young = bench.intent("young").await.unwrap();
    bench.refusal("end").await.unwrap();
    // The process dies: nobody tells the outcomes, as `Owed` would when it is dropped.
    std::mem::forget((old, young));
    bench.reopen().unwrap();
    bench.verify();
    let records = bench.records();
    let end = |detail| {
        let intent = records
            .iter()
            .find(|record| record.detail.as_deref() == Some(detail));
        let ends: Vec<_> = records
            .iter()
            .filter(|record| record.intent == intent.map(|intent| intent.index))
            .filter_map(|record| record.outcome)
            .collect();
        ends
    };
    assert_eq!(end("old"), [OutcomeName::Unknown]);
    assert_eq!(end("young"), [OutcomeName::Unknown]);
    assert_eq!(end("settled late"), [OutcomeName::Answered]);
    // And only once.
    let size = records.len();
    bench.reopen().unwrap();
    assert_eq!(bench.records().len(), size);
}

#[tokio::test]
async fn records_are_read_wherever_the_values_begin() {
    let mut bench = Bench::new();
    // Some alone in their values, some beside others, some larger than what fits beside another.
    for round in 0..6_usize {
        let length = if round % 3 == 2 { 20_000 } else { 100 };
        let together = (0..5).map(|_| bench.refusal_of(length)).collect::<Vec<_>>();
        for one in together {
            one.await.unwrap().unwrap();
        }
    }
    bench.reopen().unwrap();
    bench.verify();
    let size = bench.log().shared.read(store::size).unwrap();
    assert_eq!(size, 30);
    for (index, record) in (0_u64..).zip(bench.records()) {
        assert_eq!(record.index, index);
        let proof = bench
            .log()
            .shared
            .read(|snapshot| crate::proof::inclusion(snapshot, &"acme".parse().unwrap(), index))
            .unwrap();
        let entry = crate::query::show(&bench.log().shared, index).unwrap();
        crate::verify_inclusion(entry.line().as_bytes(), &proof, bench.key.public()).unwrap();
    }
    for from in 0..size {
        let query = crate::Query {
            from: Some(from),
            limit: 4,
            ..crate::Query::default()
        };
        let found = crate::query::list_one(&bench.log().shared, &query).unwrap();
        let indexes: Vec<u64> = found.iter().map(|entry| entry.record().index).collect();
        assert_eq!(indexes, (from..size.min(from + 4)).collect::<Vec<_>>());
    }
    let last = crate::Query {
        limit: 7,
        ..crate::Query::default()
    };
    let found = crate::query::list_one(&bench.log().shared, &last).unwrap();
    let indexes: Vec<u64> = found.iter().map(|entry| entry.record().index).collect();
    assert_eq!(indexes, (size - 7..size).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_log_that_is_slow_to_take_up_is_not_tried_for_every_call() {
    let mut bench = Bench::new();
    bench.slowness = Duration::from_millis(100);
    bench.reopen().unwrap();
    bench.set(Disk::Full);
    let before = bench.opened.load(Ordering::Relaxed);
    for _ in 0..50 {
        let refused = bench.refusal("full").await;
        assert!(matches!(refused, Err(AuditError::Commit(_))), "{refused:?}");
    }
    let tries = bench.opened.load(Ordering::Relaxed) - before;
    assert!((1..25).contains(&tries), "{tries} tries");
    // Once there is room it is taken up within the time that one more try may wait.
    bench.set(Disk::Healthy);
    let mut patience = 100;
    while bench.refusal("there is room").await.is_err() {
        patience -= 1;
        assert!(patience > 0, "still refused");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.verify();
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_alone() {
    let bench = Bench::new();
    let huge = Bench::draft(Kind::Refusal, &"x".repeat(crate::record::MAX_RECORD));
    let refused = bench.log().append(huge, ApprovalWrite::None).await;
    assert!(matches!(refused, Err(AuditError::RecordTooLarge(_))));
    assert_eq!(bench.refusal("next").await.unwrap(), 0);
    bench.verify();
}

#[tokio::test]
async fn a_log_that_cannot_be_written_at_the_start_is_not_opened() {
    let mut bench = Bench::new();
    bench.log = None;
    bench.backend = Backend::new();
    bench.set(Disk::Full);
    let refused = bench.reopen();
    assert!(matches!(
        refused,
        Err(OpenError::Database { .. }
            | OpenError::Commit {
                source: CommitFailure::Database(_),
                ..
            })
    ));
}
