//! The name by which a client finds out whether it trusts the tenant's CA; the proxy answers it itself.
//! Place on the path: beside it: the handshake is like any other, and the answer is made before a request is read.
//! INVARIANT: nothing that is asked of this name leaves, and no call, decision or credential is part of it.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Request, Response};
use policies::Host;

use crate::accept::Connection;
use crate::response::ResponseBody;

/// Reserved for this (`internal.` is nobody's on the public internet). Every governed process may ask for it, so that
/// `sluice doctor` and an operator inside a workload can both use it.
pub const PROBE_HOST: &str = "probe.sluice.internal";

/// What git takes for a repository without a branch, so that `git ls-remote` ends well.
const GIT_EMPTY: &[u8] = b"001e# service=git-upload-pack\n00000000";

/// Whether this is the name.
pub(crate) fn is_probe(host: &Host) -> bool {
    host.as_str() == PROBE_HOST
}

/// The answer, if this is a TLS connection to the probe's name and nothing is wrong with it.
pub(crate) fn answer<B>(
    connection: &Connection,
    request: &Request<B>,
) -> Option<Response<ResponseBody>> {
    if !is_probe(&connection.host) || !connection.secure || connection.barred.is_some() {
        return None;
    }
    let git = request.uri().query() == Some("service=git-upload-pack");
    let (kind, body) = if git {
        let kind = HeaderValue::from_static("application/x-git-upload-pack-advertisement");
        (kind, Bytes::from_static(GIT_EMPTY))
    } else {
        let text = format!(
            "This client trusts the certificate authority of tenant {}.\n",
            connection.workload.agent.tenant
        );
        (HeaderValue::from_static("text/plain"), Bytes::from(text))
    };
    let mut response = Response::new(ResponseBody::whole(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}
