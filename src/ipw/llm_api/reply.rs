//! What a server said to one question, and why there may be nothing.
//!
//! Owns the words for failures: each is one line that a row keeps, and says whether asking again may help. Invariant: a
//! reply has text or reasoning, or it is a failure; an answer of nothing would count as wrong and nearly free.

use std::time::Duration;

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelReply {
    /// What the model answered.
    pub text: String,
    /// When the request was sent, the first token came, and the answer ended; monotonic.
    pub began_ns: u64,
    /// The first piece of text or reasoning; absent where the answer came whole.
    pub first_token_ns: Option<u64>,
    /// The end of the body.
    pub ended_ns: u64,
    /// When each piece came.
    pub chunk_times_ns: Vec<u64>,
    /// Tokens of the prompt.
    pub tokens_in: Option<u64>,
    /// Of those, cached ones.
    pub tokens_cached: Option<u64>,
    /// Tokens of the answer.
    pub tokens_out: Option<u64>,
    /// Why it ended.
    pub finish: Option<String>,
    /// Of all told tokens.
    pub mean_logprob: Option<f64>,
}

impl ModelReply {
    /// The median and the 99th percentile of the times between two pieces.
    pub fn inter_chunk_ns(&self) -> Option<(u64, u64)> {
        let mut gaps: Vec<u64> =
            self.chunk_times_ns.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        if gaps.is_empty() {
            return None;
        }
        gaps.sort_unstable();
        let percentile = |percent: usize| gaps[(gaps.len() - 1) * percent / 100];
        Some((percentile(50), percentile(99)))
    }

    /// Tokens of the answer, and whether they were counted by pieces for want of the server's word.
    pub fn output_tokens(&self) -> (Option<u64>, bool) {
        match self.tokens_out {
            Some(tokens) => (Some(tokens), false),
            None if self.chunk_times_ns.is_empty() => (None, false),
            None => (Some(self.chunk_times_ns.len() as u64), true),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReplyError {
    /// Nobody answers there, or the connection broke.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// It hung up before it answered: as a rule a kept connection that it closed while the question was on its way.
    #[error("no connection: {0}")]
    ConnectionClosed(String),
    /// The server refuses.
    #[error("HTTP {status}: {body}")]
    Status {
        /// The status.
        status: u16,
        /// What it said, in a line.
        body: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The body broke off.
    #[error("the answer broke off: {0}")]
    Truncated(String),
    /// A stream without its end: no finish, no `[DONE]`.
    #[error("the answer broke off: the stream ended without saying so")]
    IncompleteStream,
    /// 200, and nothing in it.
    #[error("the server answered 200 with nothing in it")]
    Empty,
    /// An error inside an answer that began well.
    #[error("the server reported an error inside its answer: {0}")]
    ErrorInBody(String),
    /// It is not what the interface promises.
    #[error("the answer makes no sense: {0}")]
    Malformed(String),
}

impl ReplyError {
    /// Whether asking again may help: not where the server says that the question itself is wrong.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 409 | 425 | 429 | 500..),
            Self::Malformed(_) => false,
            _ => true,
        }
    }

    /// When to ask again for the `retry`th time, if the server said so or it cannot matter to it.
    pub fn retry_delay(&self, retry: u32) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::ConnectionClosed(_) if retry == 0 => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// A server's words as one line for a row: no control characters, and not the whole page.
pub fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inter_chunk_times_need_two_chunks() {
        let mut reply = ModelReply { chunk_times_ns: vec![10, 20, 40, 50, 60], ..ModelReply::default() };
        assert_eq!(reply.inter_chunk_ns(), Some((10, 10)));
        assert_eq!(reply.output_tokens(), (Some(5), true));
        reply.tokens_out = Some(7);
        assert_eq!(reply.output_tokens(), (Some(7), false));
        assert_eq!(ModelReply::default().inter_chunk_ns(), None);
        assert_eq!(ModelReply::default().output_tokens(), (None, false));
    }

    #[test]
    fn client_errors_are_not_retried_and_server_errors_are() {
        let status =
            |status| ReplyError::Status { status, body: String::new(), retry_after: None }.is_retryable();
        assert!(!status(400) && !status(401) && !status(404) && status(429) && status(503));
        assert!(ReplyError::Empty.is_retryable());
        let stale = ReplyError::ConnectionClosed("closed".into());
        assert_eq!(
            (stale.retry_delay(0), stale.retry_delay(1)),
            (Some(Duration::ZERO), None),
            "at once, but only once"
        );
    }

    #[test]
    fn one_line_removes_control_characters() {
        assert_eq!(one_line(" a\n\tb\u{1b}[31m "), "a b [31m");
        assert_eq!(one_line(&"\u{e9}".repeat(300)).chars().count(), 203);
    }
}
