//! The answers of the vendors, as much of them as their own SDKs look at.
//! Invariant: each counts what it did, so a call that was sent twice is seen in the answer too.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::{Answer, Seen};

/// api.stripe.com.
pub(super) fn stripe(seen: &Seen, refunds: &AtomicU32) -> Answer {
    let last = seen.path.rsplit('/').next().unwrap_or_default();
    let body = match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/v1/balance") => json!({
            "object": "balance", "livemode": true,
            "available": [{ "amount": 420_000, "currency": "usd" }], "pending": [],
        }),
        ("GET", path) if path.starts_with("/v1/charges/") => {
            json!({ "id": last, "object": "charge", "amount": 12_000, "currency": "usd", "paid": true })
        }
        ("GET", path) if path.starts_with("/v1/customers/") => {
            // What a careless vendor does: it tells the caller the key it was called with.
            json!({ "id": last, "object": "customer", "note": seen.header("authorization") })
        }
        ("GET", "/v1/customers") => {
            json!({ "object": "list", "has_more": false, "data": [], "url": "/v1/customers" })
        }
        ("DELETE", path) if path.starts_with("/v1/customers/") => {
            json!({ "id": last, "object": "customer", "deleted": true })
        }
        ("POST", "/v1/refunds") => {
            let number = refunds.fetch_add(1, Ordering::Relaxed) + 1;
            let form = String::from_utf8_lossy(&seen.body).into_owned();
            let field = |name: &str| {
                form.split('&')
                    .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
                    .map(str::to_owned)
            };
            json!({
                "id": format!("re_{number}"), "object": "refund", "status": "succeeded", "currency": "usd",
                "amount": field("amount").and_then(|amount| amount.parse::<u64>().ok()).unwrap_or(12_000),
                "charge": field("charge"),
            })
        }
        _ => {
            return Answer::json(
                404,
                &json!({
                    "error": { "type": "invalid_request_error", "message": format!("Unrecognized request URL ({}: {})", seen.method, seen.path) },
                }),
            );
        }
    };
    Answer::json(200, &body)
}

/// slack.com.
pub(super) fn slack(seen: &Seen) -> Answer {
    let body = match seen.path.as_str() {
        "/api/auth.test" => json!({ "ok": true, "team": "Acme", "user": "support-agent" }),
        "/api/chat.postMessage" => {
            json!({ "ok": true, "channel": "C123", "ts": "1700000000.000100" })
        }
        "/api/conversations.list" => {
            json!({ "ok": true, "channels": [{ "id": "C123", "name": "support" }] })
        }
        _ => json!({ "ok": false, "error": "unknown_method" }),
    };
    Answer::json(200, &body)
}

/// api.github.com.
pub(super) fn github(seen: &Seen) -> Answer {
    match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/repos/acme/site") => Answer::json(
            200,
            &json!({ "id": 1, "full_name": "acme/site", "private": true }),
        ),
        ("GET", "/repos/acme/site/issues") => Answer::json(
            200,
            &json!([{ "number": 7, "title": "Broken link", "state": "open" }]),
        ),
        _ => Answer::json(404, &json!({ "message": "Not Found" })),
    }
}
