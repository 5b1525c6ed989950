//! Checks over all capabilities of a connector at once: which could be the same request, which hosts nobody serves.
//! The last part of step two of loading a connector, and the making of its routes.
//! INVARIANT: a connector whose file order would matter does not load.

use super::Compiler;
use crate::connector::capability::Capability;
use crate::connector::route::Routes;
use crate::connector::template::Relation;
use crate::{Diagnostic, HostPattern};

impl Compiler<'_> {
    /// Two capabilities that one request could be, and paths of which neither is the special case.
    pub(super) fn overlaps(&mut self, capabilities: &[Capability]) {
        for (at, left) in capabilities.iter().enumerate() {
            for right in capabilities.iter().skip(at + 1) {
                let problem = if left.id == right.id {
                    format!(
                        "the capability `{}` is already declared at {}",
                        right.id.name, left.place
                    )
                } else if left.overlaps(right, true) {
                    format!(
                        "`{}` and `{}` (at {}) can be the same request",
                        right.id.name, left.id.name, left.place
                    )
                } else if let Some((a, b)) = crossing(left, right) {
                    format!(
                        "the paths {b} of `{}` and {a} of `{}` (at {}) cross: neither is the special case of the other",
                        right.id.name, left.id.name, left.place
                    )
                } else {
                    continue;
                };
                let hint = "tell them apart by method, path, or a field that one of them has and the other has not (`none_of`, `only`)";
                self.problems.0.push(Diagnostic {
                    hint: Some(hint.into()),
                    ..right.place.diagnostic(problem)
                });
            }
        }
    }

    /// Hosts that are named and that no capability is for.
    pub(super) fn unserved(&mut self, capabilities: &[Capability]) {
        let hosts = capabilities
            .iter()
            .flat_map(|capability| &capability.matchers);
        let hosts: Vec<Option<&HostPattern>> = hosts.map(|matcher| matcher.host.as_ref()).collect();
        for host in &self.raw.hosts {
            if !hosts
                .iter()
                .any(|own| own.is_none_or(|own| own.overlaps(host.get_ref())))
            {
                self.problem(
                    host.span(),
                    format!("no capability is for the host `{}`", host.get_ref()),
                );
            }
        }
    }

    pub(super) fn routes(&mut self, capabilities: &[Capability]) -> Routes {
        let mut routes = Routes::default();
        for (at, capability) in capabilities.iter().enumerate() {
            for (index, matcher) in capability.matchers.iter().enumerate() {
                if let Err(error) = routes.add(matcher, (at, index)) {
                    self.problems.0.push(
                        capability
                            .place
                            .diagnostic(format!("the path {}: {error}", matcher.template.as_str())),
                    );
                }
            }
        }
        routes
    }
}

fn crossing<'c>(left: &'c Capability, right: &'c Capability) -> Option<(&'c str, &'c str)> {
    let pairs = left
        .matchers
        .iter()
        .flat_map(|a| right.matchers.iter().map(move |b| (a, b)));
    let mut crossing = pairs.filter(|(a, b)| {
        a.host == b.host && a.template.relation(&b.template) == Relation::Crossing
    });
    crossing
        .next()
        .map(|(a, b)| (a.template.as_str(), b.template.as_str()))
}
