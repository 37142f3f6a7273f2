//! The energy of a request in the form that the client receives.
//!
//! Two forms: a structured header (RFC 8941 dictionary) for heads and trailers, JSON for comments and `usage`. Numbers
//! are integers in the contract's units; a value that is not known is absent. `state` is `settled`, `pending` (the
//! account missed the timeout; GetSpan returns it later), or `unmeasured` with a reason.

use std::fmt::Write;

use http::{HeaderName, HeaderValue};
use serde::Serialize;
use wattspan_client::account::SpanState;
use wattspan_client::domain::Grade;
use wattspan_system::escape::printable_ascii;

use super::response_reader::ResponseMetadata;
use super::span_client::{SpanOutcome, UnmeasuredReason};

pub const ENERGY_HEADER: HeaderName = HeaderName::from_static("wattspan-energy");

/// The header with the span's id, in the response to every inference request.
pub const SPAN_HEADER: HeaderName = HeaderName::from_static("wattspan-span");

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct EnergyAnnotation {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grade: Option<Grade>,
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_least: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uj_per_output_token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_uj: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_uj: Option<u64>,
}

impl EnergyAnnotation {
    /// The annotation of a request without a span.
    pub fn unmeasured(reason: UnmeasuredReason) -> Self {
        EnergyAnnotation {
            state: "unmeasured",
            reason: Some(reason.description().into()),
            ..EnergyAnnotation::default()
        }
    }

    /// The annotation of a span that has ended; an `outcome` of `None` means that the wait for it timed out.
    pub fn from_outcome(span: &str, outcome: Option<SpanOutcome>, metadata: &ResponseMetadata) -> Self {
        let span = Some(span.to_owned());
        let without_account = |state, reason: Option<&str>| EnergyAnnotation {
            state,
            reason: reason.map(str::to_owned),
            span: span.clone(),
            ..EnergyAnnotation::default()
        };
        let account = match outcome {
            None => return without_account("pending", None),
            Some(SpanOutcome::Settled(account)) => account,
            Some(SpanOutcome::Cancelled) => {
                return without_account("unmeasured", Some("the span was cancelled"));
            }
            Some(SpanOutcome::Refused(reason)) => {
                let reason = printable_ascii(&reason);
                return without_account(
                    "unmeasured",
                    Some(&format!("the daemon refused the span: {reason}")),
                );
            }
            Some(SpanOutcome::Lost) => {
                return without_account("unmeasured", Some("the connection to the daemon was lost"));
            }
        };
        let phase = |name: &str| account.phases.iter().find(|phase| phase.name == name)?.share_uj;
        // The phase before the first token has no name; it is prefill only in a span that reached decode.
        let prefill = phase("decode").and_then(|_| phase(""));
        let tokens = metadata.output_tokens.filter(|&tokens| tokens > 0);
        EnergyAnnotation {
            state: if account.state == SpanState::Settled { "settled" } else { "pending" },
            reason: None,
            span,
            share_uj: account.share_uj,
            error_uj: account.error_uj,
            idle_uj: account.idle_uj,
            window_uj: account.window_uj,
            grade: account.grade,
            simulated: account.simulated,
            at_least: account.at_least,
            uj_per_output_token: account.share_uj.zip(tokens).map(|(uj, tokens)| (uj + tokens / 2) / tokens),
            prefill_uj: prefill,
            decode_uj: phase("decode"),
        }
    }

    /// The value of the structured header: `state=settled, share_uj=1234567, ...`.
    pub fn header_value(&self) -> HeaderValue {
        let mut text = format!("state={}", self.state);
        if let Some(reason) = &self.reason {
            // RFC 8941, section 3.3.3: a string escapes these two characters.
            let reason = reason.replace('\\', r"\\").replace('"', "\\\"");
            let _ = write!(text, ", reason=\"{reason}\"");
        }
        for (name, value) in [
            ("share_uj", self.share_uj),
            ("error_uj", self.error_uj),
            ("idle_uj", self.idle_uj),
            ("window_uj", self.window_uj),
            ("uj_per_output_token", self.uj_per_output_token),
            ("prefill_uj", self.prefill_uj),
            ("decode_uj", self.decode_uj),
        ] {
            if let Some(value) = value {
                let _ = write!(text, ", {name}={value}");
            }
        }
        if let Some(grade) = self.grade {
            let _ = write!(text, ", grade={}", grade.as_str());
        }
        // RFC 8941, section 3.3.6. The short form, a key alone, breaks parsers that split each member at "=".
        for (name, flag) in [("simulated", self.simulated), ("at_least", self.at_least)] {
            if flag == Some(true) {
                let _ = write!(text, ", {name}=?1");
            }
        }
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("state=unmeasured"))
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("the annotation has string keys and integers")
    }

    /// A comment of a server-sent event stream, which clients ignore.
    pub fn sse_comment(&self) -> String {
        format!(": wattspan {}\n\n", self.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_text_is_escaped_in_headers_and_json() {
        let text = "no \"span\" \u{202e}\u{1b}[2J\r\nSet-Cookie: a=b \\ é";
        let annotation = EnergyAnnotation::from_outcome(
            "s",
            Some(SpanOutcome::Refused(text.into())),
            &ResponseMetadata::default(),
        );
        let header = annotation.header_value();
        let expected = r#"state=unmeasured, reason="the daemon refused the span: no \"span\" \\u{202e}\\u{1b}[2J\\r\\nSet-Cookie: a=b \\ \\u{e9}""#;
        assert_eq!(header.to_str().unwrap(), expected);
        assert!(
            annotation.to_json().bytes().all(|byte| (b' '..=b'~').contains(&byte)),
            "{}",
            annotation.to_json()
        );
    }

    #[test]
    fn unknown_values_are_omitted() {
        let annotation = EnergyAnnotation::unmeasured(UnmeasuredReason::DaemonUnavailable);
        assert_eq!(annotation.header_value(), "state=unmeasured, reason=\"daemon unreachable\"");
        assert_eq!(annotation.to_json(), r#"{"state":"unmeasured","reason":"daemon unreachable"}"#);
        let annotation = EnergyAnnotation::from_outcome("s", None, &ResponseMetadata::default());
        assert_eq!(annotation.sse_comment(), ": wattspan {\"state\":\"pending\",\"span\":\"s\"}\n\n");
    }

    #[test]
    fn flags_are_structured_header_booleans() {
        let annotation =
            EnergyAnnotation { state: "settled", share_uj: Some(7), ..EnergyAnnotation::default() };
        assert_eq!(annotation.header_value(), "state=settled, share_uj=7");
        let annotation = EnergyAnnotation { simulated: Some(true), at_least: Some(true), ..annotation };
        assert_eq!(annotation.header_value(), "state=settled, share_uj=7, simulated=?1, at_least=?1");
        assert_eq!(
            annotation.to_json(),
            r#"{"state":"settled","share_uj":7,"simulated":true,"at_least":true}"#
        );
    }
}
