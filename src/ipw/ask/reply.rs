//! What a server said to one question, and why there may be nothing.
//!
//! Owns the words for failures: each is one line that a row keeps, and says whether asking again may help. Invariant: a
//! reply has text or reasoning, or it is a failure; an answer of nothing would count as wrong and nearly free.

use std::time::Duration;

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    /// What the model answered.
    pub text: String,
    /// When the request was sent, the first token came, and the answer ended; monotonic.
    pub began_ns: u64,
    /// The first piece of text or reasoning; absent where the answer came whole.
    pub first_token_ns: Option<u64>,
    /// The end of the body.
    pub ended_ns: u64,
    /// When each piece came.
    pub pieces_ns: Vec<u64>,
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

impl Reply {
    /// The median and the 99th percentile of the times between two pieces.
    pub fn between_ns(&self) -> Option<(u64, u64)> {
        let mut between: Vec<u64> =
            self.pieces_ns.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        if between.is_empty() {
            return None;
        }
        between.sort_unstable();
        let at = |percent: usize| between[(between.len() - 1) * percent / 100];
        Some((at(50), at(99)))
    }

    /// Tokens of the answer, and whether they were counted by pieces for want of the server's word.
    pub fn counted_tokens(&self) -> (Option<u64>, bool) {
        match self.tokens_out {
            Some(tokens) => (Some(tokens), false),
            None if self.pieces_ns.is_empty() => (None, false),
            None => (Some(self.pieces_ns.len() as u64), true),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Nobody answers there, or the connection broke.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// It hung up before it answered: as a rule a kept connection that it closed while the question was on its way.
    #[error("no connection: {0}")]
    HungUp(String),
    /// The server refuses.
    #[error("HTTP {status}: {said}")]
    Status {
        /// The status.
        status: u16,
        /// What it said, in a line.
        said: String,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    /// It took too long.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The body broke off.
    #[error("the answer broke off: {0}")]
    BrokenOff(String),
    /// A stream without its end: no finish, no `[DONE]`.
    #[error("the answer broke off: the stream ended without saying so")]
    Unfinished,
    /// 200, and nothing in it.
    #[error("the server answered 200 with nothing in it")]
    Empty,
    /// An error inside an answer that began well.
    #[error("the server reported an error inside its answer: {0}")]
    Inside(String),
    /// It is not what the interface promises.
    #[error("the answer makes no sense: {0}")]
    Nonsense(String),
}

impl Failure {
    /// Whether asking again may help: not where the server says that the question itself is wrong.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 409 | 425 | 429 | 500..),
            Self::Nonsense(_) => false,
            _ => true,
        }
    }

    /// When to ask again for the `retry`th time, if the server said so or it cannot matter to it.
    pub fn after(&self, retry: u32) -> Option<Duration> {
        match self {
            Self::Status { after, .. } => *after,
            Self::HungUp(_) if retry == 0 => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// A server's words as one line for a row: no control characters, and not the whole page.
pub fn one_line(said: &str) -> String {
    const MOST: usize = 200;
    let words = said.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_between_pieces_are_told_where_there_are_two() {
        let mut reply = Reply { pieces_ns: vec![10, 20, 40, 50, 60], ..Reply::default() };
        assert_eq!(reply.between_ns(), Some((10, 10)));
        assert_eq!(reply.counted_tokens(), (Some(5), true));
        reply.tokens_out = Some(7);
        assert_eq!(reply.counted_tokens(), (Some(7), false));
        assert_eq!(Reply::default().between_ns(), None);
        assert_eq!(Reply::default().counted_tokens(), (None, false));
    }

    #[test]
    fn a_wrong_question_is_not_asked_again_and_a_busy_server_is() {
        let status = |status| Failure::Status { status, said: String::new(), after: None }.may_pass();
        assert!(!status(400) && !status(401) && !status(404) && status(429) && status(503));
        assert!(Failure::Empty.may_pass());
        let stale = Failure::HungUp("closed".into());
        assert_eq!((stale.after(0), stale.after(1)), (Some(Duration::ZERO), None), "at once, but only once");
    }

    #[test]
    fn what_a_server_said_is_one_line() {
        assert_eq!(one_line(" a\n\tb\u{1b}[31m "), "a b [31m");
        assert_eq!(one_line(&"\u{e9}".repeat(300)).chars().count(), 203);
    }
}
