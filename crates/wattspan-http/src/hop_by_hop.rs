//! Hop-by-hop headers, which belong to one connection and not to the message (RFC 9110, section 7.6.1).
//!
//! Invariant: no hop-by-hop header reaches the next hop, so that a client cannot make it drop or reframe a message, and
//! no offer of a protocol in which further requests would follow unread.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Headers that are hop-by-hop even if `Connection` does not list them.
const HOP_BY_HOP_HEADERS: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that frame or route a message; they stay even if `Connection` lists them.
const PROTECTED_HEADERS: [HeaderName; 3] = [header::CONTENT_LENGTH, header::HOST, header::TRAILER];

/// Protocols in which HTTP requests follow, by the first word of their names: other versions of HTTP, and HTTP over TLS.
const PROTOCOLS_WITH_REQUESTS: [&[u8]; 4] = [b"h2c", b"h2", b"http", b"tls"];

/// The connection options of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// The value of `Upgrade`, if `Connection` lists `upgrade` and no HTTP requests can follow in the offered protocols.
    pub upgrade: Option<HeaderValue>,
    /// The sender accepts trailers.
    pub trailers: bool,
}

/// Removes the hop-by-hop headers and returns the options that they stated.
pub fn strip(headers: &mut HeaderMap) -> ConnectionOptions {
    let named: Vec<HeaderName> = header_tokens(headers, header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !PROTECTED_HEADERS.contains(name))
        .collect();
    let trailers = header_tokens(headers, header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let upgrade = headers.get(header::UPGRADE).cloned();
    let upgrade = upgrade.filter(|offer| named.contains(&header::UPGRADE) && !offers_requests(offer));
    let is_removed = |name: &HeaderName| HOP_BY_HOP_HEADERS.contains(name) || named.contains(name);
    if headers.keys().any(is_removed) {
        // The removal of single headers would change the order of the others.
        let mut kept = HeaderMap::with_capacity(headers.len());
        let mut current = None;
        for (name, value) in std::mem::take(headers) {
            current = name.or(current);
            if let Some(name) = current.clone().filter(|name| !is_removed(name)) {
                kept.append(name, value);
            }
        }
        *headers = kept;
    }
    ConnectionOptions { upgrade, trailers }
}

/// Sets the headers that state `options` to the next hop.
pub fn set_connection_options(headers: &mut HeaderMap, options: &ConnectionOptions) {
    if let Some(protocol) = &options.upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    if options.trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether an offer of protocols, also a malformed one, names one in which HTTP requests follow.
fn offers_requests(offer: &HeaderValue) -> bool {
    let is_separator = |byte: &u8| matches!(byte, b',' | b';' | b'/' | b' ' | b'\t');
    let mut words = offer.as_bytes().split(is_separator);
    words.any(|word| PROTOCOLS_WITH_REQUESTS.iter().any(|protocol| word.eq_ignore_ascii_case(protocol)))
}

fn header_tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn headers_listed_in_connection_are_removed() {
        let mut map = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "te"),
            ("x-private", "1"),
            ("te", "trailers, deflate"),
            ("keep-alive", "timeout=5"),
            ("authorization", "Bearer key"),
        ]);
        let options = strip(&mut map);
        assert_eq!(options, ConnectionOptions { upgrade: None, trailers: true });
        assert_eq!(map, headers(&[("authorization", "Bearer key")]));
    }

    #[test]
    fn an_upgrade_must_be_listed_in_connection() {
        let mut unlisted = headers(&[("upgrade", "websocket")]);
        assert_eq!(strip(&mut unlisted).upgrade, None);
        let mut requested = headers(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
        let options = strip(&mut requested);
        assert_eq!(options.upgrade, Some(HeaderValue::from_static("websocket")));
        assert!(requested.is_empty());
        set_connection_options(&mut requested, &options);
        assert_eq!(requested, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn an_upgrade_to_a_protocol_with_requests_is_not_passed_on() {
        for offer in ["h2c", "H2C", "websocket, h2c", "websocket,\tH2c", "h2c;q=1", "HTTP/2.0", "tls/1.3"] {
            let mut map = headers(&[
                ("connection", "Upgrade"),
                ("upgrade", offer),
                ("http2-settings", "AAMAAABk"),
                ("host", "h"),
            ]);
            assert_eq!(strip(&mut map).upgrade, None, "{offer}");
            assert_eq!(map, headers(&[("host", "h")]), "{offer}");
        }
        let mut other = headers(&[("connection", "upgrade"), ("upgrade", "websocket, x-h2c")]);
        assert_eq!(strip(&mut other).upgrade, Some(HeaderValue::from_static("websocket, x-h2c")));
    }

    #[test]
    fn remaining_headers_keep_their_order() {
        let mut map = headers(&[("x-a", "1"), ("te", "trailers"), ("x-b", "2"), ("x-a", "3"), ("x-c", "4")]);
        strip(&mut map);
        let names: Vec<&str> = map.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-a", "x-a", "x-b", "x-c"]);
    }

    #[test]
    fn connection_cannot_remove_content_length_or_host() {
        let mut map =
            headers(&[("connection", "content-length, host"), ("content-length", "5"), ("host", "h")]);
        strip(&mut map);
        assert_eq!(map, headers(&[("content-length", "5"), ("host", "h")]));
    }
}
