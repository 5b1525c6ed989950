//! Trailers of a request: what may stand only in a head is refused there, and what a credential replaces is taken out.
//! Place on the path: reading the end of a body, before hyper (`wire`) and after it (`body`), and sending it.
//! INVARIANT: no trailer names what frames, routes, decides or authenticates, nor a place of the connection's credential.

use http::HeaderMap;
use http::header::HeaderName;
use policies::Strip;

/// Fields that belong into the head (RFC 9110 section 6.5.1); servers that merge trailers into it would let them replace what
/// was decided on. The last six are those that some servers let override method and target.
const HEAD_ONLY: [&str; 28] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Whether a field of this name may come behind a body, which is after the decision.
pub(crate) fn may_trail(name: &[u8]) -> bool {
    !HEAD_ONLY.iter().any(|head| alike(name, head))
}

/// Takes out what would stand in for the credential.
pub(crate) fn clean(fields: &mut HeaderMap, places: &[Strip]) {
    let stands_in = |name: &HeaderName, place: &Strip| match place {
        Strip::Header(header) => alike(name.as_str().as_bytes(), header),
        _ => false,
    };
    let names: Vec<HeaderName> = fields
        .keys()
        .filter(|name| places.iter().any(|place| stands_in(name, place)))
        .cloned()
        .collect();
    for name in names {
        fields.remove(name);
    }
}

/// Some servers (CGI, WSGI, Rack) take `_` for `-`.
fn alike(given: &[u8], name: &str) -> bool {
    let folded = |byte: u8| match byte {
        b'_' => b'-',
        other => other.to_ascii_lowercase(),
    };
    given
        .iter()
        .copied()
        .map(folded)
        .eq(name.bytes().map(folded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn what_belongs_into_the_head_may_not_trail_in_any_spelling() {
        for (name, may) in [
            ("authorization", false),
            ("Authorization", false),
            ("proxy_authorization", false),
            ("content-length", false),
            ("Transfer_Encoding", false),
            ("host", false),
            ("cookie", false),
            ("connection", false),
            ("X-HTTP-Method-Override", false),
            ("grpc-status", true),
            ("x-checksum", true),
            ("hosts", true),
        ] {
            assert_eq!(may_trail(name.as_bytes()), may, "{name}");
        }
        for hop in &crate::request::HOP_BY_HOP {
            assert!(!may_trail(hop.as_str().as_bytes()), "{hop}");
        }
    }

    #[test]
    fn what_a_credential_replaces_is_taken_out_in_any_spelling() {
        let places = [
            Strip::Header("x-api-key".into()),
            Strip::Query("token".into()),
        ];
        for (name, stays) in [
            ("x-api-key", false),
            ("X-Api-Key", false),
            ("x_api_key", false),
            ("x-api-key-2", true),
            ("x-checksum", true),
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
