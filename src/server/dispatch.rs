//! One message in, one answer out.
//!
//! Owns the way of every call, whatever door it came through: envelope, access, parameters, the service, the reply
//! or the refusal. Knows no socket and keeps nothing between two calls.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::protocol::{
    self, CancelSpan, CloseSpan, EmptyReply, GetBalance, GetInfo, GetInterfaceDescription, GetServiceInfo,
    GetSpan, IncomingCall, InterfaceDescription, Method, MethodError, MethodName, MethodReply, Reload,
    ServiceInfo, SpanAccount, WatchDomains, WatchSpans,
};

use crate::service::Service;
use crate::service::access;
use crate::service::caller::{AccountOutcome, Caller};
use crate::service::rate_limit::{CallClass, RateLimitError};

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CallOutcome {
    /// The answer, if one was wanted, is written.
    Answered,
    /// The answer comes later, under the caller's ticket.
    Pending,
    /// Likewise, when the disk has been asked.
    PendingQuery,
    /// Answers come from now on, as a stream.
    Subscribed(SubscriptionKind),
    /// The message was not of this protocol; that is written, and nothing that follows can be trusted.
    ProtocolViolation,
}

/// What a caller of a "more" method watches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SubscriptionKind {
    /// Settled accounts.
    Spans,
    /// The domains, this often.
    Domains {
        /// Time from one answer to the next.
        period_ns: u64,
    },
}

/// Most answers a second that WatchDomains gives; asking for more gives this many.
const MAX_RATE_HZ: f64 = 1000.0;

/// Answers a second that WatchDomains gives where nothing is asked.
const DEFAULT_RATE_HZ: f64 = 10.0;

/// Handles one message, its end taken off; appends what is to be answered to `out`.
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
        // A call that nobody waits for cannot be refused, and one that is dropped would be missing from some account:
        // the connection ends, and with it its open spans, as abandoned.
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

/// Whether there is anything to end.
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
            parse_parameters::<WatchSpans>(call)?;
            return subscribe(call, SubscriptionKind::Spans);
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

/// What the disk may have to be asked for.
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

fn domain_subscription(call: &WatchDomains) -> Result<SubscriptionKind, MethodError> {
    let rate_hz = call.rate_hz.unwrap_or(DEFAULT_RATE_HZ);
    if !(rate_hz.is_finite() && rate_hz >= 0.001) {
        let reason = "is no rate; choose a number from 0.001 to 1000".to_owned();
        return Err(MethodError::InvalidValue { field: "rate_hz".into(), reason });
    }
    Ok(SubscriptionKind::Domains { period_ns: (1e9 / rate_hz.min(MAX_RATE_HZ)) as u64 })
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

fn parse_parameters<M: Method>(call: &IncomingCall) -> Result<M, MethodError> {
    let text = call.parameters.map_or("{}", RawValue::get);
    // Derived readers would take a list as the fields in their order; Varlink knows only names.
    if !text.starts_with('{') {
        return Err(MethodError::InvalidParameter { parameter: "parameters".into() });
    }
    serde_json::from_str(text)
        .map_err(|wrong| MethodError::InvalidParameter { parameter: invalid_parameter_name(text, &wrong) })
}

/// Which parameter the parser disliked. It tells the place, and for some mistakes the name; only on the way out.
fn invalid_parameter_name(text: &str, wrong: &serde_json::Error) -> String {
    let error_text = wrong.to_string();
    let quoted = error_text.split('`').nth(1).filter(|_| error_text.contains("field `"));
    if let Some(field) = quoted {
        return field.to_owned();
    }
    let line_start: usize =
        text.split_inclusive('\n').take(wrong.line().saturating_sub(1)).map(str::len).sum();
    let position = line_start + wrong.column();
    let Ok(fields) = serde_json::from_str::<OrderedFields>(text) else { return "parameters".to_owned() };
    let reached = |value: &&RawValue| value.get().as_ptr() as usize - text.as_ptr() as usize <= position;
    let last = fields.0.into_iter().take_while(|(_, value)| reached(value)).last();
    last.map_or_else(|| "parameters".to_owned(), |(name, _)| name)
}

/// An object's fields in the order they stand in.
struct OrderedFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for OrderedFields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> serde::de::Visitor<'de> for FieldsVisitor<'a> {
            type Value = OrderedFields<'a>;
            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<OrderedFields<'a>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(OrderedFields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{OpenSpan, SetWeight};

    fn invalid_parameter<M: Method + std::fmt::Debug>(text: &str) -> String {
        invalid_parameter_name(text, &serde_json::from_str::<M>(text).unwrap_err())
    }

    #[test]
    fn an_invalid_parameter_is_named() {
        assert_eq!(invalid_parameter::<OpenSpan>(r#"{"wieght":1}"#), "wieght");
        assert_eq!(invalid_parameter::<CloseSpan>(r#"{"wait_settled":true}"#), "span");
        assert_eq!(invalid_parameter::<SetWeight>(r#"{"span":"a","weight":"heavy"}"#), "weight");
        assert_eq!(
            invalid_parameter::<OpenSpan>(
                "{\n \"name\": \"x\",\n \"attributes\": {\"a\": 1},\n \"weight\": 1}"
            ),
            "attributes"
        );
        assert_eq!(invalid_parameter::<OpenSpan>(r#"{"name":"x","at_ns":1.5,"weight":2}"#), "at_ns");
        assert_eq!(invalid_parameter::<SetWeight>(r#"{"span":"a","weight":1e999}"#), "weight");
        assert_eq!(invalid_parameter::<CancelSpan>("[]"), "parameters");
    }

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

    #[test]
    fn a_high_rate_is_capped_and_an_invalid_rate_is_rejected() {
        let period = |rate_hz| domain_subscription(&WatchDomains { rate_hz });
        assert_eq!(period(Some(1e9)), Ok(SubscriptionKind::Domains { period_ns: 1_000_000 }));
        assert_eq!(period(None), Ok(SubscriptionKind::Domains { period_ns: 100_000_000 }));
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(period(Some(bad)).is_err());
        }
    }
}
