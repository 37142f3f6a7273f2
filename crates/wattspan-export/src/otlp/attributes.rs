//! Attributes in OTLP's JSON encoding: 64-bit integers are decimal texts.

use serde_json::{Value, json};

pub fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

pub fn integer(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

pub fn number(key: &str, value: f64) -> Value {
    json!({ "key": key, "value": { "doubleValue": value } })
}

pub fn flag(key: &str, value: bool) -> Value {
    json!({ "key": key, "value": { "boolValue": value } })
}

/// An attribute in joules. Rounded to microjoules it is the exact integer again, below 2 GJ.
pub fn joules(key: &str, uj: u64) -> Value {
    number(key, joules_of(uj))
}

pub fn joules_of(uj: u64) -> f64 {
    uj as f64 / 1e6
}

/// The resource of all spans and metrics.
pub fn resource(host: &str) -> Value {
    json!({ "attributes": [text("service.name", "wattspan"), text("host.name", host)] })
}

/// The instrumentation scope of all spans and metrics.
pub fn scope() -> Value {
    json!({ "name": "wattspan", "version": env!("CARGO_PKG_VERSION") })
}
