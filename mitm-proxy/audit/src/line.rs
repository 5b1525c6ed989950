//! The line of a record: the documented bytes, written without asking serde for each member's name.
//! Called for every record by the writer, inside its transaction.
//! INVARIANT: what is written is what `serde_json` writes for the record, byte for byte; a test holds it.

use policies::{AgentId, CapabilityId, CredentialId};
use serde::Serialize;

use crate::record::Record;

type Written = Result<(), serde_json::Error>;

/// Appends the record's line, without its newline.
pub(crate) fn write(record: &Record, out: &mut Vec<u8>) -> Written {
    // Every member by name: one that is added to the record does not compile before it is written here.
    let Record {
        index,
        prev,
        tenant,
        kind,
        at,
        agent,
        capability,
        decision,
        reason,
        policies,
        approval,
        credential,
        status,
        event,
        outcome,
        intent,
        owner,
        connection,
        risks,
        params,
        policy_version,
        held,
        answers,
        method,
        host,
        path,
        workload,
        credential_version,
        salt,
        request_digest,
        response_digest,
        request_bytes,
        response_bytes,
        request_frames,
        response_frames,
        upstream_us,
        by,
        trace,
        detail,
    } = record;
    member(out, "{\"index\":", index)?;
    member(out, ",\"prev\":", prev)?;
    text(out, ",\"tenant\":", tenant.as_str())?;
    member(out, ",\"kind\":", kind)?;
    member(out, ",\"at\":", at)?;
    let agent = agent.as_ref();
    pair(
        out,
        ",\"agent\":",
        agent.map(|AgentId { tenant, name }| (tenant.as_str(), name.as_str())),
    );
    let capability = capability.as_ref();
    pair(
        out,
        ",\"capability\":",
        capability.map(|CapabilityId { connector, name }| (connector.as_str(), name.as_str())),
    );
    member(out, ",\"decision\":", decision)?;
    member(out, ",\"reason\":", reason)?;
    member(out, ",\"policies\":", policies)?;
    member(out, ",\"approval\":", approval)?;
    let credential = credential.as_ref();
    pair(
        out,
        ",\"credential\":",
        credential.map(|CredentialId { tenant, name }| (tenant.as_str(), name.as_str())),
    );
    member(out, ",\"status\":", status)?;

    some(out, ",\"event\":", event)?;
    some(out, ",\"outcome\":", outcome)?;
    some(out, ",\"intent\":", intent)?;
    some(out, ",\"owner\":", owner)?;
    some(out, ",\"connection\":", connection)?;
    list(out, ",\"risks\":", risks)?;
    some(out, ",\"params\":", params)?;
    some(out, ",\"policy_version\":", policy_version)?;
    some(out, ",\"held\":", held)?;
    list(out, ",\"answers\":", answers)?;
    some(out, ",\"method\":", method)?;
    some(out, ",\"host\":", host)?;
    some(out, ",\"path\":", path)?;
    some(out, ",\"workload\":", workload)?;
    some(out, ",\"credential_version\":", credential_version)?;
    some(out, ",\"salt\":", salt)?;
    some(out, ",\"request_digest\":", request_digest)?;
    some(out, ",\"response_digest\":", response_digest)?;
    some(out, ",\"request_bytes\":", request_bytes)?;
    some(out, ",\"response_bytes\":", response_bytes)?;
    some(out, ",\"request_frames\":", request_frames)?;
    some(out, ",\"response_frames\":", response_frames)?;
    some(out, ",\"upstream_us\":", upstream_us)?;
    some(out, ",\"by\":", by)?;
    some(out, ",\"trace\":", trace)?;
    some(out, ",\"detail\":", detail)?;
    out.push(b'}');
    Ok(())
}

fn member(out: &mut Vec<u8>, name: &str, value: &impl Serialize) -> Written {
    out.extend_from_slice(name.as_bytes());
    serde_json::to_writer(out, value)
}

fn some(out: &mut Vec<u8>, name: &str, value: &Option<impl Serialize>) -> Written {
    value
        .as_ref()
        .map_or(Ok(()), |value| member(out, name, value))
}

fn list(out: &mut Vec<u8>, name: &str, values: &[impl Serialize]) -> Written {
    if values.is_empty() {
        return Ok(());
    }
    member(out, name, &values)
}

fn text(out: &mut Vec<u8>, name: &str, value: &str) -> Written {
    out.extend_from_slice(name.as_bytes());
    serde_json::to_writer(out, value)
}

/// Two names and a slash. Names are letters, digits, `_`, `-` and `.`: there is nothing to escape.
fn pair(out: &mut Vec<u8>, name: &str, names: Option<(&str, &str)>) {
    out.extend_from_slice(name.as_bytes());
    match names {
        None => out.extend_from_slice(b"null"),
        Some((left, right)) => {
            for part in ["\"", left, "/", right, "\""] {
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
}
