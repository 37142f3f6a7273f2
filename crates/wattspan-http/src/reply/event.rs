//! What a reply states, as events.

use super::token_usage::TokenUsage;

/// A statement of a reply. Those of one message follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReplyEvent<'a> {
    /// The name of the model, once.
    Model(&'a str),
    /// Counts of tokens. A later one replaces an earlier one, count by count.
    Usage(TokenUsage),
    /// A message of a stream continues an answer: by text, reasoning or a tool call. The first has the first token.
    Content,
    /// The next part of the text of an answer, if texts are wanted. It can end with half a character
    /// (see [`AnswerText`](super::AnswerText)).
    Text { choice: u32, text: &'a str },
    /// The log-probability of the next token, if texts are wanted.
    Logprob(f64),
    /// A choice has finished, for a reason in the words of the server.
    Finish { choice: u32, reason: &'a str },
    /// The server reports an error.
    Error(&'a str),
    /// A message that is no JSON object; the bytes may be its beginning only.
    Malformed(&'a [u8]),
    /// A message over the limit, which was not read.
    TooLong,
    /// The reply ends inside a message.
    Cut,
    /// The server marks the end of the reply, or the reply was one whole message. At most once.
    End,
}

/// The place of a message in its stream, for a writer that adds to the last message that states usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamPosition {
    /// An answer continues in this message, or is still open.
    Open,
    /// The message states usage and every choice that has appeared has finished. It is the last such message unless a
    /// choice appears after it: some servers send the choices one after the other.
    UsageSoFar,
    /// No later message states usage.
    LastUsage,
    /// The mark of the end.
    End,
    /// A message without usage that continues nothing.
    Other,
}
