//! Names that some server takes for one another: other case, `_` for `-`, brackets and dots, stray spaces, zero bytes.
//! Used wherever a request's names are compared with the ones that decide or are read.
//! INVARIANT: nothing here makes two names equal; a likeness only ever refuses.

/// Whether some server reads the query or form field `given`, which is not `name`, as `name`: other case, PHP's `_` for `.`, space
/// and `[`, an array or object of it (`name[]`, `name[x]`, `name.x`), or Rack's reading of stray brackets (`[name]`, `name]`).
pub(super) fn field(given: &str, name: &str) -> bool {
    given != name
        && (same(given.chars().map(flat), name.chars().map(flat))
            || same(
                given.chars().map(|c| flat(if c == '[' { '_' } else { c })),
                name.chars().map(flat),
            )
            || leads_to(given, name))
}

/// Whether some server reads the JSON key `given`, which is not `name`, as `name`: other case, `max-tokens` and `maxTokens` for
/// `max_tokens` (protobuf's JSON), spaces around it, cut off at a zero byte.
pub(super) fn key(given: &str, name: &str) -> bool {
    fn bare(text: &str) -> impl Iterator<Item = char> {
        trim(text).chars().filter(|c| !matches!(c, '_' | '-'))
    }
    given != name && same(bare(given), bare(name))
}

/// Whether some server (CGI, WSGI, Rack) reads the header `given`, which is not `name`, as `name`: `_` for `-`.
pub(super) fn header(given: &str, name: &str) -> bool {
    fn dashed(text: &str) -> impl Iterator<Item = char> {
        text.chars().map(|c| if c == '_' { '-' } else { c })
    }
    // Names in ASCII, which nearly all are, can only be alike at the same length: every request asks this dozens of times.
    if given.len() != name.len() && given.is_ascii() && name.is_ascii() {
        return false;
    }
    given != name && same(dashed(given), dashed(name))
}

/// Whether the steps of `given` begin with those of `name`: `a[b][c]`, `a.b` and `[a][b]` begin with `a[b]`.
fn leads_to(given: &str, name: &str) -> bool {
    fn steps(text: &str) -> impl Iterator<Item = &str> {
        text.split(['[', ']', '.']).filter(|step| !step.is_empty())
    }
    let mut given = steps(given);
    let mut name = steps(name).peekable();
    name.peek().is_some()
        && name.all(|step| {
            given
                .next()
                .is_some_and(|other| same(other.chars().map(flat), step.chars().map(flat)))
        })
}

fn flat(c: char) -> char {
    if matches!(c, '.' | ' ' | '-') { '_' } else { c }
}

/// What is left where a parser trims, or stops at a zero byte.
fn trim(text: &str) -> &str {
    text.split('\0')
        .next()
        .unwrap_or_default()
        .trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
}

/// Equal but for case, in the widest sense that a parser uses: Go's takes `\u{17f}` for s and `\u{212a}` for k.
fn same(left: impl Iterator<Item = char>, right: impl Iterator<Item = char>) -> bool {
    let fold = |c: char| c.to_lowercase().flat_map(char::to_uppercase);
    left.flat_map(fold).eq(right.flat_map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likenesses_are_seen_and_other_names_are_not() {
        for given in [
            "Pay_x",
            "pay.x",
            "pay x",
            "pay-x",
            "pay[x",
            "pay_x[]",
            "pay_x[0]",
            "pay_x[a][b]",
            "pay_x]",
            "[pay_x]",
            "]pay_x",
            "pay_x.y",
            "PAY_X[]",
        ] {
            assert!(field(given, "pay_x"), "{given}");
        }
        for given in [
            "pay_x", "pay", "pay_xy", "pay_x_y", "x", "pays[x]", "[]", "",
        ] {
            assert!(!field(given, "pay_x"), "{given}");
        }
        for given in ["a[b][c]", "a.b", "[a][b]", "A[b]", "a[b"] {
            assert!(field(given, "a[b]"), "{given}");
        }
        assert!(!field("a[c]", "a[b]") && !field("a", "a[b]"));
        assert!(field("\u{17f}tate", "state"));
        for given in [
            "Max_tokens",
            "maxTokens",
            "max-tokens",
            " max_tokens",
            "max_tokens\0x",
            "\u{feff}max_tokens",
            "max_to\u{212a}ens",
        ] {
            assert!(key(given, "max_tokens"), "{given}");
        }
        for given in ["max_tokens", "tokens", "max_tokens_", "max_token"] {
            assert_eq!(key(given, "max_tokens"), given == "max_tokens_", "{given}");
        }
        assert!(header("stripe_account", "stripe-account"));
        assert!(!header("stripe-account", "stripe-account"));
        assert!(!header("stripe-accounts", "stripe-account"));
    }
}
