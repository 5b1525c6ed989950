//! Routing: from method, host and raw path to the capabilities a request may be, and on to the one that it is.
//! Step 5 of a request's path, within one connector.
//! INVARIANT: of all templates that match a path, only the most special one counts; `compile` made sure that there is one.

use super::capability::{BodyUse, Capability, Matcher};
use super::path::RawPath;
use super::request::{Body, Field, Request};
use crate::{Endpoint, HostPattern, Refused, Value};
use std::collections::BTreeMap;

/// The path tables of a connector: one for each host that its matchers name, and one for those that name none.
#[derive(Debug, Clone, Default)]
pub(super) struct Routes(Vec<Table>);

#[derive(Debug, Clone)]
struct Table {
    host: Option<HostPattern>,
    router: matchit::Router<usize>,
    /// Per shape: which matchers have it, as (capability, matcher).
    shapes: Vec<Vec<(usize, usize)>>,
    known: BTreeMap<String, usize>,
}

/// A capability that a request may be, judged by host, method and path.
#[derive(Debug, Clone)]
pub(super) struct Candidate<'c> {
    pub(super) capability: &'c Capability,
    pub(super) matcher: &'c Matcher,
    /// The raw text in the holes of the template.
    pub(super) holes: BTreeMap<&'c str, &'c str>,
}

/// What a request is.
#[derive(Debug)]
pub(crate) struct Mapped<'c> {
    pub(crate) capability: &'c Capability,
    pub(crate) params: BTreeMap<String, Value>,
    pub(crate) template: &'c str,
}

impl Routes {
    /// Adds a matcher; an error is a shape that the router cannot hold beside the others.
    pub(super) fn add(&mut self, matcher: &Matcher, at: (usize, usize)) -> Result<(), String> {
        let table = match self.0.iter().position(|table| table.host == matcher.host) {
            Some(index) => self.0.get_mut(index),
            None => {
                let host = matcher.host.clone();
                self.0.push(Table {
                    host,
                    router: matchit::Router::new(),
                    shapes: Vec::new(),
                    known: BTreeMap::new(),
                });
                self.0.last_mut()
            }
        };
        table.map_or(Ok(()), |table| table.add(matcher.template.shape(), at))
    }

    /// The capabilities whose host, path and method fit, and, where only the method differs, the ones that were near.
    pub(super) fn candidates<'c>(
        &'c self,
        capabilities: &'c [Capability],
        at: &Endpoint,
        (method, websocket): (&str, bool),
        path: RawPath<'c>,
    ) -> (Vec<Candidate<'c>>, Vec<&'c Capability>) {
        let (mut found, mut near) = (Vec::new(), Vec::new());
        for table in self
            .0
            .iter()
            .filter(|table| table.host.as_ref().is_none_or(|host| host.matches(at)))
        {
            let Ok(hit) = table.router.at(path.as_str()) else {
                continue;
            };
            let values: Vec<&str> = hit.params.iter().map(|(_, value)| value).collect();
            for (capability, matcher) in table.shapes.get(*hit.value).into_iter().flatten() {
                let Some(capability) = capabilities.get(*capability) else {
                    continue;
                };
                let Some(matcher) = capability.matchers.get(*matcher) else {
                    continue;
                };
                let fits = matcher.methods.iter().any(|known| known == method);
                if fits && matcher.websocket == websocket {
                    let holes = matcher
                        .template
                        .names()
                        .zip(values.iter().copied())
                        .collect();
                    found.push(Candidate {
                        capability,
                        matcher,
                        holes,
                    });
                } else {
                    near.push(capability);
                }
            }
        }
        (found, near)
    }
}

impl Table {
    fn add(&mut self, shape: String, at: (usize, usize)) -> Result<(), String> {
        let index = match self.known.get(&shape) {
            Some(index) => *index,
            None => {
                let index = self.shapes.len();
                self.router
                    .insert(shape.clone(), index)
                    .map_err(|error| error.to_string())?;
                self.shapes.push(Vec::new());
                self.known.insert(shape, index);
                index
            }
        };
        self.shapes
            .get_mut(index)
            .into_iter()
            .for_each(|matchers| matchers.push(at));
        Ok(())
    }
}

/// The bytes of body that these candidates need to be told apart or read; `None` where the head is enough.
pub(super) fn body_limit(candidates: &[Candidate<'_>]) -> Option<usize> {
    let limit = |candidate: &Candidate<'_>| match candidate.capability.body {
        BodyUse::Read { limit, .. } => Some(limit),
        BodyUse::Ignored => None,
    };
    candidates.iter().filter_map(limit).max()
}

/// The one candidate that the request is, with its params.
pub(super) fn choose<'c>(
    candidates: Vec<Candidate<'c>>,
    request: &Request<'_>,
) -> Result<Mapped<'c>, Refused> {
    refuse_doubled_places(&candidates, request)?;
    let mut chosen: Option<Candidate<'c>> = None;
    let mut names = Vec::new();
    for candidate in candidates {
        names.push(candidate.capability.id().to_string());
        if !candidate.matcher.conditions.hold_outside_body(request)? {
            continue;
        }
        candidate.capability.check_body(request)?;
        if !candidate.matcher.conditions.hold(request)? {
            continue;
        }
        // INVARIANT: `compile` refuses files in which this can happen.
        if let Some(other) = &chosen {
            let both = format!(
                "the request is both {} and {}",
                other.capability.id(),
                candidate.capability.id()
            );
            return Err(Refused::ambiguous(both));
        }
        chosen = Some(candidate);
    }
    let Some(candidate) = chosen else {
        return Err(Refused::unmapped(format!(
            "the path belongs to {}, and the request has not the fields of one of them alone; send one operation per request",
            names.join(", ")
        )));
    };
    let params = candidate
        .capability
        .read_params(request, &candidate.holes)?;
    Ok(Mapped {
        capability: candidate.capability,
        params,
        template: candidate.matcher.template.as_str(),
    })
}

/// Servers that merge query and body would see a field that we look for in the other place only.
fn refuse_doubled_places(
    candidates: &[Candidate<'_>],
    request: &Request<'_>,
) -> Result<(), Refused> {
    let capabilities = || candidates.iter().map(|candidate| candidate.capability);
    let deciding: Vec<&Field> = capabilities()
        .flat_map(Capability::deciding_fields)
        .collect();
    let all: Vec<&Field> = capabilities().flat_map(Capability::fields).collect();
    let any_list = all
        .iter()
        .any(|field| matches!(field, Field::Json(pointer) if pointer.top() == "*"));
    if matches!(&request.body, Body::Json(json) if !json.is_object()) && !any_list {
        return Err(Refused::malformed("the JSON body must be an object"));
    }
    // What tells capabilities apart must not stand where only a param is read: so the deciding fields are judged by themselves too.
    match misplaced(&deciding, request).or_else(|| misplaced(&all, request)) {
        Some(name) => Err(Refused::ambiguous(format!(
            "`{name}` stands in a place where it is not read, and where a server may read it"
        ))),
        None => Ok(()),
    }
}

/// A name that is read in the query only and stands in the body, or the other way round.
fn misplaced<'f>(fields: &[&'f Field], request: &Request<'_>) -> Option<&'f str> {
    let read_in = |name: &str, in_body: bool| {
        fields
            .iter()
            .any(|field| field.merged_name() == Some(name) && field.in_body() == in_body)
    };
    fields
        .iter()
        .filter_map(|field| field.merged_name())
        .find(|name| match (read_in(name, true), read_in(name, false)) {
            (true, false) => request.query.mentions(name),
            (false, true) => request.body_mentions(name),
            _ => false,
        })
}
