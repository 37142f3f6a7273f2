//! The replacement of identifiers in a bundle, under a name that the fuzz targets can call (docs/fuzzing.md).

use super::bundle::pseudonyms::{IdentifierKind, Pseudonyms, TextOrigin};
use super::bundle::rendering::render_trace;

fn pseudonyms(host: &str, serial: &str) -> Pseudonyms {
    let mut pseudonyms = Pseudonyms::default();
    pseudonyms.add_known(IdentifierKind::Host, host);
    pseudonyms.add_known(IdentifierKind::Serial, serial);
    pseudonyms
}

/// `text` of a driver or of a user with pseudonyms in place of identifiers.
pub fn pseudonymized(host: &str, serial: &str, text: &str, is_free: bool) -> String {
    let origin = if is_free { TextOrigin::Free } else { TextOrigin::Kernel };
    pseudonyms(host, serial).replace_in(text, origin)
}

/// The lines of a trace with pseudonyms in its header.
pub fn rendered_trace(host: &str, trace: &str) -> Option<String> {
    render_trace(trace, &mut pseudonyms(host, "")).ok()
}
