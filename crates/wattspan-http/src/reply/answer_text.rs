//! The text of the answer among the texts of a reply.

use super::super::lenient_json::join_halves;
use super::event::ReplyEvent;

/// Collects the text of the choice that appeared first, and its finish reason.
#[derive(Debug, Default)]
pub struct AnswerText {
    choice: Option<u32>,
    text: String,
    finish: Option<String>,
}

impl AnswerText {
    /// Collects from an event.
    pub fn collect(&mut self, event: &ReplyEvent<'_>) {
        match *event {
            ReplyEvent::Text { choice, text } if *self.choice.get_or_insert(choice) == choice => {
                self.text.push_str(text);
            }
            ReplyEvent::Finish { choice, reason } if self.choice.is_none_or(|answer| answer == choice) => {
                self.finish = Some(reason.to_owned());
            }
            _ => {}
        }
    }

    /// The text so far, with the halves of characters that messages have cut joined.
    pub fn text(&self) -> String {
        join_halves(&self.text)
    }

    /// The reason for which the answer finished, in the words of the server.
    pub fn into_finish(self) -> Option<String> {
        self.finish
    }
}
