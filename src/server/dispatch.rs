//! Dispatches one message to the service and writes its reply.
//!
//! Processes every call, from the socket and from D-Bus: envelope, rate limit, access, parameters, service,
//! reply or error. Keeps no state between two calls.

use serde::Serialize;
use serde_json::value::RawValue;
use wattspan_client::protocol::{
    self, CancelSpan, CloseSpan, EmptyReply, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo,
    GetSpan, IncomingCall, InterfaceDescription, MethodError, MethodName, MethodReply, Reload, ServiceInfo,
    SpanAccount, WatchSpans,
};

use super::parameters::parse_parameters;
use super::subscriptions::{SubscriptionKind, domain_subscription};
use crate::service::Service;
use crate::service::access;
use crate::service::caller::{AccountOutcome, Caller};
use crate::service::rate_limit::{CallClass, RateLimitError};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CallOutcome {
    /// The reply is written, unless the call is oneway.
    Answered,
    /// The reply is deferred to the slot in the caller's `reply_to`.
    Pending,
    /// As `Pending`, for the result of a store query.
    PendingQuery,
    /// Replies follow as a stream.
    Subscribed(SubscriptionKind),
    /// The message is invalid. The error is written, and the connection must be closed, since its framing is
    /// unreliable.
    ProtocolViolation,
}

/// Processes one message without its terminator. Appends the reply to `out`.
pub fn dispatch(service: &mut Service, caller: &Caller, message: &[u8], out: &mut Vec<u8>) -> CallOutcome {
    let is_object = message.trim_ascii_start().starts_with(b"{");
    let Some(call) = serde_json::from_slice::<IncomingCall>(message).ok().filter(|_| is_object) else {
        MethodError::InvalidParameter { parameter: "message".into() }.encode(out);
        return CallOutcome::ProtocolViolation;
    };
    let class = match MethodName::parse(&call.method) {
        Some(MethodName::CloseSpan | MethodName::CancelSpan) => CallClass::EndSpan,
        _ => CallClass::Other,
    };
    if let Err(RateLimitError { error, is_flood }) = service.check_rate_limit(&caller.peer, class)
        && (is_flood || class == CallClass::Other || !has_open_span(service, caller, &call))
    {
        error.encode(out);
        // A oneway call has no reply that could report the error, and a dropped one would falsify an account.
        // So the connection ends and its open spans are abandoned.
        return if is_flood || call.oneway == Some(true) {
            CallOutcome::ProtocolViolation
        } else {
            CallOutcome::Answered
        };
    }
    let start = out.len();
    let outcome = match route(service, caller, &call, out) {
        Ok(outcome) => outcome,
        Err(error) => {
            error.encode(out);
            CallOutcome::Answered
        }
    };
    if call.oneway == Some(true) {
        out.truncate(start);
    }
    outcome
}

/// Whether the call names an open span of the caller.
fn has_open_span(service: &Service, caller: &Caller, call: &IncomingCall) -> bool {
    #[derive(serde::Deserialize)]
    struct SpanParameter<'a> {
        #[serde(borrow)]
        span: std::borrow::Cow<'a, str>,
    }
    let text = call.parameters.map_or("{}", RawValue::get);
    serde_json::from_str::<SpanParameter<'_>>(text)
        .is_ok_and(|parsed| service.has_open_span(&caller.peer, &parsed.span))
}

fn route(
    service: &mut Service,
    caller: &Caller,
    call: &IncomingCall,
    out: &mut Vec<u8>,
) -> Result<CallOutcome, MethodError> {
    let method = call.method.as_ref();
    let name = MethodName::parse(method).ok_or_else(|| unknown_method(method))?;
    access::authorize(&caller.peer, name)?;
    if call.upgrade == Some(true) {
        return Err(MethodError::MethodNotImplemented { method: method.to_owned() });
    }
    match name {
        MethodName::OpenSpan => write_reply(out, &service.open_span(caller, parse_parameters(call)?)?),
        MethodName::CloseSpan => return close_span(service, caller, call, out),
        MethodName::MarkPhase => {
            service.mark_phase(&caller.peer, parse_parameters(call)?)?;
            write_reply(out, &EmptyReply {});
        }
        MethodName::SetWeight => {
            service.set_weight(&caller.peer, &parse_parameters(call)?)?;
            write_reply(out, &EmptyReply {});
        }
        MethodName::CancelSpan => {
            service.cancel_span(&caller.peer, &parse_parameters::<CancelSpan>(call)?.span)?;
            write_reply(out, &EmptyReply {});
        }
        MethodName::Reload => {
            parse_parameters::<Reload>(call)?;
            write_reply(out, &service.reload()?);
        }
        MethodName::WatchSpans => {
            let position = service.watch_spans(&caller.peer, &parse_parameters::<WatchSpans>(call)?)?;
            return subscribe(call, position.map_or(SubscriptionKind::Spans, SubscriptionKind::StoredSpans));
        }
        MethodName::WatchDomains => return subscribe(call, domain_subscription(&parse_parameters(call)?)?),
        MethodName::GetSpan | MethodName::ListSpans => return query_spans(service, caller, name, call, out),
        MethodName::GetInfo => {
            parse_parameters::<GetInfo>(call)?;
            write_reply(out, &service.get_info(&caller.peer));
        }
        MethodName::ReadWindow => write_reply(out, &service.read_window(&parse_parameters(call)?)?),
        MethodName::GetBalance => {
            parse_parameters::<GetBalance>(call)?;
            write_reply(out, &service.get_balance());
        }
        MethodName::GetServiceInfo => {
            parse_parameters::<GetServiceInfo>(call)?;
            write_reply(out, &service_info());
        }
        MethodName::GetInterfaceDescription => {
            write_reply(out, &description(parse_parameters::<GetInterfaceDescription>(call)?)?);
        }
    }
    Ok(CallOutcome::Answered)
}

fn close_span(
    service: &mut Service,
    caller: &Caller,
    call: &IncomingCall,
    out: &mut Vec<u8>,
) -> Result<CallOutcome, MethodError> {
    let parameters: CloseSpan = parse_parameters(call)?;
    let wait = parameters.wait_settled == Some(true) && call.oneway != Some(true);
    match service.close_span(caller, parameters, wait)? {
        AccountOutcome::Deferred => Ok(CallOutcome::Pending),
        AccountOutcome::Ready(account) => {
            write_reply(out, &SpanAccount { account: *account });
            Ok(CallOutcome::Answered)
        }
    }
}

/// Answers the two methods that may need the store.
fn query_spans(
    service: &mut Service,
    caller: &Caller,
    name: MethodName,
    call: &IncomingCall,
    out: &mut Vec<u8>,
) -> Result<CallOutcome, MethodError> {
    let wait = call.oneway != Some(true);
    if name == MethodName::ListSpans {
        let accounts = service.list_spans(caller, &parse_parameters(call)?, wait)?;
        return Ok(accounts.map_or(CallOutcome::PendingQuery, |accounts| {
            write_reply(out, &accounts);
            CallOutcome::Answered
        }));
    }
    match service.get_span(caller, &parse_parameters::<GetSpan>(call)?.span, wait)? {
        AccountOutcome::Deferred => return Ok(CallOutcome::PendingQuery),
        AccountOutcome::Ready(account) => write_reply(out, &SpanAccount { account: *account }),
    }
    Ok(CallOutcome::Answered)
}

fn subscribe(call: &IncomingCall, subscription: SubscriptionKind) -> Result<CallOutcome, MethodError> {
    match (call.more, call.oneway) {
        (_, Some(true)) => Ok(CallOutcome::Answered),
        (Some(true), _) => Ok(CallOutcome::Subscribed(subscription)),
        _ => Err(MethodError::ExpectedMore {}),
    }
}

fn service_info() -> ServiceInfo {
    ServiceInfo {
        vendor: "wattspan".into(),
        product: "wattspand".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        url: "https://varlink.org".into(),
        interfaces: vec![protocol::SERVICE_INTERFACE.into(), protocol::METER_INTERFACE.into()],
    }
}

fn description(call: GetInterfaceDescription) -> Result<InterfaceDescription, MethodError> {
    let text = match call.interface.as_str() {
        protocol::METER_INTERFACE => protocol::METER_DESCRIPTION,
        protocol::SERVICE_INTERFACE => protocol::SERVICE_DESCRIPTION,
        _ => return Err(MethodError::InterfaceNotFound { interface: call.interface }),
    };
    Ok(InterfaceDescription { description: text.to_owned() })
}

fn write_reply<T: Serialize>(out: &mut Vec<u8>, parameters: &T) {
    MethodReply::last(parameters).encode(out);
}

fn unknown_method(method: &str) -> MethodError {
    match method.rsplit_once('.') {
        Some((interface, _))
            if interface != protocol::METER_INTERFACE && interface != protocol::SERVICE_INTERFACE =>
        {
            MethodError::InterfaceNotFound { interface: interface.to_owned() }
        }
        _ => MethodError::MethodNotFound { method: method.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_methods_and_unknown_interfaces_are_distinct_errors() {
        assert_eq!(
            unknown_method("org.wattspan.Meter.X"),
            MethodError::MethodNotFound { method: "org.wattspan.Meter.X".into() }
        );
        assert_eq!(
            unknown_method("org.other.X"),
            MethodError::InterfaceNotFound { interface: "org.other".into() }
        );
        assert_eq!(unknown_method("X"), MethodError::MethodNotFound { method: "X".into() });
    }
}
