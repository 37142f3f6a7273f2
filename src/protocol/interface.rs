//! The interfaces' names and descriptions, and the framing of messages.
//!
//! Varlink (varlink.org): a message is one JSON object, and one NUL byte ends it.

use serde::Serialize;

/// The meter's own interface.
pub const METER_INTERFACE: &str = "org.wattspan.Meter";

/// Varlink's introspection, which every service answers.
pub const SERVICE_INTERFACE: &str = "org.varlink.service";

/// The description of [`METER_INTERFACE`], served by introspection; the contract itself, byte for byte.
pub const METER_DESCRIPTION: &str = include_str!("org.wattspan.Meter.varlink");

/// The description of [`SERVICE_INTERFACE`], as the Varlink specification gives it.
pub const SERVICE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

/// The byte that ends a message; JSON has no place for it, so no message holds one.
pub const MESSAGE_TERMINATOR: u8 = 0;

/// Appends `message` and its terminator to `out`.
pub fn encode_message<T: Serialize>(message: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, message)
        .expect("our words have string keys, and a Vec takes every byte");
    out.push(MESSAGE_TERMINATOR);
}
