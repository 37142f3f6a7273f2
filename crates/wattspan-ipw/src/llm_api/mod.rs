//! Requests to inference servers.
//!
//! Builds the requests of three interfaces, with settings that make a run reproducible (temperature 0 and a seed by
//! default). [`reply_builder`] builds the reply. This module never retries; retries are part of the run loop.

pub mod reply;
pub mod reply_builder;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request};
use serde_json::{Map, Value, json};
use wattspan_http::{BaseUrl, BoxBody, full_body};

use self::reply::ReplyError;

/// The longest request timeout, in seconds.
pub const MAX_TIMEOUT_S: u64 = 86_400;

/// The interface of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Api {
    /// OpenAI's chat completions: `BASE/chat/completions`.
    Chat,
    /// OpenAI's plain completions: `BASE/completions`.
    Completions,
    /// Ollama's native interface: `BASE/api/chat`.
    Ollama,
}

impl Api {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Ollama => "ollama",
        }
    }

    /// Parses a name of the command line.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Chat, Self::Completions, Self::Ollama].into_iter().find(|api| api.name() == name)
    }

    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Ollama => "/api/chat",
        }
    }
}

#[derive(Debug, Clone)]
pub struct RequestSettings {
    /// The server's base URL; for OpenAI's interfaces it usually ends with `/v1`.
    pub base_url: BaseUrl,
    /// The interface of the server.
    pub api: Api,
    /// The model, as the server names it.
    pub model: String,
    /// The system prompt, if any.
    pub system_prompt: Option<String>,
    pub temperature: f64,
    pub seed: Option<u64>,
    /// The maximum number of output tokens.
    pub max_tokens: u32,
    /// Which field of a request limits the output tokens.
    pub token_limit: TokenLimitField,
    /// Whether the reply is streamed.
    pub stream: bool,
    /// Whether log-probabilities are requested.
    pub logprobs: bool,
    /// Fields that are merged into the body of every request, as a merge patch (RFC 7396).
    pub extra_body: Option<ExtraBody>,
    /// The API key, sent as a bearer token.
    pub api_key: Option<String>,
    /// Timeout from the request to the end of the answer.
    pub timeout: Duration,
}

/// Fields for the body of every request: reasoning effort, thinking, top-p and others that only some servers know.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtraBody(Map<String, Value>);

/// A JSON text that is not accepted as [`ExtraBody`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseExtraBodyError {
    /// The text is no JSON object.
    #[error("expected a JSON object like {{\"top_p\": 0.9}}: {0}")]
    Invalid(String),
    /// A field has an option of its own, or the run writes it.
    #[error("{0:?} cannot be set here: {1}")]
    Reserved(String, &'static str),
}

/// Fields that the run itself writes, with the option that sets each.
const RESERVED_FIELDS: [(&str, &str); 5] = [
    ("model", "use --model"),
    ("messages", "the question is sent in it"),
    ("prompt", "the question is sent in it"),
    ("stream", "use --no-stream"),
    ("stream_options", "use --no-stream"),
];

impl std::str::FromStr for ExtraBody {
    type Err = ParseExtraBodyError;

    fn from_str(text: &str) -> Result<Self, ParseExtraBodyError> {
        let fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|cause| ParseExtraBodyError::Invalid(cause.to_string()))?;
        match RESERVED_FIELDS.into_iter().find(|(name, _)| fields.contains_key(*name)) {
            Some((name, remedy)) => Err(ParseExtraBodyError::Reserved(name.to_owned(), remedy)),
            None => Ok(Self(fields)),
        }
    }
}

/// The fields as JSON text, in the order of their names.
impl std::fmt::Display for ExtraBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Sorted, so that the same fields in another order are the same setting.
        let sorted: std::collections::BTreeMap<&String, &Value> = self.0.iter().collect();
        formatter.write_str(&serde_json::to_string(&sorted).map_err(|_| std::fmt::Error)?)
    }
}

/// Merges fields into a body: an object into an object field by field, null removes a field, and another value replaces
/// it (JSON merge patch, RFC 7386).
fn merge_fields(body: &mut Map<String, Value>, fields: &Map<String, Value>) {
    for (name, value) in fields {
        match (body.get_mut(name), value) {
            (_, Value::Null) => _ = body.remove(name),
            (Some(Value::Object(inner)), Value::Object(more)) => merge_fields(inner, more),
            (_, Value::Object(more)) => {
                let mut inner = Map::new();
                merge_fields(&mut inner, more);
                body.insert(name.clone(), inner.into());
            }
            _ => _ = body.insert(name.clone(), value.clone()),
        }
    }
}

/// The field that limits the output tokens of a chat completion: `max_tokens`, or `max_completion_tokens` for models that
/// refuse the older name. It is learnt from the first refusal; clones share it.
#[derive(Debug, Clone, Default)]
pub struct TokenLimitField {
    is_newer: Arc<AtomicBool>,
}

impl TokenLimitField {
    fn name(&self) -> &'static str {
        if self.is_newer.load(Ordering::Relaxed) { "max_completion_tokens" } else { "max_tokens" }
    }

    /// Uses the newer name from now on if an error of the server asks for it; returns whether it does.
    pub fn adapt_to(&self, error: &ReplyError) -> bool {
        let is_refused = matches!(
            error,
            ReplyError::Status { status: 400 | 422, body, .. } if body.contains("max_completion_tokens")
        );
        if is_refused {
            self.is_newer.store(true, Ordering::Relaxed);
        }
        is_refused
    }
}

/// A request cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildRequestError {
    /// The base URL and path do not form a URL.
    #[error("the server's address cannot be used: {0}")]
    Address(#[from] http::Error),
    /// The key has characters that are invalid in a header.
    #[error("the key holds characters that cannot be sent in a header (a line end?)")]
    Key,
}

impl RequestSettings {
    /// Builds the request for one prompt.
    ///
    /// # Errors
    /// The base URL or the key is invalid.
    pub fn prompt_request(&self, prompt: &str) -> Result<Request<BoxBody>, BuildRequestError> {
        let body = self.body(prompt).to_string();
        let path = self.api.path().parse().map_err(http::Error::from)?;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(self.base_url.request_uri(Some(&path))?)
            .header(header::HOST, self.base_url.host_header())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("wattspan/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_LENGTH, body.len())
            .body(full_body(body))?;
        self.add_authorization(request.headers_mut())?;
        Ok(request)
    }

    /// Builds the request for the list of models.
    ///
    /// # Errors
    /// As for [`RequestSettings::prompt_request`].
    pub fn models_request(&self) -> Result<Request<BoxBody>, BuildRequestError> {
        let path = if self.api == Api::Ollama { "/api/tags" } else { "/models" };
        self.get_request(&self.base_url, path)
    }

    /// Builds the request for a path at the server's root, above `/v1`.
    ///
    /// # Errors
    /// As for [`RequestSettings::prompt_request`].
    pub fn root_request(&self, path: &str) -> Result<Request<BoxBody>, BuildRequestError> {
        self.get_request(&self.base_url.above_version(), path)
    }

    fn get_request(&self, base_url: &BaseUrl, path: &str) -> Result<Request<BoxBody>, BuildRequestError> {
        let path = path.parse().map_err(http::Error::from)?;
        let mut request = Request::builder()
            .uri(base_url.request_uri(Some(&path))?)
            .header(header::HOST, base_url.host_header())
            .body(full_body(""))?;
        self.add_authorization(request.headers_mut())?;
        Ok(request)
    }

    fn add_authorization(&self, headers: &mut http::HeaderMap) -> Result<(), BuildRequestError> {
        if let Some(key) = &self.api_key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| BuildRequestError::Key)?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(())
    }

    fn body(&self, prompt: &str) -> Value {
        let mut body = self.standard_body(prompt);
        if let (Some(ExtraBody(extra)), Some(fields)) = (&self.extra_body, body.as_object_mut()) {
            // A limit under either name replaces the run's.
            if ["max_tokens", "max_completion_tokens"].iter().any(|name| extra.contains_key(*name)) {
                fields.remove(self.token_limit.name());
            }
            merge_fields(fields, extra);
        }
        body
    }

    fn standard_body(&self, prompt: &str) -> Value {
        let system = self.system_prompt.iter().map(|system| json!({"role": "system", "content": system}));
        let user = std::iter::once(json!({"role": "user", "content": prompt}));
        let messages: Vec<Value> = system.chain(user).collect();
        if self.api == Api::Ollama {
            let mut options = Map::new();
            options.insert("temperature".into(), json!(self.temperature));
            options.insert("num_predict".into(), json!(self.max_tokens));
            if let Some(seed) = self.seed {
                options.insert("seed".into(), json!(seed));
            }
            return json!({"model": self.model, "messages": messages, "stream": self.stream, "options": options});
        }
        let mut body = json!({
            "model": self.model,
            "temperature": self.temperature,
            "stream": self.stream,
        });
        let fields = body.as_object_mut().expect("it was written as an object");
        fields.insert(self.token_limit.name().into(), json!(self.max_tokens));
        if self.api == Api::Chat {
            fields.insert("messages".into(), messages.into());
        } else {
            let system =
                self.system_prompt.as_ref().map_or_else(String::new, |system| format!("{system}\n\n"));
            fields.insert("prompt".into(), json!(format!("{system}{prompt}")));
        }
        if let Some(seed) = self.seed {
            fields.insert("seed".into(), json!(seed));
        }
        if self.stream {
            fields.insert("stream_options".into(), json!({"include_usage": true}));
        }
        if self.logprobs {
            fields.insert("logprobs".into(), if self.api == Api::Chat { json!(true) } else { json!(0) });
        }
        body
    }
}

/// Returns the first model of a server's list, in the form of either interface.
pub fn first_model(list: &[u8]) -> Option<String> {
    let list: Value = serde_json::from_slice(list).ok()?;
    let of = |list: &Value, key: &str| Some(list.as_array()?.first()?.get(key)?.as_str()?.to_owned());
    list.get("data").and_then(|data| of(data, "id")).or_else(|| of(list.get("models")?, "name"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn request_settings(api: Api) -> RequestSettings {
        RequestSettings {
            base_url: "http://127.0.0.1:8000/v1".parse().unwrap(),
            api,
            model: "m".into(),
            system_prompt: None,
            temperature: 0.0,
            seed: Some(1),
            max_tokens: 64,
            token_limit: TokenLimitField::default(),
            stream: true,
            logprobs: false,
            extra_body: None,
            api_key: None,
            timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn request_bodies_match_each_api() {
        let chat = request_settings(Api::Chat).body("why?");
        assert_eq!(chat["messages"][0]["content"], "why?");
        assert_eq!((&chat["temperature"], &chat["seed"]), (&json!(0.0), &json!(1)));
        assert_eq!(chat["stream_options"]["include_usage"], true);
        let mut plain = request_settings(Api::Completions);
        plain.system_prompt = Some("Be short.".into());
        assert_eq!(plain.body("why?")["prompt"], "Be short.\n\nwhy?");
        let ollama = request_settings(Api::Ollama).body("why?");
        assert_eq!((&ollama["options"]["num_predict"], &ollama["stream"]), (&json!(64), &json!(true)));
        assert_eq!(request_settings(Api::Ollama).prompt_request("x").unwrap().uri().path(), "/v1/api/chat");
    }

    #[test]
    fn extra_fields_are_merged_into_the_body() {
        let with = |api, extra: &str| RequestSettings {
            extra_body: Some(extra.parse().unwrap()),
            ..request_settings(api)
        };
        let chat = with(
            Api::Chat,
            r#"{"reasoning_effort":"low","temperature":null,"chat_template_kwargs":{"enable_thinking":false}}"#,
        );
        let body = chat.body("why?");
        assert_eq!((&body["reasoning_effort"], body.get("temperature")), (&json!("low"), None));
        assert_eq!(body["chat_template_kwargs"], json!({"enable_thinking": false}));
        assert_eq!((&body["messages"][0]["content"], &body["max_tokens"]), (&json!("why?"), &json!(64)));
        let ollama = with(Api::Ollama, r#"{"think":true,"options":{"top_p":0.9,"seed":null}}"#).body("x");
        assert_eq!(ollama["options"], json!({"temperature": 0.0, "num_predict": 64, "top_p": 0.9}));
        let limited = with(Api::Chat, r#"{"max_completion_tokens":9}"#).body("x");
        assert_eq!((limited.get("max_tokens"), &limited["max_completion_tokens"]), (None, &json!(9)));
    }

    #[test]
    fn extra_fields_that_the_run_writes_are_refused() {
        for (text, part) in [
            ("[1]", "JSON object"),
            ("{\"top_p\":", "JSON object"),
            (r#"{"stream":false}"#, "--no-stream"),
            (r#"{"messages":[]}"#, "the question is sent in it"),
            (r#"{"model":"x"}"#, "--model"),
        ] {
            let reason = text.parse::<ExtraBody>().unwrap_err().to_string();
            assert!(reason.contains(part), "{text}: {reason}");
        }
        let (one, other) = (r#"{"b":1,"a":2}"#, r#"{"a":2, "b":1}"#);
        assert_eq!(one.parse::<ExtraBody>().unwrap().to_string(), r#"{"a":2,"b":1}"#);
        assert_eq!(one.parse::<ExtraBody>().unwrap(), other.parse().unwrap());
    }

    #[test]
    fn a_refused_token_limit_is_sent_under_its_newer_name() {
        let settings = request_settings(Api::Chat);
        let other = settings.clone();
        let refusal =
            |status, body: &str| ReplyError::Status { status, body: body.into(), retry_after: None };
        assert!(!settings.token_limit.adapt_to(&refusal(400, "unknown model")));
        assert!(!settings.token_limit.adapt_to(&refusal(500, "max_completion_tokens")));
        assert_eq!(settings.body("x")["max_tokens"], 64);
        let unsupported = refusal(400, "'max_tokens' is not supported. Use 'max_completion_tokens' instead.");
        assert!(settings.token_limit.adapt_to(&unsupported));
        for settings in [&settings, &other] {
            let body = settings.body("x");
            assert_eq!((&body["max_completion_tokens"], body.get("max_tokens")), (&json!(64), None));
        }
    }

    #[test]
    fn the_api_key_is_sent_and_not_logged() {
        let mut settings = request_settings(Api::Chat);
        settings.api_key = Some("sk-secret".into());
        let request = settings.prompt_request("x").unwrap();
        assert_eq!(request.headers()["authorization"], "Bearer sk-secret");
        assert!(!format!("{:?}", request.headers()).contains("secret"));
        settings.api_key = Some("a\nb".into());
        assert!(matches!(settings.prompt_request("x"), Err(BuildRequestError::Key)));
    }

    #[test]
    fn first_model_of_openai_and_ollama_lists() {
        assert_eq!(first_model(br#"{"data":[{"id":"a"},{"id":"b"}]}"#).as_deref(), Some("a"));
        assert_eq!(first_model(br#"{"models":[{"name":"c"}]}"#).as_deref(), Some("c"));
        assert_eq!(first_model(br#"{"data":[]}"#), None);
        assert_eq!(first_model(b"<html>"), None);
    }
}
