//! The interfaces' names and descriptions, and the framing of messages.
//!
//! Varlink (varlink.org): a message is one JSON object, and one NUL byte ends it.

use serde::Serialize;

/// The Varlink interface of the spans, accounts and domains: `org.wattspan.Meter.varlink`.
pub const METER_INTERFACE: &str = "org.wattspan.Meter";

/// The introspection interface of every Varlink service.
pub const SERVICE_INTERFACE: &str = "org.varlink.service";

/// The description of [`METER_INTERFACE`], which introspection returns: the contract.
pub const METER_DESCRIPTION: &str = include_str!("org.wattspan.Meter.varlink");

/// The description of [`SERVICE_INTERFACE`] from the Varlink specification.
pub const SERVICE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

/// The byte that ends a message; JSON text never contains it.
pub const MESSAGE_TERMINATOR: u8 = 0;

/// Appends `message` and its terminator to `out`.
pub fn encode_message<T: Serialize>(message: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, message)
        .expect("messages have string keys, and a write to a Vec does not fail");
    out.push(MESSAGE_TERMINATOR);
}
