//! Raw paths and path templates: the one spelling of a path that is matched, and the shapes it is matched against.
//! A path that an upstream could read in another way than we do is refused before anything is matched.
//! INVARIANT: a `RawPath` has no empty or dot segment, no escape that could have been a plain character, and no `;` or `\`.

use crate::Refused;

/// Longest path that is read, in bytes.
const LONGEST: usize = 8192;

/// A canonical raw path, as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RawPath<'a>(&'a str);

impl<'a> RawPath<'a> {
    /// Accepts a path whose raw form is the only reading of it (RFC 3986 section 6.2.2, and stricter where servers differ).
    pub(crate) fn parse(path: &'a str) -> Result<RawPath<'a>, Refused> {
        let refuse = |why: &str| {
            Err(Refused::ambiguous(format!(
                "the path is not canonical: {why}"
            )))
        };
        if path.len() > LONGEST {
            return refuse("it is longer than 8192 bytes");
        }
        let Some(rest) = path.strip_prefix('/') else {
            return refuse("it does not start with `/`");
        };
        if rest.is_empty() {
            return Ok(RawPath(path));
        }
        for segment in rest.split('/') {
            if let Err(why) = check_segment(segment) {
                return refuse(why);
            }
        }
        Ok(RawPath(path))
    }

    pub(crate) fn as_str(&self) -> &'a str {
        self.0
    }
}

fn check_segment(segment: &str) -> Result<(), &'static str> {
    if segment.is_empty() {
        return Err("an empty segment (`//`, or a `/` at the end)");
    }
    if segment.bytes().any(|b| !is_path_byte(b)) {
        return Err(
            "a character that has no place in a path (`;`, `\\`, controls and non-ASCII among them)",
        );
    }
    let decoded =
        decode(segment).ok_or("an escape that is not two upper-case hex digits of valid UTF-8")?;
    if escapes(segment).any(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
        return Err("a plain character written as an escape");
    }
    if decoded.chars().any(char::is_control) || decoded.contains('\\') {
        return Err("an escaped control character or backslash");
    }
    // A second decoding would read something else: `%252e` is `%2e` once and `.` twice.
    if has_escape(&decoded) {
        return Err("an escape within an escape");
    }
    // An encoded slash is judged later, against the template; what stands between such slashes must be plain segments too.
    if decoded
        .split('/')
        .any(|part| matches!(part, "" | "." | ".."))
    {
        return Err("a dot segment");
    }
    if decoded
        .split('/')
        .any(|part| matches!(part.split(';').next(), Some("." | "..")))
    {
        return Err("a dot segment with a parameter");
    }
    Ok(())
}

/// RFC 3986 `pchar` without `;`.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@%".contains(&byte)
}

fn has_escape(text: &str) -> bool {
    let hex = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_hexdigit());
    let bytes = text.as_bytes();
    (0..bytes.len()).any(|at| {
        bytes.get(at) == Some(&b'%')
            && hex(bytes.get(at + 1).copied())
            && hex(bytes.get(at + 2).copied())
    })
}

/// The bytes that are written as escapes.
fn escapes(text: &str) -> impl Iterator<Item = u8> {
    text.split('%')
        .skip(1)
        .filter_map(|rest| u8::from_str_radix(rest.get(..2)?, 16).ok())
}

/// Percent-decoding with upper-case digits only; `None` where an escape is broken or the result is not UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = (part.get(..2)?, part.get(2..)?);
        if !digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
        {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

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
    fn only_the_one_spelling_of_a_path_is_read() {
        for good in [
            "/",
            "/v1/charges",
            "/a/b%20c",
            "/a/%C3%A4",
            "/a/b@c:d",
            "/a/100%25",
            "/heads%2Fmain",
            "/a/x.y~z-_",
            "/a/%25zz",
        ] {
            assert!(RawPath::parse(good).is_ok(), "{good} was refused");
        }
        let long = format!("/{}", "a".repeat(9000));
        for bad in [
            "",
            "a",
            "//",
            "/a//b",
            "/a/",
            "/a/.",
            "/a/..",
            "/./a",
            "/../a",
            "/a/%2e%2e/b",
            "/a/%2E",
            "/a/%61",
            "/a/b%5Cc",
            "/a\\b",
            "/a;b",
            "/a;x=1/b",
            "/a/..%3Bx",
            "/a b",
            "/a?b",
            "/a#b",
            "/a/ä",
            "/a/%c3%a4",
            "/a/%",
            "/a/%2",
            "/a/%zz",
            "/a/%00",
            "/a/%0A",
            "/a/%7F",
            "/a/%C0%AF",
            "/a/%FF",
            "/a/%252e",
            "/a/%252F",
            "/a/x%2F..%2Fy",
            "/a/%2Fx",
            "/a/x%2F",
            "/a|b",
            "/a\u{0}",
            "/%C2%85",
            &long,
        ] {
            assert!(RawPath::parse(bad).is_err(), "{bad:?} was read");
        }
    }

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
