//! Bytes become one canonical request; anything that two readers could understand differently is refused.
//! Place on the path: the first stage of a call, before anything is mapped or decided.
//! INVARIANT: after `parse`, the request names the connection's own host, and what is decided on is what will be sent.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use hyper::body::Incoming;
use policies::{Endpoint, Host, Reason, RequestView};

use crate::accept::Connection;
use crate::body::Body;
use crate::refusal::Refusal;

/// One request, canonical.
#[derive(Debug)]
pub(crate) struct Request {
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    endpoint: Endpoint,
    /// The body; read ahead where a decision needs it.
    pub(crate) body: Body,
}

/// Headers that belong to one hop and are never forwarded (RFC 9110 section 7.6.1).
pub(crate) const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

impl Request {
    /// Parses what hyper read on `connection`.
    pub(crate) fn parse(
        incoming: http::Request<Incoming>,
        connection: &Connection,
    ) -> Result<Self, Refusal> {
        let (parts, body) = incoming.into_parts();
        if let Some((reason, detail)) = &connection.barred {
            return Err(Refusal::new(*reason, detail.clone()));
        }
        if let Some(flaw) = connection.flaw.get() {
            return Err(Refusal::new(
                Reason::AmbiguousRequest,
                format!("The request is not canonical: {flaw}."),
            )
            .and_close());
        }
        if parts.method == Method::CONNECT {
            let detail = "CONNECT is not served: every connection is already taken to the name that it asked for.";
            return Err(Refusal::new(Reason::ConnectMethod, detail).and_close());
        }
        if parts.headers.contains_key(UPGRADE) && parts.version < Version::HTTP_2 {
            let detail =
                "Protocol upgrades (WebSocket, h2c) are not relayed; use plain HTTP requests.";
            return Err(Refusal::new(Reason::ProtocolUnsupported, detail));
        }
        check_authority(&parts.uri, &parts.headers, parts.version, connection)?;
        let target = target(&parts.uri)?;
        let mut headers = parts.headers;
        strip_hop_by_hop(&mut headers)?;
        headers.remove(HOST);
        // hyper has answered the expectation by the time the body is read; upstream gets the body at once.
        headers.remove(EXPECT);
        // The length is told again by the body itself, so that it cannot contradict it.
        headers.remove(CONTENT_LENGTH);
        Ok(Self {
            method: parts.method,
            target,
            headers,
            endpoint: connection.endpoint().clone(),
            body: Body::live(body),
        })
    }

    /// Method, raw path and headers, for mapping; the body as far as it has been read.
    pub(crate) fn view<'a>(&'a self, headers: &'a [(&'a str, &'a str)]) -> RequestView<'a> {
        RequestView {
            method: self.method.as_str(),
            path: self.target.path(),
            query: self.target.query(),
            headers,
            body: self.body.read().map(AsRef::as_ref),
        }
    }

    /// The headers as text, names in lower case; a value that is not UTF-8 is refused.
    pub(crate) fn header_list(&self) -> Result<Vec<(&str, &str)>, Refusal> {
        let mut list = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let value = std::str::from_utf8(value.as_bytes()).map_err(|_| {
                Refusal::new(
                    Reason::MalformedRequest,
                    format!("The value of the header {name} is not UTF-8."),
                )
            })?;
            list.push((name.as_str(), value));
        }
        Ok(list)
    }

    /// Where it goes.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The method.
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// The raw path, without the query.
    pub(crate) fn path(&self) -> &str {
        self.target.path()
    }

    /// The raw query.
    pub(crate) fn query(&self) -> Option<&str> {
        self.target.query()
    }

    /// The headers that would be sent, but for `Host`; the credential's places as the agent filled them.
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// As an HTTP request in origin form, with the Host that was decided on.
    pub(crate) fn into_outbound(self, default_port: u16) -> Result<http::Request<Body>, Refusal> {
        let authority = if self.endpoint.port == default_port {
            bracketed(&self.endpoint.host)
        } else {
            format!("{}:{}", bracketed(&self.endpoint.host), self.endpoint.port)
        };
        let host = HeaderValue::from_str(&authority).map_err(|_| {
            Refusal::new(
                Reason::MalformedRequest,
                "The host cannot be written into a request.",
            )
        })?;
        let mut request = http::Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::from(self.target);
        *request.headers_mut() = self.headers;
        request.headers_mut().insert(HOST, host);
        Ok(request)
    }
}

/// An IPv6 literal stands in brackets where a port can follow.
pub(crate) fn bracketed(host: &Host) -> String {
    let text = host.to_string();
    if text.contains(':') {
        format!("[{text}]")
    } else {
        text
    }
}

/// Every place where the request names its host must name the connection's.
fn check_authority(
    uri: &Uri,
    headers: &HeaderMap,
    version: Version,
    connection: &Connection,
) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::new(
            Reason::AmbiguousRequest,
            "The request names its host twice.",
        )
        .and_close());
    }
    let host = host
        .map(|value| {
            value
                .to_str()
                .ok()
                .and_then(|text| text.parse::<Authority>().ok())
                .ok_or_else(|| {
                    Refusal::new(Reason::MalformedRequest, "The Host header is not a host.")
                        .and_close()
                })
        })
        .transpose()?;
    if host.is_none() && uri.authority().is_none() {
        let detail = if version >= Version::HTTP_2 {
            ":authority is missing."
        } else {
            "The Host header is missing."
        };
        return Err(Refusal::new(Reason::MalformedRequest, detail).and_close());
    }
    if let Some(scheme) = uri.scheme_str()
        && scheme != connection.scheme()
    {
        let detail = format!(
            "The request says {scheme}, the connection is {}.",
            connection.scheme()
        );
        return Err(Refusal::new(Reason::AuthorityMismatch, detail));
    }
    for authority in host.iter().chain(uri.authority()) {
        let named = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let same_host = Host::parse(named).is_ok_and(|named| named == connection.host);
        let same_port = match authority.port() {
            None => authority.as_str().ends_with(authority.host()),
            Some(port) => port.as_u16() == connection.destination.port(),
        };
        if authority.as_str().contains('@') || !same_host || !same_port {
            let detail = format!(
                "The connection was opened to {}, the request names {}; the two must be the same.",
                connection.endpoint(),
                authority.as_str()
            );
            return Err(Refusal::new(Reason::AuthorityMismatch, detail));
        }
    }
    Ok(())
}

/// The path and query: present, absolute, plain ASCII.
fn target(uri: &Uri) -> Result<PathAndQuery, Refusal> {
    let ambiguous = |detail: &str| Refusal::new(Reason::AmbiguousRequest, detail);
    let target = uri
        .path_and_query()
        .ok_or_else(|| ambiguous("The request has no path."))?;
    if !target.path().starts_with('/') {
        return Err(ambiguous("The path does not begin with a slash."));
    }
    if target
        .as_str()
        .bytes()
        .any(|byte| !byte.is_ascii_graphic() || byte == b'\\')
    {
        return Err(ambiguous(
            "The path or query holds a byte that must be percent-encoded.",
        ));
    }
    Ok(target.clone())
}

/// Removes what belongs to this hop. `Connection` may name only headers that belong to a hop anyway: a request that asks a
/// proxy to drop its `Host` or `Authorization` on the way is an attack on what was decided.
fn strip_hop_by_hop(headers: &mut HeaderMap) -> Result<(), Refusal> {
    for value in headers.get_all(CONNECTION) {
        let text = value.to_str().map_err(|_| {
            Refusal::new(
                Reason::MalformedRequest,
                "The Connection header is not text.",
            )
        })?;
        for token in text
            .split(',')
            .map(str::trim)
            .filter(|token| !token.is_empty())
        {
            let known = HOP_BY_HOP
                .iter()
                .any(|name| name.as_str().eq_ignore_ascii_case(token));
            if !known && !token.eq_ignore_ascii_case("close") {
                let detail = format!("Connection names {token}, which does not belong to one hop.");
                return Err(Refusal::new(Reason::AmbiguousRequest, detail));
            }
        }
    }
    // gRPC needs `te: trailers`, which only promises that trailers are understood.
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(())
}
