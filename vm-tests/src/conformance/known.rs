//! Cases that do not go as their suite asks, each with its reason: what is written down here is told, never hidden.
//! Invariant: a reason names what Sluice does instead and why; a case that is not here is a failure.

/// Suite, the case's number or what it begins with followed by `*`, and why.
const KNOWN: [(&str, &str, &str); 1] = [(
    "h2",
    "http2/8.1.2.1/3",
    "the HTTP/2 library (h2) leaves a pseudo-header of trailers out instead of refusing the stream: it goes no further",
)];

/// Why this case does not go as its suite asks.
pub(super) fn reason(suite: &str, case: &str) -> Option<&'static str> {
    KNOWN.iter().find_map(|(of, which, why)| {
        let is = match which.strip_suffix('*') {
            Some(begin) => case.starts_with(begin),
            None => case == *which,
        };
        (*of == suite && is).then_some(*why)
    })
}
