//! W3C Trace Context: the `traceparent` header of a request.
//!
//! Reads version 00 and, as the recommendation requires, the first four fields of later versions. An invalid header is
//! forwarded unchanged. A request without the header gets none: the server then makes its own sampling decision.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A valid `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// The span id of the client, 16 hexadecimal digits.
    pub parent_id: String,
    flags: String,
}

impl TraceContext {
    /// The trace context of `headers`, if they have exactly one `traceparent` and it is valid.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, trace_id, parent_id, flags) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let more = fields.next().is_some();
        let is_valid = is_hex(version, 2) && version != "ff" && (version != "00" || !more);
        let is_valid = is_valid && is_hex(trace_id, 32) && is_hex(parent_id, 16) && is_hex(flags, 2);
        let is_non_zero =
            trace_id.bytes().any(|byte| byte != b'0') && parent_id.bytes().any(|byte| byte != b'0');
        (is_valid && is_non_zero).then(|| TraceContext {
            trace_id: trace_id.into(),
            parent_id: parent_id.into(),
            flags: flags.into(),
        })
    }

    /// Sets `span` (not 0) as the parent for the next hop.
    pub fn inject(&self, headers: &mut HeaderMap, span: u64) {
        let text = format!("00-{}-{span:016x}-{}", self.trace_id, self.flags);
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

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn inject_replaces_the_parent_id() {
        let mut headers = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(VALID))]);
        let context = TraceContext::extract(&headers).unwrap();
        assert_eq!((context.trace_id.len(), context.parent_id.as_str()), (32, "00f067aa0ba902b7"));
        context.inject(&mut headers, 0xabc);
        assert_eq!(headers[TRACEPARENT], "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01");
    }

    #[test]
    fn invalid_headers_are_ignored() {
        let zero_id = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let zero_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let upper = VALID.to_uppercase();
        let more = format!("{VALID}-x");
        let unknown = VALID.replacen("00", "ff", 1);
        for text in ["", "00", zero_id, zero_parent, &upper, &more, &unknown, "00-é-é-é"] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
        assert!(TraceContext::parse(&format!("{}-x", VALID.replacen("00", "01", 1))).is_some());
    }
}
