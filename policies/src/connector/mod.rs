//! Connectors: what a vendor's API looks like, as data.
#![allow(dead_code)]
#![expect(clippy::todo, reason = "signatures first")]

use crate::{
    Auth, CapabilityId, CapabilityName, ConnectorId, Diagnostics, HostPattern, Risk, Source,
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A vendor's API: hosts, where the credential goes, capabilities.
#[derive(Debug, Clone)]
pub struct Connector {
    id: ConnectorId,
    docs: String,
    hosts: Vec<HostPattern>,
    capabilities: Vec<Capability>,
}

impl Connector {
    /// Reads one connector file.
    pub fn parse(_source: &Source) -> Result<Connector, Diagnostics> {
        todo!()
    }
    /// The connectors that come with Sluice.
    pub fn shipped() -> Result<Vec<Connector>, Diagnostics> {
        todo!()
    }
    /// Its id.
    pub fn id(&self) -> &ConnectorId {
        &self.id
    }
    /// The vendor's documentation.
    pub fn docs(&self) -> &str {
        &self.docs
    }
    /// The hosts it names; empty where each connection must name its own.
    pub fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }
    /// Its capabilities, in file order.
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }
    /// One capability.
    pub fn capability(&self, _name: &CapabilityName) -> Option<&Capability> {
        todo!()
    }
    /// Runs every example of the file.
    pub fn test(&self) -> Vec<ExampleResult> {
        todo!()
    }
}

/// A named operation.
#[derive(Debug, Clone)]
pub struct Capability {
    id: CapabilityId,
    risks: Vec<Risk>,
    params: BTreeMap<String, Param>,
}

impl Capability {
    /// `stripe/refunds.create`.
    pub fn id(&self) -> &CapabilityId {
        &self.id
    }
    /// Its risk classes, the main one first; never empty.
    pub fn risks(&self) -> &[Risk] {
        &self.risks
    }
    /// Its params, by name; a name is `[a-z_][a-z0-9_]*`.
    pub fn params(&self) -> &BTreeMap<String, Param> {
        &self.params
    }
}

/// A param: a typed fact of a call that policies may look at.
#[derive(Debug, Clone)]
pub struct Param {
    kind: ParamKind,
    required: bool,
}

impl Param {
    /// Its type.
    pub fn kind(&self) -> ParamKind {
        self.kind
    }
    /// Whether every call has it (path params always are).
    pub fn required(&self) -> bool {
        self.required
    }
}

/// The type of a param.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamKind {
    /// true or false.
    Boolean,
    /// A whole number of 64 bits.
    Integer,
    /// A list of texts (numbers in it are written as text).
    List,
    /// Text.
    String,
}

/// What came of one example.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExampleResult {
    /// The capability the example belongs to.
    pub capability: CapabilityId,
    /// The example's request in one line.
    pub request: String,
    /// Whether the request must be this capability, or must not.
    pub hit: bool,
    /// What went otherwise than told; `None` where all was as told.
    pub failure: Option<String>,
}

/// One value or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub(crate) struct OneOrMany<T>(pub(crate) Vec<T>);

/// The `auth` table of a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAuth {
    kind: String,
}

impl RawAuth {
    pub(crate) fn kind(&self) -> Result<Auth, String> {
        todo!()
    }
}
