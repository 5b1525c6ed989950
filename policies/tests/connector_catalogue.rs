//! The catalogue: what agents' connections make of connectors, what does not load, and what a call carries.
//! Agents are TOML as an operator writes it; the connectors are the shipped ones and one of the operator's own.
//! INVARIANT: a connection that could be two things, or nothing, does not load.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use policies::{
    Agent, AgentId, Auth, BodyNeed, Call, Catalogue, Connector, Endpoint, Host, Reason, Refused,
    RequestView, Source, Strip, Value,
};

const OWN: &str = include_str!("connector_files/small.toml");

fn agent(connections: &str) -> Agent {
    let text = format!(
        "tenant = \"acme\"\nname = \"bot\"\nowner = \"Ada\"\nstage = \"write\"\n{connections}"
    );
    Agent::parse(&Source {
        path: "bot.toml".into(),
        text,
    })
    .unwrap_or_else(|problems| panic!("{problems}"))
}

fn build(connections: &str) -> Result<Catalogue, String> {
    let own = Connector::parse(&Source {
        path: "things.toml".into(),
        text: OWN.into(),
    })
    .unwrap();
    Catalogue::build(vec![agent(connections)], vec![own]).map_err(|problems| problems.to_string())
}

fn connection(name: &str, connector: &str, more: &str) -> String {
    format!("[[connections]]\nname = \"{name}\"\nconnector = \"{connector}\"\n{more}\n")
}

fn id() -> AgentId {
    "acme/bot".parse().unwrap()
}

fn call(
    catalogue: &Catalogue,
    at: &str,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Call, Refused> {
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let view = RequestView {
        method,
        path,
        query: None,
        headers: &headers,
        body: Some(body),
    };
    catalogue.call(&id(), &at.parse::<Endpoint>().unwrap(), &view)
}

/// Loading these connections must fail with this.
fn refuses(connections: &str, expected: &str) {
    let shown = build(connections).expect_err(expected);
    assert!(
        shown.contains(expected),
        "expected {expected:?} in\n{shown}"
    );
}

#[test]
fn a_call_carries_what_the_later_steps_need() {
    let catalogue = build(&connection("pay", "stripe", "credential = \"stripe-live\"")).unwrap();
    let call = call(
        &catalogue,
        "api.stripe.com:443",
        "POST",
        "/v1/charges/ch_1/capture",
        b"amount=100",
    )
    .unwrap();
    assert_eq!(call.agent(), &id());
    assert_eq!(call.owner().as_str(), "Ada");
    assert_eq!(call.connection().as_str(), "pay");
    assert_eq!(call.connector().as_str(), "stripe");
    assert_eq!(call.capability().to_string(), "stripe/charges.capture");
    assert_eq!(call.params().get("amount"), Some(&Value::Integer(100)));
    assert_eq!(
        call.params().get("charge"),
        Some(&Value::Text("ch_1".into()))
    );
    assert_eq!(call.credential().unwrap().to_string(), "acme/stripe-live");
    assert_eq!(call.auth(), &Auth::Bearer);
    assert!(
        call.strip()
            .contains(&Strip::Header("authorization".into()))
    );
    assert_eq!(call.template(), "/v1/charges/{charge}/capture");
    assert_eq!(call.endpoint().to_string(), "api.stripe.com:443");
}

#[test]
fn every_shipped_connector_strips_the_place_of_its_credential() {
    for connector in Connector::shipped().unwrap() {
        for place in connector.auth().place().into_iter().chain([
            Strip::Header("authorization".into()),
            Strip::Header("cookie".into()),
        ]) {
            assert!(
                connector.strip().contains(&place),
                "{} does not strip {place:?}",
                connector.id()
            );
        }
    }
}

#[test]
fn a_connection_without_credential_still_says_where_one_belongs_and_strips_that_place() {
    let catalogue = build(&connection("gh", "github", "hosts = [\"api.github.com\"]")).unwrap();
    let call = call(&catalogue, "api.github.com:443", "GET", "/rate_limit", b"").unwrap();
    assert_eq!((call.credential(), call.auth()), (None, &Auth::Bearer));
    assert!(
        call.strip()
            .contains(&Strip::Header("authorization".into()))
    );
}

#[test]
fn git_has_its_own_place_for_the_credential() {
    let two = connection(
        "api",
        "github",
        "credential = \"gh\"\nhosts = [\"api.github.com\"]",
    ) + &connection(
        "git",
        "github",
        "credential = \"gh-git\"\nhosts = [\"github.com\"]",
    );
    let catalogue = build(&two).unwrap();
    let push = call(
        &catalogue,
        "github.com:443",
        "POST",
        "/acme/site.git/git-receive-pack",
        b"0000",
    )
    .unwrap();
    assert_eq!(
        (push.capability().to_string().as_str(), push.auth()),
        ("github/git.push", &Auth::Basic)
    );
    let read = call(&catalogue, "api.github.com:443", "GET", "/user", b"").unwrap();
    assert_eq!(read.auth(), &Auth::Bearer);
}

#[test]
fn generic_http_takes_hosts_and_auth_from_the_connection() {
    let web = connection(
        "web",
        "generic-http",
        "hosts = [\"web.example.com:8443\"]\ncredential = \"web\"\nauth = { kind = \"header\", name = \"x-key\" }",
    );
    let catalogue = build(&web).unwrap();
    let put = call(&catalogue, "web.example.com:8443", "PUT", "/a/b", b"x").unwrap();
    assert_eq!(
        put.auth(),
        &Auth::Header {
            name: "x-key".into()
        }
    );
    assert!(put.strip().contains(&Strip::Header("x-key".into())));
    assert_eq!(put.params().get("path"), Some(&Value::Text("a/b".into())));
    refuses(
        &connection("web", "generic-http", ""),
        "names its own `hosts`",
    );
    refuses(
        &connection(
            "web",
            "generic-http",
            "hosts = [\"a.example.com\"]\ncredential = \"x\"",
        ),
        "nothing says where it goes",
    );
    refuses(
        &connection(
            "web",
            "generic-http",
            "hosts = [\"a.example.com\"]\nauth = { kind = \"bearer\" }",
        ),
        "no `credential`",
    );
    refuses(
        &connection(
            "pay",
            "stripe",
            "credential = \"x\"\nauth = { kind = \"basic\" }",
        ),
        "`auth` is not for it",
    );
}

#[test]
fn names_resolve_for_the_agents_own_hosts_only() {
    let catalogue = build(
        &(connection("pay", "stripe", "")
            + &connection("site", "jira", "hosts = [\"*.atlassian.net\"]")),
    )
    .unwrap();
    let host = |text| Host::parse(text).unwrap();
    assert!(catalogue.resolves(&id(), &host("api.stripe.com")));
    assert!(catalogue.resolves(&id(), &host("acme.atlassian.net")));
    for other in [
        "stripe.com",
        "a.b.atlassian.net",
        "api.github.com",
        "atlassian.net",
    ] {
        assert!(!catalogue.resolves(&id(), &host(other)), "{other}");
    }
    assert!(!catalogue.resolves(&"acme/other".parse().unwrap(), &host("api.stripe.com")));
    assert_eq!(catalogue.exact_hosts(&id()), [host("api.stripe.com")]);
}

#[test]
fn the_body_is_asked_for_only_where_it_decides() {
    let catalogue = build(
        &(connection("pay", "stripe", "")
            + &connection("llm", "anthropic", "")
            + &connection("web", "generic-http", "hosts = [\"web.example.com\"]")),
    )
    .unwrap();
    let need = |at: &str, method, path| {
        let view = RequestView {
            method,
            path,
            query: None,
            headers: &[],
            body: None,
        };
        catalogue.body_need(&id(), &at.parse().unwrap(), &view)
    };
    assert_eq!(
        need("api.stripe.com:443", "POST", "/v1/refunds"),
        BodyNeed::Whole { limit: 1 << 20 }
    );
    assert_eq!(
        need("api.anthropic.com:443", "POST", "/v1/messages"),
        BodyNeed::Whole { limit: 16 << 20 }
    );
    assert_eq!(
        need("api.anthropic.com:443", "POST", "/v1/files"),
        BodyNeed::None
    );
    assert_eq!(
        need("web.example.com:443", "POST", "/upload"),
        BodyNeed::None
    );
    assert_eq!(
        need("api.stripe.com:443", "POST", "/v1/nothing"),
        BodyNeed::None
    );
    // A body that decides and was not read decides nothing.
    let view = RequestView {
        method: "POST",
        path: "/v1/refunds",
        query: None,
        headers: &[],
        body: None,
    };
    let refused = catalogue
        .call(&id(), &"api.stripe.com:443".parse().unwrap(), &view)
        .unwrap_err();
    assert_eq!(refused.reason, Reason::AmbiguousRequest);
}

#[test]
fn a_connection_offers_only_its_capabilities() {
    let catalogue = build(&connection(
        "pay",
        "stripe",
        "capabilities = [\"refunds.*\", \"*.read\"]",
    ))
    .unwrap();
    assert!(
        call(
            &catalogue,
            "api.stripe.com:443",
            "POST",
            "/v1/refunds",
            b"charge=ch_1"
        )
        .is_ok()
    );
    assert!(
        call(
            &catalogue,
            "api.stripe.com:443",
            "GET",
            "/v1/charges/ch_1",
            b""
        )
        .is_ok()
    );
    let refused = call(
        &catalogue,
        "api.stripe.com:443",
        "POST",
        "/v1/payouts",
        b"amount=1",
    )
    .unwrap_err();
    assert_eq!(refused.reason, Reason::Unmapped);
    assert!(
        refused.detail.contains(
            "stripe/payouts.create is not among the capabilities of the connection `pay`"
        ),
        "{}",
        refused.detail
    );
    refuses(
        &connection("pay", "stripe", "capabilities = [\"refunds.crate\"]"),
        "bot.toml:8:17: no capability of `stripe` is `refunds.crate`",
    );
    refuses(
        &connection("pay", "stripe", "capabilities = [\"refunds.crate\"]"),
        "did you mean `refunds.create`?",
    );
}

#[test]
fn two_connections_that_could_make_the_same_call_do_not_load() {
    let twice = connection("one", "stripe", "") + &connection("two", "stripe", "");
    refuses(
        &twice,
        "bot.toml:10:8: the connections `one` (at bot.toml:6:8) and `two` could both make the same call",
    );
    let wide = connection("pay", "stripe", "")
        + &connection("web", "generic-http", "hosts = [\"api.stripe.com\"]");
    refuses(&wide, "could both make the same call");
    let apart = connection("reads", "stripe", "capabilities = [\"*.read\", \"*.list\"]")
        + &connection("refunds", "stripe", "capabilities = [\"refunds.create\"]");
    let catalogue = build(&apart).unwrap();
    let made = |method, path, body: &[u8]| {
        call(&catalogue, "api.stripe.com:443", method, path, body)
            .unwrap()
            .connection()
            .to_string()
    };
    assert_eq!(made("GET", "/v1/charges/ch_1", b""), "reads");
    assert_eq!(made("POST", "/v1/refunds", b"charge=ch_1"), "refunds");
    let ports = connection("a", "generic-http", "hosts = [\"x.example.com:8080\"]")
        + &connection("b", "generic-http", "hosts = [\"x.example.com:8081\"]");
    build(&ports).unwrap();
    let wildcard = connection("a", "generic-http", "hosts = [\"*.example.com\"]")
        + &connection("b", "generic-http", "hosts = [\"x.example.com\"]");
    refuses(&wildcard, "could both make the same call");
}

#[test]
fn what_does_not_exist_is_refused_with_a_hint() {
    refuses(
        &connection("pay", "stirpe", ""),
        "bot.toml:7:13: there is no connector `stirpe`",
    );
    refuses(&connection("pay", "stirpe", ""), "did you mean `stripe`?");
    refuses(
        &connection("gh", "github", "hosts = [\"ghe.example.com\"]"),
        "no capability of `github` is for the host `ghe.example.com`",
    );
}

#[test]
fn an_operators_connector_joins_or_replaces_the_shipped_ones() {
    let catalogue = build(&connection("things", "things", "")).unwrap();
    assert!(
        catalogue
            .connectors()
            .any(|connector| connector.id().as_str() == "things")
    );
    assert!(
        catalogue
            .connectors()
            .any(|connector| connector.id().as_str() == "stripe")
    );
    let own = |path: &str, text: &str| {
        Connector::parse(&Source {
            path: path.into(),
            text: text.into(),
        })
        .unwrap()
    };
    let mine = OWN.replacen("id = \"things\"", "id = \"stripe\"", 1);
    let catalogue = Catalogue::build(Vec::new(), vec![own("stripe.toml", &mine)]).unwrap();
    assert_eq!(
        catalogue
            .connector(&"stripe".parse().unwrap())
            .unwrap()
            .capabilities()
            .len(),
        4
    );
    let shown = Catalogue::build(Vec::new(), vec![own("a.toml", OWN), own("b.toml", OWN)])
        .unwrap_err()
        .to_string();
    assert!(
        shown.contains("b.toml:2:6: the connector `things` is already declared at a.toml:2:6"),
        "{shown}"
    );
}

#[test]
fn an_agent_is_declared_once() {
    let shown = Catalogue::build(vec![agent(""), agent("")], Vec::new())
        .unwrap_err()
        .to_string();
    assert!(
        shown.contains("the agent `acme/bot` is already declared at bot.toml:2:8"),
        "{shown}"
    );
}
