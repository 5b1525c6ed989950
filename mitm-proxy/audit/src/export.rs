//! The export: a whole log as one text file that can be verified anywhere.
//! Written from one snapshot, so that the checkpoint is that of exactly these records.
//! INVARIANT: the bytes of the records are the stored ones; nothing is decoded and written anew.
//!
//! # Format
//! ```text
//! <key name>/<tenant>            the checkpoint (c2sp.org/tlog-checkpoint) as a signed note (c2sp.org/signed-note)
//! <size>
//! <root, base64>
//!
//! — <key name> <signature, base64>
//!
//! {"index":0,..}                 the records, one per line, exactly as hashed; see `record`
//! {"index":1,..}
//! ```
//! Every line ends in one LF, the last one too. Nothing follows.

use std::io::Write;
use std::sync::Arc;

use redb::{ReadTransaction, ReadableTable};

use crate::batch::{self, RECORDS};
use crate::error::AuditError;
use crate::store;

pub(crate) fn write(snapshot: &ReadTransaction, out: &mut dyn Write) -> Result<u64, AuditError> {
    let failed = |error| AuditError::Write(Arc::new(error));
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(failed);
    put(store::checkpoint_text(snapshot)?.as_bytes())?;
    put(b"\n")?;
    let records = snapshot.open_table(RECORDS).map_err(AuditError::read)?;
    let mut count = 0;
    for value in records.iter().map_err(AuditError::read)? {
        let (first, value) = value.map_err(AuditError::read)?;
        put(value.value())?;
        count += batch::lines(first.value(), value.value()).count();
    }
    out.flush().map_err(failed)?;
    Ok(u64::try_from(count).unwrap_or_default())
}
