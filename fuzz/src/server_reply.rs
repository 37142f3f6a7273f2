//! A reply of an inference server: events, JSON lines, JSON, and replies that are none of them.

use wattspan_http::reply::{DeclaredFormat, ReplyReader};
use wattspan_ipw::llm_api::reply_builder::ReplyBuilder;

use super::{first_byte, in_chunks};

/// The most bytes that a reader without texts keeps: a line, the data of an event, and the templates, as in the reader's own
/// test. A stored byte has at most five characters in the text of a value with `Debug`.
const MAX_READER_CHARS: usize = 5 * 3 * (32 << 10);

/// The events do not depend on the chunks in which the reply arrives, and memory is bounded.
pub fn check(bytes: &[u8]) {
    let (declared, rest) = first_byte(bytes);
    let (seed, body) = first_byte(rest);
    let format = match declared % 3 {
        0 => DeclaredFormat::Events,
        1 => DeclaredFormat::JsonLines,
        _ => DeclaredFormat::Other,
    };
    // The long one costs as much as a thousand short ones. It is twice as long as what fits in the limit as text.
    if declared >= 0xf8 && seed == 0 {
        return check_memory(format, body);
    }
    for reader in [ReplyReader::with_text as fn(_) -> _, ReplyReader::without_text] {
        let whole = read(reader(format), &[body]);
        let chunks = if seed.is_multiple_of(8) { body.chunks(1).collect() } else { in_chunks(body, seed) };
        assert_eq!(whole, read(reader(format), &chunks));
    }
    check_builder(body, seed);
}

/// The reader keeps no more than its limit of a long reply, which is the second half of `body` repeated.
fn check_memory(format: DeclaredFormat, body: &[u8]) {
    let half = &body[body.len() / 2..];
    let mut long = body.to_vec();
    while !half.is_empty() && long.len() < 200_000 {
        long.extend_from_slice(half);
    }
    let mut reader = ReplyReader::without_text(format);
    reader.feed(&long, &mut |_| ());
    assert!(format!("{reader:?}").len() < MAX_READER_CHARS, "the reader keeps more than its limit");
}

fn read(mut reader: ReplyReader, chunks: &[&[u8]]) -> Vec<String> {
    let mut events = Vec::new();
    chunks.iter().for_each(|chunk| reader.feed(chunk, &mut |event| events.push(format!("{event:?}"))));
    reader.finish(&mut |event| events.push(format!("{event:?}")));
    events
}

fn check_builder(body: &[u8], seed: u8) {
    let types = ["text/event-stream", "application/x-ndjson", "application/json; charset=utf-8", ""];
    let content_type = types[usize::from(seed) % types.len()];
    let build = |chunks: &[&[u8]]| {
        let mut builder = ReplyBuilder::new(content_type, 1);
        chunks.iter().for_each(|chunk| _ = builder.feed(chunk, 2));
        builder.finish(3)
    };
    let (whole, in_parts) = (build(&[body]), build(&in_chunks(body, seed)));
    assert_eq!(format!("{whole:?}"), format!("{in_parts:?}"));
    if let Ok(reply) = whole {
        assert!(reply.text.len() <= body.len().max(1) * 3, "more text than arrived");
    }
}
