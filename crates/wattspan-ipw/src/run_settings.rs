//! A run's settings by name, as stored in its manifest, and their parsing.
//!
//! Invariant: a resumed run uses exactly the stored settings, so that all rows are comparable. A setting that earlier
//! versions did not store is optional; an invalid one is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use super::llm_api::{Api, MAX_TIMEOUT_S, RequestSettings};
use super::run::{MAX_QUERIES_PER_SECOND, Workload};

pub(crate) const CONCURRENCY: &str = "at once";
const REQUEST_RATE: &str = "per second";
const WARM_UP: &str = "warm-up";
const RETRIES: &str = "retries";
pub(crate) const API: &str = "interface";
pub(crate) const TEMPERATURE: &str = "temperature";
pub(crate) const MAX_TOKENS: &str = "most tokens";
const TIMEOUT_S: &str = "most seconds";
const STREAM: &str = "streamed";
const LOGPROBS: &str = "log-probabilities";
const SEED: &str = "seed";
pub(crate) const SYSTEM_PROMPT: &str = "system prompt";
pub(crate) const EXTRA_BODY: &str = "extra body";

/// Settings of the run loop, apart from those of the requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunSettings {
    /// How queries follow each other.
    pub workload: Workload,
    /// Number of uncounted warm-up queries.
    pub warm_up: u32,
    /// Maximum retries after a failure.
    pub retries: u32,
}

/// Returns the settings of a run by name.
pub fn encode_settings(
    request_settings: &RequestSettings,
    run_settings: RunSettings,
) -> BTreeMap<String, String> {
    let workload = match run_settings.workload {
        Workload::ClosedLoop(concurrency) => (CONCURRENCY, concurrency.to_string()),
        Workload::OpenLoop(rate) => (REQUEST_RATE, rate.to_string()),
    };
    let yes_or_no = |flag| if flag { "yes" } else { "no" }.to_owned();
    let mut settings = BTreeMap::from([
        (API, request_settings.api.name().to_owned()),
        (TEMPERATURE, request_settings.temperature.to_string()),
        (MAX_TOKENS, request_settings.max_tokens.to_string()),
        (TIMEOUT_S, request_settings.timeout.as_secs().to_string()),
        (STREAM, yes_or_no(request_settings.stream)),
        (LOGPROBS, yes_or_no(request_settings.logprobs)),
        (WARM_UP, run_settings.warm_up.to_string()),
        (RETRIES, run_settings.retries.to_string()),
        workload,
    ]);
    settings.extend(request_settings.seed.map(|seed| (SEED, seed.to_string())));
    settings.extend(request_settings.extra_body.as_ref().map(|extra| (EXTRA_BODY, extra.to_string())));
    settings.extend(request_settings.system_prompt.clone().map(|system| (SYSTEM_PROMPT, system)));
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Returns how queries followed each other, as text, if the settings have it.
pub fn describe_workload(settings: &BTreeMap<String, String>) -> Option<String> {
    let closed_loop = settings.get(CONCURRENCY).map(|concurrency| match concurrency.as_str() {
        "1" => "one query at a time".to_owned(),
        concurrency => format!("{concurrency} queries at once"),
    });
    closed_loop.or_else(|| settings.get(REQUEST_RATE).map(|rate| format!("{rate} queries a second")))
}

/// Returns how queries followed each other, if the settings have it.
pub fn workload(settings: &BTreeMap<String, String>) -> Option<Workload> {
    match (settings.get(CONCURRENCY), settings.get(REQUEST_RATE)) {
        (Some(concurrency), None) => concurrency.parse().map(Workload::ClosedLoop).ok(),
        (None, Some(rate)) => rate
            .parse()
            .ok()
            .filter(|rate| *rate > 0.0 && *rate <= MAX_QUERIES_PER_SECOND)
            .map(Workload::OpenLoop),
        _ => None,
    }
}

/// Parses the settings of a stored run for resuming it; `None` if a setting is invalid.
pub fn decode_settings(
    settings: &BTreeMap<String, String>,
    request_settings: &mut RequestSettings,
) -> Option<RunSettings> {
    let get = |name: &str| settings.get(name).map(String::as_str);
    request_settings.api = Api::from_name(get(API)?)?;
    request_settings.temperature = get(TEMPERATURE)?.parse().ok()?;
    request_settings.max_tokens = get(MAX_TOKENS)?.parse().ok()?;
    request_settings.stream = get(STREAM)? == "yes";
    request_settings.logprobs = get(LOGPROBS) == Some("yes");
    request_settings.seed = get(SEED).map(str::parse).transpose().ok()?;
    request_settings.system_prompt = get(SYSTEM_PROMPT).map(str::to_owned);
    request_settings.extra_body = get(EXTRA_BODY).map(str::parse).transpose().ok()?;
    if let Some(seconds) = get(TIMEOUT_S) {
        let seconds = seconds.parse().ok().filter(|seconds| (1..=MAX_TIMEOUT_S).contains(seconds))?;
        request_settings.timeout = Duration::from_secs(seconds);
    }
    Some(RunSettings {
        workload: workload(settings)?,
        warm_up: get(WARM_UP)?.parse().ok()?,
        retries: get(RETRIES)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::llm_api::tests::request_settings;
    use super::*;

    #[test]
    fn settings_round_trip() {
        let mut original = request_settings(Api::Ollama);
        (original.seed, original.system_prompt, original.temperature) = (None, Some("Be short.".into()), 0.7);
        (original.stream, original.logprobs, original.max_tokens) = (false, true, 7);
        original.timeout = Duration::from_secs(77);
        original.extra_body = Some(r#"{"top_p":0.9}"#.parse().unwrap());
        for workload in [Workload::ClosedLoop(17), Workload::OpenLoop(0.25)] {
            let run_settings = RunSettings { workload, warm_up: 4, retries: 5 };
            let encoded = encode_settings(&original, run_settings);
            let mut resumed = request_settings(Api::Chat);
            assert_eq!(decode_settings(&encoded, &mut resumed), Some(run_settings));
            assert_eq!(format!("{resumed:?}"), format!("{original:?}"));
        }
        assert_eq!(decode_settings(&BTreeMap::new(), &mut original), None);
    }

    #[test]
    fn a_missing_timeout_keeps_the_current_one() {
        let run_settings = RunSettings { workload: Workload::ClosedLoop(1), warm_up: 0, retries: 0 };
        let mut encoded = encode_settings(&request_settings(Api::Chat), run_settings);
        encoded.remove(TIMEOUT_S);
        let mut resumed = request_settings(Api::Chat);
        resumed.timeout = Duration::from_secs(9);
        assert_eq!(decode_settings(&encoded, &mut resumed), Some(run_settings));
        assert_eq!(resumed.timeout, Duration::from_secs(9));
    }

    #[test]
    fn invalid_settings_are_rejected() {
        let run_settings = RunSettings { workload: Workload::OpenLoop(1.0), warm_up: 0, retries: 0 };
        let encoded = encode_settings(&request_settings(Api::Chat), run_settings);
        for (name, value) in [
            (TIMEOUT_S, "0"),
            (TIMEOUT_S, "18446744073709551615"),
            (TIMEOUT_S, "soon"),
            (REQUEST_RATE, "inf"),
            (REQUEST_RATE, "NaN"),
            (REQUEST_RATE, "0"),
            (RETRIES, "-1"),
            (EXTRA_BODY, "[]"),
        ] {
            let mut edited = encoded.clone();
            edited.insert(name.into(), value.into());
            assert_eq!(decode_settings(&edited, &mut request_settings(Api::Chat)), None, "{name}: {value}");
        }
    }
}
