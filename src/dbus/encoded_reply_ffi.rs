//! A reply around a body that `variant_writer` has encoded.
//!
//! Owns the one call of zbus that takes the bytes of a body. It is unsafe because they may not be of the stated type.
#![allow(unsafe_code)]

use zbus::Message;

use super::variant_writer::EncodedBody;

/// The reply to a call.
///
/// # Errors
/// The message would be longer than D-Bus allows.
pub fn build_reply(call: &Message, body: &EncodedBody) -> zbus::Result<Message> {
    let reply = Message::method_return(&call.header()).endian(body.endian());
    // SAFETY: the bytes are a value of this type in this byte order, an invariant of `EncodedBody`, and have no descriptors.
    unsafe { reply.build_raw_body(body.bytes(), body.signature(), Vec::new()) }
}
