//! The insertion of the energy into the last chunk of a stream that states usage.

use serde_json::Value;
use wattspan_proxy::fuzz_entry;

use super::{first_byte, in_chunks};

const ENERGY: &str = "{\"e\":1}";

/// Every byte that arrived is forwarded in order, the energy is inserted once at most, and JSON stays JSON.
pub fn check(bytes: &[u8]) {
    let (seed, body) = first_byte(bytes);
    let (out, inserted) = fuzz_entry::insert_usage([body], ENERGY);
    assert_eq!(fuzz_entry::insert_usage(in_chunks(body, seed), ENERGY), (out.clone(), inserted));
    if inserted == 0 {
        assert_eq!(out, body);
        return;
    }
    assert_eq!(inserted, 1);
    let text = format!("\"energy\":{ENERGY}");
    let texts =
        [text.clone(), format!("{text},"), format!("\"usage\":{{{text}}}"), format!("\"usage\":{{{text}}},")];
    let Some((at, length)) = texts.iter().find_map(|text| insertion(body, &out, text.as_bytes())) else {
        panic!(
            "{:?} is not {:?} with an insertion",
            String::from_utf8_lossy(&out),
            String::from_utf8_lossy(body)
        );
    };
    let line_start = body[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let line_end = body[at..].iter().position(|byte| *byte == b'\n').map_or(body.len(), |end| at + end);
    if let Some(before) = parse_line(&body[line_start..line_end]) {
        let after = parse_line(&out[line_start..line_end + length]);
        let Some(mut after) = after else { panic!("{before} is no JSON after the insertion") };
        let energy = after["usage"].as_object_mut().and_then(|usage| usage.remove("energy"));
        // A second member of the same name wins, and the server's own stands later.
        let has_own = body[line_start..line_end].windows(8).any(|window| window == b"\"energy\"");
        assert!(energy.is_some_and(|energy| has_own || energy == serde_json::json!({ "e": 1 })), "{after}");
    }
}

/// Where `out` is `body` with `text` inserted.
fn insertion(body: &[u8], out: &[u8], text: &[u8]) -> Option<(usize, usize)> {
    let mut places = out.windows(text.len()).enumerate().filter(|(_, window)| *window == text);
    places.find_map(|(at, _)| {
        let is_rest = out.len() == body.len() + text.len()
            && out[..at] == body[..at]
            && out[at + text.len()..] == body[at..];
        is_rest.then_some((at, text.len()))
    })
}

fn parse_line(line: &[u8]) -> Option<Value> {
    let line = line.strip_prefix(b"data:").unwrap_or(line);
    serde_json::from_slice::<Value>(line).ok().filter(Value::is_object)
}
