//! One query: a span, a request, an answer, an account.
//!
//! Owns the order of these. The span begins when the request is sent and ends with the last byte of its answer; the first token
//! begins its decode. Each try has a span of its own, so that a failed try's energy is on record and in no answer's figure.

use std::collections::BTreeMap;
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::sync::oneshot::Receiver;
use tokio::time::{Instant, sleep, timeout_at};

use super::ask::Asking;
use super::ask::hear::Hearing;
use super::ask::reply::{Failure, Reply, one_line};
use super::extract;
use super::metering::Metering;
use super::question::Question;
use super::row::{Row, Text};
use super::scope::Meter;
use super::settling::{Settled, energy};
use crate::clock::monotonic_ns;
use crate::http::Body;
use crate::http::dial::Pool;

/// How a query is made.
pub struct Query<'a> {
    /// Connections to the server.
    pub pool: &'a Pool<Body>,
    /// How it is asked.
    pub asking: &'a Asking,
    /// The meter, if there is one.
    pub metering: Option<&'a Metering>,
    /// The run's domains, in their order.
    pub domains: &'a [Meter],
    /// Further tries after the first.
    pub retries: u32,
}

/// How long to wait before another try: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A query that ended, and whose account may not have settled.
pub struct Answered {
    row: Row,
    text: Text,
    account: Option<Receiver<Settled>>,
}

impl Answered {
    /// Waits for the account.
    pub async fn settle(mut self, domains: &[Meter]) -> (Row, Text) {
        if let Some(account) = self.account {
            let account = account.await.unwrap_or(Err("nobody asked the meter any more".into()));
            match account.and_then(|account| energy(&account, domains)) {
                Ok(energy) => self.row.energy = Some(energy),
                Err(why) => self.row.unmetered = Some(why.into_owned()),
            }
        }
        (self.row, self.text)
    }
}

impl Query<'_> {
    /// Asks a question for the `repeat`th time until it is answered or hope is lost, and waits for its account. `number` is
    /// another one for each query.
    pub async fn ask(&self, question: &Question, repeat: u32, number: u64) -> (Row, Text) {
        self.answer(question, repeat, number).await.settle(self.domains).await
    }

    /// Asks, and leaves the account for later: the next question must not wait for a counter.
    pub async fn answer(&self, question: &Question, repeat: u32, number: u64) -> Answered {
        let mut pause = FIRST_PAUSE;
        for retry in 0.. {
            let began_ns = monotonic_ns();
            let (answer, account, ended_ns) =
                self.attempt(question, repeat, number * 1000 + u64::from(retry % 1000)).await;
            match answer {
                Err(failure) if failure.may_pass() && retry < self.retries => {
                    sleep(failure.after(retry).map_or(pause, |after| after.min(LONGEST_PAUSE))).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answer => {
                    let row = Row {
                        id: question.id.clone(),
                        repeat,
                        subject: question.subject.clone(),
                        retries: retry,
                        began_ns,
                        duration_ns: ended_ns.saturating_sub(began_ns),
                        ..Row::default()
                    };
                    let (row, text) = told(row, question, answer);
                    return Answered { row, text, account };
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
    ) -> (Result<Reply, Failure>, Option<Receiver<Settled>>, u64) {
        let began_ns = monotonic_ns();
        let span = self.metering.map(|metering| {
            let mut notes = BTreeMap::from([
                ("question".to_owned(), one_line(&question.id)),
                ("model".to_owned(), one_line(&self.asking.model)),
            ]);
            if repeat > 0 {
                notes.insert("repeat".into(), repeat.to_string());
            }
            (metering, metering.open(number, "ipw", notes, began_ns))
        });
        let mark = |at_ns| {
            if let Some((metering, span)) = &span {
                metering.decode(span, at_ns);
            }
        };
        let answer = self.exchange(&question.prompt, began_ns, mark).await;
        let ended_ns = answer.as_ref().map_or_else(|_| monotonic_ns(), |reply| reply.ended_ns);
        let Some((metering, span)) = span else { return (answer, None, ended_ns) };
        let mut notes = BTreeMap::new();
        match &answer {
            Ok(reply) => {
                notes.extend(reply.tokens_out.map(|tokens| ("tokens_out".to_owned(), tokens.to_string())))
            }
            Err(failure) => _ = notes.insert("error".into(), one_line(&failure.to_string())),
        }
        let account = metering.close(&span, notes, (began_ns, ended_ns));
        (answer, Some(account), ended_ns)
    }

    async fn exchange(&self, prompt: &str, began_ns: u64, mark: impl Fn(u64)) -> Result<Reply, Failure> {
        let request = self.asking.request(prompt).map_err(|wrong| Failure::Nonsense(wrong.to_string()))?;
        let until = Instant::now() + self.asking.timeout;
        let late = |_| Failure::TimedOut(self.asking.timeout);
        let reply = timeout_at(until, self.pool.request(request)).await.map_err(late)?;
        let reply = reply.map_err(|cause| {
            let said = one_line(&chain(&cause));
            if hung_up(&cause) { Failure::HungUp(said) } else { Failure::Unreachable(said) }
        })?;
        let (head, mut body) = reply.into_parts();
        if !head.status.is_success() {
            let whole = timeout_at(until, http_body_util::Limited::new(body, 64 << 10).collect())
                .await
                .map_err(late)?;
            let said = whole.map_or_else(|_| Default::default(), |whole| whole.to_bytes());
            let after = head
                .headers
                .get(http::header::RETRY_AFTER)
                .and_then(|after| after.to_str().ok()?.parse().ok());
            let said = one_line(&String::from_utf8_lossy(&said));
            let after = after.map(Duration::from_secs);
            return Err(Failure::Status { status: head.status.as_u16(), said, after });
        }
        let kind = head.headers.get(http::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let mut hearing = Hearing::new(self.asking.api, kind.unwrap_or_default(), began_ns);
        // To the end of the body, and not only to its last event: some servers spoil the next request otherwise.
        while let Some(frame) = timeout_at(until, body.frame()).await.map_err(late)? {
            let frame = frame.map_err(|cause| Failure::BrokenOff(one_line(&chain(&cause))))?;
            if let Ok(bytes) = frame.into_data() {
                let now_ns = monotonic_ns();
                if hearing.feed(&bytes, now_ns) {
                    mark(now_ns);
                }
            }
        }
        hearing.finish(monotonic_ns())
    }
}

/// The row and the text of an answer, scored where a rule can.
fn told(mut row: Row, question: &Question, answer: Result<Reply, Failure>) -> (Row, Text) {
    let mut text = Text { id: row.id.clone(), repeat: row.repeat, ..Text::default() };
    match answer {
        Ok(reply) => {
            row.began_ns = reply.began_ns;
            row.duration_ns = reply.ended_ns.saturating_sub(reply.began_ns);
            row.first_token_ns = reply.first_token_ns.map(|first| first.saturating_sub(reply.began_ns));
            row.between_tokens_ns = reply.between_ns();
            (row.tokens_out, row.tokens_estimated) = reply.counted_tokens();
            (row.tokens_in, row.tokens_cached) = (reply.tokens_in, reply.tokens_cached);
            (row.finish, row.mean_logprob) = (reply.finish, reply.mean_logprob);
            row.score = extract::score(question, &reply.text).map(|right| f64::from(u8::from(right)));
            text.settled = extract::answer(question, &reply.text);
            text.reply = reply.text;
        }
        Err(failure) => row.error = Some(one_line(&failure.to_string())),
    }
    (row, text)
}

/// Whether the connection closed before the answer began, and not because nobody listens.
fn hung_up(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(broken) = inner.downcast_ref::<hyper::Error>() {
            return broken.is_incomplete_message() || broken.is_canceled();
        }
        cause = inner.source();
    }
    false
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        said.push_str(": ");
        said.push_str(&inner.to_string());
        cause = inner.source();
    }
    said
}
