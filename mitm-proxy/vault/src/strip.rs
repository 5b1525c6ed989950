//! Removes what the agent sent in the places of credentials: a placeholder, a guess, or a credential of its own.
//! The first half of arming a call; the second writes the lent credential into its place.
//! INVARIANT: nothing that the agent put into such a place leaves the host, and no other byte of the query changes.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Uri};
use policies::Strip;

use crate::error::LendFault;

pub(crate) fn strip(
    headers: &mut HeaderMap,
    uri: &mut Uri,
    places: &[Strip],
) -> Result<(), LendFault> {
    for place in places {
        match place {
            Strip::Header(name) => {
                let name = HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| LendFault::Place(name.clone()))?;
                // Every occurrence; header names have no case in `http`.
                while headers.remove(&name).is_some() {}
            }
            Strip::Query(name) => strip_query(uri, name)?,
        }
    }
    Ok(())
}

/// Replaces the query of a URI; an empty one is left out with its `?`.
pub(crate) fn set_query(uri: &mut Uri, query: &str) -> Option<()> {
    let text = match query {
        "" => uri.path().to_owned(),
        query => format!("{}?{query}", uri.path()),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).ok()?);
    *uri = Uri::from_parts(parts).ok()?;
    Some(())
}

fn strip_query(uri: &mut Uri, name: &str) -> Result<(), LendFault> {
    let Some(query) = uri.query() else {
        return Ok(());
    };
    let Some(stripped) = without(query, name) else {
        return Ok(());
    };
    set_query(uri, &stripped).ok_or_else(|| LendFault::Place(name.to_owned()))
}

/// The query without the pairs of this name; `None` if it has none.
///
/// Servers differ in whether `;` separates pairs and whether names have a case: a pair is removed if any might read it.
fn without(query: &str, name: &str) -> Option<String> {
    let mut kept = String::with_capacity(query.len());
    let mut found = false;
    for piece in query.split_inclusive(['&', ';']) {
        let pair = piece.strip_suffix(['&', ';']).unwrap_or(piece);
        if decoded(pair.split('=').next().unwrap_or_default()).eq_ignore_ascii_case(name.as_bytes())
        {
            found = true;
        } else {
            kept.push_str(piece);
        }
    }
    if found && !query.ends_with(['&', ';']) && kept.ends_with(['&', ';']) {
        // The last pair went: so does the separator before it.
        kept.pop();
    }
    found.then_some(kept)
}

fn decoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, after @ ..]) if let Some(byte) = hex(*high, *low) => {
                rest = after;
                byte
            }
            (b'+', _) => b' ',
            (byte, _) => *byte,
        });
    }
    bytes
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, expected: Option<&str>) {
        assert_eq!(without(query, "api key").as_deref(), expected, "{query}");
    }

    #[test]
    fn every_spelling_of_a_query_name_is_stripped_and_nothing_else_changes() {
        check("api%20key=x", Some(""));
        check("a=1&api+key=x&b=%2f", Some("a=1&b=%2f"));
        check("api%20key=x&a=1", Some("a=1"));
        check("a=1&%61pi%20ke%79=x", Some("a=1"));
        check("a=1&API%20KEY", Some("a=1"));
        check("a=1;api+key=x;b=2", Some("a=1;b=2"));
        check("a=1&api+key=x&api+key=y&", Some("a=1&"));
        check("api+key=1&api+key=2", Some(""));
        check("a=api+key&b=%zz&&c", None);
        check("", None);
    }

    #[test]
    fn every_occurrence_of_a_header_is_stripped_in_any_case() {
        let mut request = http::Request::new(());
        for (name, value) in [
            ("Authorization", "a"),
            ("AUTHORIZATION", "b"),
            ("x-keep", "c"),
        ] {
            request
                .headers_mut()
                .append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let (mut parts, ()) = request.into_parts();
        strip(
            &mut parts.headers,
            &mut parts.uri,
            &[Strip::Header("authorization".into())],
        )
        .unwrap();
        assert_eq!(
            parts
                .headers
                .keys()
                .map(HeaderName::as_str)
                .collect::<Vec<_>>(),
            ["x-keep"]
        );
    }

    #[test]
    fn the_rest_of_the_uri_stays() {
        let mut uri: Uri = "https://api.example.com:8443/a%2Fb?key=x&q=%20+"
            .parse()
            .unwrap();
        strip_query(&mut uri, "key").unwrap();
        assert_eq!(uri.to_string(), "https://api.example.com:8443/a%2Fb?q=%20+");
        strip_query(&mut uri, "q").unwrap();
        assert_eq!(uri.to_string(), "https://api.example.com:8443/a%2Fb");
    }
}
