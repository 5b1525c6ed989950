//! What the daemon does for each request of the control socket; one file per kind of thing asked about.
//! Called by `server` with a peer whose right to ask was checked.
//! INVARIANT: whatever changes something is recorded with the peer's name.

mod agents;
mod approvals;
mod authorities;
mod logs;
mod secrets;

use std::sync::Arc;

use super::peer::Peer;
use super::protocol::{ErrorCode, ErrorReply, Request};
use super::server::Replies;
use crate::app::Shared;

pub(crate) use logs::{entries, export, log_tenant, show};
pub(crate) use secrets::{Change, change};

/// Carries out one request.
pub(super) async fn answer(
    peer: &Peer,
    request: Request,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    match request {
        Request::AgentsList {} => agents::list(shared, replies).await,
        Request::AgentsSet { agent, disabled } => {
            agents::set(peer, &agent, disabled, shared, replies).await
        }
        Request::ApprovalsAnswer { id, verdict, note } => {
            approvals::answer(peer, id, verdict, note, shared, replies).await
        }
        Request::ApprovalsList { all } => approvals::list(all, shared, replies).await,
        Request::ApprovalsShow { id } => approvals::show(&id, shared, replies).await,
        Request::ApprovalsWatch {} => approvals::watch(shared, replies).await,
        Request::AuditCheckpoint { tenant } => logs::send_checkpoint(tenant, shared, replies).await,
        Request::AuditExport { tenant } => logs::send_export(tenant, shared, replies).await,
        Request::AuditKey {} => replies.chunk(shared.ledger.public_key()).await,
        Request::AuditList { filter } => logs::send_entries(filter, shared, replies).await,
        Request::AuditShow { tenant, index } => {
            logs::send_entry(tenant, index, shared, replies).await
        }
        Request::AuditTenants {} => {
            for tenant in shared.ledger.tenants() {
                replies.item(&tenant).await?;
            }
            Ok(())
        }
        Request::CaRotate { tenant, step } => {
            authorities::rotate(peer, &tenant, step, shared, replies).await
        }
        Request::CaShow { tenant } => authorities::show(&tenant, shared, replies).await,
        Request::Doctor {} => agents::doctor(shared, replies).await,
        Request::Status {} => agents::status(shared, replies).await,
        Request::VaultList {} => {
            let vault = Arc::clone(&shared.vault);
            for listing in blocking(move || vault.list().map_err(secrets::failed)).await? {
                replies.item(&listing).await?;
            }
            Ok(())
        }
        Request::VaultPut { credential, secret } => {
            secrets::send(peer, Change::Put(credential, secret), shared, replies).await
        }
        Request::VaultRevoke { credential } => {
            secrets::send(peer, Change::Revoke(credential), shared, replies).await
        }
        Request::VaultRotate { credential, secret } => {
            secrets::send(peer, Change::Rotate(credential, secret), shared, replies).await
        }
    }
}

/// Runs what reads or writes a database away from the connections' threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorReply> + Send + 'static,
) -> Result<T, ErrorReply> {
    let stopping = |_| ErrorReply::new(ErrorCode::Stopping, "the daemon is stopping");
    tokio::task::spawn_blocking(work).await.map_err(stopping)?
}
