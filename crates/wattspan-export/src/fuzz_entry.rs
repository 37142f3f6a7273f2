//! The parsers of state files and answers, under names that the fuzz targets can call (docs/fuzzing.md).

use std::time::SystemTime;

use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wattspan_client::account::Account;

use super::otlp::collector::interpret;
use super::otlp::otlp_exporter::OtlpState;
use super::otlp::spans::{EncodedSpan, request_body};
use super::prometheus::totals_state::TotalsState;
use super::prometheus::{ModelLabels, SpanGroup};
use super::state::{self, ExportState};

fn rewritten<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<String> {
    let state: T = state::parse(bytes).ok()?;
    serde_json::to_string(&state).ok()
}

/// The state of an export to files, as it is written again.
pub fn export_state(bytes: &[u8]) -> Option<String> {
    rewritten::<ExportState>(bytes)
}

/// The state of an export to a collector, as it is written again.
pub fn otlp_state(bytes: &[u8]) -> Option<String> {
    rewritten::<OtlpState>(bytes)
}

/// The totals of the Prometheus exporter after an account was added; without one as they are written again.
pub fn totals_state(bytes: &[u8], account: Option<&Account>) -> Option<String> {
    let mut state: TotalsState = state::parse(bytes).ok()?;
    if let Some(account) = account {
        state.add(account, &ModelLabels::First, &mut SpanGroup::lookup(""));
    }
    serde_json::to_string(&state).ok()
}

/// What a collector's answer means, as text.
pub fn collector_answer(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    format!("{:?}", interpret(status, headers, body, SystemTime::UNIX_EPOCH))
}

/// The request to a collector with the span of an account.
pub fn span_request(account: &Account, allowed: &[String]) -> Vec<u8> {
    request_body(&[EncodedSpan::new(account, "database", 1, allowed)], "host")
}
