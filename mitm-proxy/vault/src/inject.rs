//! Writes the lent credential into its place. The second half of arming a call.
//! Called by `lend` alone, after the places were stripped.
//! INVARIANT: the credential stands in the place that the connector names, once, and nowhere else.
//!
//! The value in the request is a copy that hyper needs and that nobody wipes; it lives as long as the request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use policies::Auth;
use zeroize::Zeroizing;

use crate::forms::user_and_password;
use crate::secret::Secret;
use crate::strip::set_query;

/// Why a secret does not fit; becomes part of a refusal's detail.
pub(crate) type Unfit = &'static str;

const NOT_A_HEADER: Unfit = "it is not a valid header value";

pub(crate) fn inject(
    headers: &mut HeaderMap,
    uri: &mut Uri,
    auth: &Auth,
    secret: &Secret,
) -> Result<(), Unfit> {
    match auth {
        Auth::None => Ok(()),
        Auth::Bearer => set_header(
            headers,
            AUTHORIZATION,
            &prefixed(b"Bearer ", secret.expose()),
        ),
        Auth::Basic => {
            user_and_password(secret.expose()).ok_or("a basic secret is user:password")?;
            let encoded = Zeroizing::new(STANDARD.encode(secret.expose()));
            set_header(
                headers,
                AUTHORIZATION,
                &prefixed(b"Basic ", encoded.as_bytes()),
            )
        }
        Auth::Header { name } => {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| "the connector's header has no valid name")?;
            set_header(headers, name, secret.expose())
        }
        Auth::Query { name } => add_query(uri, name, secret.expose()),
    }
}

fn prefixed(prefix: &[u8], value: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([prefix, value].concat())
}

fn set_header(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) -> Result<(), Unfit> {
    let mut value = HeaderValue::from_bytes(value).map_err(|_| NOT_A_HEADER)?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

fn add_query(uri: &mut Uri, name: &str, value: &[u8]) -> Result<(), Unfit> {
    let mut query = Zeroizing::new(uri.query().unwrap_or_default().to_owned());
    if !query.is_empty() && !query.ends_with('&') {
        query.push('&');
    }
    push_percent(&mut query, name.as_bytes());
    query.push('=');
    push_percent(&mut query, value);
    set_query(uri, &query).ok_or("the URI with it is not valid")
}

/// RFC 3986: all but the unreserved characters are encoded.
fn push_percent(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'-' | b'.' | b'_' | b'~' => text.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(*byte)),
            byte => {
                let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
                text.push('%');
                text.push(digit(byte >> 4).to_ascii_uppercase());
                text.push(digit(byte & 15).to_ascii_uppercase());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The URI, and the header with its value.
    type Written<'a> = (&'a str, Option<(&'a str, &'a str)>);

    fn check(auth: Auth, secret: &str, uri: &str, expected: Result<Written<'_>, Unfit>) {
        let (mut headers, mut target) = (HeaderMap::new(), uri.parse::<Uri>().unwrap());
        let result = inject(
            &mut headers,
            &mut target,
            &auth,
            &Secret::new(secret.into()),
        );
        let written = result.map(|()| {
            let header = headers.iter().next();
            assert!(header.is_none_or(|(_, value)| value.is_sensitive()));
            let header = header.map(|(name, value)| {
                (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
            });
            (target.to_string(), header)
        });
        let expected = expected.map(|(uri, header)| {
            (
                uri.to_owned(),
                header.map(|(name, value)| (name.to_owned(), value.to_owned())),
            )
        });
        assert_eq!(written, expected, "{auth:?}");
    }

    #[test]
    fn each_kind_has_its_place() {
        let header = Auth::Header {
            name: "x-api-key".into(),
        };
        let query = Auth::Query {
            name: "api key".into(),
        };
        check(Auth::None, "s3cret-s3cret", "/a?b", Ok(("/a?b", None)));
        check(
            Auth::Bearer,
            "s3cret-s3cret",
            "/a",
            Ok(("/a", Some(("authorization", "Bearer s3cret-s3cret")))),
        );
        check(
            Auth::Basic,
            "al:pass",
            "/a",
            Ok(("/a", Some(("authorization", "Basic YWw6cGFzcw==")))),
        );
        check(
            header,
            "s3cret-s3cret",
            "/a",
            Ok(("/a", Some(("x-api-key", "s3cret-s3cret")))),
        );
        check(
            query.clone(),
            "a b&c=d/e",
            "/a",
            Ok(("/a?api%20key=a%20b%26c%3Dd%2Fe", None)),
        );
        check(
            query,
            "secret-8",
            "/a?x=%2f",
            Ok(("/a?x=%2f&api%20key=secret-8", None)),
        );
    }

    #[test]
    fn a_secret_that_does_not_fit_is_not_sent() {
        check(Auth::Bearer, "new\nline-secret", "/", Err(NOT_A_HEADER));
        check(
            Auth::Basic,
            "no-colon-in-it",
            "/",
            Err("a basic secret is user:password"),
        );
    }
}
