//! The inference server that questions go to.
//!
//! Owns what the command line says of it, and finding out what it did not say: the model.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};

use super::super::exit_status::{CliError, FAILURE};
use crate::http::connection_pool::{ConnectionPool, PoolSettings, build_pool};
use crate::http::{BaseUrl, BoxBody};
use crate::ipw::llm_api::{Api, MAX_TIMEOUT_S, RequestSettings, first_model};

/// Where servers listen as a rule.
const DEFAULT_URL: &str = "http://127.0.0.1:8000/v1";

/// The environment variable that has the server's key, unless the user names another.
pub const DEFAULT_KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Which server, and how it is asked.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerOptions {
    /// The server's base URL, as its users write it (OpenAI's interfaces: with /v1) [default: http://127.0.0.1:8000/v1,
    /// or the server of the run that goes on]
    #[arg(long, value_name = "URL")]
    pub url: Option<BaseUrl>,
    /// The interface it speaks
    #[arg(long, value_enum, default_value_t = Api::Chat)]
    pub api: Api,
    /// The model [default: the first one that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Take the key from this environment variable
    #[arg(long, value_name = "VARIABLE", default_value = DEFAULT_KEY_VARIABLE)]
    pub key_from: String,
    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: u32,
    /// How freely the model chooses its words
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Of the server's random numbers ("-": none is sent)
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: String,
    /// Said before each question
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Take answers whole; there is no first token then, and no phases
    #[arg(long)]
    pub no_stream: bool,
    /// Ask for log-probabilities, for the figures that rest on perplexity
    #[arg(long)]
    pub logprobs: bool,
    /// How long an answer may take, in seconds
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_S))]
    pub timeout: u64,
}

impl ServerOptions {
    /// How it is asked, and connections to it. Asks the server for its models where none was named.
    pub async fn connect(&self) -> Result<(RequestSettings, ConnectionPool<BoxBody>), CliError> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => DEFAULT_URL.parse().expect("it is a URL"),
        };
        let pool = build_pool(&url, PoolSettings::default())
            .map_err(|cause| CliError::new(FAILURE, format!("{url}: {cause}")))?;
        let seed = match self.seed.as_str() {
            "-" => None,
            seed => Some(seed.parse().map_err(|_| CliError::new(2, "--seed takes a whole number, or -"))?),
        };
        let mut request_settings = RequestSettings {
            base_url: url,
            api: self.api,
            model: self.model.clone().unwrap_or_default(),
            system_prompt: self.system.clone(),
            temperature: self.temperature,
            seed,
            max_tokens: self.max_tokens,
            stream: !self.no_stream,
            logprobs: self.logprobs,
            api_key: std::env::var(&self.key_from).ok().filter(|key| !key.is_empty()),
            timeout: Duration::from_secs(self.timeout),
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
    first_model(&list.to_bytes()).ok_or_else(|| format!("its list of models says nothing (HTTP {status})"))
}
