//! An approval as people and scripts see it: the stored one, and what the bundle says of its capability and policies.
//! The shape of `approvals list|show|watch --format json`.
//! INVARIANT: fields are added, never renamed.

use policies::{Approval, Bundle, PolicyId, Risk};
use serde::{Deserialize, Serialize};

/// An approval with the risks of what it is for, and why it is asked.
#[derive(Clone, Debug, Serialize)]
pub struct ApprovalView {
    /// The stored approval; its fields come first and at the top level.
    #[serde(flatten)]
    pub approval: Approval,
    /// The capability's risk classes in the bundle in force.
    pub risks: Vec<Risk>,
    /// The policies that asked, with their reasons in the bundle in force.
    pub asked_by: Vec<AskedBy>,
}

/// A policy that held the call.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AskedBy {
    /// Its `@id`.
    pub policy: PolicyId,
    /// Its `@reason`.
    pub reason: Option<String>,
}

impl ApprovalView {
    /// Adds what `bundle` says.
    #[must_use]
    pub fn new(approval: Approval, bundle: &Bundle) -> ApprovalView {
        let connector = bundle.connector(&approval.capability.connector);
        let capability =
            connector.and_then(|connector| connector.capability(&approval.capability.name));
        let risks = capability
            .map(|capability| capability.risks().to_vec())
            .unwrap_or_default();
        let asked = |id: &PolicyId| AskedBy {
            policy: id.clone(),
            reason: bundle.policy(id).and_then(|policy| policy.reason),
        };
        let asked_by = approval.policies.iter().map(asked).collect();
        ApprovalView {
            approval,
            risks,
            asked_by,
        }
    }

    /// Reads what the daemon sent. The stored approval refuses unknown fields, so the added ones are taken out first.
    ///
    /// # Errors
    /// It is not an approval.
    pub fn read(mut value: serde_json::Value) -> Result<ApprovalView, serde_json::Error> {
        let mut added = |name: &str| {
            value
                .as_object_mut()
                .and_then(|fields| fields.shift_remove(name))
                .unwrap_or_default()
        };
        let (risks, asked_by) = (added("risks"), added("asked_by"));
        Ok(ApprovalView {
            approval: serde_json::from_value(value)?,
            risks: serde_json::from_value(risks)?,
            asked_by: serde_json::from_value(asked_by)?,
        })
    }
}
