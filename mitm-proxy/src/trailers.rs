//! Trailers of a request: what a server could take for a header that decides, or for a credential, does not pass.
//! Place on the path: the end of a body on its way upstream, when the call was decided and its credential lent.
//! INVARIANT: no trailer names what frames, routes or authenticates a request, nor a place of the connection's credential.

use http::HeaderMap;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    COOKIE, EXPECT, HOST, HeaderName, MAX_FORWARDS, RANGE, SET_COOKIE, TRAILER,
};
use policies::Strip;

use crate::request::HOP_BY_HOP;

/// Fields that a sender must not put behind the body (RFC 9110 section 6.5.1); servers that merge trailers into the headers
/// would let them replace what was decided on.
const NEVER: [HeaderName; 13] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    HOST,
    MAX_FORWARDS,
    RANGE,
    SET_COOKIE,
    TRAILER,
];

/// Removes what may not stand in trailers, or may not come from the agent at all.
pub(crate) fn clean(fields: &mut HeaderMap, places: &[Strip]) {
    let names: Vec<HeaderName> = fields
        .keys()
        .filter(|name| withheld(name, places))
        .cloned()
        .collect();
    for name in names {
        fields.remove(name);
    }
}

fn withheld(name: &HeaderName, places: &[Strip]) -> bool {
    let given = name.as_str();
    let place = |place: &Strip| matches!(place, Strip::Header(header) if alike(given, header));
    NEVER
        .iter()
        .chain(&HOP_BY_HOP)
        .any(|never| alike(given, never.as_str()))
        || places.iter().any(place)
}

/// Some servers (CGI, WSGI, Rack) take `_` for `-`; letters of a `HeaderName` are small already.
fn alike(given: &str, name: &str) -> bool {
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    given
        .bytes()
        .map(dashed)
        .eq(name.bytes().map(|byte| dashed(byte.to_ascii_lowercase())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn credentials_and_what_decides_are_taken_out_in_any_spelling() {
        let places = [
            Strip::Header("x-api-key".into()),
            Strip::Query("token".into()),
        ];
        for (name, stays) in [
            ("authorization", false),
            ("Authorization", false),
            ("proxy_authorization", false),
            ("x-api-key", false),
            ("x_api_key", false),
            ("content-length", false),
            ("transfer_encoding", false),
            ("host", false),
            ("cookie", false),
            ("connection", false),
            ("grpc-status", true),
            ("x-checksum", true),
            ("x-api-key-2", true),
            ("token", true),
        ] {
            let mut fields = HeaderMap::new();
            let name: HeaderName = name.parse().unwrap();
            fields.append(name.clone(), HeaderValue::from_static("1"));
            fields.append(name.clone(), HeaderValue::from_static("2"));
            clean(&mut fields, &places);
            assert_eq!(fields.contains_key(&name), stays, "{name}");
        }
    }
}
