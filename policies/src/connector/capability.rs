//! Capabilities: the named operations of a connector, and the matchers that recognise them.
//! Built by `compile`, found by `route`, turned into a call by the catalogue.
//! INVARIANT: two capabilities of one connector that some request could both be do not load.

use super::condition::Conditions;
use super::example::Example;
use super::param::Param;
use super::request::{Body, Field, Request};
use super::template::{Relation, Template};
use crate::diagnostic::Place;
use crate::{CapabilityId, HostPattern, Refused, Risk, Value};
use std::collections::BTreeMap;

/// A named operation of a connector: risk classes, typed params, and the requests that are it.
#[derive(Debug, Clone)]
pub struct Capability {
    pub(super) id: CapabilityId,
    pub(super) docs: Option<String>,
    pub(super) risks: Vec<Risk>,
    pub(super) params: BTreeMap<String, Param>,
    pub(super) matchers: Vec<Matcher>,
    pub(super) body: BodyUse,
    pub(super) refuse_fields: Vec<String>,
    pub(super) examples: Vec<Example>,
    pub(super) place: Place,
}

/// What a capability does with the body of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyUse {
    Ignored,
    Read {
        form: bool,
        json: bool,
        limit: usize,
    },
}

/// One shape of request.
#[derive(Debug, Clone)]
pub(super) struct Matcher {
    pub(super) methods: Vec<String>,
    pub(super) template: Template,
    pub(super) websocket: bool,
    pub(super) host: Option<HostPattern>,
    pub(super) conditions: Conditions,
}

impl Capability {
    /// `stripe/refunds.create`.
    pub fn id(&self) -> &CapabilityId {
        &self.id
    }

    /// The vendor's page about this operation, where the file names one.
    pub fn docs(&self) -> Option<&str> {
        self.docs.as_deref()
    }

    /// Its risk classes, the main one first; never empty.
    pub fn risks(&self) -> &[Risk] {
        &self.risks
    }

    /// Its params, by name; a name is `[a-z_][a-z0-9_]*`.
    pub fn params(&self) -> &BTreeMap<String, Param> {
        &self.params
    }

    /// The requests that are it, for people: `POST /v1/refunds`.
    pub fn shapes(&self) -> impl Iterator<Item = String> {
        self.matchers.iter().map(|matcher| {
            format!(
                "{} {}",
                matcher.methods.join("|"),
                matcher.template.as_str()
            )
        })
    }

    /// Whether some request on these hosts could be both; `apart_by_path` where a more special path goes first.
    pub(crate) fn overlaps(&self, other: &Capability, apart_by_path: bool) -> bool {
        self.matchers
            .iter()
            .any(|a| other.matchers.iter().any(|b| a.overlaps(b, apart_by_path)))
    }

    /// Reads the params of a request that is this capability.
    pub(super) fn read_params(
        &self,
        request: &Request<'_>,
        holes: &BTreeMap<&str, &str>,
    ) -> Result<BTreeMap<String, Value>, Refused> {
        let mut values = BTreeMap::new();
        for (name, param) in &self.params {
            let in_path = holes.get(name.as_str()).copied().filter(|_| param.in_path);
            if let Some(value) = param.read(name, request, in_path)? {
                values.insert(name.clone(), value);
            }
        }
        Ok(values)
    }

    /// Every field that decides or is read as a param.
    pub(super) fn fields(&self) -> impl Iterator<Item = &Field> {
        self.params
            .values()
            .flat_map(|param| &param.fields)
            .chain(self.deciding_fields())
    }

    /// The fields that decide whether a request is this capability.
    pub(super) fn deciding_fields(&self) -> impl Iterator<Item = &Field> {
        self.matchers
            .iter()
            .flat_map(|matcher| matcher.conditions.fields())
    }

    /// Refuses a body of another kind than this capability reads, and fields that carry a credential past us.
    pub(super) fn check_body(&self, request: &Request<'_>) -> Result<(), Refused> {
        let BodyUse::Read { form, json, .. } = self.body else {
            return Ok(());
        };
        let fits = match &request.body {
            Body::Form(_) => form,
            Body::Json(_) => json,
            Body::Empty | Body::Unread => true,
        };
        if !fits {
            let wanted = if form { "a form" } else { "JSON" };
            return Err(Refused::ambiguous(format!(
                "{} reads {wanted}, and the body is of another type",
                self.id
            )));
        }
        let credential = self
            .refuse_fields
            .iter()
            .find(|field| request.body_mentions(field));
        match credential {
            Some(field) => Err(Refused::ambiguous(format!(
                "the body carries its own credential in `{field}`; leave it out, Sluice adds the connection's"
            ))),
            None => Ok(()),
        }
    }
}

impl Matcher {
    fn overlaps(&self, other: &Matcher, apart_by_path: bool) -> bool {
        let hosts = match (&self.host, &other.host) {
            (Some(a), Some(b)) => a.overlaps(b),
            _ => true,
        };
        let paths = match self.template.relation(&other.template) {
            Relation::Apart => false,
            Relation::Special => !(apart_by_path && self.host == other.host),
            Relation::Same | Relation::Crossing => true,
        };
        let methods = self
            .methods
            .iter()
            .any(|method| other.methods.contains(method));
        let kinds = self.websocket == other.websocket;
        hosts && paths && methods && kinds && !self.conditions.excludes(&other.conditions)
    }
}
