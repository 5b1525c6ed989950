//! Bytes become one canonical request; anything that two readers could understand differently is refused.
//! Place on the path: the first stage of a call, before anything is mapped or decided.
//! INVARIANT: after `parse`, the request names the connection's own host, and what is decided on is what will be sent.

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use policies::{Endpoint, Host, Reason, RequestView};

use crate::accept::Connection;
use crate::body::Body;
use crate::coding::{Coding, Flaw, decode};
use crate::refusal::Refusal;
use crate::settings::Limits;
use crate::websocket::{self, Asked};

/// One request, canonical.
#[derive(Debug)]
pub(crate) struct Request {
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    endpoint: Endpoint,
    /// It asks to become a WebSocket.
    pub(crate) socket: Option<Asked>,
    /// The body; read ahead where a decision needs it.
    pub(crate) body: Body,
    /// The body as it is read, where what is sent is compressed.
    plain: Option<Bytes>,
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
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        let (mut parts, body) = incoming.into_parts();
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
        // HTTP/1's heads are read in `wire`; HTTP/2 folds equal lengths into one, and whoever comes next may not.
        if parts.headers.get_all(CONTENT_LENGTH).iter().count() > 1 {
            return Err(Refusal::new(
                Reason::AmbiguousRequest,
                "Content-Length stands twice.",
            ));
        }
        if parts.method == Method::CONNECT {
            let detail = "CONNECT is not served: every connection is already taken to the name that it asked for.";
            return Err(Refusal::new(Reason::ConnectMethod, detail).and_close());
        }
        let socket = websocket::asked(&mut parts, body.is_end_stream())?;
        check_authority(&parts.uri, &parts.headers, parts.version, connection)?;
        let target = target(&parts.uri)?;
        let mut headers = parts.headers;
        strip_hop_by_hop(&mut headers)?;
        if socket.is_some() {
            websocket::ask(&mut headers);
        }
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
            socket,
            body: Body::live(body, connection, limits)?,
            plain: None,
        })
    }

    /// The one request of a connection that is not read: to connect.
    pub(crate) fn opaque(connection: &Connection, limits: &Limits) -> Result<Self, Refusal> {
        if let Some((reason, detail)) = &connection.barred {
            return Err(Refusal::new(*reason, detail.clone()));
        }
        Ok(Self {
            method: Method::CONNECT,
            target: PathAndQuery::from_static("/"),
            headers: HeaderMap::new(),
            endpoint: connection.endpoint().clone(),
            socket: None,
            body: Body::none(connection, limits),
            plain: None,
        })
    }

    /// Method, raw path and headers, for mapping; the body as far as it has been read.
    pub(crate) fn view<'a>(&'a self, headers: &'a [(&'a str, &'a str)]) -> RequestView<'a> {
        RequestView {
            method: self.method.as_str(),
            path: self.target.path(),
            query: self.target.query(),
            headers,
            body: self
                .plain
                .as_ref()
                .or_else(|| self.body.read())
                .map(AsRef::as_ref),
        }
    }

    /// The headers as text, names in lower case; a value that is not UTF-8 is refused.
    pub(crate) fn header_list(&self) -> Result<Vec<(&str, &str)>, Refusal> {
        let mut list = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            // Of a body that is shown plain the mapping is not told that it is not.
            if self.plain.is_some() && name == CONTENT_ENCODING {
                continue;
            }
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

    /// Decompresses a body that was read ahead, for the mapping only: what is sent is what came, and what was decided on is in it.
    ///
    /// JSON alone, and only what no reader takes for JSON as it is: a server that ignores the coding must find nothing it understands.
    /// A form would not do: its readers take any bytes, and a gzip head has room for fields of its own.
    pub(crate) fn unpack(&mut self, limit: usize) -> Result<(), Refusal> {
        let (Ok(Some(coding)), Some(body)) = (Coding::of(&self.headers), self.body.read()) else {
            return Ok(());
        };
        if body.is_empty() || !is_json(&self.headers) {
            return Ok(());
        }
        if std::str::from_utf8(body).is_ok() {
            let detail = "The body says that it is compressed, and could be read as it is as well.";
            return Err(Refusal::new(Reason::AmbiguousRequest, detail));
        }
        let plain = decode(coding, body, limit).map_err(|flaw| {
            let reason = match flaw {
                Flaw::Bomb => Reason::CompressionBomb,
                Flaw::Broken => Reason::MalformedRequest,
                Flaw::Large => Reason::BodyTooLarge,
                Flaw::Trailing => Reason::AmbiguousRequest,
            };
            Refusal::new(reason, format!("The body {}.", flaw.words()))
        })?;
        self.plain = Some(plain);
        Ok(())
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

/// Whether the body is JSON, by its one content type.
fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next())
        .map(|essence| essence.trim().to_ascii_lowercase());
    essence.is_some_and(|essence| {
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
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
    // HTTP/1.0 had no Host; the connection says which one is meant, and upstream is told.
    if host.is_none() && uri.authority().is_none() && version >= Version::HTTP_11 {
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
