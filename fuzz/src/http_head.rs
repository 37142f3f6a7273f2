//! The heads of HTTP messages, addresses and URLs, as far as the code that reads them is this project's.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use wattspan_export::prometheus::MetricsAddress;
use wattspan_http::{BaseUrl, hop_by_hop, transfer_encoding};
use wattspan_proxy::{ListenAddress, fuzz_entry};

use super::first_line;

/// The first line is an address; the others are header fields. No hop-by-hop field is forwarded, and only `chunked` passes.
pub fn check(bytes: &[u8]) {
    let (first, rest) = first_line(bytes);
    if let Ok(text) = std::str::from_utf8(first) {
        check_addresses(text);
    }
    let mut headers = HeaderMap::new();
    for line in rest.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    check_transfer_encoding(&headers);
    check_trace(&headers);
    check_hop_by_hop(headers);
}

fn check_hop_by_hop(mut headers: HeaderMap) {
    const ALWAYS_REMOVED: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    const KEPT: [&str; 3] = ["content-length", "host", "trailer"];
    let before = headers.clone();
    let named: Vec<String> = before
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_ascii_lowercase())
        .collect();
    let options = hop_by_hop::strip(&mut headers);
    let is_removed = |name: &str| {
        ALWAYS_REMOVED.contains(&name) || named.iter().any(|named| named == name) && !KEPT.contains(&name)
    };
    for name in before.keys() {
        let (old, new): (Vec<_>, Vec<_>) =
            (before.get_all(name).iter().collect(), headers.get_all(name).iter().collect());
        if is_removed(name.as_str()) { assert!(new.is_empty(), "{name}") } else { assert_eq!(old, new) }
    }
    hop_by_hop::set_connection_options(&mut headers, &options);
    let again = hop_by_hop::strip(&mut headers);
    assert_eq!(again, options);
}

/// A slow check: what passes is nothing, or one `chunked`.
fn check_transfer_encoding(headers: &HeaderMap) {
    let values: Vec<&[u8]> =
        headers.get_all(header::TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes).collect();
    let all = values.join(&b","[..]).trim_ascii().to_ascii_lowercase();
    let is_accepted = transfer_encoding::check(headers).is_ok();
    assert_eq!(is_accepted, values.is_empty() || all == b"chunked", "{:?}", String::from_utf8_lossy(&all));
}

fn check_trace(headers: &HeaderMap) {
    let Some((trace_id, parent_id)) = fuzz_entry::trace_ids(headers) else { return };
    let is_id = |id: &str, length: usize| {
        id.len() == length
            && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
            && id.bytes().any(|byte| byte != b'0')
    };
    assert!(is_id(&trace_id, 32) && is_id(&parent_id, 16), "{trace_id} {parent_id}");
    let forwarded = fuzz_entry::with_parent(headers.clone(), 7);
    assert_eq!(fuzz_entry::trace_ids(&forwarded), Some((trace_id, "0000000000000007".into())));
}

fn check_addresses(text: &str) {
    if let Ok(url) = text.parse::<BaseUrl>() {
        let shown = url.to_string();
        assert_eq!(shown.parse::<BaseUrl>().as_ref(), Ok(&url), "{shown}");
        let _ = (url.host_header(), url.is_tls());
        for path in ["/", "/v1/models?a=%2F"] {
            let uri = url.request_uri(Some(&path.parse().expect("a path"))).expect("a base URL and a path");
            assert!(uri.path_and_query().is_some_and(|whole| whole.as_str().ends_with(path)), "{uri}");
        }
        assert!(url.above_version().to_string().len() <= shown.len());
    }
    if let Ok(address) = text.parse::<ListenAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    if let Ok(address) = text.parse::<MetricsAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}
