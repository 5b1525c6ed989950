//! The label sets of the metrics.
//! Each label is a name of the configuration or of a closed enum.
//! INVARIANT: nothing an agent chose becomes a label.

use prometheus_client::encoding::EncodeLabelSet;

/// A decided call.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct CallLabels {
    pub(super) tenant: String,
    pub(super) agent: String,
    pub(super) connector: String,
    pub(super) capability: String,
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
