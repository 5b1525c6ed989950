//! Examples: requests in a connector file that must be a capability, or must not.
//! `sluice connector test` and this crate's own tests run them; they are the file's documentation too.
//! INVARIANT: an example runs through the same matching as a request from the wire.

use super::Connector;
use super::capability::Capability;
use super::file::RawExample;
use super::request::Request;
use crate::diagnostic::Place;
use crate::{CapabilityId, Endpoint, Reason, RequestView, Source, Value};
use serde::Serialize;
use std::collections::BTreeMap;
use toml::Spanned;

/// One example of a file.
#[derive(Debug, Clone)]
pub(super) struct Example {
    raw: RawExample,
    hit: bool,
    place: Place,
}

/// What came of one example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExampleResult {
    /// The capability that the example belongs to.
    pub capability: CapabilityId,
    /// Where the example stands: file, line and column.
    pub place: String,
    /// The example's request in one line.
    pub request: String,
    /// Whether the request must be this capability, or must not.
    pub hit: bool,
    /// What went otherwise than told; `None` where all went as told.
    pub failure: Option<String>,
}

impl Example {
    pub(super) fn new(raw: &Spanned<RawExample>, hit: bool, source: &Source) -> Example {
        Example {
            place: source.place(raw.span()),
            raw: raw.get_ref().clone(),
            hit,
        }
    }

    pub(super) fn run(&self, connector: &Connector, capability: &Capability) -> ExampleResult {
        let raw = &self.raw;
        let query = raw
            .query
            .as_ref()
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let body = raw
            .form
            .as_ref()
            .or(raw.json.as_ref())
            .map(|body| format!(" {body}"))
            .unwrap_or_default();
        ExampleResult {
            capability: capability.id().clone(),
            place: self.place.to_string(),
            request: format!("{} {}{query}{body}", raw.method, raw.path),
            hit: self.hit,
            failure: self.failure(connector, capability),
        }
    }

    fn failure(&self, connector: &Connector, capability: &Capability) -> Option<String> {
        let outcome = self.map(connector);
        match (self.hit, outcome) {
            (true, Ok((id, params))) if id == *capability.id() => self.wrong_param(&params),
            (_, Ok((id, _))) if self.hit || id == *capability.id() => {
                Some(format!("the request is {id}"))
            }
            (false, Ok((id, _))) => self
                .raw
                .reason
                .map(|reason| format!("the request is {id}, not refused as {reason}")),
            (true, Err((reason, detail))) => Some(format!("refused as {reason}: {detail}")),
            (false, Err((reason, detail))) => {
                let wanted = self.raw.reason.filter(|wanted| *wanted != reason)?;
                Some(format!("refused as {reason} instead of {wanted}: {detail}"))
            }
            (true, Ok(_)) => None,
        }
    }

    fn wrong_param(&self, params: &BTreeMap<String, Value>) -> Option<String> {
        let wrong = self
            .raw
            .params
            .iter()
            .find(|(name, value)| params.get(*name) != Some(value))?;
        let found = params
            .get(wrong.0)
            .map_or("absent".to_owned(), ToString::to_string);
        Some(format!(
            "the param `{}` is {found}, not {}",
            wrong.0, wrong.1
        ))
    }

    fn map(
        &self,
        connector: &Connector,
    ) -> Result<(CapabilityId, BTreeMap<String, Value>), (Reason, String)> {
        let raw = &self.raw;
        let content_type = match (&raw.form, &raw.json) {
            (Some(_), _) => Some("application/x-www-form-urlencoded"),
            (None, Some(_)) => Some("application/json"),
            (None, None) => None,
        };
        let mut headers: Vec<(&str, &str)> = raw
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if !raw.headers.contains_key("content-type") {
            headers.extend(content_type.map(|value| ("content-type", value)));
        }
        let body = raw
            .form
            .as_ref()
            .or(raw.json.as_ref())
            .map(String::as_bytes)
            .unwrap_or_default();
        let view = RequestView {
            method: &raw.method,
            path: &raw.path,
            query: raw.query.as_deref(),
            headers: &headers,
            body: Some(body),
        };
        let refused = |refused: crate::Refused| (refused.reason, refused.detail);
        let at = self
            .endpoint(connector)
            .ok_or((Reason::HostUnknown, "the example's host".to_owned()))?;
        let mut request = Request::head(&view).map_err(refused)?;
        let mapped = connector
            .map_head(&at, &mut request, false)
            .map_err(refused)?;
        let mapped = mapped.ok_or((Reason::AmbiguousRequest, "the body".to_owned()))?;
        Ok((mapped.capability.id().clone(), mapped.params))
    }

    /// The example's host, else the connector's default or first; a wildcard gets a label.
    fn endpoint(&self, connector: &Connector) -> Option<Endpoint> {
        let first = || connector.default_host.as_ref().or(connector.hosts.first());
        let text = match self.raw.host.as_ref().or_else(first) {
            Some(pattern) => pattern.to_string().replace("*.", "example."),
            None => "example.com".to_owned(),
        };
        if text.contains(':') {
            text.parse().ok()
        } else {
            format!("{text}:443").parse().ok()
        }
    }
}
