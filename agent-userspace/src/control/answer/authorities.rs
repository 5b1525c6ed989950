//! The tenants' roots: shown, rotated, and the end of a rotation.
//! Answers of the running daemon; the keys stay in the vault.
//! INVARIANT: both roots are published before the new one signs, and each step is on record with the name of who asked.

use std::sync::Arc;

use audit::HostEvent;
use mitm_proxy::{CaError, Root};
use policies::Tenant;
use sha2::{Digest as _, Sha256};

use crate::app::Shared;
use crate::config::replace;
use crate::control::peer::Peer;
use crate::control::protocol::{CaRoot, CaStep, ErrorCode, ErrorReply};
use crate::control::server::Replies;

pub(super) async fn show(
    tenant: &Tenant,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    known(tenant, shared)?;
    for root in shared.proxy.ca_roots(tenant).map_err(failed)? {
        replies.item(&shown(root)).await?;
    }
    Ok(())
}

pub(super) async fn rotate(
    peer: &Peer,
    tenant: &Tenant,
    step: CaStep,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    known(tenant, shared)?;
    let (inner, whose) = (Arc::clone(shared), tenant.clone());
    let (roots, abandoned) =
        super::blocking(move || take(&inner, &whose, step).map_err(failed)).await?;
    let generation = roots.last().map_or(0, |root| root.generation);
    let by = peer.user.as_str().to_owned();
    let event = match step {
        CaStep::Begin => HostEvent::CaRotated { generation, by },
        CaStep::Finish | CaStep::ForceFinish => HostEvent::CaRotationFinished {
            generation,
            by,
            abandoned,
        },
    };
    // The roots have changed already: whoever asked is told if that is not on record.
    let unrecorded = |error| {
        let text =
            format!("the roots of {tenant} were changed, but that could not be recorded: {error}");
        ErrorReply::new(ErrorCode::AuditUnavailable, text)
    };
    shared
        .ledger
        .event(Some(tenant), event)
        .await
        .map_err(unrecorded)?;
    for root in roots {
        replies.item(&shown(root)).await?;
    }
    Ok(())
}

/// The roots after the step, and how many workloads it leaves without one.
fn take(shared: &Shared, tenant: &Tenant, step: CaStep) -> Result<(Vec<Root>, usize), CaError> {
    let path = shared.paths.ca_pem(tenant);
    let publish = |pem: &str| replace(&path, pem.as_bytes(), 0o644);
    let alone = |roots: Vec<Root>| roots.iter().map(|root| root.alone.len()).sum::<usize>();
    match step {
        CaStep::Begin => Ok((shared.proxy.rotate_ca(tenant, publish)?, 0)),
        CaStep::Finish => Ok((shared.proxy.finish_ca(tenant, publish, false)?, 0)),
        CaStep::ForceFinish => {
            let abandoned = alone(shared.proxy.ca_roots(tenant)?);
            Ok((shared.proxy.finish_ca(tenant, publish, true)?, abandoned))
        }
    }
}

fn shown(root: Root) -> CaRoot {
    let digest = Sha256::digest(&root.der);
    CaRoot {
        generation: root.generation,
        fingerprint: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        current: root.current,
        alone: root.alone,
        pem: root.pem,
    }
}

fn known(tenant: &Tenant, shared: &Shared) -> Result<(), ErrorReply> {
    let bundle = shared.proxy.bundle();
    if bundle.agents().any(|agent| agent.id().tenant == *tenant) {
        return Ok(());
    }
    let text = format!("no agent belongs to a tenant {tenant}");
    Err(ErrorReply::new(ErrorCode::TenantUnknown, text))
}

fn failed(error: CaError) -> ErrorReply {
    ErrorReply::new(ErrorCode::Ca, error.to_string())
}
