//! Forms, JSON, queries beside bodies, content types and encodings that could be read in two ways.
//! The control of each table is its first line.
//! INVARIANT: what a body does is read from the body, whole and once.

use crate::wire::*;

#[test]
fn a_form_field_has_one_reading() {
    check(
        refund(b"amount=100&charge=ch_1"),
        Ok("stripe/refunds.create"),
    );
    for body in [
        "amount=100&amount=9900",
        "amount=100&%61mount=9900",
        "amount=100&Amount=9900",
        "amount[]=9900",
        "amount]=9900",
        "[amount]=9900",
        "amount=100&%5Bamount%5D=9900",
        "amount.x=9900",
        "am%EF%BB%BFount=1&%EF%BB%BFamount=9900",
        "amount[0]=9900",
        "amount[x]=9900",
        "amount=1;amount=2",
        "amount=100&+amount=9900",
        "amount=100&amount%20=9900",
        "amount=100&amount%00=9900",
        "amount=100&am%ount=9",
        "amount=%FF",
        "=100",
        "amount=1%00",
        "amount=100#",
        "amount=1 0",
    ] {
        check(refund(body.as_bytes()), AMBIGUOUS);
    }
    for body in [
        "amount=1e4",
        "amount=100.0",
        "amount=0100",
        "amount=+100",
        "amount=%2B100",
        "amount=-0",
        "amount=",
        "amount=0x64",
        "amount=99999999999999999999",
        "amount=١٠",
    ] {
        let expected = if body.is_ascii() {
            MALFORMED
        } else {
            AMBIGUOUS
        };
        check(refund(body.as_bytes()), expected);
    }
    check(refund(b"reverse_transfer=yes&charge=ch_1"), MALFORMED);
}

#[test]
fn query_and_body_agree() {
    check(
        Wire {
            query: Some("amount=100"),
            ..refund(b"amount=100")
        },
        Ok("stripe/refunds.create"),
    );
    check(
        Wire {
            query: Some("amount=100"),
            ..refund(b"charge=ch_1")
        },
        Ok("stripe/refunds.create"),
    );
    check(
        Wire {
            query: Some("amount=9900"),
            ..refund(b"amount=100")
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            query: Some("channel=C2"),
            ..message(br#"{"channel":"C1"}"#)
        },
        AMBIGUOUS,
    );
    // What tells closing from editing must not stand in the query, where only the body is looked at.
    check(issue(br#"{"title":"x"}"#), Ok("github/issue.edit"));
    check(
        Wire {
            query: Some("state=closed"),
            ..issue(br#"{"title":"x"}"#)
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            query: Some("State=closed"),
            ..issue(br#"{"title":"x"}"#)
        },
        AMBIGUOUS,
    );
}

#[test]
fn a_json_body_has_one_reading() {
    check(
        message(br#"{"channel":"C1","text":"hi"}"#),
        Ok("slack/chat.postMessage"),
    );
    for body in [
        r#"{"channel":"C1","channel":"C2"}"#,
        r#"{"channel":"C1","\u0063hannel":"C2"}"#,
        r#"{"channel":"C1","Channel":"C2"}"#,
        r#"{"channel":"C1","blocks":[{"a":1,"a":2}]}"#,
        r#"{"channel":"C1","blocks":[{"a":{"b":[{"c":1,"\u0063":1}]}}]}"#,
        r#"{"channel":"C1"," channel":"C2"}"#,
        r#"{"channel":"C1","channel\u0000":"C2"}"#,
        r#"{"channel":"C1","\ufeffchannel":"C2"}"#,
        r#"{"channel":"C1\u0000"}"#,
    ] {
        check(message(body.as_bytes()), AMBIGUOUS);
    }
    for body in [
        "{",
        "{}{}",
        "[]",
        "\"C1\"",
        "null",
        "{} x",
        "{}\0",
        "{\"channel\":\"C1\"}\0{\"channel\":\"C2\"}",
        r#"{"channel":1e4}"#,
        r#"{"channel":["C1"]}"#,
        r#"{"channel":1}"#,
        "{\"channel\":\"\\ud800\"}",
        "\u{feff}{}",
        r#"{"channel":"C1",}"#,
        "{channel:'C1'}",
        "// x\n{}",
    ] {
        check(message(body.as_bytes()), MALFORMED);
    }
    check(
        message(&[b"{\"channel\":\"", &[0xff][..], b"\"}"].concat()),
        MALFORMED,
    );
    check(message("[".repeat(100_000).as_bytes()), MALFORMED);
}

#[test]
fn one_request_is_one_operation() {
    check(issue(br#"{"state":"closed"}"#), Ok("github/issue.close"));
    check(issue(br#"{"state":"open"}"#), Ok("github/issue.reopen"));
    check(issue(br#"{"title":"x","state":"closed"}"#), UNMAPPED);
    check(issue(br#"{"state":"closed","title":"x"}"#), UNMAPPED);
    check(issue(br#"{"state":"Closed"}"#), UNMAPPED);
    check(issue(br#"{"state":null,"title":"x"}"#), UNMAPPED);
    check(issue(br#"{"State":"closed"}"#), AMBIGUOUS);
    check(issue(br#"[{"state":"closed"}]"#), MALFORMED);
    let subscription = |body| Wire {
        path: "/v1/subscriptions/sub_1",
        ..refund(body)
    };
    check(
        subscription(b"proration_behavior=none"),
        Ok("stripe/subscriptions.update"),
    );
    check(
        subscription(b"proration_behavior=none&cancel_at_period_end=true"),
        Ok("stripe/subscriptions.schedule_cancel"),
    );
    check(
        Wire {
            query: Some("cancel_at_period_end=true"),
            ..subscription(b"proration_behavior=none")
        },
        AMBIGUOUS,
    );
}

#[test]
fn the_content_type_says_how_the_body_is_read() {
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "Application/JSON",
        "application/vnd.api+json",
    ] {
        check(
            Wire {
                headers: vec![("content-type", kind)],
                ..message(br#"{"channel":"C1"}"#)
            },
            Ok("slack/chat.postMessage"),
        );
    }
    for kind in [
        "text/plain",
        "text/json",
        "application/json; charset=utf-16",
        "application/json; charset=utf-7",
        "multipart/form-data; boundary=x",
        "",
        "json",
        "application/json, text/plain",
    ] {
        check(
            Wire {
                headers: vec![("content-type", kind)],
                ..message(br#"{"channel":"C1"}"#)
            },
            AMBIGUOUS,
        );
    }
    check(
        Wire {
            headers: vec![],
            ..message(br#"{"channel":"C1"}"#)
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![JSON, JSON],
            ..message(br#"{"channel":"C1"}"#)
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![JSON],
            ..refund(br#"{"amount":100}"#)
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![FORM],
            ..issue(b"state=closed")
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![JSON, JSON],
            ..web("/a")
        },
        AMBIGUOUS,
    );
}

#[test]
fn a_compressed_body_that_decides_is_ambiguous_and_one_that_does_not_passes() {
    let gzip = ("content-encoding", "gzip");
    check(
        Wire {
            headers: vec![JSON, gzip],
            ..message(br#"{"channel":"C1"}"#)
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![JSON, ("content-encoding", "identity")],
            ..message(br#"{"channel":"C1"}"#)
        },
        Ok("slack/chat.postMessage"),
    );
    check(
        Wire {
            method: "POST",
            headers: vec![JSON, gzip],
            body: b"\x1f\x8b",
            ..web("/a")
        },
        Ok("generic-http/post"),
    );
}

#[test]
fn a_get_with_a_body_is_ambiguous() {
    let history = Wire {
        method: "GET",
        path: "/api/conversations.history",
        query: Some("channel=C1"),
        headers: vec![],
        ..message(b"")
    };
    check(history, Ok("slack/conversations.history"));
    check(
        Wire {
            method: "GET",
            path: "/api/conversations.history",
            query: Some("channel=C1"),
            ..message(br#"{"channel":"C2"}"#)
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![("content-length", "3")],
            ..web("/a")
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![("transfer-encoding", "chunked")],
            ..web("/a")
        },
        AMBIGUOUS,
    );
    check(
        Wire {
            headers: vec![("content-length", "0")],
            ..web("/a")
        },
        Ok("generic-http/get"),
    );
}

#[test]
fn a_credential_in_the_body_is_refused() {
    for body in [
        r#"{"channel":"C1","token":"xoxb-other"}"#,
        r#"{"channel":"C1","Token":"xoxb-other"}"#,
        r#"{"channel":"C1","token\u0000":"xoxb-other"}"#,
    ] {
        check(message(body.as_bytes()), AMBIGUOUS);
    }
    check(
        Wire {
            headers: vec![FORM],
            ..message(b"channel=C1&token=xoxb-other")
        },
        AMBIGUOUS,
    );
    for body in [
        "channel=C1&token[]=xoxb-other",
        "channel=C1&token]=xoxb-other",
        "channel=C1&[token]=xoxb-other",
    ] {
        check(
            Wire {
                headers: vec![FORM],
                ..message(body.as_bytes())
            },
            AMBIGUOUS,
        );
    }
    check(
        Wire {
            path: "/api/auth.test",
            headers: vec![FORM],
            ..message(b"token=xoxb-other")
        },
        AMBIGUOUS,
    );
}
