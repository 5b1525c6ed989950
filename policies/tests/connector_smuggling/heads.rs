//! Paths, methods, headers and hosts that could be read in two ways.
//! The control of each table is its first line.
//! INVARIANT: nothing here depends on a body.

use crate::wire::*;
use policies::Reason;

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
        let underscored = name.replacen('-', "_", 2);
        check(
            Wire {
                headers: vec![(&underscored, "DELETE")],
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
    for value in ["acct_1\u{a0}", "acct_\u{e9}", "acct_1\t", "acct_1\u{200b}"] {
        check(
            Wire {
                headers: vec![FORM, ("stripe-account", value)],
                ..refund(b"charge=ch_1")
            },
            AMBIGUOUS,
        );
    }
}

#[test]
fn a_header_with_underscores_is_none_that_is_read_with_dashes() {
    // Positive control: a name that is like none of ours passes, as some clients send such names.
    let odd = ("session_id", "s_1");
    check(
        Wire {
            headers: vec![FORM, odd],
            ..refund(b"charge=ch_1")
        },
        Ok("stripe/refunds.create"),
    );
    for name in [
        "stripe_account",
        "stripe_context",
        "content_type",
        "content_length",
        "content_encoding",
        "transfer_encoding",
        "proxy_authorization",
    ] {
        check(
            Wire {
                headers: vec![FORM, (name, "1")],
                ..refund(b"charge=ch_1")
            },
            AMBIGUOUS,
        );
    }
}

#[test]
fn a_credential_beside_the_place_that_is_stripped_is_refused() {
    let history = |query| Wire {
        method: "GET",
        path: "/api/conversations.history",
        query: Some(query),
        headers: vec![],
        ..message(b"")
    };
    // The place itself is emptied when the credential is lent.
    check(
        history("channel=C1&token=xoxb-other"),
        Ok("slack/conversations.history"),
    );
    for query in ["token[]=x", "channel=C1&token]=x", "token.a=x"] {
        check(history(query), AMBIGUOUS);
    }
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
