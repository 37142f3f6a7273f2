//! An account as an OTLP span, and requests of encoded spans.

use serde_json::{Value, json};
use wattspan_client::account::{Account, MODEL_ATTRIBUTE, Phase, SpanState};

use super::attributes::{flag, integer, joules, resource, scope, text};
use super::identity::SpanIdentity;
use crate::columns::{attribute, closed_unix_ns};

/// Attributes that the conventions for generative AI and for HTTP declare as integers.
const INTEGER_ATTRIBUTES: [&str; 3] =
    ["gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "http.response.status_code"];

/// In the list of attributes: the owner's user ID, which no account has among its attributes.
const UID_ATTRIBUTE: &str = "wattspan.uid";

/// An account as JSON text.
#[derive(Debug, Clone)]
pub struct EncodedSpan {
    pub number: u64,
    pub json: Vec<u8>,
}

impl EncodedSpan {
    pub fn new(account: &Account, database: &str, number: u64, allowed: &[String]) -> Self {
        let value = span(account, database, number, allowed);
        EncodedSpan { number, json: value.to_string().into_bytes() }
    }
}

/// The body of a request with these spans.
pub fn request_body(spans: &[EncodedSpan], host: &str) -> Vec<u8> {
    let size: usize = spans.iter().map(|span| span.json.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 512);
    let head = format!(
        "{{\"resourceSpans\":[{{\"resource\":{},\"scopeSpans\":[{{\"scope\":{},\"spans\":[",
        resource(host),
        scope()
    );
    body.extend_from_slice(head.as_bytes());
    for (at, span) in spans.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&span.json);
    }
    body.extend_from_slice(b"]}]}]}");
    body
}

fn span(account: &Account, database: &str, number: u64, allowed: &[String]) -> Value {
    let SpanIdentity { trace_id, span_id, parent_id } = SpanIdentity::of(account, database, number);
    let name = match account.name.as_str() {
        "" => account.model().unwrap_or("span"),
        name => name,
    };
    // A request that the proxy received has its client's span as its parent: SPAN_KIND_SERVER, else SPAN_KIND_INTERNAL.
    let kind = if account.attributes.contains_key("parent_span_id") { 2 } else { 1 };
    let mut all = named_attributes(account, allowed);
    all.extend(energy_attributes(account));
    all.push(text("wattspan.database", database));
    all.push(integer("wattspan.account.number", number));
    let mut span = json!({
        "traceId": trace_id, "spanId": span_id, "name": name, "kind": kind,
        "startTimeUnixNano": account.opened_unix_ns.to_string(),
        "endTimeUnixNano": closed_unix_ns(account).to_string(),
        "attributes": all,
    });
    if let Some(parent_id) = parent_id {
        span["parentSpanId"] = parent_id.into();
    }
    let events: Vec<Value> = account.phases.iter().filter_map(|phase| phase_event(account, phase)).collect();
    if !events.is_empty() {
        span["events"] = events.into();
    }
    if account.attributes.contains_key("error.type") {
        // STATUS_CODE_ERROR
        span["status"] = json!({ "code": 2 });
    }
    span
}

fn named_attributes(account: &Account, allowed: &[String]) -> Vec<Value> {
    let named = |key: &String| {
        if key == UID_ATTRIBUTE {
            return Some(integer(key, u64::from(account.uid)));
        }
        let value = attribute(account, key)?;
        // OTLP's integers are signed; a collector finds a request with a larger one invalid.
        let count = value.parse::<i64>().ok().and_then(|count| u64::try_from(count).ok());
        match count {
            Some(count) if INTEGER_ATTRIBUTES.contains(&key.as_str()) => Some(integer(key, count)),
            _ => Some(text(key, value)),
        }
    };
    allowed.iter().filter_map(named).collect()
}

/// The names of the Python client's span processor, and more of the account. An unknown value is absent.
fn energy_attributes(account: &Account) -> impl Iterator<Item = Value> {
    let state = match account.state {
        SpanState::Abandoned => Some("abandoned"),
        SpanState::Interrupted => Some("interrupted"),
        SpanState::Open | SpanState::Provisional | SpanState::Settled => None,
    };
    let optional = [
        account.share_uj.map(|uj| joules("wattspan.energy.joules", uj)),
        account.error_uj.map(|uj| joules("wattspan.energy.uncertainty_joules", uj)),
        account.idle_uj.map(|uj| joules("wattspan.energy.idle_joules", uj)),
        account.window_uj.map(|uj| joules("wattspan.energy.window_joules", uj)),
        account.process_uj.map(|uj| joules("wattspan.energy.process_joules", uj)),
        account.grade.map(|grade| text("wattspan.energy.grade", grade.as_str())),
        account.simulated.map(|simulated| flag("wattspan.energy.simulated", simulated)),
        account.at_least.map(|at_least| flag("wattspan.energy.at_least", at_least)),
        unknown_reason(account).map(|reason| text("wattspan.energy.reason", &reason)),
        state.map(|state| text("wattspan.state", state)),
        Some(integer("wattspan.peak_concurrency", u64::from(account.peak_concurrency))),
        Some(text("wattspan.span", &account.span)),
    ];
    optional.into_iter().flatten()
}

/// Why the energy is unknown, if it is.
fn unknown_reason(account: &Account) -> Option<String> {
    if account.share_uj.is_some() {
        return None;
    }
    let unknown = account.domains.iter().filter(|share| share.share_uj.is_none());
    let names: Vec<String> =
        unknown.map(|share| format!("{} ({})", share.domain, share.grade.as_str())).collect();
    Some(match names.as_slice() {
        [] => "no domain is counted here".to_owned(),
        names => format!("unknown: {}", names.join(", ")),
    })
}

/// The begin of a named phase.
fn phase_event(account: &Account, phase: &Phase) -> Option<Value> {
    if phase.name.is_empty() {
        return None;
    }
    let since_opening_ns = phase.opened_ns.saturating_sub(account.opened_ns);
    let at_ns = account.opened_unix_ns.saturating_add(since_opening_ns);
    let duration_ns = phase.closed_ns.map(|closed_ns| closed_ns.saturating_sub(phase.opened_ns));
    let optional = [
        phase.share_uj.map(|uj| joules("wattspan.energy.joules", uj)),
        phase.error_uj.map(|uj| joules("wattspan.energy.uncertainty_joules", uj)),
        duration_ns.map(|ns| integer("wattspan.phase.duration_ns", ns)),
    ];
    let attributes: Vec<Value> = optional.into_iter().flatten().collect();
    Some(json!({ "timeUnixNano": at_ns.to_string(), "name": phase.name, "attributes": attributes }))
}

/// An account with only what its span shows: the allowed attributes, the model, and the IDs of its trace.
pub fn without_others(mut account: Account, allowed: &[String]) -> Account {
    const NEEDED: [&str; 5] = ["trace_id", "span_id", "parent_span_id", "traceparent", "error.type"];
    let model = account.model().map(str::to_owned);
    account.attributes.retain(|key, _| NEEDED.contains(&key.as_str()) || allowed.contains(key));
    if let Some(model) = model {
        account.attributes.entry(MODEL_ATTRIBUTE.into()).or_insert(model);
    }
    account
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        serde_json::from_str(include_str!("../test_account.json")).unwrap()
    }

    fn value<'a>(of: &'a Value, key: &str) -> Option<&'a Value> {
        let mut all = of["attributes"].as_array().unwrap().iter();
        all.find(|attribute| attribute["key"] == key).map(|attribute| &attribute["value"])
    }

    #[test]
    fn a_span_has_the_energy_and_only_the_attributes_that_are_allowed() {
        let allowed = [MODEL_ATTRIBUTE.to_owned()];
        let found = span(&account(), "uuid", 7, &allowed);
        assert_eq!(found["name"], "a \"name\", with comma");
        assert_eq!(found["startTimeUnixNano"], "1763000000123456789");
        assert_eq!(found["endTimeUnixNano"], "1763000000125456789");
        assert_eq!(value(&found, "wattspan.energy.joules"), Some(&json!({ "doubleValue": 3.2 })));
        assert_eq!(
            value(&found, "wattspan.energy.uncertainty_joules"),
            Some(&json!({ "doubleValue": 0.000061 }))
        );
        assert_eq!(value(&found, "wattspan.energy.grade"), Some(&json!({ "stringValue": "measured" })));
        assert_eq!(value(&found, "wattspan.account.number"), Some(&json!({ "intValue": "7" })));
        assert_eq!(value(&found, MODEL_ATTRIBUTE), Some(&json!({ "stringValue": "llama" })));
        assert!(!found.to_string().contains("secret") && value(&found, "wattspan.uid").is_none());
        assert_eq!(found["events"][0]["name"], "decode");
        assert_eq!(found["events"][0]["timeUnixNano"], "1763000000123457789");
        assert_eq!((&found["kind"], found.get("parentSpanId")), (&json!(1), None));
        let with_user = span(&account(), "uuid", 7, &[UID_ATTRIBUTE.to_owned()]);
        assert_eq!(value(&with_user, UID_ATTRIBUTE), Some(&json!({ "intValue": "1000" })));
    }

    #[test]
    fn an_unknown_energy_is_absent_and_has_a_reason() {
        let unknown = Account { share_uj: None, error_uj: None, ..account() };
        let found = span(&unknown, "uuid", 7, &[]);
        assert_eq!(value(&found, "wattspan.energy.joules"), None);
        let reason = value(&found, "wattspan.energy.reason").unwrap();
        assert_eq!(reason["stringValue"], "unknown: gpu-0 (estimated)");
    }

    #[test]
    fn counts_are_integers_and_an_error_is_a_status() {
        let mut account = account();
        let key = "gen_ai.usage.output_tokens".to_owned();
        let allowed = [key.clone()];
        account.attributes.insert(key.clone(), "12".into());
        account.attributes.insert("error.type".into(), "timeout".into());
        let found = span(&without_others(account, &allowed), "uuid", 7, &allowed);
        assert_eq!(value(&found, &key), Some(&json!({ "intValue": "12" })));
        assert_eq!(found["status"]["code"], 2);
        assert_eq!(value(&found, "error.type"), None, "it is not allowed");
    }

    #[test]
    fn a_count_that_is_not_an_integer_of_otlp_is_a_text() {
        let key = "gen_ai.usage.output_tokens".to_owned();
        let allowed = [key.clone()];
        for (count, kind) in [
            ("0", "intValue"),
            ("9223372036854775807", "intValue"),
            ("9223372036854775808", "stringValue"),
            ("18446744073709551615", "stringValue"),
            ("-1", "stringValue"),
            ("many", "stringValue"),
        ] {
            let mut account = account();
            account.attributes.insert(key.clone(), count.into());
            let found = span(&account, "uuid", 7, &allowed);
            assert_eq!(value(&found, &key), Some(&json!({ kind: count })), "{count}");
        }
    }

    #[test]
    fn every_microjoule_survives_the_floating_point_number() {
        for uj in [1, 61, 999_999, 123_456_789_012, 1_999_999_999_999_999] {
            let text = serde_json::to_string(&joules("k", uj)).unwrap();
            let back: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((back["value"]["doubleValue"].as_f64().unwrap() * 1e6).round() as u64, uj);
        }
    }

    #[test]
    fn a_request_is_json_with_its_spans() {
        let spans = [7, 8].map(|number| EncodedSpan::new(&account(), "uuid", number, &[]));
        for (count, expected) in [(0, 0), (1, 1), (2, 2)] {
            let body: Value = serde_json::from_slice(&request_body(&spans[..count], "node \"7\"")).unwrap();
            let of = &body["resourceSpans"][0];
            assert_eq!(of["scopeSpans"][0]["spans"].as_array().unwrap().len(), expected);
            assert_eq!(value(&of["resource"], "host.name").unwrap()["stringValue"], "node \"7\"");
        }
    }
}
