//! The journal after a crash: what was committed is in the log again, what was torn is not, and what was altered is refused.
//! A crash is a copy of both files while the log is open.

use super::*;
use crate::journal::{BLOCK, SIZE};
use crate::record::OutcomeName;

impl Backend {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    fn of(bytes: Vec<u8>) -> Backend {
        let backend = Backend::new();
        backend.0.lock().unwrap().bytes = bytes;
        backend
    }
}

impl Bench {
    /// The files as a crash at this moment leaves them.
    fn crash(&self) -> (Vec<u8>, Vec<u8>) {
        (self.backend.bytes(), self.journal.bytes())
    }

    /// Starts on such files.
    fn start(&mut self, (database, journal): (Vec<u8>, Vec<u8>)) -> Result<(), OpenError> {
        self.log = None;
        self.backend = Backend::of(database);
        self.journal = Backend::of(journal);
        self.reopen()
    }

    async fn of(details: &[&str]) -> Bench {
        let bench = Bench::new();
        for detail in details {
            bench.refusal(detail).await.unwrap();
        }
        bench
    }
}

fn corrupt(opened: Result<(), OpenError>) -> &'static str {
    match opened {
        Err(OpenError::Corrupt { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_committed_outlives_a_crash() {
    let mut bench = Bench::of(&["one", "two"]).await;
    let owed = bench.intent("call").await.unwrap();
    let (database, journal) = bench.crash();
    std::mem::forget(owed);
    // Positive control: the database alone does not have them.
    let untouched = vec![0; SIZE];
    bench.start((database.clone(), untouched)).unwrap();
    assert!(bench.records().is_empty());

    // And a crash while that is made good is made good in the same way.
    let first = (database, journal);
    bench.start(first.clone()).unwrap();
    let second = bench.crash();
    for files in [first, second] {
        bench.start(files).unwrap();
        bench.verify();
        let records = bench.records();
        assert_eq!(details(&records[..3]), ["one", "two", "call"]);
        assert_eq!(records.len(), 4);
        let end = &records[3];
        assert_eq!(
            (end.intent, end.outcome),
            (Some(2), Some(OutcomeName::Unknown))
        );
        // It goes on from there, in this run and the next.
        assert_eq!(bench.refusal("after").await.unwrap(), 4);
        bench.reopen().unwrap();
        assert_eq!(bench.records().len(), 5);
        bench.verify();
    }
}

#[tokio::test]
async fn a_torn_commit_is_left_out_wherever_it_is_torn() {
    let bench = Bench::of(&["one", "two"]).await;
    let (_, before) = bench.crash();
    bench.refusal(&"three".repeat(1500)).await.unwrap();
    let (database, after) = bench.crash();
    let mut bench = Bench::new_with(&bench);
    let torn: Vec<usize> = (0..after.len())
        .filter(|at| before[*at] != after[*at])
        .collect();
    let (start, end) = (torn[0], torn[torn.len() - 1]);
    assert!(end - start > BLOCK, "one that lies in more than one block");
    // What came out of the disk's cache before the power went: the beginning, the end, or some of the middle.
    for cut in (start..=end).step_by(811) {
        let (mut head, mut tail) = (after.clone(), after.clone());
        head[cut..=end].copy_from_slice(&before[cut..=end]);
        tail[start..=cut].copy_from_slice(&before[start..=cut]);
        for journal in [head, tail] {
            bench.start((database.clone(), journal)).unwrap();
            assert_eq!(details(&bench.records()), ["one", "two"], "cut at {cut}");
            bench.verify();
        }
    }
    // Positive control: whole, it is there.
    bench.start((database, after)).unwrap();
    assert_eq!(bench.records().len(), 3);
}

#[tokio::test]
async fn a_journal_that_was_altered_is_refused() {
    let mut bench = Bench::of(&["one", "two", "three"]).await;
    let (database, journal) = bench.crash();
    for at in [0, 8, 16, 40, 100, 400] {
        let mut altered = journal.clone();
        altered[BLOCK + at] ^= 1;
        let detail = corrupt(bench.start((database.clone(), altered)));
        assert!(detail.contains("gap"), "{at}: {detail}");
    }
    // Commits that are taken out, the first or one in the middle.
    for gone in [0, BLOCK] {
        let mut altered = journal.clone();
        altered.drain(gone..gone + BLOCK);
        altered.resize(SIZE, 0);
        let detail = corrupt(bench.start((database.clone(), altered)));
        assert!(detail.contains("gap"), "{gone}: {detail}");
    }
    let missing = corrupt(bench.start((database.clone(), Vec::new())));
    assert!(missing.contains("missing"), "{missing}");
    // Positive control.
    bench.start((database, journal)).unwrap();
    assert_eq!(bench.records().len(), 3);
}

#[tokio::test]
async fn a_database_that_was_put_back_is_refused() {
    let mut bench = Bench::of(&["one"]).await;
    let old = bench.backend.bytes();
    assert_eq!(bench.records().len(), 1, "the database took it over");
    bench.refusal("two").await.unwrap();
    let (new, journal) = bench.crash();
    let detail = corrupt(bench.start((old, journal.clone())));
    assert!(detail.contains("longer log"), "{detail}");
    bench.start((new, journal)).unwrap();
    assert_eq!(bench.records().len(), 2);
}

#[tokio::test]
async fn another_key_s_journal_is_refused() {
    let mut bench = Bench::of(&[]).await;
    let database = bench.backend.bytes();
    let journal = Bench::of(&["forged"]).await.journal.bytes();
    let detail = corrupt(bench.start((database, journal)));
    assert!(detail.contains("key"), "{detail}");
}

#[tokio::test]
async fn the_database_takes_over_what_does_not_fit() {
    let mut bench = Bench::of(&[]).await;
    let empty = bench.backend.bytes();
    let mut count = 0;
    while bench.backend.bytes() == empty {
        bench.refusal("one of many").await.unwrap();
        count += 1;
        assert!(count <= SIZE / BLOCK + 1);
    }
    bench.refusal("and one more").await.unwrap();
    // The crash finds a new round over frames of the old one.
    let files = bench.crash();
    bench.start(files).unwrap();
    bench.verify();
    assert_eq!(bench.records().len(), count + 1);
}

#[tokio::test]
async fn the_journal_is_taken_over_when_nothing_happens() {
    let bench = Bench::of(&[]).await;
    let empty = bench.backend.bytes();
    bench.refusal("one").await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while bench.backend.bytes() == empty {
        assert!(std::time::Instant::now() < deadline, "never");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_log_of_the_former_format_gets_a_journal() {
    let mut bench = Bench::of(&["one"]).await;
    assert_eq!(bench.records().len(), 1);
    bench.log = None;
    let db = Builder::new()
        .create_with_backend(bench.backend.clone())
        .unwrap();
    let transaction = db.begin_write().unwrap();
    transaction
        .open_table(redb::TableDefinition::<&str, &[u8]>::new("meta"))
        .unwrap()
        .insert("format", &b"sluice-audit-2"[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(db);
    let database = bench.backend.bytes();
    bench.start((database, Vec::new())).unwrap();
    bench.refusal("two").await.unwrap();
    let (database, journal) = bench.crash();
    bench.start((database.clone(), journal)).unwrap();
    assert_eq!(bench.records().len(), 2);
    assert!(corrupt(bench.start((database, Vec::new()))).contains("missing"));
}
