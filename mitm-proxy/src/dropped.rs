//! Connections that are closed without an answer: why, whose, and what to do about it.
//! Place on the path: beside `accept`, which turns each of these into one record and one metric.
//! INVARIANT: what a peer did decides the reason; a connection that ended in order has none.

use std::sync::atomic::{AtomicBool, Ordering};

use policies::Reason;

use crate::accept::Connection;
use crate::workload::Workload;

/// A connection that is closed without an answer.
pub(crate) struct Dropped {
    pub(crate) reason: Reason,
    pub(crate) workload: Option<Box<Workload>>,
    pub(crate) host: String,
    pub(crate) detail: String,
}

/// What to do about a client that does not trust us; of other reasons nothing.
pub(crate) fn advice(reason: Reason, workload: &Workload) -> String {
    if reason != Reason::TlsRefusedByClient {
        return String::new();
    }
    format!(
        " A client of this workload has roots of its own or pins a certificate: `sluice doctor --agent {}` tells which clients trust the \
         tenant's CA, and `sluice trust scan DIR` finds the bundles to name with `sluice run --trust FILE`.",
        workload.agent
    )
}

/// A peer that was too slow: with its request's head, or in taking its answer.
pub(crate) fn gave_up(
    connection: &Connection,
    stalled: &AtomicBool,
    late: bool,
) -> Result<(), Dropped> {
    let (reason, detail) = if stalled.load(Ordering::Acquire) {
        let detail = "Nothing of an answer was taken for longer than `limits.stall`.";
        (Reason::AnswerNotTaken, detail)
    } else if late {
        let detail = "A request's head was begun and not finished within `limits.head`.";
        (Reason::RequestTimeout, detail)
    } else {
        return Ok(());
    };
    Err(Dropped {
        reason,
        workload: Some(Box::new(connection.workload.clone())),
        host: connection.host.to_string(),
        detail: detail.to_owned(),
    })
}

/// A request that hyper could not parse (it has answered 400 by itself), or whose body's framing broke.
pub(crate) fn unreadable(error: &hyper::Error, connection: &Connection) -> Result<(), Dropped> {
    let reason = if error.is_parse_version_h2() {
        Reason::ProtocolUnsupported
    } else if connection.flaw.get().is_some() {
        Reason::AmbiguousRequest
    } else if error.is_parse() {
        Reason::MalformedRequest
    } else {
        return Ok(());
    };
    let error = connection
        .flaw
        .get()
        .map_or_else(|| error.to_string(), ToString::to_string);
    Err(Dropped {
        reason,
        workload: Some(Box::new(connection.workload.clone())),
        host: connection.host.to_string(),
        detail: format!("The request cannot be read: {error}."),
    })
}
