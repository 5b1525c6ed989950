//! Refusals in the words of gRPC, so that a client reports the reason instead of a broken stream.
//! Place on the path: beside `refusal`, for requests that say they are gRPC.
//! INVARIANT: the reason is the same as everywhere else; only its clothes differ.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use policies::Reason;

use crate::refusal::{Refusal, status};
use crate::response::ResponseBody;

/// Whether the request is gRPC or gRPC-Web, by its content type.
pub(crate) fn asked(headers: &HeaderMap) -> bool {
    let Some(given) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let Some(rest) = given.as_bytes().strip_prefix(b"application/grpc") else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';' | b'-'))
}

/// A trailers-only answer: status 200, no body, and the refusal in `grpc-status` and `grpc-message`.
pub(crate) fn response(refusal: &Refusal) -> Response<ResponseBody> {
    let name = refusal.reason.as_str();
    let message = percent(&format!("{name}: {}", refusal.detail));
    let mut response = Response::new(ResponseBody::whole(Bytes::new()));
    let headers = response.headers_mut();
    let mut put = |name: &'static str, value: &str| {
        // All of these are printable ASCII; were one not, the status still says no.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    put("grpc-status", code(refusal.reason));
    put("grpc-message", &message);
    put("sluice-refusal", name);
    if let Some(approval) = refusal.about.as_ref().and_then(|about| about.approval) {
        put("sluice-approval", &approval.to_string());
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The status code of a refusal, after its HTTP status. UNAVAILABLE is only for what may be better the next moment.
fn code(reason: Reason) -> &'static str {
    match status(reason) {
        StatusCode::BAD_REQUEST => "3",
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => "4",
        StatusCode::PAYLOAD_TOO_LARGE => "8",
        StatusCode::NOT_IMPLEMENTED | StatusCode::METHOD_NOT_ALLOWED => "12",
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => "14",
        _ => "7",
    }
}

/// The encoding of `grpc-message`: all but printable ASCII, and `%` itself, percent-encoded.
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // NOTE: writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_is_grpc() {
        for (given, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web+proto", true),
            ("application/grpcish", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(given));
            assert_eq!(asked(&headers), expected, "{given}");
        }
        assert!(!asked(&HeaderMap::new()));
    }

    #[test]
    fn every_refusal_has_a_status_and_a_message_that_can_be_sent() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(*reason, "100 % n\u{f6}\nX-Y: z");
            let response = response(&refusal);
            assert_eq!(response.status(), 200);
            let message = response.headers()["grpc-message"].to_str().unwrap();
            assert!(message.ends_with("100 %25 n%C3%B6%0AX-Y: z"), "{message}");
            assert_ne!(response.headers()["grpc-status"], "0");
        }
        assert_eq!(code(Reason::PolicyDenied), "7");
        assert_eq!(code(Reason::Unmapped), "7");
        assert_eq!(code(Reason::AuditUnavailable), "14");
    }
}
