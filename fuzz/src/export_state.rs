//! The state files of the exporters, the answers of a collector, and the request for an account.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use serde_json::Value;
use wattspan_client::account::Account;
use wattspan_export::fuzz_entry;

use super::{first_line, is_same_json};

/// The first line is an account, or the status and `Retry-After` of an answer; the rest is a state file or a body.
pub fn check(bytes: &[u8]) {
    let (first, rest) = first_line(bytes);
    let account: Option<Account> = serde_json::from_slice(first).ok();
    if let Some(account) = &account {
        let request =
            fuzz_entry::span_request(account, &["model".into(), "gen_ai.usage.input_tokens".into()]);
        let request: Value = serde_json::from_slice(&request).expect("a request is JSON");
        assert!(request["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"].is_string());
    }
    type Rewrite = fn(&[u8]) -> Option<String>;
    let readers: [Rewrite; 3] =
        [fuzz_entry::export_state, fuzz_entry::otlp_state, |bytes| fuzz_entry::totals_state(bytes, None)];
    for rewrite in readers {
        let Some(written) = rewrite(rest) else { continue };
        let again = rewrite(written.as_bytes()).unwrap_or_else(|| panic!("{written} cannot be read again"));
        let value = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert!(is_same_json(&value(&written), &value(&again)), "{written}");
    }
    if let Some(account) = &account
        && let (Some(before), Some(after)) =
            (fuzz_entry::totals_state(rest, None), fuzz_entry::totals_state(rest, Some(account)))
    {
        assert_no_count_falls(
            &serde_json::from_str(&before).expect("JSON"),
            &serde_json::from_str(&after).expect("JSON"),
        );
    }
    let words: Vec<&[u8]> = first.splitn(2, |byte| *byte == b' ').collect();
    let status = StatusCode::from_bytes(words[0]);
    let retry = words.get(1).and_then(|text| HeaderValue::from_bytes(text).ok());
    if let Ok(status) = status {
        let headers: HeaderMap = retry.into_iter().map(|retry| (header::RETRY_AFTER, retry)).collect();
        assert!(!fuzz_entry::collector_answer(status, &headers, rest).is_empty());
    }
}

/// An account never lowers a counter: a scraper would take it for a restart.
fn assert_no_count_falls(before: &Value, after: &Value) {
    match (before, after) {
        (Value::Number(before), Value::Number(after)) => {
            assert!(before.as_u64() <= after.as_u64(), "{before} became {after}");
        }
        (Value::Object(before), Value::Object(after)) => {
            for (key, before) in before {
                assert_no_count_falls(before, after.get(key).unwrap_or_else(|| panic!("{key} is missing")));
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            assert!(before.len() <= after.len());
            before.iter().zip(after).for_each(|(before, after)| assert_no_count_falls(before, after));
        }
        _ => {}
    }
}
