//! The wall clock and fresh randomness, the two inputs that the pure crates are given.
//! Place on the path: read by every stage that stamps a record or names a new thing.
//! INVARIANT: policies, and so decisions, see time only as a value that came from here.

use std::time::{SystemTime, UNIX_EPOCH};

use policies::Timestamp;

/// Now, in milliseconds of the wall clock; a clock before 1970 reads as 1970.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// 16 bytes from the kernel's generator.
pub(crate) fn entropy() -> Result<[u8; 16], getrandom::Error> {
    audit::entropy::draw()
}
