//! The reply of a server to one query, and the errors of a failed one.
//!
//! Each error message is one line for the row, and the error knows whether a retry is useful. Invariant: a reply has
//! text or reasoning, or else it is an error; an empty answer would count as incorrect at almost no cost.

use std::time::Duration;

use super::super::row::is_refused_before_work;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelReply {
    /// The text of the answer.
    pub text: String,
    /// Time of the request, monotonic nanoseconds.
    pub began_ns: u64,
    /// Time of the first chunk of text or reasoning; absent if the reply was not streamed.
    pub first_token_ns: Option<u64>,
    /// Time of the end of the body.
    pub ended_ns: u64,
    /// Times of all chunks.
    pub chunk_times_ns: Vec<u64>,
    pub tokens_in: Option<u64>,
    /// Cached prompt tokens.
    pub tokens_cached: Option<u64>,
    pub tokens_out: Option<u64>,
    pub finish: Option<String>,
    /// Mean log-probability of the reported tokens.
    pub mean_logprob: Option<f64>,
}

impl ModelReply {
    /// Returns the median and 99th percentile of the times between chunks.
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

    /// Returns the number of output tokens, and whether chunks were counted because the server reported none.
    pub fn output_tokens(&self) -> (Option<u64>, bool) {
        match self.tokens_out {
            Some(tokens) => (Some(tokens), false),
            None if self.chunk_times_ns.is_empty() => (None, false),
            None => (Some(self.chunk_times_ns.len() as u64), true),
        }
    }
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ReplyError {
    /// The server is unreachable: no connection was made, or the request was not sent on it.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The connection broke after the request was sent and before the reply: often an idle connection that the server
    /// closed while the request was in transit.
    #[error("the connection broke before the answer: {0}")]
    ConnectionClosed(String),
    /// The server replied with an error status.
    #[error("HTTP {status}: {body}")]
    Status {
        status: u16,
        /// The error text, on one line.
        body: String,
        /// The delay that the server requests before a retry.
        retry_after: Option<Duration>,
    },
    /// The request timed out.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The body is incomplete.
    #[error("the answer broke off: {0}")]
    Truncated(String),
    /// The stream ended without a finish reason or `[DONE]`.
    #[error("the answer broke off: the stream ended without an end marker")]
    IncompleteStream,
    /// Status 200 with an empty answer.
    #[error("the server answered 200 with nothing in it")]
    Empty,
    /// An error within a stream that began normally.
    #[error("the server reported an error inside its answer: {0}")]
    ErrorInBody(String),
    /// The reply does not conform to the interface.
    #[error("the answer is malformed: {0}")]
    Malformed(String),
}

impl ReplyError {
    /// Returns whether a retry is useful: not if the server rejects the request itself.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 409 | 425 | 429 | 500..),
            Self::Malformed(_) => false,
            _ => true,
        }
    }

    /// Returns whether the server received the question. If so, the failure is a wrong answer, and its energy counts.
    pub fn is_delivered(&self) -> bool {
        match self {
            Self::Unreachable(_) => false,
            Self::Status { status, .. } => !is_refused_before_work(*status),
            _ => true,
        }
    }

    /// Returns the delay before the `retry`th retry, if the server requests one or no delay is needed.
    pub fn retry_delay(&self, retry: u32) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::ConnectionClosed(_) if retry == 0 => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// Returns a server's error text as one line for a row, without control characters and limited in length.
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
    fn only_requests_that_the_server_refused_or_never_got_are_undelivered() {
        let status = |status| ReplyError::Status { status, body: String::new(), retry_after: None };
        for refused in [301, 401, 402, 403, 404, 405, 407, 409, 425, 426, 429, 503] {
            assert!(!status(refused).is_delivered(), "{refused}");
        }
        for worked_on in [400, 408, 413, 414, 422, 431, 500, 502, 504] {
            assert!(status(worked_on).is_delivered(), "{worked_on}");
        }
        assert!(!ReplyError::Unreachable("refused".into()).is_delivered());
        for delivered in [
            ReplyError::ConnectionClosed("reset".into()),
            ReplyError::TimedOut(Duration::from_secs(1)),
            ReplyError::Truncated("reset".into()),
            ReplyError::IncompleteStream,
            ReplyError::Empty,
            ReplyError::ErrorInBody("out of memory".into()),
            ReplyError::Malformed("oops".into()),
        ] {
            assert!(delivered.is_delivered(), "{delivered}");
        }
    }

    #[test]
    fn one_line_removes_control_characters() {
        assert_eq!(one_line(" a\n\tb\u{1b}[31m "), "a b [31m");
        assert_eq!(one_line(&"\u{e9}".repeat(300)).chars().count(), 203);
    }
}
