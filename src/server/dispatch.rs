//! Dispatches one call to the service.
//!
//! Processes every call, from the socket and from D-Bus: rate limit, access, parameters, service, reply or error. A
//! message of the socket is parsed before and its reply encoded after that. Keeps no state between two calls.

use std::borrow::Cow;

use serde_json::value::RawValue;
use wattspan_client::protocol::{
    self, GetInterfaceDescription, IncomingCall, InterfaceDescription, Method, MethodError, MethodName,
    MethodReply, ServiceInfo,
};

use super::parameters::parse_parameters;
use super::subscriptions::{SubscriptionKind, domain_subscription};
use crate::service::access;
use crate::service::caller::{AccountOutcome, Caller};
use crate::service::rate_limit::{CallClass, RateLimitError};
use crate::service::{MethodResult, ParameterSource, Reply, Request, Service};

/// What a transport states about a call besides its parameters.
#[derive(Debug, Clone, Copy)]
pub struct CallHead<'a> {
    /// Interface and method, joined by a dot.
    pub method: &'a str,
    /// The caller expects no reply.
    pub oneway: bool,
    /// The caller accepts several replies.
    pub more: bool,
    /// The caller requests another protocol.
    pub upgrade: bool,
}

/// The parameters of a call, before access and rate limit are checked.
pub trait CallParameters {
    /// The method with its parameters.
    fn into_request(self, name: MethodName) -> Result<Request, MethodError>;

    /// The span that the call names, if its parameters have one.
    fn span(&self) -> Option<Cow<'_, str>>;
}

#[derive(Debug)]
pub enum CallOutcome {
    /// The reply, which a oneway call discards.
    Answered(MethodResult),
    /// The reply is deferred to the slot in the caller's `reply_to`.
    Pending,
    /// As `Pending`, for the result of a store query.
    PendingQuery,
    /// Replies follow as a stream.
    Subscribed(SubscriptionKind),
    /// The connection must be closed after this error.
    Rejected(MethodError),
}

/// Processes one Varlink message without its terminator. Appends the reply to `out`, unless it is deferred or the call is
/// oneway.
pub fn dispatch(service: &mut Service, caller: &Caller, message: &[u8], out: &mut Vec<u8>) -> CallOutcome {
    let Some(call) = parse_call(message) else {
        // The framing is unreliable.
        let error = MethodError::InvalidParameter { parameter: "message".into() };
        error.encode(out);
        return CallOutcome::Rejected(error);
    };
    let head = CallHead {
        method: &call.method,
        oneway: call.oneway == Some(true),
        more: call.more == Some(true),
        upgrade: call.upgrade == Some(true),
    };
    let outcome = perform(service, caller, head, &call);
    match &outcome {
        CallOutcome::Answered(result) if !head.oneway => encode_result(result, out),
        CallOutcome::Rejected(error) => error.encode(out),
        _ => {}
    }
    outcome
}

/// Parses a message without its terminator; `None` if it is no call.
pub fn parse_call(message: &[u8]) -> Option<IncomingCall<'_>> {
    let is_object = message.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice(message).ok().filter(|_| is_object)
}

/// Appends a reply or an error as a Varlink message.
pub fn encode_result(result: &MethodResult, out: &mut Vec<u8>) {
    match result {
        Ok(Reply::Encoded(message)) => out.extend_from_slice(message),
        Ok(reply) => MethodReply::last(reply).encode(out),
        Err(error) => error.encode(out),
    }
}

/// Processes one call: rate limit, access, parameters, service.
pub fn perform(
    service: &mut Service,
    caller: &Caller,
    head: CallHead<'_>,
    parameters: impl CallParameters,
) -> CallOutcome {
    let name = MethodName::parse(head.method);
    let class = match name {
        Some(MethodName::CloseSpan | MethodName::CancelSpan) => CallClass::EndSpan,
        _ => CallClass::Other,
    };
    let has_open_span =
        |service: &Service| parameters.span().is_some_and(|span| service.has_open_span(&caller.peer, &span));
    if let Err(RateLimitError { error, is_flood }) = service.check_rate_limit(&caller.peer, class)
        && (is_flood || class == CallClass::Other || !has_open_span(service))
    {
        // A oneway call has no reply that could report the error, and a dropped one would falsify an account.
        // So the connection ends and its open spans are abandoned.
        return if is_flood || head.oneway {
            CallOutcome::Rejected(error)
        } else {
            CallOutcome::Answered(Err(error))
        };
    }
    route(service, caller, head, name, parameters).unwrap_or_else(|error| CallOutcome::Answered(Err(error)))
}

impl ParameterSource for IncomingCall<'_> {
    fn parse<M: Method>(&self) -> Result<M, MethodError> {
        parse_parameters(self)
    }
}

impl CallParameters for &IncomingCall<'_> {
    fn into_request(self, name: MethodName) -> Result<Request, MethodError> {
        Request::parse(name, self)
    }

    fn span(&self) -> Option<Cow<'_, str>> {
        #[derive(serde::Deserialize)]
        struct SpanParameter<'a> {
            #[serde(borrow)]
            span: Cow<'a, str>,
        }
        let text = self.parameters.map_or("{}", RawValue::get);
        serde_json::from_str::<SpanParameter<'_>>(text).ok().map(|parsed| parsed.span)
    }
}

fn route(
    service: &mut Service,
    caller: &Caller,
    head: CallHead<'_>,
    name: Option<MethodName>,
    parameters: impl CallParameters,
) -> Result<CallOutcome, MethodError> {
    let name = name.ok_or_else(|| unknown_method(head.method))?;
    access::authorize(&caller.peer, name)?;
    if head.upgrade {
        return Err(MethodError::MethodNotImplemented { method: head.method.to_owned() });
    }
    let peer = &caller.peer;
    // A oneway call has no reply that could wait.
    let wait = !head.oneway;
    let reply = match parameters.into_request(name)? {
        Request::OpenSpan(call) => Reply::Opened(service.open_span(caller, call)?),
        Request::CloseSpan(call) => {
            let wait = wait && call.wait_settled == Some(true);
            return Ok(account_outcome(service.close_span(caller, call, wait)?, CallOutcome::Pending));
        }
        Request::GetSpan(call) => {
            let outcome = service.get_span(caller, &call.span, wait)?;
            return Ok(account_outcome(outcome, CallOutcome::PendingQuery));
        }
        Request::ListSpans(call) => match service.list_spans(caller, &call, wait)? {
            Some(accounts) => Reply::Accounts(accounts),
            None => return Ok(CallOutcome::PendingQuery),
        },
        Request::SumSpans(call) => {
            if wait {
                service.sum_spans(caller, &call)?;
                return Ok(CallOutcome::PendingQuery);
            }
            Reply::EMPTY
        }
        Request::MarkPhase(call) => service.mark_phase(peer, call).map(|()| Reply::EMPTY)?,
        Request::SetWeight(call) => service.set_weight(peer, &call).map(|()| Reply::EMPTY)?,
        Request::CancelSpan(call) => service.cancel_span(peer, &call.span).map(|()| Reply::EMPTY)?,
        Request::Reload(_) => Reply::Reload(service.reload()?),
        Request::WatchSpans(call) => {
            let position = service.watch_spans(peer, &call)?;
            return subscribe(head, position.map_or(SubscriptionKind::Spans, SubscriptionKind::StoredSpans));
        }
        Request::WatchDomains(call) => return subscribe(head, domain_subscription(&call)?),
        Request::GetInfo(_) => Reply::Info(Box::new(service.get_info(peer))),
        Request::ReadWindow(call) => Reply::Window(service.read_window(&call)?),
        Request::GetBalance(_) => Reply::Balances(service.get_balance(peer)),
        Request::GetServiceInfo(_) => Reply::ServiceInfo(service_info()),
        Request::GetInterfaceDescription(call) => Reply::InterfaceDescription(description(call)?),
    };
    Ok(CallOutcome::Answered(Ok(reply)))
}

fn account_outcome(outcome: AccountOutcome, deferred: CallOutcome) -> CallOutcome {
    match outcome {
        AccountOutcome::Ready(account) => CallOutcome::Answered(Ok(Reply::account(*account))),
        AccountOutcome::Deferred => deferred,
    }
}

fn subscribe(head: CallHead<'_>, subscription: SubscriptionKind) -> Result<CallOutcome, MethodError> {
    match (head.more, head.oneway) {
        (_, true) => Ok(CallOutcome::Answered(Ok(Reply::EMPTY))),
        (true, _) => Ok(CallOutcome::Subscribed(subscription)),
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
