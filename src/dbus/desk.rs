//! What all clients on the bus share: the connection to the bus, the way into the service, the cap on messages.
//!
//! Owns how answers leave. Invariant: nothing is sent to a caller that asked for no answer.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use zbus::message::Flags;
use zbus::{Connection, DynamicType, Message};

use super::denial::Denial;
use super::value;
use crate::server::Usher;

/// The desk.
#[derive(Debug)]
pub struct Desk {
    /// The bus.
    pub bus: Connection,
    /// The way into the service.
    pub usher: Arc<Usher>,
    /// Largest message, in bytes, here as on the socket.
    pub most_bytes: usize,
}

/// A call that is kept until it is answered, and its part of the memory that calls may take together.
#[derive(Debug)]
pub struct Call {
    /// The message.
    pub message: Message,
    /// Held, not read: given back with the call.
    pub _room: OwnedSemaphorePermit,
}

impl Call {
    /// Whether the caller waits for an answer.
    pub fn wants_answer(&self) -> bool {
        wants_answer(&self.message)
    }
}

impl Desk {
    /// Answers a call. A bus that takes nothing any more ends the connection elsewhere; nobody can be told here.
    pub async fn answer<B: Serialize + DynamicType>(&self, message: &Message, body: &B) {
        if wants_answer(message)
            && let Ok(answer) = Message::method_return(&message.header()).build(body)
        {
            let _ = self.bus.send(&answer).await;
        }
    }

    /// Answers with the reason why not.
    pub async fn deny(&self, message: &Message, denial: &Denial) {
        if wants_answer(message)
            && let Ok(answer) =
                Message::error(&message.header(), denial.name.as_str()).build(&denial.words.as_str())
        {
            let _ = self.bus.send(&answer).await;
        }
    }

    /// Answers with dictionaries.
    pub async fn answer_rows(&self, message: &Message, list: Vec<serde_json::Value>) {
        self.answer(message, &value::rows(list)).await;
    }
}

fn wants_answer(message: &Message) -> bool {
    !message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED)
}
