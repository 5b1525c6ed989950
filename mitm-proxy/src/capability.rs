//! A request becomes a call: the bundle maps it to one named capability with typed params, or refuses it.
//! Place on the path: after parsing, before deciding; reads the body ahead only where a matcher looks into it.
//! INVARIANT: what no capability matches is refused; a credential is never lent to a connection in the clear.

use http::Method;
use http_body::Body as _;
use policies::{Bundle, Call, Mapping, Reason};

use crate::accept::Connection;
use crate::refusal::Refusal;
use crate::request::Request;
use crate::settings::Limits;

/// Maps `request`; the body is read whole where the bundle needs it.
pub(crate) async fn map(
    bundle: &Bundle,
    connection: &Connection,
    request: &mut Request,
    limits: &Limits,
) -> Result<Call, Refusal> {
    let agent = &connection.workload.agent;
    if bundle.agent(agent).is_none() {
        let detail =
            format!("No agent {agent} is configured; ask the operator to add it to agents.d.");
        return Err(Refusal::new(Reason::AgentUnknown, detail));
    }
    // What a body does to a GET differs between servers, and its length is no longer among the headers: an empty one is read to its end,
    // and the mapping refuses any other.
    if matches!(*request.method(), Method::GET | Method::HEAD) && !request.body.is_end_stream() {
        Box::pin(request.body.read_whole(limits.body_bytes, limits.body)).await?;
    }
    let mapping = {
        let headers = request.header_list()?;
        bundle.map(agent, request.endpoint(), &request.view(&headers))?
    };
    let call = match mapping {
        Mapping::Call(call) => *call,
        Mapping::NeedsBody { limit } => {
            let most = limit.min(limits.body_bytes);
            Box::pin(request.body.read_whole(most, limits.body)).await?;
            request.unpack(most)?;
            let headers = request.header_list()?;
            bundle.call(agent, request.endpoint(), &request.view(&headers))?
        }
    };
    if !connection.secure && (call.credential().is_some() || call.peer().is_some()) {
        let detail = "This connection is not encrypted: a credential is lent, and a pin checked, only over TLS; use https.";
        return Err(Refusal::new(Reason::ProtocolUnsupported, detail).of_call(&call));
    }
    Ok(call)
}
