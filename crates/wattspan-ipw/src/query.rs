//! One query: open a span, send the request, read the answer, fetch the account.
//!
//! The span begins when the request is sent and ends with the last byte of the answer; the decode phase begins with
//! the first token. Invariant: each attempt has its own span, and the row has the energy of all attempts that reached
//! the server.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::sync::oneshot::Receiver;
use tokio::time::{Instant, sleep, timeout_at};
use wattspan_client::account::MODEL_ATTRIBUTE;
use wattspan_client::clock::monotonic_ns;
use wattspan_http::BoxBody;
use wattspan_http::connection_pool::{ConnectionPool, capture_connection};

use super::account_result::{AccountResult, query_energy};
use super::llm_api::RequestSettings;
use super::llm_api::reply::{ModelReply, ReplyError, one_line};
use super::llm_api::reply_builder::ReplyBuilder;
use super::metering_thread::MeteringHandle;
use super::question::Question;
use super::row::{EarlierTry, QueryRow, ReplyText};
use super::scope::RunDomain;

/// How queries are made.
pub struct QueryRunner<'a> {
    /// The HTTP client of the server.
    pub pool: &'a ConnectionPool<BoxBody>,
    pub request_settings: &'a RequestSettings,
    /// The metering thread, if the run is metered.
    pub metering: Option<&'a MeteringHandle>,
    /// The run's domains, in order.
    pub domains: &'a [RunDomain],
    /// Maximum retries after the first attempt.
    pub retries: u32,
}

/// Delay before the first retry; it doubles with each retry.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A finished query whose account may not have settled.
pub struct AnsweredQuery {
    row: QueryRow,
    text: ReplyText,
    account: Option<Receiver<AccountResult>>,
    /// The accounts of failed attempts that reached the server.
    earlier_accounts: Vec<Receiver<AccountResult>>,
}

/// Waits for an account and returns the energy of the run's domains in it.
async fn settled_energy(account: Receiver<AccountResult>, domains: &[RunDomain]) -> EarlierTry {
    let account = account.await.unwrap_or(Err("the metering thread has ended".into()));
    account.and_then(|account| query_energy(&account, domains)).map_err(Cow::into_owned)
}

impl AnsweredQuery {
    /// Waits for the accounts.
    pub async fn settle(mut self, domains: &[RunDomain]) -> (QueryRow, ReplyText) {
        if let Some(account) = self.account {
            match settled_energy(account, domains).await {
                Ok(energy) => self.row.energy = Some(energy),
                Err(reason) => self.row.unmetered = Some(reason),
            }
        }
        for account in self.earlier_accounts {
            self.row.add_tries(&[settled_energy(account, domains).await]);
        }
        (self.row, self.text)
    }
}

impl QueryRunner<'_> {
    /// Sends a question, with retries, for the given `repeat`, and waits for its account. `number` is unique for each
    /// query.
    pub async fn ask_and_settle(
        &self,
        question: &Question,
        repeat: u32,
        number: u64,
    ) -> (QueryRow, ReplyText) {
        self.ask(question, repeat, number).await.settle(self.domains).await
    }

    /// Sends a question without waiting for its account, so that the next query is not delayed by a slow counter.
    pub async fn ask(&self, question: &Question, repeat: u32, number: u64) -> AnsweredQuery {
        let mut backoff = INITIAL_BACKOFF;
        let (mut retry, mut is_adapted, mut earlier_accounts) = (0, false, Vec::new());
        for attempt in 0_u64.. {
            let began_ns = monotonic_ns();
            let (result, account, ended_ns) =
                self.attempt(question, repeat, number * 1000 + attempt % 1000).await;
            match result {
                Err(error) if !is_adapted && self.request_settings.token_limit.adapt_to(&error) => {
                    is_adapted = true;
                }
                Err(error) if error.is_retryable() && retry < self.retries => {
                    earlier_accounts.extend(account.filter(|_| error.is_delivered()));
                    sleep(
                        error.retry_delay(retry).map_or(backoff, |retry_after| retry_after.min(MAX_BACKOFF)),
                    )
                    .await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                    retry += 1;
                }
                result => {
                    let row = QueryRow {
                        id: question.id.clone(),
                        repeat,
                        subject: question.subject.clone(),
                        retries: retry,
                        began_ns,
                        duration_ns: ended_ns.saturating_sub(began_ns),
                        ..QueryRow::default()
                    };
                    let (row, text) = build_row(row, question, result);
                    return AnsweredQuery { row, text, account, earlier_accounts };
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    async fn attempt(
        &self,
        question: &Question,
        repeat: u32,
        number: u64,
    ) -> (Result<ModelReply, ReplyError>, Option<Receiver<AccountResult>>, u64) {
        let began_ns = monotonic_ns();
        let span = self.metering.map(|metering| {
            let mut attributes = BTreeMap::from([
                ("question".to_owned(), one_line(&question.id)),
                (MODEL_ATTRIBUTE.to_owned(), one_line(&self.request_settings.model)),
            ]);
            if repeat > 0 {
                attributes.insert("repeat".into(), repeat.to_string());
            }
            (metering, metering.open_span(number, "ipw", attributes, began_ns))
        });
        let mark = |at_ns| {
            if let Some((metering, span)) = &span {
                metering.mark_decode(span, at_ns);
            }
        };
        let result = self.send_request(&question.prompt, began_ns, mark).await;
        let ended_ns = result.as_ref().map_or_else(|_| monotonic_ns(), |reply| reply.ended_ns);
        let Some((metering, span)) = span else { return (result, None, ended_ns) };
        let mut attributes = BTreeMap::new();
        match &result {
            Ok(reply) => attributes
                .extend(reply.tokens_out.map(|tokens| ("tokens_out".to_owned(), tokens.to_string()))),
            Err(error) => _ = attributes.insert("error".into(), one_line(&error.to_string())),
        }
        let account = metering.close_span(&span, attributes, (began_ns, ended_ns));
        (result, Some(account), ended_ns)
    }

    /// Sends a prompt and waits for the head of the response. A request that got no connection was not delivered.
    async fn send_prompt(
        &self,
        prompt: &str,
        deadline: Instant,
    ) -> Result<http::Response<hyper::body::Incoming>, ReplyError> {
        let mut request = self
            .request_settings
            .prompt_request(prompt)
            .map_err(|error| ReplyError::Unreachable(error.to_string()))?;
        let connection = capture_connection(&mut request);
        let response = timeout_at(deadline, self.pool.request(request)).await;
        let is_connected = connection.connection_metadata().is_some();
        let timeout = self.request_settings.timeout;
        let response = response.map_err(|_| match is_connected {
            true => ReplyError::TimedOut(timeout),
            false => ReplyError::Unreachable(format!("no connection within {timeout:?}")),
        })?;
        response.map_err(|cause| {
            let message = one_line(&error_chain(&cause));
            match is_connected && !is_canceled(&cause) {
                true => ReplyError::ConnectionClosed(message),
                false => ReplyError::Unreachable(message),
            }
        })
    }

    async fn send_request(
        &self,
        prompt: &str,
        began_ns: u64,
        mark: impl Fn(u64),
    ) -> Result<ModelReply, ReplyError> {
        let deadline = Instant::now() + self.request_settings.timeout;
        let timed_out = |_| ReplyError::TimedOut(self.request_settings.timeout);
        let (head, mut body) = self.send_prompt(prompt, deadline).await?.into_parts();
        if !head.status.is_success() {
            let collected = timeout_at(deadline, http_body_util::Limited::new(body, 64 << 10).collect())
                .await
                .map_err(timed_out)?;
            let message = collected.map_or_else(|_| Default::default(), |collected| collected.to_bytes());
            let retry_after = head
                .headers
                .get(http::header::RETRY_AFTER)
                .and_then(|retry_after| retry_after.to_str().ok()?.parse().ok());
            let message = one_line(&String::from_utf8_lossy(&message));
            let retry_after = retry_after.map(Duration::from_secs);
            return Err(ReplyError::Status { status: head.status.as_u16(), body: message, retry_after });
        }
        let content_type =
            head.headers.get(http::header::CONTENT_TYPE).and_then(|content_type| content_type.to_str().ok());
        let mut reply = ReplyBuilder::new(content_type.unwrap_or_default(), began_ns);
        // Read to the end of the body, not only to the last event: some servers otherwise break the next request on
        // the connection.
        while let Some(frame) = timeout_at(deadline, body.frame()).await.map_err(timed_out)? {
            let frame = frame.map_err(|cause| ReplyError::Truncated(one_line(&error_chain(&cause))))?;
            if let Ok(bytes) = frame.into_data() {
                let now_ns = monotonic_ns();
                if reply.feed(&bytes, now_ns) {
                    mark(now_ns);
                }
            }
        }
        reply.finish(monotonic_ns())
    }
}

/// Builds the row and text of an answer or a failure, and scores it if a rule applies.
fn build_row(
    mut row: QueryRow,
    question: &Question,
    result: Result<ModelReply, ReplyError>,
) -> (QueryRow, ReplyText) {
    let mut text = ReplyText { id: row.id.clone(), repeat: row.repeat, ..ReplyText::default() };
    match result {
        Ok(reply) => {
            row.began_ns = reply.began_ns;
            row.duration_ns = reply.ended_ns.saturating_sub(reply.began_ns);
            row.first_token_ns = reply.first_token_ns.map(|first| first.saturating_sub(reply.began_ns));
            row.between_tokens_ns = reply.inter_chunk_ns();
            (row.tokens_out, row.tokens_estimated) = reply.output_tokens();
            (row.tokens_in, row.tokens_cached) = (reply.tokens_in, reply.tokens_cached);
            (row.finish, row.mean_logprob) = (reply.finish, reply.mean_logprob);
            row.score = question.score_reply(&reply.text).map(|right| f64::from(u8::from(right)));
            row.score = row.counted_score();
            text.settled = question.extract_answer(&reply.text);
            text.reply = reply.text;
        }
        Err(error) => {
            row.delivered = Some(error.is_delivered());
            row.error = Some(one_line(&error.to_string()));
            row.score = row.counted_score();
        }
    }
    (row, text)
}

/// Returns whether a request was dropped before any of it was sent.
fn is_canceled(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(hyper_error) = inner.downcast_ref::<hyper::Error>() {
            return hyper_error.is_canceled();
        }
        cause = inner.source();
    }
    false
}

/// Formats an error with its causes on one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
