//! Params and bodies of a capability, as declared in its file: where each is read, and whether the body is needed for it.
//! Part of step two of loading a connector.
//! INVARIANT: every param has a place and a type, and an opaque body is read by nobody.

use super::Compiler;
use crate::connector::capability::{BodyUse, Matcher};
use crate::connector::file::{OneOrMany, RawCapability, RawParam, RawPlace, is_header_name};
use crate::connector::json::Pointer;
use crate::connector::param::{Param, ParamKind};
use crate::connector::request::Field;
use crate::connector::template::is_param_name;
use std::collections::BTreeMap;

/// Bytes of body that are read for a decision where the file says nothing, and the most that it may ask for.
const BODY_LIMIT: usize = 1 << 20;
const BODY_LIMIT_MOST: usize = 16 << 20;

impl Compiler<'_> {
    pub(super) fn params(
        &mut self,
        raw: &RawCapability,
        matchers: &[Matcher],
    ) -> BTreeMap<String, Param> {
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
        self.clashes(raw, matchers);
        for (name, param) in self.raw.params.iter().chain(&raw.params) {
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

    /// Names that the capability gives to a param of its own though every capability has one of that name: which of the two a
    /// policy would look at must not depend on who knows which wins.
    fn clashes(&mut self, raw: &RawCapability, matchers: &[Matcher]) {
        let mut clashes = Vec::new();
        for name in self.raw.params.keys() {
            let everywhere = self.source.place(name.span());
            let holes = matchers.iter().flat_map(|matcher| matcher.template.names());
            let hole = holes
                .filter(|hole| *hole == name.get_ref())
                .map(|_| raw.name.span());
            let own = raw
                .params
                .keys()
                .filter(|own| own.get_ref() == name.get_ref())
                .map(toml::Spanned::span);
            clashes.extend(own.chain(hole).next().map(|span| {
                let message = format!(
                    "`{}` has a param `{}` of its own, and every capability has one of that name already (at {everywhere})",
                    raw.name.get_ref(),
                    name.get_ref()
                );
                (span, message)
            }));
        }
        for (span, message) in clashes {
            self.problem(span, message);
        }
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

    pub(super) fn body(
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
}
