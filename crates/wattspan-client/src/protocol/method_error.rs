//! The errors of the protocol with their Varlink names.
//!
//! Display texts are for the user: lower case, the cause, and the remedy.

use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};

use super::interface::{METER_INTERFACE, SERVICE_INTERFACE, encode_message};

/// A failed call: the errors of `org.wattspan.Meter` and of `org.varlink.service`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
pub enum MethodError {
    /// The caller has no span of this id; a span of another user gives the same error.
    #[error("there is no span {span:?}")]
    #[serde(rename = "org.wattspan.Meter.NoSuchSpan")]
    NoSuchSpan {
        /// The ID in the call.
        span: String,
    },
    /// The caller has a span of this id.
    #[error("a span {span:?} exists already; use another name, or none")]
    #[serde(rename = "org.wattspan.Meter.SpanExists")]
    SpanExists {
        /// The ID in the call.
        span: String,
    },
    /// The span was closed before.
    #[error("the span {span:?} is closed already")]
    #[serde(rename = "org.wattspan.Meter.AlreadyClosed")]
    AlreadyClosed {
        /// The ID in the call.
        span: String,
    },
    /// This machine has no domain of this name.
    #[error("there is no domain {domain:?}; GetInfo lists the domains")]
    #[serde(rename = "org.wattspan.Meter.NoSuchDomain")]
    NoSuchDomain {
        /// The first unknown name in the call.
        domain: String,
    },
    /// The time is in the future, older than the history, or before the start of the span.
    #[error("the time {at_ns} ns lies outside {earliest_ns}..={latest_ns} ns of the monotonic clock")]
    #[serde(rename = "org.wattspan.Meter.InvalidTime")]
    InvalidTime {
        /// The instant in the call, in nanoseconds of the monotonic clock.
        at_ns: i64,
        /// The earliest accepted time.
        earliest_ns: u64,
        /// The latest accepted time.
        latest_ns: u64,
    },
    /// A parameter of the right type has an invalid value.
    #[error("{field}: {reason}")]
    #[serde(rename = "org.wattspan.Meter.InvalidValue")]
    InvalidValue {
        /// The name of the parameter, as in the contract.
        field: String,
        /// What is wrong, and which values are valid.
        reason: String,
    },
    /// The caller reached a limit.
    #[error("the limit of {limit} {quota} is reached")]
    #[serde(rename = "org.wattspan.Meter.QuotaExceeded")]
    QuotaExceeded {
        /// What is limited, in words: "open spans".
        quota: String,
        /// The maximum, in units of `quota`.
        limit: u64,
    },
    /// The caller has too little access for the method.
    #[error("this needs {needs} access")]
    #[serde(rename = "org.wattspan.Meter.AccessDenied")]
    AccessDenied {
        /// The lowest sufficient access.
        needs: String,
    },
    /// The account is or can be among those that are damaged or lost on disk.
    #[error("the store is damaged: {reason}")]
    #[serde(rename = "org.wattspan.Meter.StoreDamaged")]
    StoreDamaged {
        /// The damaged accounts, as far as they are known.
        reason: String,
        /// In a list: the value of `before` for older accounts.
        #[serde(skip_serializing_if = "Option::is_none")]
        before: Option<u64>,
    },
    /// The account can be on disk, which cannot be read at present.
    #[error("the store cannot be read: {reason}")]
    #[serde(rename = "org.wattspan.Meter.StoreUnavailable")]
    StoreUnavailable {
        /// The error of the disk or of the file system, or that it does not respond.
        reason: String,
    },
    /// The service does not offer the interface.
    #[error("there is no interface {interface:?}")]
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    InterfaceNotFound {
        /// The name in the call.
        interface: String,
    },
    /// The interface has no such method.
    #[error("there is no method {method:?}")]
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    MethodNotFound {
        /// The full name in the call: interface, dot, method.
        method: String,
    },
    /// The method exists but does not support the requested kind of call.
    #[error("{method} does not support this kind of call")]
    #[serde(rename = "org.varlink.service.MethodNotImplemented")]
    MethodNotImplemented {
        /// The full name in the call: interface, dot, method.
        method: String,
    },
    /// A parameter is unknown, missing, or of the wrong type.
    #[error("the parameter {parameter:?} is unknown, missing, or of the wrong type")]
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    InvalidParameter {
        /// The first one that is wrong; "parameters" or "message" where that is no JSON object.
        parameter: String,
    },
    /// The method sends several replies and was not called with `more`.
    #[error("this method sends several replies; call it with \"more\"")]
    #[serde(rename = "org.varlink.service.ExpectedMore")]
    ExpectedMore {},
}

/// A message that does not conform to the protocol.
#[derive(Debug, thiserror::Error)]
#[error("invalid message: {0}")]
pub struct ParseReplyError(#[from] serde_json::Error);

impl MethodError {
    /// Appends the message and its terminator to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_message(self, out);
    }

    /// Parses an error from its name and its parameters (JSON text).
    pub fn parse(error: &str, parameters: &str) -> Result<Self, ParseReplyError> {
        let unknown = || ParseReplyError(serde_json::Error::custom(format!("unknown error {error:?}")));
        let (interface, name) = error.rsplit_once('.').ok_or_else(unknown)?;
        let known = match (interface, name) {
            (METER_INTERFACE, "NoSuchSpan") => Self::NoSuchSpan { span: field(parameters, "span")? },
            (METER_INTERFACE, "SpanExists") => Self::SpanExists { span: field(parameters, "span")? },
            (METER_INTERFACE, "AlreadyClosed") => Self::AlreadyClosed { span: field(parameters, "span")? },
            (METER_INTERFACE, "NoSuchDomain") => Self::NoSuchDomain { domain: field(parameters, "domain")? },
            (METER_INTERFACE, "InvalidTime") => Self::InvalidTime {
                at_ns: field(parameters, "at_ns")?,
                earliest_ns: field(parameters, "earliest_ns")?,
                latest_ns: field(parameters, "latest_ns")?,
            },
            (METER_INTERFACE, "InvalidValue") => Self::InvalidValue {
                field: field(parameters, "field")?,
                reason: field(parameters, "reason")?,
            },
            (METER_INTERFACE, "QuotaExceeded") => {
                Self::QuotaExceeded { quota: field(parameters, "quota")?, limit: field(parameters, "limit")? }
            }
            (METER_INTERFACE, "AccessDenied") => Self::AccessDenied { needs: field(parameters, "needs")? },
            (METER_INTERFACE, "StoreDamaged") => Self::StoreDamaged {
                reason: field(parameters, "reason")?,
                before: field(parameters, "before")?,
            },
            (METER_INTERFACE, "StoreUnavailable") => {
                Self::StoreUnavailable { reason: field(parameters, "reason")? }
            }
            (SERVICE_INTERFACE, "InterfaceNotFound") => {
                Self::InterfaceNotFound { interface: field(parameters, "interface")? }
            }
            (SERVICE_INTERFACE, "MethodNotFound") => {
                Self::MethodNotFound { method: field(parameters, "method")? }
            }
            (SERVICE_INTERFACE, "MethodNotImplemented") => {
                Self::MethodNotImplemented { method: field(parameters, "method")? }
            }
            (SERVICE_INTERFACE, "InvalidParameter") => {
                Self::InvalidParameter { parameter: field(parameters, "parameter")? }
            }
            (SERVICE_INTERFACE, "ExpectedMore") => Self::ExpectedMore {},
            _ => return Err(unknown()),
        };
        Ok(known)
    }
}

fn field<T: DeserializeOwned>(parameters: &str, name: &str) -> Result<T, ParseReplyError> {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(parameters)?;
    Ok(serde_json::from_value(fields.remove(name).unwrap_or_default())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_error_round_trips() {
        let text = || "x".to_owned();
        let all = [
            MethodError::NoSuchSpan { span: text() },
            MethodError::SpanExists { span: text() },
            MethodError::AlreadyClosed { span: text() },
            MethodError::NoSuchDomain { domain: text() },
            MethodError::InvalidTime { at_ns: -5, earliest_ns: 1, latest_ns: 2 },
            MethodError::InvalidValue { field: text(), reason: text() },
            MethodError::QuotaExceeded { quota: text(), limit: 3 },
            MethodError::AccessDenied { needs: text() },
            MethodError::StoreDamaged { reason: text(), before: Some(7) },
            MethodError::StoreDamaged { reason: text(), before: None },
            MethodError::StoreUnavailable { reason: text() },
            MethodError::InterfaceNotFound { interface: text() },
            MethodError::MethodNotFound { method: text() },
            MethodError::MethodNotImplemented { method: text() },
            MethodError::InvalidParameter { parameter: text() },
            MethodError::ExpectedMore {},
        ];
        for error in all {
            let wire = serde_json::to_value(&error).unwrap();
            let parsed =
                MethodError::parse(wire["error"].as_str().unwrap(), &wire["parameters"].to_string()).unwrap();
            assert_eq!(parsed, error);
            let declared = [super::super::METER_DESCRIPTION, super::super::SERVICE_DESCRIPTION].concat();
            let name = wire["error"].as_str().unwrap().rsplit_once('.').unwrap().1;
            assert!(declared.contains(&format!("error {name} (")), "{name} is not in the description");
        }
    }
}
