//! Server-sent events, against a slow reader that has the whole stream (HTML standard, section 9.2.6).

use wattspan_http::sse::SseDecoder;

use super::{first_byte, in_chunks};

type Event = (Vec<u8>, Vec<u8>);

/// The events are those of the slow reader, in any chunks; a decoder with a limit keeps it.
pub fn check(bytes: &[u8]) {
    let (seed, body) = first_byte(bytes);
    let expected = read_slowly(body);
    for chunks in [vec![body], in_chunks(body, seed)] {
        let mut events = Vec::<Event>::new();
        let mut decoder = SseDecoder::with_limit(1 << 20);
        for chunk in chunks {
            decoder.feed(chunk, |event| {
                assert!(!event.truncated);
                events.push((event.event_type.to_vec(), event.data.to_vec()));
            });
        }
        assert_eq!(events, expected);
    }
    // A limit within the name of a field would make it another one.
    let limit = usize::from(seed).max(b"event:".len());
    let mut decoder = SseDecoder::with_limit(limit);
    let mut count = 0;
    decoder.feed(body, |event| {
        assert!(event.data.len() <= limit, "{} bytes over a limit of {limit}", event.data.len());
        count += 1;
    });
    assert!(count <= expected.len(), "a limit makes more events");
}

fn read_slowly(body: &[u8]) -> Vec<Event> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let mut lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
    // The text after the last line break is no line yet.
    lines.pop();
    let (mut events, mut data, mut event_type) = (Vec::new(), None::<Vec<u8>>, Vec::new());
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let named = std::mem::take(&mut event_type);
            if let Some(data) = data.take() {
                events.push((if named.is_empty() { b"message".to_vec() } else { named }, data));
            }
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = colon.map_or((line, &[][..]), |colon| (&line[..colon], &line[colon + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => event_type = value.to_vec(),
            b"data" | b"error" => {
                if field == b"error" {
                    event_type = field.to_vec();
                }
                match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend(value);
                    }
                    None => data = Some(value.to_vec()),
                }
            }
            _ => {}
        }
    }
    events
}
