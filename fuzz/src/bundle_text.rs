//! The texts of a bug report's bundle, in which pseudonyms replace identifiers, and its trace.

use wattspan::sources::replay::trace::RecordedTrace;
use wattspan_cli::fuzz_entry;

use super::first_line;

/// No pseudonym begins with its last letter, so that none completes it.
const SERIAL: &str = "QX77-PLUGZ";

/// The first line is the host's name; the rest is a text of a driver, or a trace. Nothing of host or serial number is left.
pub fn check(bytes: &[u8]) {
    let (host, text) = first_line(bytes);
    let (host, text) = (String::from_utf8_lossy(host), String::from_utf8_lossy(text));
    let host: String = host.chars().take(40).collect();
    for is_free in [false, true] {
        let replaced = fuzz_entry::pseudonymized(&host, SERIAL, &text, is_free);
        let lower = replaced.to_lowercase();
        assert!(!lower.contains("qx77-plugz") && !lower.contains("qx77plugz"), "{replaced}");
        let again = fuzz_entry::pseudonymized("", "", &text, is_free);
        assert!(again.lines().count() <= text.lines().count().max(1));
        // Of a name that no pseudonym has as a part or completes, nothing is left.
        let is_distinct = host.len() >= 8
            && host.bytes().all(|byte| byte.is_ascii_lowercase())
            && !"serialuuidhostuser".contains(&host)
            && !["host", "user", "serial", "uuid", "mac"]
                .iter()
                .any(|prefix| (1..=prefix.len()).any(|length| host.ends_with(&prefix[..length])));
        let is_word_of_the_kernel =
            ["localhost", "localdomain", "package", "powercap", "platform", "event_source"]
                .contains(&host.as_str());
        if is_distinct && !is_word_of_the_kernel {
            assert!(!lower.contains(host.as_str()), "{host} is in {replaced}");
        }
    }
    let Some(rendered) = fuzz_entry::rendered_trace(&host, &text) else { return };
    assert!(rendered.lines().all(|line| line.starts_with("trace ")), "{rendered}");
    // The reader ignores an incomplete last line, which a trace in memory never has.
    if text.ends_with('\n') && RecordedTrace::parse(text.as_bytes()).is_ok() && !text.contains('\r') {
        let lines: String = rendered.lines().map(|line| format!("{}\n", &line["trace ".len()..])).collect();
        let again = RecordedTrace::parse(lines.as_bytes());
        // Two names may get one pseudonym where they differ in case only.
        let is_valid = again.as_ref().map_or_else(|error| error.reason.contains("used twice"), |_| true);
        assert!(is_valid, "{:?} of {rendered}", again.err());
    }
}
