//! The body of a call on D-Bus, and the lengths in a message's header.

use serde_json::json;
use wattspan::dbus::fuzz_entry;
use wattspan::server::fuzz_entry as socket;

use super::{first_byte, is_same_json};

/// A call on the bus with accepted arguments is a call on the socket with the same parameters.
pub fn check(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk() {
        let (header_bytes, body_bytes) = fuzz_entry::message_lengths(header);
        assert!(header_bytes >= 16 && header_bytes % 8 == 0 && header_bytes + body_bytes < 1 << 34);
    }
    let (selector, body) = first_byte(bytes);
    let names = fuzz_entry::method_names();
    let method = names[usize::from(selector) % names.len()];
    let Some(Ok(Ok(request))) = fuzz_entry::request(method, body) else { return };
    let parameters = serde_json::to_value(&request).expect("a request is plain data");
    let method = if method == "ListSpansAfter" { "ListSpans" } else { method };
    let call =
        json!({ "method": format!("org.wattspan.Meter.{method}"), "parameters": parameters }).to_string();
    let on_socket = socket::call(call.as_bytes()).and_then(|(_, request)| request);
    let on_socket = on_socket.unwrap_or_else(|| panic!("no call: {call}"));
    let on_socket = on_socket.unwrap_or_else(|error| panic!("{error}: {call}"));
    let again = serde_json::to_value(&on_socket).expect("a request is plain data");
    assert!(is_same_json(&parameters, &again), "{parameters} became {again}");
}
