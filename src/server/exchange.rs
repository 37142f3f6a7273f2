//! One message in, one answer out.
//!
//! Owns the way of every call, whatever door it came through: envelope, access, parameters, the service, the reply
//! or the refusal. Knows no socket and keeps nothing between two calls.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::protocol::{
    self, CancelSpan, CloseSpan, Description, Done, GetBalance, GetInfo, GetInterfaceDescription,
    GetServiceInfo, GetSpan, Incoming, Method, MethodName, Refusal, Reload, Reply, ServiceInfo, SpanAccount,
    WatchDomains, WatchSpans,
};

use crate::service::access;
use crate::service::rate_limit::{CallClass, RateLimitError};
use crate::service::service::{AccountOutcome, Caller, Service};

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// The answer, if one was wanted, is written.
    Answered,
    /// The answer comes later, under the caller's ticket.
    Awaited,
    /// Likewise, when the disk has been asked.
    Asked,
    /// Answers come from now on, as a stream.
    Streaming(Stream),
    /// The message was not of this protocol; that is written, and nothing that follows can be trusted.
    Broken,
}

/// What a caller of a "more" method watches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stream {
    /// Settled accounts.
    Spans,
    /// The domains, this often.
    Domains {
        /// Time from one answer to the next.
        period_ns: u64,
    },
}

/// Most answers a second that WatchDomains gives; asking for more gives this many.
const MOST_RATE_HZ: f64 = 1000.0;

/// Answers a second that WatchDomains gives where nothing is asked.
const RATE_HZ: f64 = 10.0;

/// Handles one message, its end taken off; appends what is to be answered to `out`.
pub fn exchange(service: &mut Service, caller: &Caller, message: &[u8], out: &mut Vec<u8>) -> Outcome {
    let object = message.trim_ascii_start().starts_with(b"{");
    let Some(call) = serde_json::from_slice::<Incoming>(message).ok().filter(|_| object) else {
        Refusal::InvalidParameter { parameter: "message".into() }.write(out);
        return Outcome::Broken;
    };
    let errand = match MethodName::of(&call.method) {
        Some(MethodName::CloseSpan | MethodName::CancelSpan) => CallClass::EndSpan,
        _ => CallClass::Other,
    };
    if let Err(RateLimitError { error: refusal, is_flood: flood }) =
        service.check_rate_limit(&caller.peer, errand)
        && (flood || errand == CallClass::Other || !names_open_span(service, caller, &call))
    {
        refusal.write(out);
        // A call that nobody waits for cannot be refused, and one that is dropped would be missing from some account:
        // the connection ends, and with it its open spans, as abandoned.
        return if flood || call.oneway == Some(true) { Outcome::Broken } else { Outcome::Answered };
    }
    let before = out.len();
    let outcome = match route(service, caller, &call, out) {
        Ok(outcome) => outcome,
        Err(refusal) => {
            refusal.write(out);
            Outcome::Answered
        }
    };
    if call.oneway == Some(true) {
        out.truncate(before);
    }
    outcome
}

/// Whether there is anything to end.
fn names_open_span(service: &Service, caller: &Caller, call: &Incoming) -> bool {
    #[derive(serde::Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        span: std::borrow::Cow<'a, str>,
    }
    let text = call.parameters.map_or("{}", RawValue::get);
    serde_json::from_str::<Named<'_>>(text)
        .is_ok_and(|named| service.has_open_span(&caller.peer, &named.span))
}

fn route(
    service: &mut Service,
    caller: &Caller,
    call: &Incoming,
    out: &mut Vec<u8>,
) -> Result<Outcome, Refusal> {
    let method = call.method.as_ref();
    let name = MethodName::of(method).ok_or_else(|| unknown(method))?;
    access::authorize(&caller.peer, name)?;
    if call.upgrade == Some(true) {
        return Err(Refusal::MethodNotImplemented { method: method.to_owned() });
    }
    match name {
        MethodName::OpenSpan => reply(out, &service.open_span(caller, parameters(call)?)?),
        MethodName::CloseSpan => return close(service, caller, call, out),
        MethodName::MarkPhase => {
            service.mark_phase(&caller.peer, parameters(call)?)?;
            reply(out, &Done {});
        }
        MethodName::SetWeight => {
            service.set_weight(&caller.peer, &parameters(call)?)?;
            reply(out, &Done {});
        }
        MethodName::CancelSpan => {
            service.cancel_span(&caller.peer, &parameters::<CancelSpan>(call)?.span)?;
            reply(out, &Done {});
        }
        MethodName::Reload => {
            parameters::<Reload>(call)?;
            reply(out, &service.reload()?);
        }
        MethodName::WatchSpans => {
            parameters::<WatchSpans>(call)?;
            return stream(call, Stream::Spans);
        }
        MethodName::WatchDomains => return stream(call, domains_stream(&parameters(call)?)?),
        MethodName::GetSpan | MethodName::ListSpans => return look_up(service, caller, name, call, out),
        MethodName::GetInfo => {
            parameters::<GetInfo>(call)?;
            reply(out, &service.get_info(&caller.peer));
        }
        MethodName::ReadWindow => reply(out, &service.read_window(&parameters(call)?)?),
        MethodName::GetBalance => {
            parameters::<GetBalance>(call)?;
            reply(out, &service.get_balance());
        }
        MethodName::GetServiceInfo => {
            parameters::<GetServiceInfo>(call)?;
            reply(out, &service_info());
        }
        MethodName::GetInterfaceDescription => {
            reply(out, &description(parameters::<GetInterfaceDescription>(call)?)?);
        }
    }
    Ok(Outcome::Answered)
}

fn close(
    service: &mut Service,
    caller: &Caller,
    call: &Incoming,
    out: &mut Vec<u8>,
) -> Result<Outcome, Refusal> {
    let parameters: CloseSpan = parameters(call)?;
    let wait = parameters.wait_settled == Some(true) && call.oneway != Some(true);
    match service.close_span(caller, parameters, wait)? {
        AccountOutcome::Deferred => Ok(Outcome::Awaited),
        AccountOutcome::Ready(account) => {
            reply(out, &SpanAccount { account: *account });
            Ok(Outcome::Answered)
        }
    }
}

/// What the disk may have to be asked for.
fn look_up(
    service: &mut Service,
    caller: &Caller,
    name: MethodName,
    call: &Incoming,
    out: &mut Vec<u8>,
) -> Result<Outcome, Refusal> {
    let wait = call.oneway != Some(true);
    if name == MethodName::ListSpans {
        let accounts = service.list_spans(caller, &parameters(call)?, wait)?;
        return Ok(accounts.map_or(Outcome::Asked, |accounts| {
            reply(out, &accounts);
            Outcome::Answered
        }));
    }
    match service.get_span(caller, &parameters::<GetSpan>(call)?.span, wait)? {
        AccountOutcome::Deferred => return Ok(Outcome::Asked),
        AccountOutcome::Ready(account) => reply(out, &SpanAccount { account: *account }),
    }
    Ok(Outcome::Answered)
}

fn stream(call: &Incoming, stream: Stream) -> Result<Outcome, Refusal> {
    match (call.more, call.oneway) {
        (_, Some(true)) => Ok(Outcome::Answered),
        (Some(true), _) => Ok(Outcome::Streaming(stream)),
        _ => Err(Refusal::ExpectedMore {}),
    }
}

fn domains_stream(call: &WatchDomains) -> Result<Stream, Refusal> {
    let rate_hz = call.rate_hz.unwrap_or(RATE_HZ);
    if !(rate_hz.is_finite() && rate_hz >= 0.001) {
        let reason = "is no rate; choose a number from 0.001 to 1000".to_owned();
        return Err(Refusal::InvalidValue { field: "rate_hz".into(), reason });
    }
    Ok(Stream::Domains { period_ns: (1e9 / rate_hz.min(MOST_RATE_HZ)) as u64 })
}

fn service_info() -> ServiceInfo {
    ServiceInfo {
        vendor: "wattspan".into(),
        product: "wattspand".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        url: "https://varlink.org".into(),
        interfaces: vec![protocol::SERVICE.into(), protocol::METER.into()],
    }
}

fn description(call: GetInterfaceDescription) -> Result<Description, Refusal> {
    let text = match call.interface.as_str() {
        protocol::METER => protocol::METER_DESCRIPTION,
        protocol::SERVICE => protocol::SERVICE_DESCRIPTION,
        _ => return Err(Refusal::InterfaceNotFound { interface: call.interface }),
    };
    Ok(Description { description: text.to_owned() })
}

fn reply<T: Serialize>(out: &mut Vec<u8>, parameters: &T) {
    Reply::last(parameters).write(out);
}

fn unknown(method: &str) -> Refusal {
    match method.rsplit_once('.') {
        Some((interface, _)) if interface != protocol::METER && interface != protocol::SERVICE => {
            Refusal::InterfaceNotFound { interface: interface.to_owned() }
        }
        _ => Refusal::MethodNotFound { method: method.to_owned() },
    }
}

fn parameters<M: Method>(call: &Incoming) -> Result<M, Refusal> {
    let text = call.parameters.map_or("{}", RawValue::get);
    // Derived readers would take a list as the fields in their order; Varlink knows only names.
    if !text.starts_with('{') {
        return Err(Refusal::InvalidParameter { parameter: "parameters".into() });
    }
    serde_json::from_str(text)
        .map_err(|wrong| Refusal::InvalidParameter { parameter: wrong_parameter(text, &wrong) })
}

/// Which parameter the parser disliked. It tells the place, and for some mistakes the name; only on the way out.
fn wrong_parameter(text: &str, wrong: &serde_json::Error) -> String {
    let said = wrong.to_string();
    let quoted = said.split('`').nth(1).filter(|_| said.contains("field `"));
    if let Some(field) = quoted {
        return field.to_owned();
    }
    let line_start: usize =
        text.split_inclusive('\n').take(wrong.line().saturating_sub(1)).map(str::len).sum();
    let place = line_start + wrong.column();
    let Ok(fields) = serde_json::from_str::<Fields>(text) else { return "parameters".to_owned() };
    let reached = |value: &&RawValue| value.get().as_ptr() as usize - text.as_ptr() as usize <= place;
    let last = fields.0.into_iter().take_while(|(_, value)| reached(value)).last();
    last.map_or_else(|| "parameters".to_owned(), |(name, _)| name)
}

/// An object's fields in the order they stand in.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> serde::de::Visitor<'de> for Each<'a> {
            type Value = Fields<'a>;
            fn expecting(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
                out.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields<'a>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Each(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{OpenSpan, SetWeight};

    fn wrong<M: Method + std::fmt::Debug>(text: &str) -> String {
        wrong_parameter(text, &serde_json::from_str::<M>(text).unwrap_err())
    }

    #[test]
    fn a_wrong_parameter_is_named_whatever_is_wrong_with_it() {
        assert_eq!(wrong::<OpenSpan>(r#"{"wieght":1}"#), "wieght");
        assert_eq!(wrong::<CloseSpan>(r#"{"wait_settled":true}"#), "span");
        assert_eq!(wrong::<SetWeight>(r#"{"span":"a","weight":"heavy"}"#), "weight");
        assert_eq!(
            wrong::<OpenSpan>("{\n \"name\": \"x\",\n \"attributes\": {\"a\": 1},\n \"weight\": 1}"),
            "attributes"
        );
        assert_eq!(wrong::<OpenSpan>(r#"{"name":"x","at_ns":1.5,"weight":2}"#), "at_ns");
        assert_eq!(wrong::<SetWeight>(r#"{"span":"a","weight":1e999}"#), "weight");
        assert_eq!(wrong::<CancelSpan>("[]"), "parameters");
    }

    #[test]
    fn an_unknown_method_is_told_from_an_unknown_interface() {
        assert_eq!(
            unknown("org.wattspan.Meter.X"),
            Refusal::MethodNotFound { method: "org.wattspan.Meter.X".into() }
        );
        assert_eq!(unknown("org.other.X"), Refusal::InterfaceNotFound { interface: "org.other".into() });
        assert_eq!(unknown("X"), Refusal::MethodNotFound { method: "X".into() });
    }

    #[test]
    fn watching_faster_than_the_meter_gives_its_fastest_and_no_rate_at_all_is_refused() {
        let period = |rate_hz| domains_stream(&WatchDomains { rate_hz });
        assert_eq!(period(Some(1e9)), Ok(Stream::Domains { period_ns: 1_000_000 }));
        assert_eq!(period(None), Ok(Stream::Domains { period_ns: 100_000_000 }));
        for bad in [0.0, -1.0, f64::NAN] {
            assert!(period(Some(bad)).is_err());
        }
    }
}
