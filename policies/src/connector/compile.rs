//! From the file as written to a connector that can be matched, with every check that the shape of the file cannot make.
//! Step two of loading a connector; all problems of a file are reported at once.
//! INVARIANT: what passes here is unambiguous: overlapping capabilities, unread body conditions and unknown holes do not.

use super::Connector;
use super::capability::{BodyUse, Capability, Matcher};
use super::condition::{Condition, Conditions, Test, body_field};
use super::example::Example;
use super::file::{
    OneOrMany, RawCapability, RawConnector, RawMatch, RawParam, RawPlace, RawTest, is_header_name,
};
use super::json::Pointer;
use super::param::{Param, ParamKind};
use super::path::{Relation, Template, is_param_name};
use super::request::Field;
use super::route::Routes;
use crate::{CapabilityId, Diagnostic, Diagnostics, HostPattern, Source, Strip};
use std::collections::BTreeMap;
use std::ops::Range;
use toml::Spanned;

/// Bytes of body that are read for a decision where the file says nothing, and the most that it may ask for.
const BODY_LIMIT: usize = 1 << 20;
const BODY_LIMIT_MOST: usize = 16 << 20;
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
        self.problems.0.push(self.source.diagnostic(span, message));
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

    fn params(&mut self, raw: &RawCapability, matchers: &[Matcher]) -> BTreeMap<String, Param> {
        let everywhere = |name: &str| {
            matchers
                .iter()
                .all(|matcher| matcher.template.names().any(|hole| hole == name))
        };
        let mut params = BTreeMap::new();
        for hole in matchers.iter().flat_map(|matcher| matcher.template.names()) {
            let plain = Param {
                kind: ParamKind::String,
                required: everywhere(hole),
                in_path: true,
                encoded_slash: false,
                fields: Vec::new(),
            };
            params.insert(hole.to_owned(), plain);
        }
        let connector_raw = self.raw;
        for (name, param) in connector_raw.params.iter().chain(&raw.params) {
            if !is_param_name(name.get_ref()) {
                self.problem(
                    name.span(),
                    format!(
                        "`{}` is not a param name: a-z, 0-9 and `_`, not starting with a digit",
                        name.get_ref()
                    ),
                );
                continue;
            }
            let hole = params
                .get(name.get_ref())
                .filter(|known| known.in_path)
                .cloned();
            let read = self.param(name.get_ref(), param.get_ref(), hole);
            if let Some(read) = self.check(param.span(), read) {
                params.insert(name.get_ref().clone(), read);
            }
        }
        params
    }

    fn param(&self, name: &str, raw: &RawParam, hole: Option<Param>) -> Result<Param, String> {
        let default = self.raw.params_in.as_ref().map(|places| places.get_ref());
        let hole_only = OneOrMany(vec![RawPlace::Path]);
        let places = raw
            .places
            .as_ref()
            .or(hole.is_some().then_some(&hole_only))
            .or(default);
        let places = places
            .filter(|places| !places.0.is_empty())
            .ok_or("this param needs `in`: path, query, header, form or json")?;
        let field_name = raw.name.as_deref().unwrap_or(name);
        let mut fields = Vec::new();
        for place in &places.0 {
            match place {
                RawPlace::Path
                    if hole.is_none() || raw.name.is_some() || raw.kind == ParamKind::List =>
                {
                    return Err(format!(
                        "a param in the path is text, a number or a boolean, and named after its hole; there is no `{{{name}}}`"
                    ));
                }
                RawPlace::Path => {}
                RawPlace::Json if field_name.starts_with('/') => {
                    fields.push(Field::Json(Pointer::parse(field_name)?))
                }
                RawPlace::Json => fields.push(Field::Json(Pointer::key(field_name))),
                _ if field_name.starts_with('/') => {
                    return Err("a JSON pointer names a field of a JSON body only".into());
                }
                RawPlace::Form => fields.push(Field::Form(field_name.into())),
                RawPlace::Query => fields.push(Field::Query(field_name.into())),
                RawPlace::Header => {
                    let header = raw.name.clone().unwrap_or_else(|| name.replace('_', "-"));
                    if !is_header_name(&header) || raw.kind == ParamKind::List {
                        return Err(format!(
                            "`{header}` is not a lower-case header name that can be read as this type"
                        ));
                    }
                    fields.push(Field::Header(header));
                }
            }
        }
        let many = fields
            .iter()
            .any(|field| matches!(field, Field::Json(pointer) if pointer.is_many()));
        if many && !matches!(raw.kind, ParamKind::Integer | ParamKind::List) {
            return Err("a pointer with `*` is counted (`integer`) or collected (`list`)".into());
        }
        let in_path = places.0.contains(&RawPlace::Path);
        if hole.is_some() && !in_path {
            return Err(format!(
                "`{name}` is a hole of the path; a param read elsewhere needs another name"
            ));
        }
        let required = raw.required || hole.is_some_and(|hole| in_path && hole.required);
        Ok(Param {
            kind: raw.kind,
            required,
            in_path,
            encoded_slash: raw.encoded_slash,
            fields,
        })
    }

    fn body(
        &mut self,
        raw: &RawCapability,
        matchers: &[Matcher],
        params: &BTreeMap<String, Param>,
    ) -> BodyUse {
        let fields: Vec<&Field> = params
            .values()
            .flat_map(|param| &param.fields)
            .chain(
                matchers
                    .iter()
                    .flat_map(|matcher| matcher.conditions.fields()),
            )
            .collect();
        let form = fields.iter().any(|field| matches!(field, Field::Form(_)));
        let json = fields.iter().any(|field| matches!(field, Field::Json(_)));
        let read = form
            || json
            || matchers
                .iter()
                .any(|matcher| matcher.conditions.read_body());
        let limit = raw
            .body_limit
            .as_ref()
            .map_or(BODY_LIMIT, |limit| *limit.get_ref());
        if let Some(given) = raw
            .body_limit
            .as_ref()
            .filter(|_| !(1..=BODY_LIMIT_MOST).contains(&limit))
        {
            self.problem(
                given.span(),
                format!("`body_limit` is between 1 and {BODY_LIMIT_MOST} bytes"),
            );
        }
        match (raw.opaque_body, read) {
            (true, true) => {
                self.problem(
                    raw.name.span(),
                    "the body is opaque, and yet params or conditions read it",
                );
                BodyUse::Ignored
            }
            (false, true) => BodyUse::Read {
                form: form || !json,
                json: json || !form,
                limit,
            },
            (false, false) if !self.raw.auth.get_ref().refuse_fields.is_empty() => BodyUse::Read {
                form: true,
                json: true,
                limit,
            },
            _ => BodyUse::Ignored,
        }
    }

    /// Two capabilities that one request could be, and paths of which neither is the special case.
    fn overlaps(&mut self, capabilities: &[Capability]) {
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

    fn routes(&mut self, capabilities: &[Capability]) -> Routes {
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
