//! The reader for replies of inference servers: bytes in, events out.
//!
//! ```text
//! reply_reader ─► sse, line_decoder or object_decoder ─► message_reader ─► ReplyEvent
//! ```
//!
//! Invariants: the events do not depend on chunk boundaries; memory is bounded where the text of answers is not wanted;
//! no input makes the reader panic.

mod answer_text;
mod choice_progress;
mod content_template;
mod event;
mod json_value;
mod message_reader;
#[cfg(test)]
mod mutated_replies;
mod reply_reader;
#[cfg(test)]
mod server_replies;
mod token_usage;

pub use answer_text::AnswerText;
pub use event::{ReplyEvent, StreamPosition};
pub use message_reader::{EventSink, MessageReader};
pub use reply_reader::{DeclaredFormat, ReplyReader};
pub use token_usage::TokenUsage;
