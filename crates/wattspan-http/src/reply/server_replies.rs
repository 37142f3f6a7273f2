//! Replies as inference servers write them, with the events that each of them means.
//!
//! Each reply is read with every cut in two, byte by byte and whole, with and without the text of answers: the events are
//! the same. The expected events are separated by " | ".

use super::super::line_decoder::{DecodedLine, LineDecoder};
use super::event::{ReplyEvent, StreamPosition};
use super::message_reader::MessageReader;
use super::reply_reader::{DeclaredFormat, ReplyReader};

fn show(event: &ReplyEvent<'_>) -> String {
    let count =
        |name: &str, count: Option<u64>| count.map(|count| format!(" {name} {count}")).unwrap_or_default();
    match *event {
        ReplyEvent::Model(name) => format!("model {name}"),
        ReplyEvent::Usage(usage) => {
            let cached = count("cached", usage.cached);
            format!("usage{}{}{cached}", count("in", usage.input), count("out", usage.output))
        }
        ReplyEvent::Content => "content".into(),
        ReplyEvent::Text { choice, text } => format!("text {choice} {text}"),
        ReplyEvent::Logprob(logprob) => format!("logprob {logprob}"),
        ReplyEvent::Finish { choice, reason } => format!("finish {choice} {reason}"),
        ReplyEvent::Error(error) => format!("error {error}"),
        ReplyEvent::Malformed(data) => format!("malformed {}", String::from_utf8_lossy(data)),
        ReplyEvent::TooLong => "too long".into(),
        ReplyEvent::Cut => "cut".into(),
        ReplyEvent::End => "end".into(),
    }
}

fn read<'a>(mut reader: ReplyReader, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut events = Vec::new();
    let mut push = |event: ReplyEvent<'_>| events.push(show(&event));
    chunks.into_iter().for_each(|chunk| reader.feed(chunk, &mut push));
    reader.finish(&mut push);
    events
}

fn is_text(event: &str) -> bool {
    event.starts_with("text ") || event.starts_with("logprob ")
}

/// Reads a reply in all ways.
fn assert_events(content_type: &str, body: &str, expected: &str) {
    let declared = DeclaredFormat::from_content_type(content_type);
    let body = body.as_bytes();
    let expected: Vec<String> =
        expected.split(" | ").filter(|event| !event.is_empty()).map(str::to_owned).collect();
    let without_text: Vec<String> = expected.iter().filter(|event| !is_text(event)).cloned().collect();
    for (reader, expected) in
        [(ReplyReader::with_text as fn(_) -> _, &expected), (ReplyReader::without_text, &without_text)]
    {
        assert_eq!(&read(reader(declared), [body]), expected, "{}", body.escape_ascii());
        assert_eq!(
            &read(reader(declared), body.chunks(1)),
            expected,
            "byte by byte: {}",
            body.escape_ascii()
        );
        for at in 0..body.len() {
            let (begin, end) = body.split_at(at);
            assert_eq!(&read(reader(declared), [begin, end]), expected, "{}", begin.escape_ascii());
        }
    }
}

const EVENTS: &str = "text/event-stream; charset=utf-8";
const LINES: &str = "application/x-ndjson";
const JSON: &str = "application/json";

/// A reply: content type, body, events.
type Reply = (&'static str, &'static str, &'static str);

/// Events of these data, each with its blank line.
fn events_of(data: &[&str]) -> String {
    data.iter().map(|data| format!("data: {data}\n\n")).collect()
}

#[test]
fn openai_chat_and_completions() {
    let chat = events_of(&[
        r#"{"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        r#"{"model":"m","choices":[{"delta":{"content":"Wär"},"logprobs":{"content":[{"logprob":-0.5}]}}],"usage":null}"#,
        r#"{"model":"m","choices":[{"delta":{"content":"me"},"logprobs":{"content":[{"logprob":-1.5}]}}],"usage":null}"#,
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
        r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}"#,
        "[DONE]",
    ]);
    assert_events(
        EVENTS,
        &chat,
        "model m | content | text 0 Wär | logprob -0.5 | content | text 0 me | logprob -1.5 | content | \
         finish 0 stop | usage in 3 out 2 cached 1 | end",
    );
    for (content_type, body, events) in [
        (
            JSON,
            r#"{"model":"m","choices":[{"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
            "model m | usage in 1 out 2 | text 0 Hi | finish 0 stop | end",
        ),
        (
            JSON,
            r#"{"choices":[{"index":0,"message":{"content":"A"},"finish_reason":"stop"},{"index":1,"message":{"content":"B"},"finish_reason":"length"}]}"#,
            "text 0 A | text 1 B | finish 0 stop | finish 1 length | end",
        ),
        (
            JSON,
            r#"{"choices":[{"text":"Hi","finish_reason":"length","logprobs":{"token_logprobs":[null,-2.0]}}]}"#,
            "text 0 Hi | logprob -2 | finish 0 length | end",
        ),
        (
            EVENTS,
            "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\r\n\r\n: ping\r\n\r\ndata:\r\n\r\n\
             data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"stop\"}]}\r\n\r\ndata: [DONE]\r\n\r\n",
            "content | text 0 a | content | text 0 b | finish 0 stop | end",
        ),
        (
            JSON,
            r#"{"choices":[{"message":{"content":null,"refusal":"No."},"finish_reason":"stop"}]}"#,
            "text 0 No. | finish 0 stop | end",
        ),
        // A gateway that sends the delta and the answer so far.
        (
            EVENTS,
            "data: {\"choices\":[{\"delta\":{\"content\":\"b\"},\"message\":{\"content\":\"ab\"}}]}\n\n",
            "content | text 0 b",
        ),
    ] as [Reply; 6]
    {
        assert_events(content_type, body, events);
    }
}

#[test]
fn vllm_and_other_additions() {
    for (content_type, body, events) in [
        (
            EVENTS,
            "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"7\"},\"finish_reason\":\"stop\",\"stop_reason\":128009,\
             \"token_ids\":[7]}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":9},\"prompt_token_ids\":null}\n\n",
            "content | content | usage in 3 out 9 | content | text 0 7 | finish 0 stop",
        ),
        (
            EVENTS,
            "data: {\"choices\":[{\"delta\":{\"content\":\"\",\"tool_calls\":[ ],\"audio\": { }}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":null,\"function_call\":{\"name\":\"f\"}}}]}\n\n",
            "content",
        ),
        // Mistral: reasoning and text as parts.
        (
            EVENTS,
            "data: {\"choices\":[{\"delta\":{\"content\":[{\"type\":\"thinking\",\"thinking\":[{\"type\":\"text\",\
             \"text\":\"hm\"}]}]}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":[{\"type\":\"text\",\
             \"text\":\" b\"}]}}]}\n\n",
            "content | content | text 0  b",
        ),
        (
            JSON,
            r#"{"object":"error","message":"too long","type":"BadRequestError","code":400}"#,
            "error too long | end",
        ),
        (
            EVENTS,
            "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\ndata: [DONE]\n\n",
            "error out of memory | end",
        ),
        (EVENTS, "error: {\"code\":400,\"message\":\"too long\"}\n\n", "error too long"),
        (EVENTS, "event: error\ndata: out of memory\n\n", "error out of memory"),
        (JSON, r#"{"error":{"code":7}}"#, "error {\"code\":7} | end"),
    ] as [Reply; 8]
    {
        assert_events(content_type, body, events);
    }
}

#[test]
fn openai_responses() {
    for (content_type, body, events) in [
        (
            EVENTS,
            "event: response.created\n\
             data: {\"type\":\"response.created\",\"response\":{\"model\":\"g\",\"status\":\"in_progress\",\"usage\":null,\"error\":null}}\n\n\
             event: response.reasoning_summary_text.delta\n\
             data: {\"type\":\"response.reasoning_summary_text.delta\",\"delta\":\"hm\"}\n\n\
             event: response.output_text.delta\n\
             data: {\"type\":\"response.output_text.delta\",\"delta\":\"He\"}\n\n\
             event: response.output_text.done\n\
             data: {\"type\":\"response.output_text.done\",\"text\":\"He\"}\n\n\
             event: response.completed\n\
             data: {\"type\":\"response.completed\",\"response\":{\"model\":\"g\",\"status\":\"completed\",\
             \"output\":[{\"type\":\"message\",\"content\":[{\"type\":\"output_text\",\"text\":\"He\"}]}],\
             \"usage\":{\"input_tokens\":1,\"output_tokens\":2,\"input_tokens_details\":{\"cached_tokens\":0}}}}\n\n",
            "model g | content | content | text 0 He | usage in 1 out 2 cached 0 | finish 0 completed | end",
        ),
        (
            EVENTS,
            "data: {\"type\":\"response.incomplete\",\"response\":{\"status\":\"incomplete\",\
             \"incomplete_details\":{\"reason\":\"max_output_tokens\"}}}\n\n",
            "finish 0 max_output_tokens | end",
        ),
        (
            EVENTS,
            "data: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"message\":\"no\"}}}\n\n\
             event: error\ndata: {\"type\":\"error\",\"message\":\"gone\"}\n\n",
            "error no | finish 0 failed | end | error gone",
        ),
        (
            JSON,
            "{\n  \"object\": \"response\",\n  \"status\": \"completed\",\n  \"error\": null,\n  \"model\": \"g\",\n  \
             \"output\": [{\"type\": \"reasoning\", \"content\": [{\"text\": \"hm\"}]},\n  {\"type\": \"message\", \
             \"content\": [{\"type\": \"output_text\", \"text\": \"H\"}, {\"type\": \"output_text\", \"text\": \"i\"}]}],\n  \
             \"usage\": {\"input_tokens\": 5, \"output_tokens\": 6}\n}\n",
            "model g | usage in 5 out 6 | text 0 H | text 0 i | finish 0 completed | end",
        ),
    ] as [Reply; 4]
    {
        assert_events(content_type, body, events);
    }
}

#[test]
fn anthropic_messages() {
    for (content_type, body, events) in [
        (
            EVENTS,
            "event: message_start\n\
             data: {\"type\":\"message_start\",\"message\":{\"type\":\"message\",\"model\":\"c\",\"content\":[],\
             \"stop_reason\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n\
             event: content_block_start\n\
             data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n\
             event: ping\ndata: {\"type\": \"ping\"}\n\n\
             event: content_block_delta\n\
             data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"hm\"}}\n\n\
             event: content_block_delta\n\
             data: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"text_delta\",\"text\":\"He\"}}\n\n\
             event: content_block_delta\n\
             data: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\"}}\n\n\
             event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":2}\n\n\
             event: message_delta\n\
             data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":8}}\n\n\
             event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
            "model c | usage in 9 out 1 | content | content | text 0 He | content | usage out 8 | \
             finish 0 end_turn | end",
        ),
        (
            JSON,
            r#"{"type":"message","model":"c","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"Hi"}],"stop_reason":"max_tokens","usage":{"input_tokens":3,"output_tokens":4}}"#,
            "model c | usage in 3 out 4 | text 0 Hi | finish 0 max_tokens | end",
        ),
        (
            EVENTS,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n",
            "error Overloaded",
        ),
    ] as [Reply; 3]
    {
        assert_events(content_type, body, events);
    }
}

#[test]
fn ollama_and_llama_cpp() {
    for (content_type, body, events) in [
        (
            LINES,
            "{\"model\":\"l\",\"response\":\"H\",\"done\":false}\n{\"model\":\"l\",\"response\":\"i\",\"done\":false}\n\
             {\"model\":\"l\",\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\"context\":[1,2,3],\
             \"prompt_eval_count\":5,\"eval_count\":7}\n",
            "model l | content | text 0 H | content | text 0 i | usage in 5 out 7 | finish 0 stop | end",
        ),
        // Without a content type, and the last line without its line break.
        (
            "",
            "{\"message\":{\"role\":\"assistant\",\"content\":\"\",\"thinking\":\"hm\"},\"done\":false}\n\
             {\"message\":{\"content\":\"i\"},\"done\":false}\n\
             {\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"length\",\"eval_count\":2}",
            "content | content | text 0 i | usage out 2 | finish 0 length | end",
        ),
        // A proxy that puts a chat's text in the field of `generate`, and ends twice.
        (
            LINES,
            "{\"response\":\"a\",\"done\":false}\n{\"response\":\"\",\"done\":true}\n{\"response\":\"\",\"done\":true}\n",
            "content | text 0 a | end",
        ),
        (
            JSON,
            r#"{"model":"l","response":"Hi","thinking":"hm","done":true,"done_reason":"stop","prompt_eval_count":4,"eval_count":2.0}"#,
            "model l | usage in 4 out 2 | text 0 Hi | finish 0 stop | end",
        ),
        (
            JSON,
            r#"{"model":"l","message":{"role":"assistant","content":"Hi"},"done":true,"eval_count":2}"#,
            "model l | usage out 2 | text 0 Hi | end",
        ),
        (
            LINES,
            "{\"response\":\"a\",\"done\":false}\n{\"error\":\"out of memory\"}\n",
            "content | text 0 a | error out of memory",
        ),
        (
            JSON,
            r#"{"model":"e","embeddings":[[0.1,-2e-3]],"prompt_eval_count":3}"#,
            "model e | usage in 3 | end",
        ),
        (
            EVENTS,
            "data: {\"index\":0,\"content\":\"H\",\"tokens\":[1],\"stop\":false,\"tokens_predicted\":1,\"tokens_evaluated\":5}\n\n\
             data: {\"index\":0,\"content\":\"\",\"stop\":true,\"model\":\"q\",\"tokens_predicted\":4,\"tokens_evaluated\":5,\
             \"generation_settings\":{\"stop\":[],\"n_predict\":4},\"stop_type\":\"limit\",\"timings\":{\"predicted_n\":4}}\n\n",
            "usage in 5 out 1 | content | text 0 H | model q | usage in 5 out 4 | finish 0 limit | end",
        ),
        (
            JSON,
            r#"[{"index":0,"content":"A","stop":true,"tokens_predicted":4},{"index":1,"content":"B","stop":true}]"#,
            "usage out 4 | text 0 A | end | content | text 1 B",
        ),
    ] as [Reply; 9]
    {
        assert_events(content_type, body, events);
    }
}

#[test]
fn text_generation_inference_and_embeddings() {
    for (content_type, body, events) in [
        (
            EVENTS,
            "data:{\"index\":1,\"token\":{\"id\":7,\"text\":\" a\",\"logprob\":-0.25,\"special\":false},\"generated_text\":null,\"details\":null}\n\n\
             data:{\"index\":2,\"token\":{\"id\":2,\"text\":\"</s>\",\"logprob\":-1,\"special\":true},\"generated_text\":\" a\",\
             \"details\":{\"finish_reason\":\"eos_token\",\"generated_tokens\":2,\"input_length\":6,\"seed\":null}}\n\n",
            "content | text 0  a | logprob -0.25 | usage in 6 out 2 | content | logprob -1 | finish 0 eos_token | end",
        ),
        (
            JSON,
            r#"{"generated_text":"Hi","details":{"finish_reason":"length","generated_tokens":20,"tokens":[]}}"#,
            "usage out 20 | text 0 Hi | finish 0 length | end",
        ),
        (JSON, r#"[{"generated_text":"Hi"}]"#, "text 0 Hi | end"),
        (
            JSON,
            r#"{"error":"Model is overloaded","error_type":"overloaded"}"#,
            "error Model is overloaded | end",
        ),
        (
            JSON,
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-0.2]}],"model":"e","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
            "model e | usage in 8 | end",
        ),
    ] as [Reply; 5]
    {
        assert_events(content_type, body, events);
    }
}

#[test]
fn several_choices() {
    let chunk = |index: u32, text: &str, reason: &str| {
        format!(
            r#"{{"choices":[{{"index":{index},"delta":{{"content":"{text}"}},"finish_reason":{reason}}}]}}"#
        )
    };
    let interleaved = [
        chunk(0, "a", "null"),
        chunk(1, "A", "null"),
        chunk(0, "b", "null"),
        chunk(1, "", "\"length\""),
        chunk(0, "", "\"stop\""),
    ];
    let one_after_the_other = [chunk(0, "a", "\"stop\""), chunk(1, "A", "null"), chunk(1, "B", "\"stop\"")];
    let events = |chunks: &[String]| events_of(&chunks.iter().map(String::as_str).collect::<Vec<_>>());
    assert_events(
        EVENTS,
        &events(&interleaved),
        "content | text 0 a | content | text 1 A | content | text 0 b | finish 1 length | finish 0 stop",
    );
    assert_events(
        EVENTS,
        &events(&one_after_the_other),
        "content | text 0 a | finish 0 stop | content | text 1 A | content | text 1 B | finish 1 stop",
    );
    let is_complete = |chunks: &[String]| {
        let mut reader = ReplyReader::without_text(DeclaredFormat::Events);
        reader.feed(events(chunks).as_bytes(), &mut |_| {});
        reader.is_complete()
    };
    assert!(
        !is_complete(&interleaved[..4]) && is_complete(&interleaved) && is_complete(&one_after_the_other)
    );
}

#[test]
fn field_reports() {
    for (content_type, body, events) in [
        // S1: counts under both names, and as floats.
        (
            EVENTS,
            "data: {\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":9.0,\"completion_tokens\":3,\
             \"input_tokens\":0,\"output_tokens\":0}}\n\n",
            "model m | usage in 9 out 3",
        ),
        // S3: a finish reason in every chunk that is none, and the stream stops.
        (
            EVENTS,
            "data: {\"error\":\"\",\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":\"\"}]}\n\n\
             data: {\"error\":{},\"choices\":[{\"delta\":{\"content\":\"b\"},\"finish_reason\":\"null\"}]}\n\n\
             data: {\"error\":false,\"choices\":[{\"del",
            "content | text 0 a | content | text 0 b | cut",
        ),
        // S4: half an emoji, which the receiver of the text joins.
        (
            EVENTS,
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"\\ude00\"}}]}\n\n",
            "content | text 0 \u{10f03d} | content | text 0 \u{10f600}",
        ),
        // S5: no or a wrong content type, a blank after the mark of the end, no blank line, NaN.
        (
            "TEXT/Event-Stream",
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"logprobs\":{\"content\":[{\"logprob\":NaN}]}}]}\n\ndata: [DONE] ",
            "content | text 0 a | end",
        ),
        ("", "\u{feff}\n data: [DONE]\n\n", "end"),
        ("", "\u{feff}\ndata: [DONE]\n\n", "end"),
        (JSON, ": ping\n\ndata: [DONE]", "end"),
        ("text/plain", "id: 7\ndata: {\"choices\":[{\"text\":\"a\"}]}", "content | text 0 a"),
        (EVENTS, r#" {"choices":[{"message":{"content":"Hi"}}]}"#, "text 0 Hi | end"),
        // A value of an unexpected type leaves the rest of its message read.
        (
            EVENTS,
            "data: {\"model\":7,\"choices\":[{\"index\":\"x\",\"delta\":[1],\"text\":\"a\",\"finish_reason\":5}],\
             \"usage\":[1],\"message\":3,\"response\":{},\"done\":\"yes\"}\n\n\
             data: {\"choices\":{},\"usage\":{\"prompt_tokens\":4}}\n\n",
            "content | text 4294967295 a | finish 4294967295 unknown | usage in 4",
        ),
        // What is no reply.
        ("", "", ""),
        (JSON, " \n\t", ""),
        (EVENTS, "", ""),
        (JSON, "oops", "malformed oops"),
        ("", "dat", "malformed dat"),
        ("text/html", "<html>\n<body>", "malformed <html>\n<body>"),
        (EVENTS, "data: <html>\n\n", "malformed <html>"),
        (JSON, "{\"choices\":[}", "cut"),
        (JSON, "{\"choices\":[}]", "malformed {\"choices\":[}]"),
        (LINES, "{\"response\":\"a\",\"done\":false}\n{\"resp", "content | text 0 a | cut"),
        (JSON, "{\"response\":\"a\",\"done\":false}\n{\"resp", "content | text 0 a | cut"),
        (EVENTS, "data: 7\n\ndata: \"ping\"\n\ndata: [1]\n\n", ""),
    ] as [Reply; 22]
    {
        assert_events(content_type, body, events);
    }
}

/// Replies whose last message is long (S2), with the events that are not parts of the text.
#[test]
fn messages_of_any_length() {
    let numbers = (0..6000).map(|number| (number + 10_000).to_string()).collect::<Vec<_>>().join(",");
    for length in [10_000, 40_000, 1_000_000] {
        let text = "w\u{e4}r \\\"q\\\" ".repeat(length / 10);
        let responses = format!(
            "data: {{\"type\":\"response.output_text.delta\",\"delta\":\"w\"}}\n\n\
             data: {{\"type\":\"response.completed\",\"response\":{{\"instructions\":\"{text}\",\"model\":\"g\",\
             \"output\":[{{\"type\":\"message\",\"content\":[{{\"text\":\"{text}\"}}]}}],\"status\":\"completed\",\
             \"usage\":{{\"input_tokens\":5,\"output_tokens\":7}}}}}}\n\n"
        );
        let ollama = format!(
            "{{\"model\":\"l\",\"response\":\"Hi\",\"done\":false}}\n{{\"model\":\"l\",\"response\":\"{text}\",\"done\":true,\
             \"context\":[{numbers}],\"prompt_eval_count\":5,\"eval_count\":7.0}}\n"
        );
        let whole = format!(
            "{{\"choices\":[{{\"message\":{{\"content\":\"{text}\"}},\"finish_reason\":\"stop\"}}],\"model\":\"m\",\
             \"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":7}}}}"
        );
        let embeddings = format!(
            "{{\"data\":[{{\"embedding\":[{numbers}]}},{{\"embedding\":[{numbers}]}}],\"model\":\"e\",\
             \"usage\":{{\"prompt_tokens\":5}}}}"
        );
        for (content_type, body, expected) in [
            (EVENTS, &responses, "content | model g | usage in 5 out 7 | finish 0 completed | end"),
            (LINES, &ollama, "model l | content | usage in 5 out 7 | content | end"),
            ("", &ollama, "model l | content | usage in 5 out 7 | content | end"),
            (JSON, &whole, "model m | usage in 5 out 7 | finish 0 stop | end"),
            (JSON, &embeddings, "model e | usage in 5 | end"),
        ] {
            let declared = DeclaredFormat::from_content_type(content_type);
            for size in [if length < 1_000_000 { 7 } else { 4096 }, 1 << 20] {
                for reader in [ReplyReader::with_text(declared), ReplyReader::without_text(declared)] {
                    let mut events = read(reader, body.as_bytes().chunks(size));
                    events.retain(|event| !is_text(event));
                    assert_eq!(events.join(" | "), expected, "{length}, {size}");
                }
            }
        }
        let events = read(ReplyReader::with_text(DeclaredFormat::Other), whole.as_bytes().chunks(1000));
        let expected = format!("text 0 {}", text.replace("\\\"", "\""));
        assert!(events.contains(&expected), "{length}");
    }
}

#[test]
fn a_message_that_cannot_be_shortened_counts_as_content_and_the_next_is_read() {
    let members = (0..10_000).map(|number| format!("\"k{number}\":1,")).collect::<String>();
    let body = format!("data: {{{members}\"x\":1}}\n\ndata: [DONE]\n\n");
    for size in [1000, 1 << 20] {
        let reader = ReplyReader::without_text(DeclaredFormat::Events);
        assert_eq!(read(reader, body.as_bytes().chunks(size)), ["content", "end"]);
    }
    let body = format!("{{{members}\"x\":1}}\n{{\"model\":\"m\"}}");
    let read_declared = |declared| read(ReplyReader::without_text(declared), body.as_bytes().chunks(1000));
    assert_eq!(read_declared(DeclaredFormat::JsonLines)[..2], ["content", "model m"]);
    assert_eq!(read_declared(DeclaredFormat::Other)[..2], ["too long", "model m"]);
}

fn positions(messages: &[String]) -> Vec<StreamPosition> {
    let mut reader = MessageReader::new(false);
    messages.iter().map(|message| reader.read(b"", message.as_bytes(), &mut |_| {})).collect()
}

#[test]
fn usage_in_every_chunk_is_last_only_at_the_end() {
    use StreamPosition::{End, LastUsage, Open, Other, UsageSoFar};
    let chunk = |choices: &str| format!(r#"{{"choices":[{choices}],"usage":{{"completion_tokens":2}}}}"#);
    let choice = |index: u32, reason: &str| {
        format!(r#"{{"index":{index},"delta":{{"content":"x"}},"finish_reason":{reason}}}"#)
    };
    let (first, second) = (|reason| chunk(&choice(0, reason)), |reason| chunk(&choice(1, reason)));
    let (open, stop) = ("null", "\"stop\"");
    for (messages, expected) in [
        (
            vec![first(open), second(open), first(stop), second("\"length\"")],
            vec![Open, Open, Open, UsageSoFar],
        ),
        (vec![first(open), second(open), first(stop), chunk("")], vec![Open, Open, Open, LastUsage]),
        (vec![chunk(&[choice(0, stop), choice(1, open)].join(",")), second(stop)], vec![Open, UsageSoFar]),
        // One after the other.
        (
            vec![first(open), first(stop), second(open), second(stop), "[DONE] ".into()],
            vec![Open, UsageSoFar, Open, UsageSoFar, End],
        ),
        // Beyond the choices that are followed, only a chunk without choices is the last.
        (vec![chunk(&choice(500, open)), chunk(&choice(500, stop)), chunk("")], vec![Open, Open, LastUsage]),
        (
            vec![
                r#"{"choices":[],"prompt_filter_results":[]}"#.into(),
                r#"{"choices":[{"delta":{"content":"x"}}]}"#.into(),
                r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#.into(),
                chunk(""),
            ],
            vec![Other, Open, Other, LastUsage],
        ),
        (
            vec![
                r#"{"response":"a","done":false}"#.into(),
                r#"{"response":"","done":true,"eval_count":7}"#.into(),
            ],
            vec![Open, LastUsage],
        ),
        (
            vec![
                r#"{"type":"content_block_delta","delta":{"text":"He"}}"#.into(),
                r#"{"type":"message_delta","delta":{},"usage":{"output_tokens":8}}"#.into(),
                r#"{"type":"message_stop"}"#.into(),
            ],
            vec![Open, LastUsage, Other],
        ),
    ] {
        assert_eq!(positions(&messages), expected, "{messages:#?}");
    }
}

/// Reads messages with a reader that remembers chunks, and each with one that has forgotten them.
fn assert_read_as_parsed(messages: &[Vec<u8>]) {
    for wants_text in [false, true] {
        let (mut reader, mut parser) = (MessageReader::new(wants_text), MessageReader::new(wants_text));
        for message in messages {
            parser.forget_templates();
            let (mut events, mut parsed) = (Vec::new(), Vec::new());
            let position = reader.read(b"", message, &mut |event| events.push(show(&event)));
            let expected = parser.read(b"", message, &mut |event| parsed.push(show(&event)));
            assert_eq!((events, position), (parsed, expected), "{}", message.escape_ascii());
            assert_eq!(reader.is_complete(), parser.is_complete(), "{}", message.escape_ascii());
        }
    }
}

#[test]
fn a_chunk_that_repeats_an_earlier_one_means_what_the_parser_makes_of_it() {
    let chunk =
        br#"{"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"one"},"finish_reason":null}]}"#;
    let mut reader = MessageReader::new(false);
    reader.read(b"", chunk, &mut |_| {});
    assert!(reader.is_template(chunk));
    // Every byte replaced by one that has a meaning in JSON, or none in UTF-8; every byte left out; every prefix.
    for at in 0..chunk.len() {
        for byte in *b"\"\\{}[]:,0n \n\x01\xc3\xff" {
            let mut changed = chunk.to_vec();
            changed[at] = byte;
            assert_read_as_parsed(&[chunk.to_vec(), changed, chunk.to_vec()]);
        }
        let without = [&chunk[..at], &chunk[at + 1..]].concat();
        assert_read_as_parsed(&[chunk.to_vec(), without, chunk[..at].to_vec(), chunk.to_vec()]);
    }
    let content = |text: &str| String::from_utf8_lossy(chunk).replace("one", text).into_bytes();
    let texts = [
        "",
        " ",
        "wär",
        "\\n",
        "\\",
        "\"",
        "a\",\"role\":\"b",
        "\u{7f}",
        "usage",
        "x\"},\"finish_reason\":\"stop",
    ];
    for text in texts {
        assert_read_as_parsed(&[chunk.to_vec(), content(text), chunk.to_vec(), content(text)]);
    }
}

#[test]
fn a_repeated_chunk_never_restores_an_earlier_usage_or_choice() {
    let chunk = |usage: &str, index: u32, text: &str| {
        format!(r#"{{"choices":[{{"index":{index},"text":"{text}"}}]{usage}}}"#).into_bytes()
    };
    let usage = |tokens: u32| format!(r#","usage":{{"completion_tokens":{tokens}}}"#);
    let others = [
        String::new(),
        usage(1),
        r#","eval_count":1"#.into(),
        r#","usage":null"#.into(),
        r#","usage":{}"#.into(),
        r#","done":true"#.into(),
        r#","error":"x""#.into(),
    ];
    for first in others {
        assert_read_as_parsed(&[
            chunk(&first, 0, "a"),
            chunk(&first, 0, "b"),
            chunk(&usage(2), 1, "c"),
            chunk(&first, 0, "d"),
            chunk(&first, 0, "e"),
            chunk("", 2, "f"),
            chunk(&usage(3), 2, "g"),
        ]);
    }
}

#[test]
fn what_is_no_json_is_malformed() {
    let deep = "[".repeat(5000);
    let mut lines = LineDecoder::new(1 << 20);
    let mut events = Vec::new();
    let mut reader = MessageReader::new(false);
    lines.feed(
        format!("\n{{\nhello\n{{\"usage\":7}}\n{{\"choices\":{{}}}}\n{deep}\n\0\n").as_bytes(),
        |line| {
            if let DecodedLine::Complete(line) = line {
                reader.read(b"", line, &mut |event| events.push(show(&event)));
            }
        },
    );
    assert_eq!(events, ["malformed {", "malformed hello", &format!("malformed {deep}"), "malformed \0"]);
}
