//! A request as it stands on the wire, the agent that sends it, and what becomes of it.
//! The plain requests that the tables change in one place.
//! INVARIANT: every check names the one outcome that it expects.

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

pub(crate) struct Wire<'a> {
    pub(crate) host: &'a str,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) body: &'a [u8],
}

pub(crate) const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");

pub(crate) fn refund(body: &[u8]) -> Wire<'_> {
    Wire {
        host: "api.stripe.com:443",
        method: "POST",
        path: "/v1/refunds",
        query: None,
        headers: vec![FORM],
        body,
    }
}

pub(crate) fn message(body: &[u8]) -> Wire<'_> {
    Wire {
        host: "slack.com:443",
        method: "POST",
        path: "/api/chat.postMessage",
        query: None,
        headers: vec![JSON],
        body,
    }
}

pub(crate) fn issue(body: &[u8]) -> Wire<'_> {
    Wire {
        host: "api.github.com:443",
        method: "PATCH",
        path: "/repos/acme/site/issues/7",
        query: None,
        headers: vec![JSON],
        body,
    }
}

pub(crate) fn web(path: &str) -> Wire<'_> {
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

pub(crate) fn check(wire: Wire<'_>, expected: Result<&str, Reason>) {
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

pub(crate) const AMBIGUOUS: Result<&str, Reason> = Err(Reason::AmbiguousRequest);
pub(crate) const MALFORMED: Result<&str, Reason> = Err(Reason::MalformedRequest);
pub(crate) const UNMAPPED: Result<&str, Reason> = Err(Reason::Unmapped);
