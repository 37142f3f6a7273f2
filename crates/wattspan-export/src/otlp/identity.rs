//! The trace ID, span ID and parent of an account's span.
//!
//! Invariant: the same account has the same IDs in every export, so that a repeated span can be recognized.

use ring::digest::{Context, SHA256};
use wattspan_client::account::Account;

/// The position of a span in a trace, as lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanIdentity {
    pub trace_id: String,
    pub span_id: String,
    pub parent_id: Option<String>,
}

impl SpanIdentity {
    /// The identity of an account with this number in this database.
    ///
    /// - `trace_id`, `span_id` and `parent_span_id`: from the proxy, which passed `span_id` on to the server.
    /// - `trace_id` and `span_id`: the span of a program that exports it itself; the account is its child.
    /// - `traceparent`: the account is a child of that span.
    ///
    /// Otherwise the account is a trace of its own, whose ID is a hash of database and number.
    pub fn of(account: &Account, database: &str, number: u64) -> Self {
        let (trace_id, span_id) = derived_ids(database, number);
        let hex = |key: &str, digits| {
            let value = account.attributes.get(key)?;
            is_id(value, digits).then(|| value.clone())
        };
        let traced = (hex("trace_id", 32), hex("span_id", 16), hex("parent_span_id", 16));
        match traced {
            (Some(trace_id), Some(span_id), Some(parent_id)) => {
                SpanIdentity { trace_id, span_id, parent_id: Some(parent_id) }
            }
            (Some(trace_id), Some(parent_id), None) => {
                SpanIdentity { trace_id, span_id, parent_id: Some(parent_id) }
            }
            _ => match account.attributes.get("traceparent").and_then(|text| parse_traceparent(text)) {
                Some((trace_id, parent_id)) => SpanIdentity { trace_id, span_id, parent_id: Some(parent_id) },
                None => SpanIdentity { trace_id, span_id, parent_id: None },
            },
        }
    }
}

/// The trace ID and the parent's span ID of a valid `traceparent` (W3C Trace Context).
fn parse_traceparent(text: &str) -> Option<(String, String)> {
    let mut fields = text.split('-');
    let (version, trace_id, parent_id, flags) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let is_valid = is_hex(version, 2) && version != "ff" && (version != "00" || fields.next().is_none());
    (is_valid && is_hex(flags, 2) && is_id(trace_id, 32) && is_id(parent_id, 16))
        .then(|| (trace_id.to_owned(), parent_id.to_owned()))
}

fn is_id(text: &str, digits: usize) -> bool {
    is_hex(text, digits) && text.bytes().any(|byte| byte != b'0')
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A trace ID and a span ID from a hash, which is uniform: samplers take the last digits of a trace ID as random.
fn derived_ids(database: &str, number: u64) -> (String, String) {
    let mut context = Context::new(&SHA256);
    context.update(b"wattspan account ");
    context.update(database.as_bytes());
    context.update(&number.to_be_bytes());
    let hex: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    (hex[..32].to_owned(), hex[32..48].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn identity(attributes: &[(&str, &str)]) -> SpanIdentity {
        let mut account: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
        account.attributes.extend(attributes.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        SpanIdentity::of(&account, "uuid", 7)
    }

    #[test]
    fn an_account_without_a_trace_has_ids_of_database_and_number() {
        let own = identity(&[]);
        assert_eq!((own.trace_id.len(), own.span_id.len(), own.parent_id.clone()), (32, 16, None));
        assert_eq!(own, identity(&[]));
        let other = |database, number| derived_ids(database, number).1;
        assert!(own.span_id != other("uuid", 8) && own.span_id != other("uuie", 7));
        // As stored by collectors already: a change would double accounts that are sent again.
        assert_eq!(own.trace_id, "ab08d7f0df0394085498b45aca0e0f9b");
        assert_eq!(own.span_id, "d15df6c8339f9832");
    }

    #[test]
    fn the_span_of_the_proxy_is_the_one_that_the_server_has_as_its_parent() {
        let of_proxy =
            [("trace_id", TRACE), ("span_id", "00000000000000ab"), ("parent_span_id", "00f067aa0ba902b7")];
        let found = identity(&of_proxy);
        assert_eq!((&*found.trace_id, &*found.span_id), (TRACE, "00000000000000ab"));
        assert_eq!(found.parent_id.as_deref(), Some("00f067aa0ba902b7"));
    }

    #[test]
    fn an_account_of_a_traced_program_is_a_child_of_its_span() {
        let own = identity(&[]);
        let child = identity(&[("trace_id", TRACE), ("span_id", "00f067aa0ba902b7")]);
        assert_eq!((&*child.trace_id, &*child.span_id), (TRACE, &*own.span_id));
        assert_eq!(child.parent_id.as_deref(), Some("00f067aa0ba902b7"));
        assert_eq!(identity(&[("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"))]), child);
    }

    #[test]
    fn invalid_ids_are_ignored() {
        let own = identity(&[]);
        let zero = "0".repeat(32);
        for trace in ["", "x", &TRACE[1..], &TRACE.to_uppercase(), &zero] {
            assert_eq!(identity(&[("trace_id", trace), ("span_id", "00f067aa0ba902b7")]), own, "{trace}");
        }
        for parent in [
            "00-x",
            "ff-",
            &format!("00-{TRACE}-00f067aa0ba902b7-01-x"),
            &format!("00-{zero}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(identity(&[("traceparent", parent)]), own, "{parent}");
        }
    }
}
