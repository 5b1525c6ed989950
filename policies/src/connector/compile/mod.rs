//! From the file as written to a connector that can be matched, with every check that the shape of the file cannot make.
//! Step two of loading a connector; all problems of a file are reported at once.
//! INVARIANT: what passes here is unambiguous: overlapping capabilities, unread body conditions and unknown holes do not.

mod overlap;
mod params;

use super::Connector;
use super::capability::{Capability, Matcher};
use super::condition::{Condition, Conditions, Test, body_field};
use super::example::Example;
use super::file::{RawCapability, RawConnector, RawMatch, RawTest, is_header_name};
use super::json::Pointer;
use super::param::ParamKind;
use super::request::Field;
use super::template::Template;
use crate::{CapabilityId, Diagnostics, HostPattern, Source, Strip};
use std::ops::Range;
use toml::Spanned;

/// The method of a connection that is not read.
const CONNECT: &str = "CONNECT";

/// Headers that are always removed: what an agent could bring a session or a second identity in.
const ALWAYS_STRIPPED: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Builds a connector from one file.
pub(super) fn connector(raw: RawConnector, source: &Source) -> Result<Connector, Diagnostics> {
    let mut problems = Diagnostics::default();
    if *raw.schema.get_ref() != 1 {
        problems
            .0
            .push(source.diagnostic(raw.schema.span(), "only `schema = 1` is known"));
    }
    if !raw.docs.get_ref().starts_with("https://") {
        problems.0.push(source.diagnostic(
            raw.docs.span(),
            "`docs` is the https:// address of the vendor's documentation",
        ));
    }
    if raw.capabilities.is_empty() {
        problems.0.push(source.diagnostic(
            raw.id.span(),
            "a connector has at least one `[[capability]]`",
        ));
    }
    let mut compiler = Compiler {
        source,
        problems,
        raw: &raw,
    };
    let (auth, auth_by_host, strip) = compiler.auth();
    let capabilities: Vec<Capability> = raw
        .capabilities
        .iter()
        .filter_map(|capability| compiler.capability(capability))
        .collect();
    compiler.overlaps(&capabilities);
    compiler.unserved(&capabilities);
    let opaque = compiler.opaque(&capabilities);
    let routes = compiler.routes(&capabilities);
    let problems = compiler.problems;
    problems.or(Connector {
        place: source.place(raw.id.span()),
        docs: raw.docs.get_ref().clone(),
        notes: raw.notes.clone(),
        hosts: raw
            .hosts
            .iter()
            .map(|host| host.get_ref().clone())
            .collect(),
        opaque,
        require_hosts: raw.require_hosts || raw.hosts.is_empty(),
        default_host: raw.default_host.as_ref().map(|host| host.get_ref().clone()),
        settable_auth: raw.auth.get_ref().settable,
        id: raw.id.into_inner(),
        auth,
        auth_by_host,
        strip,
        capabilities,
        routes,
    })
}

struct Compiler<'a> {
    source: &'a Source,
    raw: &'a RawConnector,
    problems: Diagnostics,
}

impl Compiler<'_> {
    fn problem(&mut self, span: Range<usize>, message: impl Into<String>) {
        let problem = self.source.diagnostic(span, message);
        // What is wrong with a param of every capability is said once.
        if !self.problems.0.contains(&problem) {
            self.problems.0.push(problem);
        }
    }

    fn check<T>(&mut self, span: Range<usize>, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.problem(span, message)).ok()
    }

    fn auth(&mut self) -> (crate::Auth, Vec<(HostPattern, crate::Auth)>, Vec<Strip>) {
        let raw = &self.raw.auth;
        let auth = self
            .check(raw.span(), raw.get_ref().kind())
            .unwrap_or(crate::Auth::None);
        let mut by_host = Vec::new();
        for (host, other) in &self.raw.auth_by_host {
            by_host.extend(
                self.check(other.span(), other.get_ref().kind())
                    .map(|auth| (host.clone(), auth)),
            );
        }
        let mut strip: Vec<Strip> = ALWAYS_STRIPPED
            .iter()
            .map(|name| Strip::Header((*name).into()))
            .collect();
        for name in &raw.get_ref().strip {
            match name.strip_prefix('?') {
                Some(key) => strip.push(Strip::Query(key.into())),
                None if is_header_name(name) => strip.push(Strip::Header(name.clone())),
                None => self.problem(
                    raw.span(),
                    format!(
                        "`{name}` in `strip` is neither a lower-case header name nor `?query_key`"
                    ),
                ),
            }
        }
        strip.extend(
            auth.place()
                .into_iter()
                .chain(by_host.iter().filter_map(|(_, auth)| auth.place())),
        );
        strip.sort();
        strip.dedup();
        (auth, by_host, strip)
    }

    fn capability(&mut self, raw: &Spanned<RawCapability>) -> Option<Capability> {
        let raw = raw.get_ref();
        let before = self.problems.0.len();
        if raw.risk.get_ref().0.is_empty() {
            self.problem(raw.risk.span(), "a capability has at least one risk class");
        }
        if raw.examples.hit.is_empty() {
            self.problem(
                raw.name.span(),
                format!("`{}` has no example that hits it", raw.name.get_ref()),
            );
        }
        if let Some(docs) = raw
            .docs
            .as_ref()
            .filter(|docs| !docs.get_ref().starts_with("https://"))
        {
            self.problem(docs.span(), "`docs` is an https:// address");
        }
        let mut matchers: Vec<Matcher> = raw
            .matchers
            .0
            .iter()
            .filter_map(|matcher| self.matcher(matcher))
            .collect();
        if matchers.is_empty() && before == self.problems.0.len() {
            self.problem(raw.name.span(), "a capability has at least one `match`");
        }
        let params = self.params(raw, &matchers);
        let is_number = |name: &str| {
            params
                .get(name)
                .is_some_and(|param| param.kind == ParamKind::Integer)
        };
        matchers
            .iter_mut()
            .for_each(|matcher| matcher.template.mark_numbers(is_number));
        let body = self.body(raw, &matchers, &params);
        let id = CapabilityId {
            connector: self.raw.id.get_ref().clone(),
            name: raw.name.get_ref().clone(),
        };
        let hits = raw
            .examples
            .hit
            .iter()
            .map(|example| Example::new(example, true, self.source));
        let misses = raw
            .examples
            .miss
            .iter()
            .map(|example| Example::new(example, false, self.source));
        let capability = Capability {
            id,
            docs: raw.docs.as_ref().map(|docs| docs.get_ref().clone()),
            risks: raw.risk.get_ref().0.clone(),
            params,
            matchers,
            body,
            refuse_fields: self.raw.auth.get_ref().refuse_fields.clone(),
            examples: hits.chain(misses).collect(),
            place: self.source.place(raw.name.span()),
        };
        (before == self.problems.0.len()).then_some(capability)
    }

    /// Whether this is a connector of hosts that do not speak HTTP: then connecting is all that it knows.
    fn opaque(&mut self, capabilities: &[Capability]) -> bool {
        let connects = |matcher: &Matcher| matcher.methods.iter().any(|method| method == CONNECT);
        let matchers = || {
            capabilities
                .iter()
                .flat_map(|capability| &capability.matchers)
        };
        let opaque = matchers().any(connects);
        if opaque && !matchers().all(|matcher| matcher.methods == [CONNECT]) {
            let message = "`CONNECT` is a connection that is not read; a connector has only such capabilities, or none";
            self.problem(self.raw.id.span(), message);
        }
        let auth = self.raw.auth.get_ref();
        if opaque && (auth.settable || auth.kind() != Ok(crate::Auth::None)) {
            let message =
                "nothing is put into a connection that is not read; `auth` is { kind = \"none\" }";
            self.problem(self.raw.auth.span(), message);
        }
        opaque
    }

    fn matcher(&mut self, raw: &RawMatch) -> Option<Matcher> {
        let span = raw.path.span();
        let template = self.check(span.clone(), Template::parse(raw.path.get_ref()))?;
        let method = |method: &String| {
            !method.is_empty()
                && method.len() <= 32
                && method.bytes().all(|b| b.is_ascii_uppercase())
        };
        if raw.method.0.is_empty() || !raw.method.0.iter().all(method) {
            self.problem(span, "`method` is a method in capitals, or a list of them");
        }
        if raw.websocket && raw.method.0 != ["GET"] {
            self.problem(raw.path.span(), "a WebSocket is asked for with GET");
        }
        let host = raw.host.as_ref().or(self.raw.default_host.as_ref());
        if let Some(host) = host.filter(|host| {
            !self
                .raw
                .hosts
                .iter()
                .any(|known| known.get_ref().overlaps(host.get_ref()))
        }) {
            self.problem(
                host.span(),
                format!("`{}` is not among the connector's `hosts`", host.get_ref()),
            );
        }
        let conditions = self.conditions(raw);
        Some(Matcher {
            methods: raw.method.0.clone(),
            template,
            websocket: raw.websocket,
            host: host.map(|host| host.get_ref().clone()),
            conditions,
        })
    }

    fn conditions(&mut self, raw: &RawMatch) -> Conditions {
        let mut conditions = Conditions {
            only: raw.only.clone(),
            ..Conditions::default()
        };
        let mut add = |field: Field, test: &Spanned<RawTest>| {
            let test = match test.get_ref() {
                RawTest::OneOf(values) => Test::OneOf(values.clone()),
                RawTest::Present(present) => Test::Present(*present),
            };
            conditions.all.push(Condition { field, test });
        };
        raw.query
            .iter()
            .for_each(|(name, test)| add(Field::Query(name.clone()), test));
        raw.form
            .iter()
            .for_each(|(name, test)| add(Field::Form(name.clone()), test));
        for (name, test) in &raw.header {
            match is_header_name(name) {
                true => add(Field::Header(name.clone()), test),
                false => self.problem(
                    test.span(),
                    format!("`{name}` is not a lower-case header name that can be matched"),
                ),
            }
        }
        for (pointer, test) in &raw.json {
            if let Some(pointer) = self.check(test.span(), Pointer::parse(pointer)) {
                add(Field::Json(pointer), test);
            }
        }
        for name in &raw.none_of {
            if let Some(field) = self.check(name.span(), body_field(name.get_ref())) {
                conditions.all.push(Condition {
                    field,
                    test: Test::Present(false),
                });
            }
        }
        for name in &raw.any_of {
            conditions
                .any_of
                .extend(self.check(name.span(), body_field(name.get_ref())));
        }
        conditions
    }
}
