//! Limits of the texts of spans: names, phases, attributes.
//!
//! The texts come from clients and are shown to others. Control characters are rejected, because accounts appear on terminals
//! and in logs. A text is accepted unchanged or rejected.

use std::collections::BTreeMap;

use wattspan_client::protocol::MethodError;

/// Maximum bytes of a span identifier.
pub const MAX_SPAN_ID_BYTES: usize = 128;

/// Maximum bytes of a span's display name.
pub const MAX_NAME_BYTES: usize = 256;

/// Maximum bytes of the name of a phase.
pub const MAX_PHASE_BYTES: usize = 128;

/// Maximum number of attributes of one span.
pub const MAX_ATTRIBUTES: usize = 64;

/// Maximum bytes of an attribute's key.
pub const MAX_KEY_BYTES: usize = 64;

/// Maximum bytes of an attribute's value.
pub const MAX_VALUE_BYTES: usize = 1024;

/// Rejects a text that is empty, too long, or has control characters.
pub fn check_identifier(field: &str, text: &str, max_bytes: usize) -> Result<(), MethodError> {
    if text.is_empty() {
        return Err(invalid_value(field, "is empty"));
    }
    check_text(field, text, max_bytes)
}

/// Rejects a text that is too long or has control characters.
pub fn check_text(field: &str, text: &str, max_bytes: usize) -> Result<(), MethodError> {
    if text.len() > max_bytes {
        return Err(invalid_value(field, &format!("has {} bytes; the maximum is {max_bytes}", text.len())));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid_value(field, "contains a control character"));
    }
    Ok(())
}

/// Rejects attributes that are too many or too long; returns their size in bytes. `existing`: attributes that the span has.
pub fn check_attributes(
    attributes: &BTreeMap<String, String>,
    existing: usize,
) -> Result<usize, MethodError> {
    let count = existing + attributes.len();
    if count > MAX_ATTRIBUTES {
        return Err(invalid_value(
            "attributes",
            &format!("would be {count}; the maximum is {MAX_ATTRIBUTES}"),
        ));
    }
    let mut bytes = 0;
    for (key, value) in attributes {
        check_identifier("attributes", key, MAX_KEY_BYTES)?;
        check_text("attributes", value, MAX_VALUE_BYTES)?;
        bytes += key.len() + value.len();
    }
    Ok(bytes)
}

fn invalid_value(field: &str, reason: &str) -> MethodError {
    MethodError::InvalidValue { field: field.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(count: usize) -> BTreeMap<String, String> {
        (0..count).map(|at| (format!("key{at}"), "value".to_owned())).collect()
    }

    #[test]
    fn sixty_four_attributes_are_accepted_and_one_more_is_not() {
        assert!(check_attributes(&attributes(64), 0).is_ok());
        assert!(check_attributes(&attributes(65), 0).is_err());
        assert!(check_attributes(&attributes(1), 64).is_err());
    }

    #[test]
    fn length_errors_name_the_limit() {
        let long = BTreeMap::from([("k".to_owned(), "v".repeat(1025))]);
        let error = check_attributes(&long, 0).unwrap_err().to_string();
        assert_eq!(error, "attributes: has 1025 bytes; the maximum is 1024");
    }

    #[test]
    fn control_characters_are_refused_and_other_scripts_are_not() {
        for bad in ["a\nb", "\u{1b}[2J", "\u{7f}", "\u{85}"] {
            assert!(check_text("name", bad, 256).is_err(), "{bad:?}");
        }
        assert!(check_text("name", "Wärme 熱 🔥", 256).is_ok());
        assert!(check_identifier("span", "", 128).is_err());
    }
}
