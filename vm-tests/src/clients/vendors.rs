//! What the vendors answer, as much of it as their own SDKs look at, and a model whose answers are a script.
//! Place: behind `far`, which has written the request down.
//! Invariant: without the real credential there is nothing here but 401.

use serde_json::{Value, json};

use super::far::{Reply, SECRET};
use super::judge::{EVENTS, READ, WRITTEN};
use crate::upstream::{Answer, Seen};

pub(super) fn answer(seen: &Seen) -> Reply {
    if seen.host.ends_with("amazonaws.com") {
        return whole(amazon(seen));
    }
    if !seen.headers.values().any(|value| value.contains(SECRET)) {
        let refused =
            json!({ "error": { "message": "invalid credential", "type": "authentication_error" } });
        return whole(Answer::json(401, &refused));
    }
    match seen.host.as_str() {
        "api.anthropic.com" => anthropic(seen),
        "api.clients.example" => plain(seen),
        "api.github.com" => whole(github(seen)),
        "api.openai.com" => openai(seen),
        "api.stripe.com" => whole(stripe(seen)),
        "slack.com" => whole(slack(seen)),
        "www.googleapis.com" => whole(google(seen)),
        _ => whole(nothing()),
    }
}

fn whole(answer: Answer) -> Reply {
    Reply::Whole(answer)
}

fn ok(body: &Value) -> Answer {
    Answer::json(200, body)
}

fn nothing() -> Answer {
    Answer::json(404, &json!({ "error": { "message": "nothing here" } }))
}

fn at(seen: &Seen) -> (&str, &str) {
    (seen.method.as_str(), seen.path.as_str())
}

/// What clients that belong to no vendor call.
fn plain(seen: &Seen) -> Reply {
    match at(seen) {
        ("GET", "/v1/things/42") => whole(ok(&json!({ "id": READ }))),
        ("POST", "/v1/orders") => whole(Answer::json(201, &json!({ "id": WRITTEN }))),
        ("GET", "/v1/events") => events(|event| format!("data: {event}\n\n")),
        _ => whole(nothing()),
    }
}

fn events(piece: impl Fn(&str) -> String) -> Reply {
    Reply::Pieces(
        "text/event-stream",
        EVENTS.iter().map(|event| piece(event)).collect(),
    )
}

/// A request that it did not sign itself: what AWS says to that.
fn amazon(seen: &Seen) -> Answer {
    let signed = seen.header("authorization").contains(SECRET);
    let body = if signed {
        json!({ "Item": { "id": { "S": READ } } })
    } else {
        json!({
            "__type": "com.amazon.coral.service#InvalidSignatureException",
            "message": "The request signature we calculated does not match the signature you provided.",
        })
    };
    let mut answer = Answer::json(if signed { 200 } else { 400 }, &body);
    for (name, value) in &mut answer.headers {
        if name == "content-type" {
            *value = "application/x-amz-json-1.0".to_owned();
        }
    }
    answer
}

fn stripe(seen: &Seen) -> Answer {
    match at(seen) {
        ("GET", "/v1/customers/cus_1") => {
            ok(&json!({ "id": "cus_1", "object": "customer", "description": READ }))
        }
        ("POST", "/v1/customers") => {
            ok(&json!({ "id": "cus_2", "object": "customer", "description": WRITTEN }))
        }
        _ => nothing(),
    }
}

fn slack(seen: &Seen) -> Answer {
    match seen.path.as_str() {
        "/api/auth.test" => ok(&json!({ "ok": true, "team": READ })),
        "/api/chat.postMessage" => ok(&json!({ "ok": true, "channel": "C1", "ts": WRITTEN })),
        _ => ok(&json!({ "ok": false, "error": "unknown_method" })),
    }
}

fn github(seen: &Seen) -> Answer {
    let repository = json!({ "id": 1, "name": "site", "full_name": "acme/site", "description": READ, "owner": { "login": "acme" }, "url": "https://api.github.com/repos/acme/site" });
    match at(seen) {
        ("GET", "/repos/acme/site") => ok(&repository),
        ("POST", "/repos/acme/site/issues") => Answer::json(
            201,
            &json!({ "id": 2, "number": 17, "title": WRITTEN, "state": "open", "url": "https://api.github.com/repos/acme/site/issues/17" }),
        ),
        _ => nothing(),
    }
}

fn google(seen: &Seen) -> Answer {
    match at(seen) {
        ("GET", "/drive/v3/files") => ok(&json!({ "files": [{ "id": "1", "name": READ }] })),
        ("POST", "/drive/v3/files") => ok(&json!({ "id": "2", "name": WRITTEN })),
        _ => nothing(),
    }
}

fn anthropic(seen: &Seen) -> Reply {
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let message = |text: &str| {
        json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "scripted", "stop_reason": "end_turn", "stop_sequence": null,
            "content": [{ "type": "text", "text": text }], "usage": { "input_tokens": 1, "output_tokens": 1 },
        })
    };
    match at(seen) {
        ("GET", "/v1/models") => whole(ok(
            &json!({ "data": [{ "id": READ, "type": "model", "display_name": READ, "created_at": "2026-01-01T00:00:00Z" }], "has_more": false, "first_id": READ, "last_id": READ }),
        )),
        ("POST", "/v1/messages") if body.pointer("/stream") == Some(&Value::Bool(true)) => {
            let line = |kind: &str, data: Value| format!("event: {kind}\ndata: {data}\n\n");
            let mut start = message("");
            if let Some(content) = start.pointer_mut("/content") {
                *content = json!([]);
            }
            let mut pieces = vec![
                line(
                    "message_start",
                    json!({ "type": "message_start", "message": start }),
                ),
                line(
                    "content_block_start",
                    json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
                ),
            ];
            pieces.extend(EVENTS.iter().map(|event| {
                line("content_block_delta", json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": format!("{event}\n") } }))
            }));
            pieces.push(line(
                "content_block_stop",
                json!({ "type": "content_block_stop", "index": 0 }),
            ));
            pieces.push(line("message_delta", json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn", "stop_sequence": null }, "usage": { "output_tokens": 3 } })));
            pieces.push(line("message_stop", json!({ "type": "message_stop" })));
            Reply::Pieces("text/event-stream", pieces)
        }
        ("POST", "/v1/messages") => whole(ok(&message(WRITTEN))),
        _ => whole(nothing()),
    }
}

fn openai(seen: &Seen) -> Reply {
    let body: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
    let streams = body.pointer("/stream") == Some(&Value::Bool(true));
    match at(seen) {
        ("GET", "/v1/models") => whole(ok(
            &json!({ "object": "list", "data": [{ "id": READ, "object": "model", "created": 1, "owned_by": "acme" }] }),
        )),
        ("POST", "/v1/chat/completions") if streams => {
            let chunk = |delta: Value, end: Value| {
                let chunk = json!({ "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "scripted", "choices": [{ "index": 0, "delta": delta, "finish_reason": end }] });
                format!("data: {chunk}\n\n")
            };
            let mut pieces: Vec<String> = EVENTS
                .iter()
                .map(|event| {
                    chunk(
                        json!({ "role": "assistant", "content": format!("{event}\n") }),
                        Value::Null,
                    )
                })
                .collect();
            pieces.push(chunk(json!({}), json!("stop")) + "data: [DONE]\n\n");
            Reply::Pieces("text/event-stream", pieces)
        }
        ("POST", "/v1/chat/completions") => whole(ok(&completion(&body))),
        _ => whole(nothing()),
    }
}

/// The script: the first tool is called once; then what it said is repeated. Without tools it has done what it was asked.
fn completion(body: &Value) -> Value {
    let messages = body.pointer("/messages").and_then(Value::as_array);
    let tool = body
        .pointer("/tools/0/function/name")
        .and_then(Value::as_str);
    let of = |role: &str| {
        messages
            .into_iter()
            .flatten()
            .rev()
            .find(|message| message.pointer("/role").and_then(Value::as_str) == Some(role))
    };
    let text = |message: &Value| match message.pointer("/content") {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let (message, end) = match (of("tool"), tool) {
        (Some(said), _) => (
            json!({ "role": "assistant", "content": format!("the tool said: {}", text(said)) }),
            "stop",
        ),
        (None, Some(tool)) => (
            json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "call_1", "type": "function", "function": { "name": tool, "arguments": "{}" } }] }),
            "tool_calls",
        ),
        (None, None) => (json!({ "role": "assistant", "content": WRITTEN }), "stop"),
    };
    json!({
        "id": "c1", "object": "chat.completion", "created": 1, "model": "scripted",
        "choices": [{ "index": 0, "message": message, "finish_reason": end }],
        "usage": { "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 },
    })
}
