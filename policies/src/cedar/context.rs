//! A call to a Cedar request: the context with its params, approvals, host and time, checked against the schema.
//! On the path of every decision, so it is built without JSON.
//! INVARIANT: what does not fit the schema is an error, and so a deny; Cedar checks the types, not this file.

use std::collections::BTreeSet;

use cedar_policy::{Context, Request, RestrictedExpression, Schema};

use super::entities::Subject;
use super::names;
use super::slice::Action;
use crate::{Call, Group, Timestamp, Value};

/// Why there is no request to evaluate.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The agent has no such connection.
    #[error("the policies know no connection `{0}` of this agent")]
    Connection(crate::ConnectionName),
    /// Cedar could not build the context.
    #[error(transparent)]
    Context(#[from] Box<cedar_policy::ContextCreationError>),
    /// The call does not fit the schema.
    #[error(transparent)]
    Schema(#[from] Box<cedar_policy::RequestValidationError>),
}

pub(super) fn request(
    schema: &Schema,
    subject: &Subject,
    action: &Action,
    call: &Call,
    now: Timestamp,
    approvals: &BTreeSet<Group>,
) -> Result<Request, RequestError> {
    let resource = subject.connections.get(call.connection());
    let resource = resource.ok_or_else(|| RequestError::Connection(call.connection().clone()))?;
    let approvals = approvals
        .iter()
        .map(|group| RestrictedExpression::new_entity_uid(names::group(group)));
    let context = Context::from_pairs([
        (
            "approvals".to_owned(),
            RestrictedExpression::new_set(approvals),
        ),
        (
            "host".to_owned(),
            RestrictedExpression::new_string(call.endpoint().host.to_string()),
        ),
        (
            "now".to_owned(),
            RestrictedExpression::new_long(now.as_millis()),
        ),
        ("params".to_owned(), params(call)?),
    ]);
    let context = context.map_err(Box::new)?;
    let request = Request::new(
        subject.uid.clone(),
        action.uid.clone(),
        resource.clone(),
        context,
        Some(schema),
    );
    Ok(request.map_err(Box::new)?)
}

fn params(call: &Call) -> Result<RestrictedExpression, Box<cedar_policy::ContextCreationError>> {
    let params = call
        .params()
        .iter()
        .map(|(name, value)| (name.clone(), expression(value)));
    let params = RestrictedExpression::new_record(params);
    params.map_err(|error| Box::new(cedar_policy::ContextCreationError::from(error)))
}

fn expression(value: &Value) -> RestrictedExpression {
    match value {
        Value::Bool(value) => RestrictedExpression::new_bool(*value),
        Value::Integer(value) => RestrictedExpression::new_long(*value),
        Value::Text(value) => RestrictedExpression::new_string(value.clone()),
        Value::List(values) => RestrictedExpression::new_set(values.iter().map(expression)),
    }
}
