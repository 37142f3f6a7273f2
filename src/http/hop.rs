//! The headers that belong to one connection and not to the message (RFC 9110, 7.6.1).
//!
//! Owns the list. What is removed here never reaches the next hop, so that a client cannot have the next hop drop or
//! reframe what this one forwards.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Headers of one hop, whether or not `Connection` names them.
const OF_ONE_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers that frame or route a message; `Connection` may not have them dropped.
const NOT_TO_BE_NAMED: [HeaderName; 3] = [header::CONTENT_LENGTH, header::HOST, header::TRAILER];

/// What the message asked of this hop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The protocol to change to, where `Connection: upgrade` stands beside it.
    pub upgrade: Option<HeaderValue>,
    /// Trailers are understood.
    pub trailers: bool,
}

/// Removes the headers of one hop and tells what they asked for.
pub fn strip(headers: &mut HeaderMap) -> Wishes {
    let named: Vec<HeaderName> = words(headers, header::CONNECTION)
        .filter_map(|word| HeaderName::from_bytes(word.as_bytes()).ok())
        .filter(|name| !NOT_TO_BE_NAMED.contains(name))
        .collect();
    let trailers = words(headers, header::TE).any(|word| word.eq_ignore_ascii_case("trailers"));
    let upgrade = headers.get(header::UPGRADE).cloned().filter(|_| named.contains(&header::UPGRADE));
    for name in named.iter().chain(&OF_ONE_HOP) {
        headers.remove(name);
    }
    Wishes { upgrade, trailers }
}

/// Asks the next hop for the same.
pub fn wish(headers: &mut HeaderMap, wishes: &Wishes) {
    if let Some(protocol) = &wishes.upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
    if wishes.trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

fn words(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
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
    fn what_connection_names_goes_and_the_rest_stays() {
        let mut map = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "te"),
            ("x-private", "1"),
            ("te", "trailers, deflate"),
            ("keep-alive", "timeout=5"),
            ("authorization", "Bearer key"),
        ]);
        let wishes = strip(&mut map);
        assert_eq!(wishes, Wishes { upgrade: None, trailers: true });
        assert_eq!(map, headers(&[("authorization", "Bearer key")]));
    }

    #[test]
    fn an_upgrade_counts_only_where_connection_names_it() {
        let mut lone = headers(&[("upgrade", "websocket")]);
        assert_eq!(strip(&mut lone).upgrade, None);
        let mut asked = headers(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")]);
        let wishes = strip(&mut asked);
        assert_eq!(wishes.upgrade, Some(HeaderValue::from_static("websocket")));
        assert!(asked.is_empty());
        wish(&mut asked, &wishes);
        assert_eq!(asked, headers(&[("connection", "upgrade"), ("upgrade", "websocket")]));
    }

    #[test]
    fn nobody_has_the_length_or_the_host_dropped() {
        let mut map =
            headers(&[("connection", "content-length, host"), ("content-length", "5"), ("host", "h")]);
        strip(&mut map);
        assert_eq!(map, headers(&[("content-length", "5"), ("host", "h")]));
    }
}
