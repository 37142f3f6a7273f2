//! The parser of a Varlink call, under a name that the fuzz targets can call (docs/fuzzing.md).

use wattspan_client::protocol::{IncomingCall, MethodError, MethodName};

use super::dispatch::{CallParameters, parse_call};
use crate::service::Request;

/// The method of a message, and its parameters or the error about them; `None`: the message is no call.
pub fn call(message: &[u8]) -> Option<(String, Option<Result<Request, MethodError>>)> {
    let call: IncomingCall<'_> = parse_call(message)?;
    // Read before access and rate limit are checked, whatever the method.
    let _ = CallParameters::span(&&call);
    let name = MethodName::parse(&call.method);
    Some((call.method.clone().into_owned(), name.map(|name| (&call).into_request(name))))
}
