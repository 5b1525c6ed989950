//! Path templates: the shapes that raw paths are matched against, and which of two shapes goes first.
//! Read from connector files; the router holds them, `compile` compares them.
//! INVARIANT: two templates that share a path are the same, or one is the special case, or they are found to cross.

use super::path::{check_segment, is_path_byte};

/// A path with named holes: `/v1/charges/{charge}`, `/repos/{owner}/{repo}/contents/{*path}`, `/{repo}.git/info/refs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Plain(String),
    /// `number` holes are read as integers, so no word that is none belongs to them.
    Hole {
        before: String,
        name: String,
        after: String,
        number: bool,
    },
    Rest {
        name: String,
    },
}

/// How two templates relate: which requests both match, and which of the two a request belongs to then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    /// No path matches both.
    Apart,
    /// The same paths.
    Same,
    /// One is the special case of the other, and goes first.
    Special,
    /// They share paths, and neither is the special case.
    Crossing,
}

impl Template {
    /// Reads a template, or says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Template, String> {
        let rest = text
            .strip_prefix('/')
            .ok_or("a path template starts with `/`")?;
        let mut segments = Vec::new();
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            if text == "/" {
                break;
            }
            let segment = Segment::parse(part)?;
            if matches!(segment, Segment::Rest { .. }) && parts.peek().is_some() {
                return Err("`{*name}` takes the rest of the path, so it can only be last".into());
            }
            segments.push(segment);
        }
        let template = Template {
            text: text.to_owned(),
            segments,
        };
        let names: Vec<&str> = template.names().collect();
        match names
            .iter()
            .enumerate()
            .find(|(at, name)| names.iter().take(*at).any(|earlier| earlier == *name))
        {
            Some((_, name)) => Err(format!("`{{{name}}}` stands twice in this path")),
            None => Ok(template),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Says which holes are read as integers.
    pub(crate) fn mark_numbers(&mut self, is_number: impl Fn(&str) -> bool) {
        for segment in &mut self.segments {
            if let Segment::Hole { name, number, .. } = segment {
                *number = is_number(name);
            }
        }
    }

    /// The names of the holes, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Plain(_) => None,
            Segment::Hole { name, .. } | Segment::Rest { name } => Some(name.as_str()),
        })
    }

    /// The same shape in matchit's syntax, with holes named by position so that equal shapes are equal text.
    pub(crate) fn shape(&self) -> String {
        let mut shape = String::new();
        for (at, segment) in self.segments.iter().enumerate() {
            shape.push('/');
            match segment {
                Segment::Plain(text) => shape.push_str(text),
                Segment::Hole { before, after, .. } => {
                    shape.push_str(&format!("{before}{{p{at}}}{after}"))
                }
                Segment::Rest { .. } => shape.push_str(&format!("{{*p{at}}}")),
            }
        }
        if shape.is_empty() { "/".into() } else { shape }
    }

    /// How this template relates to another.
    pub(crate) fn relation(&self, other: &Template) -> Relation {
        let (mut narrower, mut wider) = (false, false);
        let (mut left, mut right) = (self.segments.iter(), other.segments.iter());
        loop {
            match (left.next(), right.next()) {
                (None, None) => break,
                (Some(Segment::Rest { .. }), Some(Segment::Rest { .. })) => break,
                (Some(_), Some(Segment::Rest { .. })) => {
                    narrower = true;
                    break;
                }
                (Some(Segment::Rest { .. }), Some(_)) => {
                    wider = true;
                    break;
                }
                (Some(a), Some(b)) => match a.relation(b) {
                    None => return Relation::Apart,
                    Some((is_narrower, is_wider)) => {
                        narrower |= is_narrower;
                        wider |= is_wider;
                    }
                },
                _ => return Relation::Apart,
            }
        }
        match (narrower, wider) {
            (false, false) => Relation::Same,
            (true, true) => Relation::Crossing,
            _ => Relation::Special,
        }
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Segment, String> {
        let Some(open) = text.find('{') else {
            let plain = text.bytes().all(is_path_byte) && check_segment(text).is_ok();
            return if plain {
                Ok(Segment::Plain(text.to_owned()))
            } else {
                Err(format!("the segment `{text}` is not canonical"))
            };
        };
        let wrong = || {
            format!("the segment `{text}` is not `{{name}}`, `{{*name}}` or `before{{name}}after`")
        };
        let close = text
            .find('}')
            .filter(|close| *close > open)
            .ok_or_else(wrong)?;
        let (before, name, after) = match (
            text.get(..open),
            text.get(open + 1..close),
            text.get(close + 1..),
        ) {
            (Some(before), Some(name), Some(after)) => (before, name, after),
            _ => return Err(wrong()),
        };
        if !before.bytes().chain(after.bytes()).all(is_path_byte) {
            return Err(wrong());
        }
        match name.strip_prefix('*') {
            Some(name) if before.is_empty() && after.is_empty() && is_param_name(name) => {
                Ok(Segment::Rest { name: name.into() })
            }
            None if is_param_name(name) => Ok(Segment::Hole {
                before: before.into(),
                name: name.into(),
                after: after.into(),
                number: false,
            }),
            _ => Err(wrong()),
        }
    }

    /// Whether a plain word can stand in this hole.
    fn takes(&self, text: &str) -> bool {
        let Segment::Hole {
            before,
            after,
            number,
            ..
        } = self
        else {
            return false;
        };
        let inner = text
            .strip_prefix(before.as_str())
            .and_then(|rest| rest.strip_suffix(after.as_str()));
        inner.is_some_and(|inner| !inner.is_empty() && (!*number || inner.parse::<i64>().is_ok()))
    }

    /// `None` where no text matches both; else whether this one is somewhere narrower, and somewhere wider.
    fn relation(&self, other: &Segment) -> Option<(bool, bool)> {
        match (self, other) {
            (Segment::Plain(a), Segment::Plain(b)) => (a == b).then_some((false, false)),
            (Segment::Plain(text), hole @ Segment::Hole { .. }) => {
                hole.takes(text).then_some((true, false))
            }
            (hole @ Segment::Hole { .. }, Segment::Plain(text)) => {
                hole.takes(text).then_some((false, true))
            }
            (
                Segment::Hole {
                    before: b1,
                    after: a1,
                    ..
                },
                Segment::Hole {
                    before: b2,
                    after: a2,
                    ..
                },
            ) => {
                let shared = (b1.starts_with(b2.as_str()) || b2.starts_with(b1.as_str()))
                    && (a1.ends_with(a2.as_str()) || a2.ends_with(a1.as_str()));
                let narrower = b1.len() > b2.len() || a1.len() > a2.len();
                let wider = b2.len() > b1.len() || a2.len() > a1.len();
                shared.then_some((narrower, wider))
            }
            (Segment::Rest { .. }, _) | (_, Segment::Rest { .. }) => Some((true, true)),
        }
    }
}

/// `[a-z_][a-z0-9_]*`, so that the name is a Cedar attribute as it stands.
pub(crate) fn is_param_name(name: &str) -> bool {
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    first
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_template_says_why() {
        for (bad, why) in [
            ("v1", "starts with `/`"),
            ("/a//b", "not canonical"),
            ("/a/", "not canonical"),
            ("/a/..", "not canonical"),
            ("/{a}/{a}", "stands twice"),
            ("/{*a}/b", "can only be last"),
            ("/{A}", "is not `{name}`"),
            ("/{a", "is not `{name}`"),
            ("/x{*a}", "is not `{name}`"),
            ("/{a}{b}", "is not `{name}`"),
        ] {
            let given = Template::parse(bad).unwrap_err();
            assert!(given.contains(why), "{bad}: {given}");
        }
    }

    #[test]
    fn templates_relate_by_the_paths_they_share() {
        let check = |a: &str, b: &str, expected: Relation| {
            let (left, right) = (Template::parse(a).unwrap(), Template::parse(b).unwrap());
            assert_eq!(left.relation(&right), expected, "{a} {b}");
            assert_eq!(right.relation(&left), expected, "{b} {a}");
        };
        check("/a/{x}", "/a/{y}", Relation::Same);
        check("/a/{x}", "/a/b", Relation::Special);
        check("/a/{x}", "/a/{x}/c", Relation::Apart);
        check("/a/{x}/c", "/a/b/{y}", Relation::Crossing);
        check("/{*rest}", "/a/b", Relation::Special);
        check("/{*rest}", "/", Relation::Apart);
        check("/{x}.git/a", "/{x}/a", Relation::Special);
        check("/{x}.git/a", "/b.git/a", Relation::Special);
        check("/{x}.git/a", "/b/a", Relation::Apart);
        check("/a/{x}/c", "/{*rest}", Relation::Special);
        check("/a{x}", "/{x}b", Relation::Crossing);
    }

    #[test]
    fn a_number_hole_takes_no_word() {
        let comments = Template::parse("/issues/comments/{comment}").unwrap();
        let mut labels = Template::parse("/issues/{issue}/labels").unwrap();
        assert_eq!(comments.relation(&labels), Relation::Crossing);
        labels.mark_numbers(|name| name == "issue");
        assert_eq!(comments.relation(&labels), Relation::Apart);
    }
}
