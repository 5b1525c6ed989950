//! The audit logs: list, show, export, checkpoint. Also used by the command line when no daemon runs.
//! Reads only; records are written by the path.
//! INVARIANT: a log is read on a thread of its own kind, never on one that serves calls.

use std::io::{self, Write};
use std::sync::Arc;

use audit::{AuditError, Entry, Ledger, Query};
use policies::Tenant;
use tokio::sync::mpsc;

use crate::app::Shared;
use crate::control::protocol::{AuditFilter, ErrorCode, ErrorReply};
use crate::control::server::Replies;

/// Records that `audit list` shows unless told otherwise.
const USUAL: usize = 1_000;
/// Records that one request may ask for.
const MOST: usize = 100_000;
/// Text of an export that one reply line carries.
const CHUNK: usize = 64 * 1024;

/// The records that a filter lets through.
pub(crate) fn entries(ledger: &Ledger, filter: AuditFilter) -> Result<Vec<Entry>, AuditError> {
    let AuditFilter {
        tenant,
        agent,
        kind,
        since,
        from,
        limit,
    } = filter;
    ledger.list(&Query {
        tenant,
        agent,
        kind,
        since,
        from,
        limit: limit.unwrap_or(USUAL).min(MOST),
    })
}

/// One record.
pub(crate) fn show(
    ledger: &Ledger,
    tenant: Option<Tenant>,
    index: u64,
) -> Result<Entry, AuditError> {
    ledger.show(&log_tenant(tenant), index)
}

/// Writes a whole log.
pub(crate) fn export(
    ledger: &Ledger,
    tenant: Option<Tenant>,
    out: &mut dyn Write,
) -> Result<u64, AuditError> {
    ledger.export(&log_tenant(tenant), out)
}

/// Whose log is meant: without a tenant the host's own.
pub(crate) fn log_tenant(tenant: Option<Tenant>) -> Tenant {
    tenant.unwrap_or_else(Ledger::host_tenant)
}

pub(super) async fn send_entries(
    filter: AuditFilter,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let ledger = shared.ledger.clone();
    for entry in super::blocking(move || entries(&ledger, filter).map_err(failed)).await? {
        replies.item(&entry).await?;
    }
    Ok(())
}

pub(super) async fn send_entry(
    tenant: Option<Tenant>,
    index: u64,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let ledger = shared.ledger.clone();
    let entry = super::blocking(move || show(&ledger, tenant, index).map_err(failed)).await?;
    replies.item(&entry).await
}

pub(super) async fn send_checkpoint(
    tenant: Option<Tenant>,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let ledger = shared.ledger.clone();
    let text =
        super::blocking(move || ledger.checkpoint(&log_tenant(tenant)).map_err(failed)).await?;
    replies.chunk(text).await
}

/// Sends the export as it is read, so that a large log needs no memory.
pub(super) async fn send_export(
    tenant: Option<Tenant>,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let (sender, mut chunks) = mpsc::channel(4);
    let ledger = shared.ledger.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = Chunks {
            sender,
            pending: Vec::new(),
        };
        export(&ledger, tenant, &mut out)?;
        out.flush()
            .map_err(|error| AuditError::Write(Arc::new(error)))
    });
    while let Some(chunk) = chunks.recv().await {
        replies.chunk(chunk).await?;
    }
    let stopping = |_| ErrorReply::new(ErrorCode::Stopping, "the daemon is stopping");
    writing.await.map_err(stopping)?.map_err(failed)
}

fn failed(error: AuditError) -> ErrorReply {
    ErrorReply::new(ErrorCode::AuditUnavailable, error.to_string())
}

/// A writer whose text goes to a channel in pieces of whole lines.
struct Chunks {
    sender: mpsc::Sender<String>,
    pending: Vec<u8>,
}

impl Chunks {
    fn send(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        let text = String::from_utf8(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.sender
            .blocking_send(text)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK
            && let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n')
        {
            let rest = self.pending.split_off(end + 1);
            let whole = std::mem::replace(&mut self.pending, rest);
            self.send(whole)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.pending);
        if rest.is_empty() {
            Ok(())
        } else {
            self.send(rest)
        }
    }
}
