//! Replies with random changes, in random chunks.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::sse::MAX_EVENT_BYTES;
use super::reply_reader::{DeclaredFormat, ReplyReader};

const REPLIES: [&str; 7] = [
    "data: {\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"W\u{e4}r\"},\"finish_reason\":null}]}\n\n\
     data: {\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"me\\n\"},\"finish_reason\":null}]}\n\n\
     data: {\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\ud83d\"},\"finish_reason\":\"stop\"}],\
     \"usage\":{\"prompt_tokens\":9.0,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n",
    "event: content_block_delta\r\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"He\"}}\r\n\r\n\
     : ping\r\n\r\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":8}}\r\n\r\n",
    "data: {\"type\":\"response.output_text.delta\",\"delta\":\"He\"}\n\n\
     data: {\"type\":\"response.completed\",\"response\":{\"model\":\"g\",\"usage\":{\"input_tokens\":1}}}\n\n",
    "{\"model\":\"l\",\"response\":\"H\",\"done\":false}\n{\"response\":\"\",\"done\":true,\"context\":[1,2,3],\"eval_count\":7}\n",
    "{\n \"choices\": [{\"message\": {\"content\": [{\"text\": \"Hi \\\"q\\\"\"}]}, \"logprobs\": NaN}],\n \"usage\": {}\n}\n",
    "[{\"generated_text\":\"Hi\",\"details\":{\"finish_reason\":\"length\",\"generated_tokens\":20}}]",
    "error: {\"code\":500,\"message\":\"out of memory\"}\n\nid: 7\ndata: [DONE] ",
];

/// The most characters that a stored byte has in the text of a value with [`std::fmt::Debug`].
const CHARS_PER_BYTE: usize = 5;

fn read<'a>(
    mut reader: ReplyReader,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<String>, ReplyReader) {
    let mut events = Vec::new();
    chunks.into_iter().for_each(|chunk| reader.feed(chunk, &mut |event| events.push(format!("{event:?}"))));
    reader.finish(&mut |event| events.push(format!("{event:?}")));
    (events, reader)
}

fn split<'a>(body: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    cuts.sort_unstable();
    let mut from = 0;
    let mut chunks: Vec<&[u8]> =
        cuts.into_iter().map(|to| &body[std::mem::replace(&mut from, to)..to]).collect();
    chunks.push(&body[from..]);
    chunks
}

proptest! {
    /// Changes bytes of a reply, inserts a long run of one byte, and reads it whole and in chunks.
    #[test]
    fn events_do_not_depend_on_chunks_and_memory_is_bounded(
        reply in any::<Index>(),
        changes in proptest::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 0..6),
        run in (any::<Index>(), any::<Index>(), prop_oneof![Just(0_usize), 1..100_usize, 40_000..120_000_usize]),
        cuts in proptest::collection::vec(any::<Index>(), 0..10),
        declared in 0..3_usize,
    ) {
        const MEANINGFUL: &[u8] = b"\"\\\\{}[]:,\n\r 0nu\x00\xc3\xef\xff";
        let mut body = REPLIES[reply.index(REPLIES.len())].as_bytes().to_vec();
        for (at, meaning, byte) in changes {
            let place = at.index(body.len());
            body[place] = if byte < 64 { byte } else { MEANINGFUL[meaning.index(MEANINGFUL.len())] };
        }
        let (at, byte, length) = run;
        let place = at.index(body.len());
        body.splice(place..place, std::iter::repeat_n(MEANINGFUL[byte.index(MEANINGFUL.len())], length));
        let declared = [DeclaredFormat::Events, DeclaredFormat::JsonLines, DeclaredFormat::Other][declared];
        for reader in [ReplyReader::with_text as fn(_) -> _, ReplyReader::without_text] {
            let (events, _) = read(reader(declared), [&body[..]]);
            let (in_chunks, _) = read(reader(declared), split(&body, &cuts));
            prop_assert_eq!(&events, &in_chunks);
            prop_assert_eq!(&events, &read(reader(declared), body.chunks(1)).0);
        }
        // A line, the data of an event and the templates, each in bounded memory.
        let mut reader = ReplyReader::without_text(declared);
        for chunk in split(&body, &cuts) {
            reader.feed(chunk, &mut |_| {});
            let stored = format!("{reader:?}").len() / CHARS_PER_BYTE;
            prop_assert!(stored < 3 * MAX_EVENT_BYTES, "{stored} bytes of {}", body.len());
        }
    }
}
