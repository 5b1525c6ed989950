//! Query strings and form bodies (application/x-www-form-urlencoded): the fields in them, read one way only.
//! Servers differ on repeated names, case, brackets and odd separators; where they could differ, the request is ambiguous.
//! INVARIANT: a field that is found was sent once, and nothing else in the same place could be taken for it.

use super::alike;
use crate::Refused;

/// The decoded fields of one query string or form body, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    what: &'static str,
    pairs: Vec<(String, String)>,
}

impl Fields {
    /// Reads `a=1&b=2`. Refused: bytes outside printable ASCII, `;` and `#`, broken escapes, invalid UTF-8, unnamed fields, control
    /// characters or outer spaces in a name.
    pub(crate) fn parse(what: &'static str, raw: &[u8]) -> Result<Fields, Refused> {
        let mut pairs = Vec::new();
        for piece in raw
            .split(|byte| *byte == b'&')
            .filter(|piece| !piece.is_empty())
        {
            let (name, value) = match piece.iter().position(|byte| *byte == b'=') {
                Some(at) => (
                    piece.get(..at).unwrap_or_default(),
                    piece.get(at + 1..).unwrap_or_default(),
                ),
                None => (piece, &[][..]),
            };
            let pair = decode(name).zip(decode(value));
            let (name, value) = pair.ok_or_else(|| {
                Refused::ambiguous(format!(
                    "the {what} holds bytes that can be read in several ways"
                ))
            })?;
            if name.is_empty()
                || name.trim() != name
                || name.chars().any(|c| c.is_control() || c == '\u{feff}')
                || value.contains('\0')
            {
                return Err(Refused::ambiguous(format!(
                    "the {what} has a field whose name or value can be read in several ways: {name:?}"
                )));
            }
            pairs.push((name, value));
        }
        Ok(Fields { what, pairs })
    }

    /// The value of a field, if it was sent; ambiguous if it was sent twice, or if another field could be taken for it.
    pub(crate) fn one(&self, name: &str) -> Result<Option<&str>, Refused> {
        let mut found = None;
        for (given, value) in &self.pairs {
            if given == name {
                if found.replace(value.as_str()).is_some() {
                    return Err(Refused::ambiguous(format!(
                        "the {} has `{name}` more than once",
                        self.what
                    )));
                }
            } else if alike::field(given, name) {
                return Err(self.confused(given, name));
            }
        }
        Ok(found)
    }

    /// The values of a list field, sent as `name` repeatedly, as `name[]`, or as `name[0]`, `name[1]`, ...; one style only.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Vec<&str>>, Refused> {
        let mut style = None;
        let mut values = Vec::new();
        for (given, value) in &self.pairs {
            let index = given
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']'));
            let this = match index {
                _ if given == name => ListStyle::Repeated,
                Some("") => ListStyle::Brackets,
                Some(digits) if digits == values.len().to_string() => ListStyle::Indexed,
                _ if alike::field(given, name) => return Err(self.confused(given, name)),
                _ => continue,
            };
            if style.replace(this).is_some_and(|earlier| earlier != this) {
                return Err(Refused::ambiguous(format!(
                    "the {} writes the list `{name}` in two ways",
                    self.what
                )));
            }
            values.push(value.as_str());
        }
        Ok(style.map(|_| values))
    }

    /// A field that a server could take for `name` and that is not spelt so, whatever its case.
    pub(crate) fn beside(&self, name: &str) -> Option<&str> {
        let mut names = self.pairs.iter().map(|(given, _)| given.as_str());
        names.find(|given| !given.eq_ignore_ascii_case(name) && alike::field(given, name))
    }

    /// Whether a field is present in any spelling that a server could take for it.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        self.pairs
            .iter()
            .any(|(given, _)| given == name || alike::field(given, name))
    }

    /// The names, each up to its first bracket.
    pub(crate) fn bases(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| base(name))
    }

    fn confused(&self, given: &str, name: &str) -> Refused {
        Refused::ambiguous(format!(
            "the {} has `{given}`, which could be taken for `{name}`",
            self.what
        ))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum ListStyle {
    Repeated,
    Brackets,
    Indexed,
}

fn base(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

fn decode(raw: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
                let value = digit(rest.next())? << 4 | digit(rest.next())?;
                bytes.push(u8::try_from(value).ok()?);
            }
            b';' | b'#' => return None,
            0x21..=0x7e => bytes.push(*byte),
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reason;

    fn fields(raw: &str) -> Result<Fields, Refused> {
        Fields::parse("form", raw.as_bytes())
    }

    #[test]
    fn a_field_is_decoded_once() {
        let fields =
            fields("amount=100&note=a+b%20c%26d%253D&%66lag&expand[]=x&expand[]=y&to[0]=a&to[1]=b")
                .unwrap();
        assert_eq!(fields.one("amount").unwrap(), Some("100"));
        assert_eq!(fields.one("note").unwrap(), Some("a b c&d%3D"));
        assert_eq!(fields.one("flag").unwrap(), Some(""));
        assert_eq!(fields.one("absent").unwrap(), None);
        assert_eq!(fields.list("expand").unwrap(), Some(vec!["x", "y"]));
        assert_eq!(fields.list("to").unwrap(), Some(vec!["a", "b"]));
    }

    #[test]
    fn what_a_server_could_read_otherwise_is_ambiguous() {
        for raw in [
            "amount=1;b=2",
            "a=%zz",
            "a=%e",
            "a=%FF",
            "a=\u{e4}",
            "=1",
            "%20amount=1",
            "amount%00=1",
            "a=%00",
            "a=b c",
            "a#b",
            "%EF%BB%BFamount=1",
        ] {
            assert_eq!(
                fields(raw).unwrap_err().reason,
                Reason::AmbiguousRequest,
                "{raw}"
            );
        }
        for raw in [
            "amount=1&amount=1",
            "Amount=1",
            "amount=1&AMOUNT=2",
            "amount[]=1",
            "amount[x]=1",
            "amount=1&%61mount=2",
            "amount]=1",
            "[amount]=1",
            "amount=1&%5Damount=2",
            "amount.x=1",
        ] {
            assert!(fields(raw).unwrap().one("amount").is_err(), "{raw}");
        }
        for raw in [
            "payment.intent=1",
            "payment%20intent=1",
            "payment[intent=1",
            "payment-intent=1",
        ] {
            assert!(fields(raw).unwrap().one("payment_intent").is_err(), "{raw}");
        }
        for raw in [
            "to=a&to[]=b",
            "to[1]=a",
            "to[00]=a",
            "to[%2B0]=a",
            "to[0]=a&to[0]=b",
            "to[0][x]=a",
            "To=a",
        ] {
            assert!(fields(raw).unwrap().list("to").is_err(), "{raw}");
        }
    }
}
