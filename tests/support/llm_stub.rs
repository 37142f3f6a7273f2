//! A stub inference server that reproduces the faults of real ones.
//!
//! Owns a listener and a thread for each connection. The requested model selects the behavior, so that one server
//! serves all tests. It speaks HTTP/1.1 by hand, because a library would refuse to send malformed replies.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wattspan_ipw::question::{Question, built_in};

/// The model listed where the base path is `/evil/v1`; printed unescaped, it would clear the screen.
pub const HOSTILE_MODEL_NAME: &str = "evil\u{1b}[2J";

/// The length of a question from which on the model "simple" has no answer.
pub const MAX_SIMPLE_PROMPT_BYTES: usize = 120;

/// The version of the engine that the stub claims to be, vLLM.
pub const STUB_VERSION: &str = "0.11.2";

pub struct LlmStub {
    pub address: SocketAddr,
    state: Arc<StubState>,
}

#[derive(Default)]
struct StubState {
    requests: AtomicUsize,
    tries: Mutex<HashMap<String, usize>>,
    answers: HashMap<String, Question>,
}

impl LlmStub {
    /// Starts a server that can answer the built-in questions.
    pub fn start() -> Self {
        Self::with_answers(built_in())
    }

    /// Starts a server that can answer these questions.
    pub fn with_answers(questions: Vec<Question>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), questions)
    }

    /// Starts a server at this address, which answers the built-in questions.
    pub fn start_at(address: SocketAddr) -> Self {
        Self::on(TcpListener::bind(address).unwrap(), built_in())
    }

    fn on(listener: TcpListener, questions: Vec<Question>) -> Self {
        let address = listener.local_addr().unwrap();
        let answers = questions.into_iter().map(|question| (question.prompt.clone(), question)).collect();
        let state = Arc::new(StubState { answers, ..StubState::default() });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), state) = (stream, Arc::clone(&shared)) else { return };
                // A client that disconnects in the middle of a reply is expected.
                std::thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Self { address, state }
    }

    /// Refers to a server that already runs in another process.
    pub fn attach(address: SocketAddr) -> Self {
        Self { address, state: Arc::default() }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Questions received so far.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::Relaxed)
    }
}

fn serve(stream: TcpStream, state: &StubState) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    let mut served = 0;
    loop {
        let (mut line, mut length, mut key) = (String::new(), 0, String::new());
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => value.clone_into(&mut key),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if path.ends_with("/models") {
            let model = if path.starts_with("/evil/") { HOSTILE_MODEL_NAME } else { "good" };
            let list = json!({"object": "list", "data": [{"id": model, "owned_by": "vllm"}]});
            write_response(&mut out, "200 OK", "application/json", &list.to_string())?;
            continue;
        }
        if path == "/version" {
            write_response(
                &mut out,
                "200 OK",
                "application/json",
                &json!({"version": STUB_VERSION}).to_string(),
            )?;
            continue;
        }
        let request: Value = serde_json::from_slice(&body).unwrap();
        state.requests.fetch_add(1, Ordering::Relaxed);
        // Simulates a server that closes a kept-alive connection while the next question is on its way.
        if served > 0 && request["model"] == "drops" {
            return Ok(());
        }
        served += 1;
        if !answer_question(&mut out, &path, &request, &key, state)? {
            return Ok(());
        }
    }
}

/// Writes an error in the form of OpenAI's servers.
fn write_json_error(out: &mut TcpStream, status: &str, message: &str) -> std::io::Result<()> {
    let body = json!({ "error": { "message": message } }).to_string();
    write_response(out, status, "application/json", &body)
}

/// The prompt of a request to either interface: the last message, or the field `prompt`.
fn prompt_of(request: &Value) -> &str {
    let last = request["messages"].as_array().and_then(|all| all.last());
    last.map_or(&request["prompt"], |last| &last["content"]).as_str().unwrap_or_default()
}

/// Answers one question; `false` closes the connection.
fn answer_question(
    out: &mut TcpStream,
    path: &str,
    request: &Value,
    key: &str,
    state: &StubState,
) -> std::io::Result<bool> {
    let model = request["model"].as_str().unwrap_or_default().to_owned();
    let prompt = prompt_of(request);
    // The model "simple" can answer short questions only.
    let is_beyond_it = model.starts_with("simple") && prompt.len() >= MAX_SIMPLE_PROMPT_BYTES;
    let known = state.answers.get(prompt).filter(|_| !is_beyond_it);
    let reply = known.map_or_else(
        || "I do not know.".to_owned(),
        |question| format!("Well.\nAnswer: {}", question.answer),
    );
    let tries = {
        let mut tries = state.tries.lock().unwrap();
        let count = tries.entry(format!("{model} {prompt}")).or_insert(0);
        *count += 1;
        *count
    };
    let pause = Duration::from_millis(model.split('-').nth(1).and_then(|ms| ms.parse().ok()).unwrap_or(0));
    let words: Vec<&str> = reply.split_inclusive(' ').collect();
    if let Some((status, message)) = refusal(&model, tries) {
        write_json_error(out, status, message)?;
        return Ok(true);
    }
    match model.split('-').next().unwrap_or_default() {
        "busy" if tries == 1 => {
            write!(out, "HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n")?;
            return Ok(true);
        }
        "newer" if request.get("max_tokens").is_some() => {
            let message =
                "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
            write_json_error(out, "400 Bad Request", message)?;
            return Ok(true);
        }
        "breaksonce" if tries == 1 => return break_off_late(out, &words, pause),
        "closed" if key != "Bearer sesame" => {
            write_response(out, "401 Unauthorized", "text/plain", "who are you?")?;
            return Ok(true);
        }
        "empty" => {
            write!(out, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
            return Ok(true);
        }
        "hangs" => {
            std::thread::sleep(Duration::from_secs(3600));
            return Ok(false);
        }
        "hangsup" => return Ok(false),
        judge @ ("judge" | "mumbles") => {
            let body = judge_reply(prompt, judge == "mumbles" && tries == 1);
            write_response(out, "200 OK", "application/json", &body.to_string())?;
            return Ok(true);
        }
        _ => {}
    }
    if request["stream"] == false {
        let body = json!({"choices": [{"message": {"content": reply}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 12, "completion_tokens": words.len()}});
        write_response(out, "200 OK", "application/json", &body.to_string())?;
        return Ok(true);
    }
    if path.ends_with("/api/chat") {
        return write_ollama_stream(out, &words, pause);
    }
    if let Some(token_stream) = TokenStream::of(&model) {
        return token_stream.write_to(out);
    }
    write_event_stream(out, &model, &words, pause, request["stream_options"]["include_usage"] == true)
}

/// The error status of a model that refuses a question, with its message.
fn refusal(model: &str, tries: usize) -> Option<(&'static str, &'static str)> {
    match model.split('-').next().unwrap_or_default() {
        "flaky" if tries == 1 => Some(("503 Service Unavailable", "loading")),
        "unknown" => Some(("404 Not Found", "no such model")),
        "toolong" => Some(("400 Bad Request", "the prompt is longer than the model's context")),
        _ => None,
    }
}

/// Breaks an answer off after ten times the pause of the model.
fn break_off_late(out: &mut TcpStream, words: &[&str], pause: Duration) -> std::io::Result<bool> {
    write_event_stream(out, "breaks", words, pause * 10, false)
}

/// A judge's reply; where it is cut off, it holds reasoning only.
fn judge_reply(prompt: &str, cut_off: bool) -> Value {
    if cut_off {
        let verdict = "<think>I must end with exactly \"Verdict: correct\" or \"Verdict: incorrect";
        return json!({"choices": [{"message": {"content": verdict}, "finish_reason": "length"}]});
    }
    let right = prompt.contains("[Given answer]\nIt is blue");
    let verdict = format!("It claims something.\nVerdict: {}", if right { "correct" } else { "incorrect" });
    json!({"choices": [{"message": {"content": verdict}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 9}})
}

/// Many tokens at a steady rate, without a usage count: "pours-COUNT-MICROSECONDS".
struct TokenStream {
    count: usize,
    each: Duration,
}

impl TokenStream {
    fn of(model: &str) -> Option<Self> {
        let mut parts = model.strip_prefix("pours-")?.split('-');
        let (count, micros) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { count, each: Duration::from_micros(micros) })
    }

    fn write_to(&self, out: &mut TcpStream) -> std::io::Result<bool> {
        write!(
            out,
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )?;
        let began = Instant::now();
        for number in 0..self.count {
            write_chunk(
                out,
                &format!(
                    "data: {{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,\"model\":\"pours\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" {number}\"}},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"
                ),
            )?;
            // A late thread catches up, so that the average rate holds.
            let due = began + self.each * (number as u32 + 1);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        write_chunk(
            out,
            "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n",
        )?;
        write_chunk(out, "data: [DONE]\n\n")?;
        write_chunk(out, "")?;
        Ok(true)
    }
}

fn write_response(out: &mut TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(out, "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn write_chunk(out: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let message = format!("{:x}\r\n{text}\r\n", text.len());
    out.write_all(message.as_bytes())
}

fn write_event_stream(
    out: &mut TcpStream,
    model: &str,
    words: &[&str],
    pause: Duration,
    usage: bool,
) -> std::io::Result<bool> {
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
    std::thread::sleep(pause);
    let event = |value: Value| format!("data: {value}\n\n");
    for (at, word) in words.iter().enumerate() {
        if at == 1 {
            match model.split('-').next().unwrap_or_default() {
                "stops" => {
                    write_chunk(out, "")?;
                    return Ok(true);
                }
                "breaks" => return Ok(false),
                "fails" => {
                    write_chunk(out, &event(json!({"error": {"message": "out of memory"}})))?;
                    write_chunk(out, "data: [DONE]\n\n")?;
                    write_chunk(out, "")?;
                    return Ok(true);
                }
                _ => {}
            }
        }
        write_chunk(
            out,
            &event(json!({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": null}]})),
        )?;
        std::thread::sleep(pause / 4);
    }
    write_chunk(out, &event(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})))?;
    if usage && !model.starts_with("nousage") {
        let usage = json!({"prompt_tokens": 12, "completion_tokens": words.len() + 1, "prompt_tokens_details": {"cached_tokens": 3}});
        write_chunk(out, &event(json!({"choices": [], "usage": usage})))?;
    }
    write_chunk(out, "data: [DONE]\n\n")?;
    write_chunk(out, "")?;
    Ok(true)
}

fn write_ollama_stream(out: &mut TcpStream, words: &[&str], pause: Duration) -> std::io::Result<bool> {
    write!(
        out,
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    std::thread::sleep(pause);
    for word in words {
        write_chunk(out, &format!("{}\n", json!({"message": {"content": word}, "done": false})))?;
    }
    let end = json!({"message": {"content": ""}, "done": true, "done_reason": "stop", "prompt_eval_count": 12,
        "eval_count": words.len(), "total_duration": 1_000_000_000_u64});
    write_chunk(out, &format!("{end}\n"))?;
    write_chunk(out, "")?;
    Ok(true)
}
