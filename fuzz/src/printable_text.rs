//! Foreign text on a terminal and in logs.

use serde_json::Value;
use wattspan_system::escape::{
    is_control_or_format, printable, printable_ascii, printable_json, printable_lines,
};

/// No control or format character is left, other text is unchanged, and JSON keeps its meaning.
pub fn check(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let is_plain = !text.chars().any(is_control_or_format);
    let shown = printable(text);
    assert!(!shown.chars().any(is_control_or_format), "{shown:?}");
    assert!(!is_plain || shown == text);
    let lines = printable_lines(text);
    assert!(!lines.chars().any(|c| c != '\n' && is_control_or_format(c)), "{lines:?}");
    assert_eq!(lines.matches('\n').count(), text.matches('\n').count());
    let ascii = printable_ascii(text);
    assert!(ascii.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{ascii:?}");
    let json = printable_json(text);
    assert!(!json.chars().any(|c| c != '\n' && is_control_or_format(c)), "{json:?}");
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let pretty = serde_json::to_string_pretty(&value).expect("a value can be written");
        let again: Value =
            serde_json::from_str(&printable_json(&pretty)).expect("an escaped document is JSON");
        assert!(super::is_same_json(&value, &again), "{pretty}");
    }
}
