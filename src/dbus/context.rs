//! What all clients on the bus share: the connection to the bus, the way into the service, the cap on messages.
//!
//! Owns how answers leave. Invariant: nothing is sent to a caller that asked for no answer.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use zbus::message::Flags;
use zbus::{Connection, DynamicType, Message};

use super::dbus_error::DbusError;
use super::json;
use crate::server::ConnectionSender;

/// Shared by all clients on the bus.
#[derive(Debug)]
pub struct DbusContext {
    /// The bus.
    pub bus: Connection,
    /// The way into the service.
    pub connection_sender: Arc<ConnectionSender>,
    /// Largest message, in bytes, here as on the socket.
    pub max_message_bytes: usize,
}

/// A call that is kept until it is answered, and its part of the memory that calls may take together.
#[derive(Debug)]
pub struct PendingCall {
    /// The message.
    pub message: Message,
    /// Held, not read: given back with the call.
    pub _memory_permit: OwnedSemaphorePermit,
}

impl PendingCall {
    /// Whether the caller waits for an answer.
    pub fn is_reply_expected(&self) -> bool {
        is_reply_expected(&self.message)
    }
}

impl DbusContext {
    /// Answers a call. A bus that takes nothing any more ends the connection elsewhere; nobody can be told here.
    pub async fn reply<B: Serialize + DynamicType>(&self, message: &Message, body: &B) {
        if is_reply_expected(message)
            && let Ok(reply) = Message::method_return(&message.header()).build(body)
        {
            let _ = self.bus.send(&reply).await;
        }
    }

    /// Answers with the reason why not.
    pub async fn reply_error(&self, message: &Message, error: &DbusError) {
        if is_reply_expected(message)
            && let Ok(reply) =
                Message::error(&message.header(), error.name.as_str()).build(&error.message.as_str())
        {
            let _ = self.bus.send(&reply).await;
        }
    }

    /// Answers with dictionaries.
    pub async fn reply_dicts(&self, message: &Message, list: Vec<serde_json::Value>) {
        self.reply(message, &json::to_dicts(list)).await;
    }
}

fn is_reply_expected(message: &Message) -> bool {
    !message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED)
}
