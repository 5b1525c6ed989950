//! Requests that a server could read otherwise than we do: each is refused, and by its name.
//! Every table has a control: the same request in its plain form is the call that it looks like.
//! INVARIANT: no request in these tables becomes a call.

use policies::{Agent, AgentId, Catalogue, Endpoint, Reason, RequestView, Source};
use std::sync::LazyLock;

const AGENT: &str = r#"
tenant = "acme"
name = "bot"
owner = "Ada"
stage = "autonomous"
[[connections]]
name = "stripe"
connector = "stripe"
credential = "stripe-live"
[[connections]]
name = "slack"
connector = "slack"
credential = "slack"
[[connections]]
name = "github"
connector = "github"
credential = "github"
hosts = ["api.github.com"]
[[connections]]
name = "web"
connector = "generic-http"
hosts = ["web.example.com", "10.0.0.7:8080"]
"#;

struct Wire<'a> {
    host: &'a str,
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const JSON: (&str, &str) = ("content-type", "application/json");

fn refund(body: &[u8]) -> Wire<'_> {
    Wire {
        host: "api.stripe.com:443",
        method: "POST",
        path: "/v1/refunds",
        query: None,
        headers: vec![FORM],
        body,
    }
}

fn message(body: &[u8]) -> Wire<'_> {
    Wire {
        host: "slack.com:443",
        method: "POST",
        path: "/api/chat.postMessage",
        query: None,
        headers: vec![JSON],
        body,
    }
}

fn issue(body: &[u8]) -> Wire<'_> {
    Wire {
        host: "api.github.com:443",
        method: "PATCH",
        path: "/repos/acme/site/issues/7",
        query: None,
        headers: vec![JSON],
        body,
    }
}

fn web(path: &str) -> Wire<'_> {
    Wire {
        host: "web.example.com:443",
        method: "GET",
        path,
        query: None,
        headers: vec![],
        body: b"",
    }
}

fn outcome(wire: &Wire<'_>) -> Result<String, Reason> {
    static CATALOGUE: LazyLock<(AgentId, Catalogue)> = LazyLock::new(|| {
        let agent = Agent::parse(&Source {
            path: "bot.toml".into(),
            text: AGENT.into(),
        })
        .unwrap();
        let id = agent.id().clone();
        (
            id,
            Catalogue::build(vec![agent], Vec::new())
                .unwrap_or_else(|problems| panic!("{problems}")),
        )
    });
    let (id, catalogue) = &*CATALOGUE;
    let at: Endpoint = wire.host.parse().unwrap();
    let view = RequestView {
        method: wire.method,
        path: wire.path,
        query: wire.query,
        headers: &wire.headers,
        body: Some(wire.body),
    };
    let call = catalogue.call(id, &at, &view);
    call.map(|call| call.capability().to_string())
        .map_err(|refused| refused.reason)
}

fn check(wire: Wire<'_>, expected: Result<&str, Reason>) {
    let shown = format!(
        "{} {}?{:?} {:?} {}",
        wire.method,
        wire.path,
        wire.query,
        wire.headers,
        String::from_utf8_lossy(wire.body)
    );
    assert_eq!(outcome(&wire), expected.map(str::to_owned), "{shown}");
}

const AMBIGUOUS: Result<&str, Reason> = Err(Reason::AmbiguousRequest);
const MALFORMED: Result<&str, Reason> = Err(Reason::MalformedRequest);
const UNMAPPED: Result<&str, Reason> = Err(Reason::Unmapped);

#[test]
fn a_path_that_is_not_canonical_is_ambiguous() {
    check(web("/a/b"), Ok("generic-http/get"));
    check(web("/"), Ok("generic-http/get"));
    let long = format!("/{}", "a/".repeat(5000));
    for path in [
        "",
        "a",
        "//a",
        "/a//b",
        "/a/",
        "/./a",
        "/a/.",
        "/../a",
        "/a/../b",
        "/a/..",
        "/%2e%2e/a",
        "/a/%2E%2E/b",
        "/%61",
        "/a%2Fb",
        "/a%2fb",
        "/a\\b",
        "/a%5Cb",
        "/a;b=c",
        "/;/a",
        "/a;/../b",
        "/a%3B/../b",
        "/a b",
        "/a%20",
        "/ a",
        "/a#b",
        "/a?b",
        "/ä",
        "/%E4",
        "/%C0%AE",
        "/a%",
        "/a%4",
        "/%zz",
        "/a%00",
        "/a%0D%0A",
        "/a\r\nb",
        "/a\tb",
        "/a\u{0}b",
        "/%252e%252e/a",
        "/a%252Fb",
        "/a|b",
        "/a\"b",
        "/<a>",
        "/a{b}",
        "/a^b",
        "/a`b",
        "http://other.example.com/a",
        "*",
        &long,
    ] {
        // An encoded space is canonical: it is there to show that escapes as such are read.
        let expected = if path == "/a%20" {
            Ok("generic-http/get")
        } else {
            AMBIGUOUS
        };
        check(web(path), expected);
    }
}

#[test]
fn a_path_in_another_case_is_unmapped() {
    check(
        Wire {
            path: "/v1/refunds",
            ..refund(b"charge=ch_1")
        },
        Ok("stripe/refunds.create"),
    );
    for path in ["/v1/Refunds", "/V1/refunds", "/v1/REFUNDS"] {
        check(
            Wire {
                path,
                ..refund(b"charge=ch_1")
            },
            UNMAPPED,
        );
    }
}

#[test]
fn the_method_is_what_it_says() {
    check(web("/a"), Ok("generic-http/get"));
    for method in ["get", "Get", "gET", "delete"] {
        check(
            Wire {
                method,
                ..web("/a")
            },
            AMBIGUOUS,
        );
    }
    for method in ["", "GET ", "GE T", "GET\r\n", "GËT"] {
        check(
            Wire {
                method,
                ..web("/a")
            },
            MALFORMED,
        );
    }
    for method in ["TRACE", "OPTIONS", "PROPFIND", "CONNECT"] {
        check(
            Wire {
                method,
                ..web("/a")
            },
            UNMAPPED,
        );
    }
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-url",
        "x-rewrite-url",
        "x-original-uri",
    ] {
        check(
            Wire {
                headers: vec![(name, "DELETE")],
                ..web("/a")
            },
            AMBIGUOUS,
        );
        check(
            Wire {
                headers: vec![FORM, (name, "DELETE")],
                ..refund(b"charge=ch_1")
            },
            AMBIGUOUS,
        );
    }
    check(
        Wire {
            query: Some("_method=DELETE"),
            ..web("/a")
        },
        AMBIGUOUS,
    );
    check(refund(b"charge=ch_1&_method=DELETE"), AMBIGUOUS);
}

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
    ] {
        check(message(body.as_bytes()), AMBIGUOUS);
    }
    for body in [
        "{",
        "{}{}",
        "[]",
        "\"C1\"",
        "null",
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
    check(
        Wire {
            path: "/api/auth.test",
            headers: vec![FORM],
            ..message(b"token=xoxb-other")
        },
        AMBIGUOUS,
    );
}

#[test]
fn headers_that_are_params_are_sent_once() {
    let account = ("stripe-account", "acct_1");
    check(
        Wire {
            headers: vec![FORM, account],
            ..refund(b"charge=ch_1")
        },
        Ok("stripe/refunds.create"),
    );
    check(
        Wire {
            headers: vec![FORM, account, account],
            ..refund(b"charge=ch_1")
        },
        AMBIGUOUS,
    );
}

#[test]
fn an_encoded_slash_is_read_only_where_the_connector_expects_one() {
    let branch = |path| Wire {
        method: "GET",
        path,
        headers: vec![],
        ..issue(b"")
    };
    check(
        branch("/repos/acme/site/branches/feature%2Fx"),
        Ok("github/branches.read"),
    );
    check(branch("/repos/acme%2Fsite/branches/main"), UNMAPPED);
    check(branch("/repos/acme/site%2Fx/branches/main"), AMBIGUOUS);
    check(
        branch("/repos/acme/site/branches/feature%2F..%2Fx"),
        AMBIGUOUS,
    );
    check(branch("/repos/acme/site/branches/feature%2fx"), AMBIGUOUS);
    check(branch("/repos/acme/site/branches/%2Fx"), AMBIGUOUS);
}

#[test]
fn hosts_and_ports_that_no_connection_names_are_unknown() {
    check(
        Wire {
            host: "10.0.0.7:8080",
            ..web("/a")
        },
        Ok("generic-http/get"),
    );
    for host in [
        "10.0.0.7:443",
        "web.example.com:8080",
        "api.stripe.com:80",
        "example.com:443",
        "a.web.example.com:443",
        "github.com:443",
    ] {
        check(Wire { host, ..web("/a") }, Err(Reason::HostUnknown));
    }
}
