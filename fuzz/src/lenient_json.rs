//! JSON as servers write it, and JSON that is shortened while it arrives.

use serde_json::Value;
use wattspan_http::json_shortener::JsonShortener;
use wattspan_http::lenient_json;

use super::{first_byte, in_chunks};

/// Valid JSON is not changed, and what is repaired or shortened is valid.
pub fn check(bytes: &[u8]) {
    let (seed, body) = first_byte(bytes);
    let strict = serde_json::from_slice::<Value>(body);
    let lenient = lenient_json::parse(body);
    match &strict {
        Ok(strict) => assert_eq!(lenient.as_ref().ok(), Some(strict)),
        Err(_) => {
            if let (Ok(lenient), Some(repaired)) = (&lenient, lenient_json::repair(body)) {
                assert_eq!(serde_json::from_slice::<Value>(&repaired).ok().as_ref(), Some(lenient));
            }
        }
    }
    let max_bytes = if seed.is_multiple_of(2) { 4096 } else { usize::from(seed) + 64 };
    // A long value, in which an element is repeated as in the context of a reply. It costs as much as forty short ones.
    if seed >= 0xc0 {
        let long = [b"{\"a\":[", &body.repeat(40)[..], b"0],\"done\":true}"].concat();
        check_shortened(&long, max_bytes, seed);
    } else {
        check_shortened(body, max_bytes, seed);
    }
}

fn check_shortened(text: &[u8], max_bytes: usize, seed: u8) {
    let shorten = |chunks: &[&[u8]]| {
        let mut shortener = JsonShortener::new(max_bytes);
        chunks.iter().for_each(|chunk| shortener.feed(chunk));
        shortener.finish()
    };
    let (out, is_complete) = shorten(&[text]);
    assert_eq!(shorten(&in_chunks(text, seed)), (out.clone(), is_complete));
    assert!(out.len() <= max_bytes, "{} bytes over a limit of {max_bytes}", out.len());
    if text.len() <= 512.min(max_bytes) {
        assert!(out == text && is_complete, "a short text is changed");
    }
    if is_complete && serde_json::from_slice::<Value>(text).is_ok() {
        // A string may end with the first half of a surrogate pair, as those of servers do.
        let shortened = lenient_json::parse(&out);
        assert!(shortened.is_ok(), "{:?} is no JSON: {shortened:?}", String::from_utf8_lossy(&out));
    }
}
