//! The digest of what a person agrees to besides the call itself: method, path, query, headers, body, trailers.
//! Place on the path: made for a held call, before an approval is looked for or asked for.
//! INVARIANT: what is left out is a closed list; a header that nobody thought of is bound.

use http::HeaderMap;
use http::header::HeaderName;
use policies::{Digest, Strip};

use crate::request::{HOP_BY_HOP, Request};

/// Headers that are not bound, since clients rightly change them from one attempt to the next and they change nothing that the
/// call does. Headers of one hop are not bound either: they end here.
const VARY: [&str; 13] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "baggage",
    "content-length",
    "date",
    "idempotency-key",
    "sec-websocket-key",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-request-id",
];
/// Telemetry of the vendors' own SDKs: retry counts, timings, platform.
const VARY_BY_PREFIX: [&str; 2] = ["x-stainless-", "x-stripe-client-"];

/// The digest of `request`, whose body has been read as `body`. What the agent sent in the `stripped` places never leaves, and is
/// not bound.
pub(super) fn digest(request: &Request, body: &[u8], stripped: &[Strip]) -> Digest {
    let query = request
        .query()
        .map(|query| without_stripped(query, stripped));
    let mut bound = Bound(Vec::with_capacity(body.len().saturating_add(1024)));
    bound.bytes(b"sluice call content v2");
    bound.bytes(request.method().as_str().as_bytes());
    bound.bytes(request.path().as_bytes());
    // Absent and empty differ: a count of none or one goes first.
    bound.count(usize::from(query.is_some()));
    bound.bytes(query.unwrap_or_default().as_bytes());
    bound.fields(request.headers(), stripped);
    bound.bytes(body);
    match request.body.trailers() {
        Some(trailers) => bound.fields(trailers, stripped),
        None => bound.count(0),
    }
    // A yes to a request is none to a channel that begins with it.
    if request.socket.is_some() {
        bound.bytes(b"websocket");
    }
    Digest::of(&bound.0)
}

/// What goes into the digest: each part with its length before it, each list with its count.
struct Bound(Vec<u8>);

impl Bound {
    fn count(&mut self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.0.extend_from_slice(&count.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// The bound fields: names sorted, since their order means nothing (RFC 9110 section 5.3); the values of one name as they came.
    fn fields(&mut self, fields: &HeaderMap, stripped: &[Strip]) {
        let mut names: Vec<&HeaderName> =
            fields.keys().filter(|name| binds(name, stripped)).collect();
        names.sort_by_key(|name| name.as_str());
        self.count(names.len());
        for name in names {
            self.bytes(name.as_str().as_bytes());
            self.count(fields.get_all(name).iter().count());
            for value in fields.get_all(name) {
                self.bytes(value.as_bytes());
            }
        }
    }
}

fn binds(name: &HeaderName, stripped: &[Strip]) -> bool {
    let text = name.as_str();
    let is_stripped = |place: &Strip| matches!(place, Strip::Header(stripped) if stripped == text);
    !(VARY.contains(&text)
        || VARY_BY_PREFIX.iter().any(|prefix| text.starts_with(prefix))
        || HOP_BY_HOP.contains(name)
        || stripped.iter().any(is_stripped))
}

/// The query without the pairs of stripped names. A name in an odd spelling stays, and is bound: that is the safe mistake.
fn without_stripped(query: &str, stripped: &[Strip]) -> String {
    let is_stripped = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        let is =
            |place: &Strip| matches!(place, Strip::Query(key) if key.eq_ignore_ascii_case(name));
        stripped.iter().any(is)
    };
    query
        .split('&')
        .filter(|pair| !is_stripped(pair))
        .collect::<Vec<_>>()
        .join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn bound(fields: &[(&'static str, &'static str)]) -> Vec<u8> {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        let mut bound = Bound(Vec::new());
        let stripped = [
            Strip::Header("authorization".into()),
            Strip::Query("token".into()),
        ];
        bound.fields(&map, &stripped);
        bound.0
    }

    #[test]
    fn a_header_that_nobody_thought_of_is_bound() {
        let plain = bound(&[]);
        for name in [
            "stripe-account",
            "content-type",
            "x-unheard-of",
            "accept-anything",
            "x-stainless",
            "if-match",
            "token",
            "cookie",
        ] {
            assert_ne!(bound(&[(name, "1")]), plain, "{name}");
            assert_ne!(bound(&[(name, "1")]), bound(&[(name, "2")]), "{name}");
        }
        for name in VARY.into_iter().chain([
            "x-stainless-retry-count",
            "x-stripe-client-telemetry",
            "connection",
            "te",
            "authorization",
        ]) {
            assert_eq!(bound(&[(name, "1")]), plain, "{name}");
        }
    }

    #[test]
    fn names_have_no_order_values_of_one_name_have_and_nothing_runs_together() {
        let two = bound(&[("a", "1"), ("b", "2")]);
        assert_eq!(two, bound(&[("b", "2"), ("a", "1")]));
        assert_ne!(
            bound(&[("a", "1"), ("a", "2")]),
            bound(&[("a", "2"), ("a", "1")])
        );
        let mut seen = vec![two];
        for other in [
            bound(&[("a", "2"), ("b", "1")]),
            bound(&[("a", "1"), ("a", "2")]),
            bound(&[("a", "1, 2")]),
            bound(&[("a", "12")]),
            bound(&[("a", "1"), ("a", "")]),
            bound(&[("a", "1")]),
            bound(&[("ab", "1")]),
            bound(&[("a", "b1")]),
        ] {
            assert!(!seen.contains(&other));
            seen.push(other);
        }
    }

    #[test]
    fn a_stripped_query_key_is_not_bound_and_the_rest_is() {
        let stripped = [
            Strip::Header("authorization".into()),
            Strip::Query("token".into()),
        ];
        let check = |query, expected| assert_eq!(without_stripped(query, &stripped), expected);
        check("a=1&token=x&b=2", "a=1&b=2");
        check("TOKEN=x", "");
        check("token2=x&authorization=1&&a", "token2=x&authorization=1&&a");
    }
}
