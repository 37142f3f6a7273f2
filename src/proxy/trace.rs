//! W3C Trace Context: the trace a request belongs to, and our place in it.
//!
//! Owns `traceparent` (version 00 and, as the recommendation asks, the first four fields of later ones). A header that
//! is no valid one is left as it came: it is not ours to mend. Where there is none, none is made: a server that samples
//! by its parent's decision must decide for itself.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The header.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request's trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// 32 hexadecimal digits.
    pub id: String,
    /// The caller's span, 16 hexadecimal digits.
    pub parent: String,
    flags: String,
}

impl Trace {
    /// The trace that the headers name, if exactly one valid one does.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        Self::read(value.to_str().ok()?)
    }

    fn read(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, id, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let more = fields.next().is_some();
        let sound = is_hex(version, 2) && version != "ff" && (version != "00" || !more);
        let sound = sound && is_hex(id, 32) && is_hex(parent, 16) && is_hex(flags, 2);
        let named = id.bytes().any(|byte| byte != b'0') && parent.bytes().any(|byte| byte != b'0');
        (sound && named).then(|| Trace { id: id.into(), parent: parent.into(), flags: flags.into() })
    }

    /// Makes `span` (not 0) the parent of what the next hop does.
    pub fn forward(&self, headers: &mut HeaderMap, span: u64) {
        let text = format!("00-{}-{span:016x}-{}", self.id, self.flags);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn our_span_takes_the_parents_place() {
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(SOUND))]);
        let trace = Trace::of(&headers).unwrap();
        assert_eq!((trace.id.len(), trace.parent.as_str()), (32, "00f067aa0ba902b7"));
        trace.forward(&mut headers, 0xabc);
        assert_eq!(headers[TRACEPARENT], "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01");
    }

    #[test]
    fn what_is_not_sound_is_no_trace() {
        let zero_id = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let zero_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let upper = SOUND.to_uppercase();
        let more = format!("{SOUND}-x");
        let unknown = SOUND.replacen("00", "ff", 1);
        for text in ["", "00", zero_id, zero_parent, &upper, &more, &unknown, "00-é-é-é"] {
            assert_eq!(Trace::read(text), None, "{text}");
        }
        assert!(Trace::read(&format!("{}-x", SOUND.replacen("00", "01", 1))).is_some());
    }
}
