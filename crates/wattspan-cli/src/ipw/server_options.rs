//! Options of the inference server, and detection of its model if none is given.

use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Limited};
use wattspan_http::connection_pool::{ConnectionPool, PoolSettings, build_pool};
use wattspan_http::{BaseUrl, BoxBody};
use wattspan_ipw::conditions::{Conditions, read_engine_description, read_model_list};
use wattspan_ipw::llm_api::{Api, ExtraBody, MAX_TIMEOUT_S, RequestSettings, TokenLimitField, first_model};

use super::super::exit_status::{CliError, FAILURE};

/// Default base URL (vLLM's default port).
const DEFAULT_URL: &str = "http://127.0.0.1:8000/v1";

/// Default environment variable of the server's API key.
pub const DEFAULT_KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Default limit of an answer, in tokens.
const DEFAULT_MAX_TOKENS: u32 = 512;

/// Default limit of a judge's answer, in tokens: a reasoning model thinks before its verdict.
pub const DEFAULT_JUDGE_MAX_TOKENS: u32 = 8192;

/// Options of the inference server and its requests.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerOptions {
    /// Base URL of the server (OpenAI-compatible servers: with /v1) [default: http://127.0.0.1:8000/v1, or the server of
    /// the resumed run]
    #[arg(long, value_name = "URL")]
    pub url: Option<BaseUrl>,
    /// Model [default: the first one that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    #[command(flatten)]
    pub request: RequestOptions,
}

/// Options of the requests to any server.
#[derive(Debug, Clone, clap::Args)]
pub struct RequestOptions {
    /// API of the server
    #[arg(long, value_enum, default_value_t = Api::Chat)]
    pub api: Api,
    /// Environment variable that contains the API key
    #[arg(long, value_name = "VARIABLE", default_value = DEFAULT_KEY_VARIABLE)]
    pub key_from: String,
    /// Maximum number of tokens of an answer [default: 512; of a judge's: 8192]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// Sampling temperature
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Sampling seed ("-": send none)
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: String,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Disable streaming; there is then no time to first token and no phases
    #[arg(long)]
    pub no_stream: bool,
    /// Request log-probabilities, for perplexity figures
    #[arg(long)]
    pub logprobs: bool,
    /// JSON object merged into each request, e.g. {"reasoning_effort": "low", "top_p": 0.9}; null removes a field
    #[arg(long, value_name = "JSON")]
    pub extra_body: Option<ExtraBody>,
    /// Timeout of an answer, in seconds
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_S))]
    pub timeout: u64,
}

impl ServerOptions {
    /// The request settings and a connection pool. Queries the server for its models if none was given.
    pub async fn connect(&self) -> Result<(RequestSettings, ConnectionPool<BoxBody>), CliError> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => DEFAULT_URL.parse().expect("it is a URL"),
        };
        let pool = build_pool(&url, PoolSettings::default())
            .map_err(|cause| CliError::new(FAILURE, format!("{url}: {cause}")))?;
        let request = &self.request;
        let seed = match request.seed.as_str() {
            "-" => None,
            seed => Some(seed.parse().map_err(|_| CliError::new(2, "--seed must be an integer, or -"))?),
        };
        let mut request_settings = RequestSettings {
            base_url: url,
            api: request.api,
            model: self.model.clone().unwrap_or_default(),
            system_prompt: request.system.clone(),
            temperature: request.temperature,
            seed,
            max_tokens: request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            token_limit: TokenLimitField::default(),
            stream: !request.no_stream,
            logprobs: request.logprobs,
            extra_body: request.extra_body.clone(),
            api_key: std::env::var(&request.key_from).ok().filter(|key| !key.is_empty()),
            timeout: Duration::from_secs(request.timeout),
        };
        if self.model.is_none() {
            request_settings.model =
                first_listed_model(&request_settings, &pool).await.map_err(|reason| {
                    CliError::new(
                        FAILURE,
                        format!(
                            "{}: {reason}; is the server up? (--url, --api, --model name another)",
                            request_settings.base_url
                        ),
                    )
                })?;
        }
        Ok((request_settings, pool))
    }
}

/// How long a server may take to describe itself.
const DESCRIPTION_TIMEOUT: Duration = Duration::from_secs(3);

/// What the server reports of its engine and model; what it does not report is absent.
pub async fn engine_conditions(
    request_settings: &RequestSettings,
    pool: &ConnectionPool<BoxBody>,
) -> Conditions {
    let fetch = async |request: Option<Request<BoxBody>>| {
        let fetch = async {
            let reply = pool.request(request?).await.ok().filter(|reply| reply.status().is_success())?;
            Some(Limited::new(reply.into_body(), 4 << 20).collect().await.ok()?.to_bytes())
        };
        tokio::time::timeout(DESCRIPTION_TIMEOUT, fetch).await.ok().flatten()
    };
    let list = fetch(request_settings.models_request().ok()).await.unwrap_or_default();
    let (mut found, path) = read_model_list(&list, &request_settings.model);
    if let Some(path) = path {
        let reply = fetch(request_settings.root_request(path).ok()).await.unwrap_or_default();
        found.extend(read_engine_description(&reply));
    }
    found
}

async fn first_listed_model(
    request_settings: &RequestSettings,
    pool: &ConnectionPool<BoxBody>,
) -> Result<String, String> {
    let request = request_settings.models_request().map_err(|error| error.to_string())?;
    let reply = tokio::time::timeout(Duration::from_secs(15), pool.request(request)).await;
    let reply =
        reply.map_err(|_| "no answer within 15 s")?.map_err(|cause| {
            match std::error::Error::source(&cause) {
                Some(inner) => inner.to_string(),
                None => cause.to_string(),
            }
        })?;
    let status = reply.status();
    let list = Limited::new(reply.into_body(), 4 << 20).collect().await.map_err(|cause| cause.to_string())?;
    first_model(&list.to_bytes())
        .ok_or_else(|| format!("its list of models is empty or invalid (HTTP {status})"))
}
