//! What all clients on the bus share: the connection to the bus, the sender of calls to the service,
//! and the size limit.
//!
//! Sends all replies. Invariant: no reply is sent for a call that has the flag NO_REPLY_EXPECTED.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use zbus::message::Flags;
use zbus::wire::Endian;
use zbus::{Connection, DynamicType, Message};

use super::dbus_error::DbusError;
use super::encoded_reply_ffi::build_reply;
use super::variant_writer::{EncodeBodyError, EncodedBody};
use crate::server::ForwardedSender;

#[derive(Debug)]
pub struct DbusContext {
    pub bus: Connection,
    pub service: ForwardedSender,
    /// The same limit as on the Unix socket.
    pub max_message_bytes: usize,
}

/// A call without a reply yet, and its part of the memory budget of all calls.
#[derive(Debug, Clone)]
pub struct PendingCall {
    pub message: Message,
    /// Held, not read: released with the last copy of the call.
    pub _memory_permit: Arc<OwnedSemaphorePermit>,
}

impl PendingCall {
    pub fn is_reply_expected(&self) -> bool {
        is_reply_expected(&self.message)
    }
}

impl DbusContext {
    /// Sends a reply. A failure means that the bus is gone, which `DbusConnector` detects.
    pub async fn reply<B: Serialize + DynamicType>(&self, message: &Message, body: &B) {
        if is_reply_expected(message)
            && let Ok(reply) = Message::method_return(&message.header()).build(body)
        {
            let _ = self.bus.send(&reply).await;
        }
    }

    /// Sends a struct as a dictionary.
    pub async fn reply_dict<T: Serialize>(&self, message: &Message, value: &T) {
        self.reply_encoded(message, |endian| EncodedBody::dict(value, endian)).await;
    }

    /// Sends structs as dictionaries.
    pub async fn reply_dicts<T: Serialize>(&self, message: &Message, values: &[T]) {
        self.reply_encoded(message, |endian| EncodedBody::dicts(values, endian)).await;
    }

    async fn reply_encoded(
        &self,
        message: &Message,
        encode: impl FnOnce(Endian) -> Result<EncodedBody, EncodeBodyError>,
    ) {
        if is_reply_expected(message)
            && let Ok(body) = encode(message.primary_header().endian_sig().into())
            && let Ok(reply) = build_reply(message, &body)
        {
            let _ = self.bus.send(&reply).await;
        }
    }

    pub async fn reply_error(&self, message: &Message, error: &DbusError) {
        if is_reply_expected(message)
            && let Ok(reply) =
                Message::error(&message.header(), error.name.as_str()).build(&error.message.as_str())
        {
            let _ = self.bus.send(&reply).await;
        }
    }
}

fn is_reply_expected(message: &Message) -> bool {
    !message.primary_header().flags().contains(Flags::NO_REPLY_EXPECTED)
}
