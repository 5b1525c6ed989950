//! The report of one enforcement layer, as `sluice doctor`, `sluice status` and the metrics show it.
//! Made by the enforcer, carried to the proxy process, printed by the command line.
//! INVARIANT: a layer that is not live says what that leaves open.

use serde::{Deserialize, Serialize};

/// One wall between an agent and the network, and how it stands on this host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    /// The layer's name, such as `connect` or `lsm`; also its metric label.
    pub name: String,
    /// How it stands.
    pub state: LayerState,
    /// What an agent could do because the layer is not live; empty for a live one.
    pub leaves_open: Vec<String>,
}

/// How a layer stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// Not there at all.
    Absent,
    /// There, but weaker than designed.
    Degraded,
    /// In force.
    Live,
}

impl LayerState {
    /// Every state, for exhaustive metric families.
    pub const ALL: [LayerState; 3] = [LayerState::Absent, LayerState::Degraded, LayerState::Live];

    /// The word used in output and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LayerState::Absent => "absent",
            LayerState::Degraded => "degraded",
            LayerState::Live => "live",
        }
    }
}
