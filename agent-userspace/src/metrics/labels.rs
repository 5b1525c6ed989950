//! The label sets of the metrics.
//! Each label is a name of the configuration or of a closed enum.
//! INVARIANT: nothing an agent chose becomes a label.

use std::fmt::{self, Display, Write as _};

use policies::{AgentName, CapabilityName, ConnectorId, Tenant};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// A name as a label: shared, so that counting a call copies no text.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Name<T>(pub(super) T);

impl<T: Display> EncodeLabelValue for Name<T> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        write!(encoder, "{}", self.0)
    }
}

/// A decided call.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct CallLabels {
    pub(super) tenant: Name<Tenant>,
    pub(super) agent: Name<AgentName>,
    pub(super) connector: Name<ConnectorId>,
    pub(super) capability: Name<CapabilityName>,
    pub(super) decision: &'static str,
}

/// A refusal; tenant and agent are empty where they could not be known.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct RefusalLabels {
    pub(super) tenant: String,
    pub(super) agent: String,
    pub(super) reason: &'static str,
}

/// A fault that the watchdog found.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct FaultLabels {
    pub(super) fault: String,
    pub(super) outcome: &'static str,
}

/// A refusal by the kernel.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct KindLabels {
    pub(super) kind: String,
}

/// A name that was asked for.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct AnswerLabels {
    pub(super) answer: &'static str,
}

/// One way out in one state.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct EscapeLabels {
    pub(super) class: &'static str,
    pub(super) state: &'static str,
}

/// One enforcement layer in one state.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct LayerLabels {
    pub(super) layer: String,
    pub(super) state: &'static str,
}

/// The bundle in force.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct BundleLabels {
    pub(super) version: String,
}
