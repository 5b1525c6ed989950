//! Reading the logs: filters, one record, following.
//! For `sluice audit list` and `show`; never on the path of a call.
//! INVARIANT: an entry is shown as it was hashed, or not at all.

use std::sync::Arc;

use policies::{AgentId, Tenant, Timestamp};
use serde::{Deserialize, Serialize, Serializer};

use crate::batch::{self, RECORDS};
use crate::error::AuditError;
use crate::log::{Log, Shared};
use crate::record::{Kind, Record};

/// A record's `at` may be this much older than its neighbours': it is taken when something happens, not when it is written.
const SLACK: std::time::Duration = std::time::Duration::from_secs(60 * 60);

/// Which records to list.
#[derive(Clone, Debug)]
pub struct Query {
    /// Only this tenant's log; `None` is all logs, the host's among them, merged by time.
    pub tenant: Option<Tenant>,
    /// Only records of this agent.
    pub agent: Option<AgentId>,
    /// Only records of this kind.
    pub kind: Option<Kind>,
    /// Only records of this time or later.
    pub since: Option<Timestamp>,
    /// Only records from this index on, the *first* `limit` of them. To follow a log: the last seen index + 1.
    pub from: Option<u64>,
    /// How many. Without `from`, the *last* `limit` that match.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Query {
        Query {
            tenant: None,
            agent: None,
            kind: None,
            since: None,
            from: None,
            limit: 100,
        }
    }
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    record: Record,
    line: String,
}

impl Entry {
    /// The record, decoded.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The record's bytes: the line that was hashed.
    pub fn line(&self) -> &str {
        &self.line
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.record.serialize(serializer)
    }
}

/// As much of a record as filters need.
#[derive(Deserialize)]
struct Outline {
    kind: Kind,
    at: Timestamp,
    agent: Option<AgentId>,
}

impl Query {
    fn matches(&self, outline: &Outline) -> bool {
        self.agent
            .as_ref()
            .is_none_or(|agent| outline.agent.as_ref() == Some(agent))
            && self.kind.is_none_or(|kind| outline.kind == kind)
            && self.since.is_none_or(|since| outline.at >= since)
    }

    fn wants(&self, log: &Tenant) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| tenant == log)
            && self.agent.as_ref().is_none_or(|agent| agent.tenant == *log)
    }
}

pub(crate) fn list(logs: &[Arc<Log>], query: &Query) -> Result<Vec<Entry>, AuditError> {
    let mut found = Vec::new();
    for log in logs.iter().filter(|log| query.wants(&log.shared.tenant)) {
        found.extend(list_one(&log.shared, query)?);
    }
    // A log's own entries are in order already; the sort is stable and only merges several logs.
    if query.tenant.is_none() {
        found.sort_by_key(|entry| entry.record.at);
    }
    let excess = found.len().saturating_sub(query.limit);
    match query.from {
        Some(_) => found.truncate(query.limit),
        None => drop(found.drain(..excess)),
    }
    Ok(found)
}

pub(crate) fn list_one(log: &Shared, query: &Query) -> Result<Vec<Entry>, AuditError> {
    log.read(|snapshot| {
        let records = snapshot.open_table(RECORDS).map_err(AuditError::read)?;
        let from = query.from.unwrap_or(0);
        let first = batch::key_of(&records, from).map_err(AuditError::read)?;
        let range = records
            .range(first.unwrap_or(from)..)
            .map_err(AuditError::read)?;
        let range: &mut dyn Iterator<Item = _> = match query.from {
            Some(_) => &mut { range },
            None => &mut range.rev(),
        };
        let mut found = Vec::new();
        'values: for value in range {
            let (first, value) = value.map_err(AuditError::read)?;
            let mut lines: Vec<(u64, &[u8])> = batch::lines(first.value(), value.value()).collect();
            if query.from.is_none() {
                lines.reverse();
            }
            for (index, line) in lines.into_iter().filter(|(index, _)| *index >= from) {
                if found.len() >= query.limit {
                    break 'values;
                }
                let outline: Outline = decode(log, index, line)?;
                let too_old = |since| outline.at + SLACK < since;
                if query.from.is_none() && query.since.is_some_and(too_old) {
                    break 'values;
                }
                if query.matches(&outline) {
                    found.push(entry(log, index, line)?);
                }
            }
        }
        if query.from.is_none() {
            found.reverse();
        }
        Ok(found)
    })
}

pub(crate) fn show(log: &Shared, index: u64) -> Result<Entry, AuditError> {
    log.read(|snapshot| {
        let records = snapshot.open_table(RECORDS).map_err(AuditError::read)?;
        let size = batch::count(&records).map_err(AuditError::read)?;
        let line = batch::record(&records, index).map_err(AuditError::read)?;
        let line = line.ok_or(AuditError::NoRecord {
            tenant: log.tenant.clone(),
            index,
            size,
        })?;
        entry(log, index, &line)
    })
}

fn entry(log: &Shared, index: u64, line: &[u8]) -> Result<Entry, AuditError> {
    let record = decode(log, index, line)?;
    let line = str::from_utf8(line)
        .map_err(|_| corrupt(log, index))?
        .to_owned();
    Ok(Entry { record, line })
}

fn decode<'a, T: Deserialize<'a>>(
    log: &Shared,
    index: u64,
    line: &'a [u8],
) -> Result<T, AuditError> {
    serde_json::from_slice(line).map_err(|_| corrupt(log, index))
}

fn corrupt(log: &Shared, index: u64) -> AuditError {
    AuditError::Corrupt {
        tenant: log.tenant.clone(),
        index,
    }
}
