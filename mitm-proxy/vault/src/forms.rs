//! The forms in which a lent secret could come back: as it is, and as encoders write it.
//! Made with the first lending of a version of it, shared by the scrubbers of all responses to calls that were lent it.
//! INVARIANT: wiped on drop, like the secret itself.
//!
//! Base64 is cut to what the secret determines: inside a longer text up to four bits at either edge depend on the
//! neighbours, and those survive. Not recognised: base64 broken into lines, and one encoding inside another.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memchr_iter;
use policies::Auth;
use zeroize::Zeroizing;

use crate::error::MIN_SECRET;
use crate::finder::Finder;
use crate::secret::Secret;

type Form = Zeroizing<Vec<u8>>;

/// What `encodeURIComponent` leaves as it is, beside letters, digits and the next line's.
const COMPONENT: &[u8] = b"!'()*-._~";
/// RFC 3986 unreserved.
const UNRESERVED: &[u8] = b"-._~";
/// What HTML forms leave as it is; they write a space as `+`.
const FORM: &[u8] = b"*-._";
/// RFC 3986 unreserved and reserved, as `encodeURI` leaves them.
const URI: &[u8] = b"!#$&'()*+,-./:;=?@[]_~";

/// Every form of one secret, without duplicates, ready to be looked for.
pub(crate) struct Forms {
    forms: Vec<Form>,
    finder: Finder,
}

impl Forms {
    /// The forms of a secret that is lent as `auth` says.
    ///
    /// Of `user:password` also the password alone; where that is too short to be the secret, the user alone
    /// (some vendors take an API key for the user and leave the password empty).
    pub(crate) fn of(secret: &Secret, auth: &Auth) -> Forms {
        let mut forms = Vec::new();
        add_forms(&mut forms, secret.expose());
        if let (Auth::Basic, Some((user, password))) = (auth, user_and_password(secret.expose())) {
            let telling = if password.len() >= MIN_SECRET {
                password
            } else {
                user
            };
            if telling.len() >= MIN_SECRET {
                add_forms(&mut forms, telling);
            }
        }
        forms.sort_unstable_by(|one, other| one.as_slice().cmp(other.as_slice()));
        forms.dedup();
        let finder = Finder::new(&forms);
        Forms { forms, finder }
    }

    /// Every place in `text` where a form stands, as (start, end); they may overlap.
    pub(crate) fn spans(&self, text: &[u8]) -> Vec<(usize, usize)> {
        let mut spans = Vec::new();
        self.finder.candidates(text, |number, at| {
            if let (Some(form), Some(rest)) = (self.forms.get(number), text.get(at..))
                && rest.starts_with(form)
            {
                spans.push((at, at + form.len()));
            }
        });
        spans
    }

    /// Where the longest tail of `text` begins that could become a form with the bytes to come; its length if there is none.
    pub(crate) fn open_tail(&self, text: &[u8]) -> usize {
        let starts = self.forms.iter().filter_map(|form| {
            let (first, rest) = form.split_first()?;
            let from = text.len().saturating_sub(rest.len());
            let window = text.get(from..)?;
            let begins = |at: &usize| window.get(*at..).is_some_and(|tail| form.starts_with(tail));
            memchr_iter(*first, window).find(begins).map(|at| from + at)
        });
        starts.min().unwrap_or(text.len())
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.forms.iter().map(|form| form.as_slice())
    }
}

/// A basic secret taken apart at its first colon (RFC 7617).
pub(crate) fn user_and_password(secret: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = secret.iter().position(|byte| *byte == b':')?;
    Some((secret.get(..colon)?, secret.get(colon + 1..)?))
}

fn add_forms(forms: &mut Vec<Form>, secret: &[u8]) {
    forms.push(Zeroizing::new(secret.to_vec()));
    add_base64(forms, secret);
    for digits in [b"0123456789abcdef", b"0123456789ABCDEF"] {
        forms.push(escaped(secret, |byte, out| push_hex(out, byte, digits)));
        for kept in [COMPONENT, UNRESERVED, FORM, URI, b""] {
            forms.push(percent(secret, kept, digits));
        }
        if let Ok(text) = str::from_utf8(secret) {
            add_json(forms, text, digits);
        }
    }
}

/// Base64 as it is within a longer encoded text, at the three places where three bytes can begin.
fn add_base64(forms: &mut Vec<Form>, secret: &[u8]) {
    // Bytes before the secret in its first group of three, and the characters that those bytes touch.
    for (before, touched) in [(&[][..], 0), (&[0], 2), (&[0, 0], 3)] {
        let bytes = Zeroizing::new([before, secret].concat());
        let determined = bytes.len() * 8 / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let text = Zeroizing::new(engine.encode(&*bytes).into_bytes());
            // To the last character that the secret alone determines; and to the end, if the encoded text ends with it.
            for end in [determined, text.len()] {
                forms.extend(
                    text.get(touched..end)
                        .map(|form| Zeroizing::new(form.to_vec())),
                );
            }
        }
    }
}

fn percent(secret: &[u8], kept: &[u8], digits: &[u8; 16]) -> Form {
    escaped(secret, |byte, out| match byte {
        b' ' if kept == FORM => out.push(b'+'),
        _ if !kept.is_empty() && byte.is_ascii_alphanumeric() => out.push(byte),
        _ if kept.contains(&byte) => out.push(byte),
        _ => {
            out.push(b'%');
            push_hex(out, byte, digits);
        }
    })
}

/// JSON strings as common encoders write them: they differ in `/`, in what HTML would take for markup
/// (Go), in what is not ASCII (Python), and an encoder may escape everything.
fn add_json(forms: &mut Vec<Form>, secret: &str, digits: &[u8; 16]) {
    const ESCAPES: [(&str, bool); 6] = [
        ("", false),
        ("/", false),
        ("<>&'", false),
        ("", true),
        ("/", true),
        ("<>&'", true),
    ];
    for (special, ascii) in ESCAPES {
        forms.push(json(
            secret,
            digits,
            |character| {
                special.contains(character) && character != '/' || ascii && !character.is_ascii()
            },
            special.contains('/'),
        ));
    }
    forms.push(json(secret, digits, |_| true, false));
}

fn json(secret: &str, digits: &[u8; 16], as_unicode: impl Fn(char) -> bool, slash: bool) -> Form {
    let mut out = Zeroizing::new(Vec::with_capacity(6 * secret.len()));
    for character in secret.chars() {
        match character {
            _ if as_unicode(character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(b"\\u");
                    unit.to_be_bytes()
                        .iter()
                        .for_each(|byte| push_hex(&mut out, *byte, digits));
                }
            }
            '"' | '\\' => out.extend([b'\\', character as u8]),
            '/' if slash => out.extend_from_slice(b"\\/"),
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

fn escaped(secret: &[u8], push: impl Fn(u8, &mut Vec<u8>)) -> Form {
    // Room for the longest escape: growing would leave a copy behind.
    let mut out = Zeroizing::new(Vec::with_capacity(3 * secret.len()));
    secret.iter().for_each(|byte| push(*byte, &mut out));
    out
}

fn push_hex(out: &mut Vec<u8>, byte: u8, digits: &[u8; 16]) {
    out.extend(digits.get(usize::from(byte >> 4)));
    out.extend(digits.get(usize::from(byte & 15)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(secret: &str, auth: &Auth, form: &str) -> bool {
        Forms::of(&Secret::new(secret.into()), auth)
            .iter()
            .any(|known| known == form.as_bytes())
    }

    #[test]
    fn every_common_encoding_is_known() {
        let secret = "p/w<ö \"+x";
        for form in [
            secret,
            "cC93PMO2ICIreA",
            "702f773cc3b620222b78",
            "702F773CC3B620222B78",
            "p%2Fw%3C%C3%B6%20%22%2Bx",
            "p%2fw%3c%c3%b6+%22%2bx",
            "p/w%3C%C3%B6%20%22+x",
            "%70%2F%77%3C%C3%B6%20%22%2B%78",
            "p/w<ö \\\"+x",
            "p\\/w<ö \\\"+x",
            "p/w\\u003cö \\\"+x",
            "p/w<\\u00f6 \\\"+x",
            "p\\/w<\\u00F6 \\\"+x",
        ] {
            assert!(has(secret, &Auth::Bearer, form), "{form}");
        }
    }

    #[test]
    fn a_password_is_known_alone_and_so_is_a_key_that_stands_for_the_user() {
        assert!(has("alice:correct-horse", &Auth::Basic, "correct-horse"));
        assert!(!has(
            "alice-the-user:correct-horse",
            &Auth::Basic,
            "alice-the-user"
        ));
        assert!(has(
            "sk_live_0123456789:",
            &Auth::Basic,
            "sk_live_0123456789"
        ));
        // The header that is sent.
        assert!(has(
            "alice:correct-horse",
            &Auth::Basic,
            "YWxpY2U6Y29ycmVjdC1ob3JzZQ"
        ));
    }
}
