//! One request to a collector, and what its answer means (OTLP/HTTP, "Failures" and "Partial success").

use std::io;
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tokio::runtime::Runtime;
use wattspan_http::connection_pool::{ConnectionPool, PoolSettings, build_pool};
use wattspan_http::{BaseUrl, BoxBody, full_body};

/// The largest body of an answer that is read. Those of collectors have some hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// The longest `Retry-After` that is honoured. A longer one counts as this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// How to reach a collector.
#[derive(Debug, Clone)]
pub struct CollectorSettings {
    /// `/v1/traces` and `/v1/metrics` are appended.
    pub endpoint: BaseUrl,
    /// Headers of each request, such as keys.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The time for a request and its answer.
    pub timeout: Duration,
}

/// What an answer means for the data of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The collector has it, except for `rejected` items, which it will never accept.
    Accepted { rejected: u64, message: Option<String> },
    /// The same request can succeed later.
    Retry { reason: String, after: Option<Duration> },
    /// The data is invalid or too large: a part of it may be accepted.
    InvalidData { reason: String },
    /// The same request will not succeed until the collector or its settings change.
    Refused { reason: String },
}

/// A connection pool to one collector, and the runtime that drives it.
#[derive(Debug)]
pub struct Collector {
    settings: CollectorSettings,
    pool: ConnectionPool<BoxBody>,
    runtime: Runtime,
}

impl Collector {
    pub fn new(settings: CollectorSettings) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pool = build_pool(&settings.endpoint, PoolSettings::default())?;
        Ok(Self { settings, pool, runtime })
    }

    pub fn endpoint(&self) -> &BaseUrl {
        &self.settings.endpoint
    }

    /// Sends a JSON body and waits for the answer.
    pub fn post(&self, path: &'static str, body: Vec<u8>) -> Answer {
        let request = match self.request(path, body) {
            Ok(request) => request,
            Err(error) => return Answer::Refused { reason: error.to_string() },
        };
        let exchange = async {
            let reply = self.pool.request(request).await.map_err(|error| innermost(&error))?;
            let (head, body) = reply.into_parts();
            // Without it a success cannot be distinguished from a partial one; of a failure the status is enough.
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
            let body = body.map(|body| body.to_bytes().to_vec()).map_err(|error| error.to_string());
            match body {
                Err(error) if head.status.is_success() => Err(format!("its answer broke off: {error}")),
                body => {
                    Ok(interpret(head.status, &head.headers, &body.unwrap_or_default(), SystemTime::now()))
                }
            }
        };
        let timeout = self.settings.timeout;
        match self.runtime.block_on(async { tokio::time::timeout(timeout, exchange).await }) {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => Answer::Retry { reason, after: None },
            Err(_) => {
                Answer::Retry { reason: format!("no answer within {} s", timeout.as_secs_f64()), after: None }
            }
        }
    }

    fn request(&self, path: &'static str, body: Vec<u8>) -> Result<Request<BoxBody>, http::Error> {
        let CollectorSettings { endpoint, headers, .. } = &self.settings;
        let uri = endpoint.request_uri(Some(&PathAndQuery::from_static(path)))?;
        let mut request = Request::post(uri)
            .header(header::HOST, endpoint.host_header())
            .header(header::USER_AGENT, concat!("wattspan/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        request.body(full_body(body))
    }
}

/// The last cause of an error, which names what failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// What an answer means. `now`: for a `Retry-After` that is a date.
pub(crate) fn interpret(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Answer {
    let described = || match error_message(body) {
        Some(message) => format!("HTTP {status}: {message}"),
        None => format!("HTTP {status}"),
    };
    match status {
        success if success.is_success() => interpret_success(headers, body),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            Answer::Retry { reason: described(), after: retry_after(headers, now) }
        }
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
            Answer::InvalidData { reason: described() }
        }
        _ => Answer::Refused { reason: described() },
    }
}

fn interpret_success(headers: &HeaderMap, body: &[u8]) -> Answer {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    // Some collectors answer with an empty body, or in protobuf, which is not read.
    let is_protobuf = content_type.is_some_and(|kind| kind.starts_with("application/x-protobuf"));
    if is_protobuf || body.trim_ascii().is_empty() {
        return Answer::Accepted { rejected: 0, message: None };
    }
    let Ok(Value::Object(answer)) = serde_json::from_slice::<Value>(body) else {
        return Answer::Refused {
            reason: "its answer is not one of OTLP: is the URL that of a collector?".into(),
        };
    };
    let partial = answer.get("partialSuccess").cloned().unwrap_or_default();
    // 64-bit integers are texts in this encoding; some collectors write numbers.
    let count = |key: &str| {
        let value = &partial[key];
        value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
    };
    let message = partial["errorMessage"].as_str().filter(|message| !message.is_empty()).map(str::to_owned);
    Answer::Accepted { rejected: count("rejectedSpans").max(count("rejectedDataPoints")), message }
}

/// The message of a failure, if its body has one (google.rpc.Status), at most 200 characters.
fn error_message(body: &[u8]) -> Option<String> {
    let status: Value = serde_json::from_slice(body).ok()?;
    let message = status["message"].as_str().filter(|message| !message.is_empty())?;
    Some(message.chars().take(200).collect())
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(HeaderName, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        let now = httpdate::parse_http_date("Mon, 30 Nov 2026 05:00:00 GMT").unwrap();
        interpret(StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), now)
    }

    #[test]
    fn the_four_codes_of_the_specification_are_retried_after_the_time_that_the_collector_names() {
        let wait = |value: &str| match answer(503, &[(header::RETRY_AFTER, value)], "") {
            Answer::Retry { after, .. } => after.map(|after| after.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("Mon, 30 Nov 2026 05:00:09 GMT"), Some(9));
        assert_eq!(wait("Mon, 30 Nov 2026 04:00:00 GMT"), Some(0));
        assert_eq!((wait("99999999999"), wait("-1"), wait("soon")), (Some(600), None, None));
        for status in [429, 502, 503, 504] {
            assert!(matches!(answer(status, &[], "garbage"), Answer::Retry { after: None, .. }), "{status}");
        }
        for status in [301, 401, 403, 404, 405, 408, 415, 500, 501, 505] {
            assert!(matches!(answer(status, &[], ""), Answer::Refused { .. }), "{status}");
        }
        for status in [400, 413] {
            let reason = format!("HTTP {}: too long", StatusCode::from_u16(status).unwrap());
            assert_eq!(answer(status, &[], r#"{"message":"too long"}"#), Answer::InvalidData { reason });
        }
    }

    #[test]
    fn a_success_may_be_partial_and_must_be_one_of_otlp() {
        let accepted =
            |rejected, message: Option<&str>| Answer::Accepted { rejected, message: message.map(Into::into) };
        for whole in
            ["", " \n", "{}", r#"{"partialSuccess":{}}"#, r#"{"partialSuccess":{"rejectedSpans":"0"}}"#]
        {
            assert_eq!(answer(200, &[], whole), accepted(0, None), "{whole}");
        }
        let partial = r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"full"}}"#;
        assert_eq!(answer(200, &[], partial), accepted(3, Some("full")));
        let of_metrics = r#"{"partialSuccess":{"rejectedDataPoints":2}}"#;
        assert_eq!(answer(202, &[], of_metrics), accepted(2, None));
        let protobuf = [(header::CONTENT_TYPE, "application/x-protobuf")];
        assert_eq!(answer(200, &protobuf, "\u{1}"), accepted(0, None));
        for garbage in ["<html>", "[]", "1", "{\"a\":"] {
            assert!(matches!(answer(200, &[], garbage), Answer::Refused { .. }), "{garbage}");
        }
    }
}
