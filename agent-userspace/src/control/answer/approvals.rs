//! Held calls: list, show, watch, answer.
//! The person behind an answer is the local user that the kernel named.
//! INVARIANT: a person's groups come from the configuration of this moment, never from the request.

use std::sync::Arc;

use policies::{Answer, Approval, ApprovalId, ApprovalState, Verdict};
use tokio::sync::broadcast::error::RecvError;

use crate::app::{Shared, now};
use crate::control::peer::{Access, Peer};
use crate::control::protocol::{ErrorCode, ErrorReply};
use crate::control::server::Replies;
use crate::control::view::ApprovalView;

pub(super) async fn list(
    all: bool,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    for approval in shared.proxy.approvals().list() {
        if all || approval.state == ApprovalState::Pending {
            send(approval, shared, replies).await?;
        }
    }
    Ok(())
}

pub(super) async fn show(
    id: &ApprovalId,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let approval = shared
        .proxy
        .approvals()
        .show(id)
        .ok_or_else(|| unknown(id))?;
    send(approval, shared, replies).await
}

pub(super) async fn watch(shared: &Arc<Shared>, replies: &mut Replies) -> Result<(), ErrorReply> {
    // Subscribed before the list is read, so that nothing falls between the two; something may come twice.
    let mut changes = shared.proxy.approvals().watch();
    list(false, shared, replies).await?;
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            () = replies.hung_up() => return Ok(()),
        };
        match change {
            Ok(approval) => send(approval, shared, replies).await?,
            Err(RecvError::Lagged(_)) => list(false, shared, replies).await?,
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

pub(super) async fn answer(
    peer: &Peer,
    id: ApprovalId,
    verdict: Verdict,
    note: Option<String>,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let approvals = shared.proxy.approvals();
    let approval = approvals.show(&id).ok_or_else(|| unknown(&id))?;
    let groups = match peer.access {
        Access::Root => approval.groups.clone(),
        Access::Member => shared.config().approvals.groups_of(&peer.user),
    };
    let answer = Answer {
        approver: peer.user.clone(),
        groups,
        verdict,
        at: now(),
        note,
    };
    let refused = |error: mitm_proxy::AnswerFailure| {
        let code = match &error {
            mitm_proxy::AnswerFailure::Audit(_) => ErrorCode::AuditUnavailable,
            mitm_proxy::AnswerFailure::Refused(_) => ErrorCode::AnswerRefused,
            mitm_proxy::AnswerFailure::Unknown(_) => ErrorCode::ApprovalUnknown,
        };
        ErrorReply::new(code, error.to_string())
    };
    let approval = approvals.answer(&id, answer).await.map_err(refused)?;
    send(approval, shared, replies).await
}

async fn send(
    approval: Approval,
    shared: &Arc<Shared>,
    replies: &mut Replies,
) -> Result<(), ErrorReply> {
    let bundle = shared.proxy.bundle();
    let view = ApprovalView::new(approval, &bundle);
    drop(bundle);
    replies.item(&view).await
}

fn unknown(id: &ApprovalId) -> ErrorReply {
    ErrorReply::new(
        ErrorCode::ApprovalUnknown,
        format!("there is no approval {id}; `sluice approvals list` shows those that wait"),
    )
}
