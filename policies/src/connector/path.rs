//! Raw paths: the one spelling of a path that is matched.
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

pub(super) fn check_segment(segment: &str) -> Result<(), &'static str> {
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
pub(super) fn is_path_byte(byte: u8) -> bool {
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
}
