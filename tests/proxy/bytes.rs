//! Replies through the proxy equal those without it: 1,000 replies, byte for byte.

use crate::http_stub;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::fixture::LONG_PATIENCE;
use crate::ground_truth::TestRng;
use crate::http_stub::{HttpConnection, HttpMessage, StubServer, TestProxy, header_value, short_pause};
use crate::support::{STEADY_MACHINE, TestDaemon};

/// Number of replies; multiplied by WATTSPAN_CASES.
fn cases() -> u64 {
    1000 * std::env::var("WATTSPAN_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

const WORDS: &[&str] =
    &["Wärme", "熱", "🔥", " and", "usage", "\\n", "joule", "é", "\\\"", " data:", "日本語"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Media {
    Events,
    Lines,
    Json,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
    Close,
}

/// A reply and its splits, determined by the seed.
struct ReplyScript {
    rng: TestRng,
    media: Media,
    framing: Framing,
    gzip: bool,
    expect: bool,
    hints: bool,
    trailers: bool,
    body: Vec<u8>,
    head: String,
}

impl ReplyScript {
    fn of(seed: u64) -> Self {
        let mut rng = TestRng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..5).for_each(|_| _ = rng.next_u64());
        let media =
            [Media::Events, Media::Events, Media::Lines, Media::Json, Media::Text][rng.range(0, 4) as usize];
        let framing =
            [Framing::Length, Framing::Chunks, Framing::Chunks, Framing::Close][rng.range(0, 3) as usize];
        let (gzip, expect, hints) = (rng.range(0, 5) == 0, rng.range(0, 5) == 0, rng.range(0, 5) == 0);
        let trailers = framing == Framing::Chunks && rng.range(0, 3) == 0;
        let plain = body(&mut rng, media);
        let body = if gzip { gzipped(&plain) } else { plain };
        let mut script =
            ReplyScript { rng, media, framing, gzip, expect, hints, trailers, body, head: String::new() };
        script.head = script.heads(seed);
        script
    }

    fn heads(&mut self, seed: u64) -> String {
        let status = ["200 OK", "200 OK", "200 Fine", "404 Not Found", "503 Service Unavailable"]
            [self.rng.range(0, 4) as usize];
        let media = match self.media {
            Media::Events => "text/event-stream; charset=utf-8",
            Media::Lines => "application/x-ndjson",
            Media::Json => "application/json",
            Media::Text => "text/plain",
        };
        let mut head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nX-Seed: {seed}\r\nSet-Cookie: a=1\r\nSet-Cookie: b=\u{fc}\r\nETag: \"x\"\r\nConnection: X-Hop{}\r\nX-Hop: gone\r\n",
            if self.framing == Framing::Close { ", close" } else { "" }
        );
        if self.gzip {
            head.push_str("Content-Encoding: gzip\r\n");
        }
        if self.trailers {
            head.push_str("Trailer: X-Sum\r\n");
        }
        match self.framing {
            Framing::Length => head.push_str(&format!("Content-Length: {}\r\n", self.body.len())),
            Framing::Chunks => head.push_str("Transfer-Encoding: chunked\r\n"),
            Framing::Close => {}
        }
        head + "\r\n"
    }

    /// The bytes of the reply with their framing.
    fn framed(&mut self) -> Vec<u8> {
        if self.framing != Framing::Chunks {
            return self.body.clone();
        }
        let (mut out, mut rest) = (Vec::new(), &self.body[..]);
        while !rest.is_empty() {
            let size = (self.rng.range(1, 400) as usize).min(rest.len());
            out.extend_from_slice(
                format!("{size:x}{}\r\n", if size % 5 == 0 { ";ext=1" } else { "" }).as_bytes(),
            );
            out.extend_from_slice(&rest[..size]);
            out.extend_from_slice(b"\r\n");
            rest = &rest[size..];
        }
        out.extend_from_slice(if self.trailers { b"0\r\nX-Sum: 7\r\n\r\n" } else { b"0\r\n\r\n" });
        out
    }

    fn play(&mut self, connection: &mut HttpConnection) -> bool {
        if self.hints {
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
        }
        let bytes = [self.head.clone().into_bytes(), self.framed()].concat();
        let mut rest = &bytes[..];
        let fine = self.rng.range(0, 1) == 0;
        while !rest.is_empty() {
            let most = if fine && rest.len() < 2000 { 40 } else { 700 };
            let size = (self.rng.range(1, most) as usize).min(rest.len());
            if !connection.send(&rest[..size]) {
                return false;
            }
            if self.rng.range(0, 3) == 0 {
                short_pause();
            }
            rest = &rest[size..];
        }
        self.framing != Framing::Close
    }

    /// Whether a comment with the energy can follow the body.
    fn takes_comment(&self) -> bool {
        let ended = self.body.ends_with(b"\n\n") || self.body.ends_with(b"\n\r\n") || self.body.is_empty();
        self.media == Media::Events && !self.gzip && self.framing != Framing::Length && ended
    }
}

fn body(rng: &mut TestRng, media: Media) -> Vec<u8> {
    let mut text = String::new();
    let end = if rng.range(0, 1) == 0 { "\n" } else { "\r\n" };
    let parts = rng.range(0, 30);
    let words = |rng: &mut TestRng| -> String {
        (0..rng.range(0, 4)).map(|_| WORDS[rng.range(0, WORDS.len() as u64 - 1) as usize]).collect()
    };
    match media {
        Media::Events => {
            for _ in 0..parts {
                match rng.range(0, 9) {
                    0 => text += &format!(": keep-alive{end}{end}"),
                    1 => text += &format!("event: ping{end}data:{end}{end}"),
                    2 => text += &format!("data: {{\"a\":1,{end}data: \"b\":2}}{end}{end}"),
                    _ => {
                        let content = words(rng);
                        text += &format!(
                            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{content}\"}}}}]}}{end}{end}"
                        );
                    }
                }
            }
            match rng.range(0, 3) {
                0 => text += "data: cut off",
                1 => {}
                _ => {
                    text += &format!(
                        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":3,\"completion_tokens\":{parts}}}}}{end}{end}data: [DONE]{end}{end}"
                    );
                }
            }
        }
        Media::Lines => {
            for _ in 0..parts {
                text += &format!("{{\"response\":\"{}\",\"done\":false}}{end}", words(rng));
            }
            text += "{\"done\":true,\"eval_count\":4}";
        }
        Media::Json | Media::Text => {
            let long = if rng.range(0, 9) == 0 { "x".repeat(60_000) } else { String::new() };
            text = format!(
                "{{\"model\":\"m\",\"text\":\"{}{long}\",\"usage\":{{\"prompt_tokens\":1}}}}",
                words(rng)
            );
        }
    }
    text.into_bytes()
}

/// A gzip file of stored blocks (RFC 1951, 3.2.4; RFC 1952).
fn gzipped(plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks: Vec<&[u8]> = if plain.is_empty() { vec![plain] } else { plain.chunks(65_535).collect() };
    for (at, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        out.push(u8::from(at + 1 == blocks.len()));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    let crc = plain.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    out
}

/// The requests that the stub received, by seed.
type ReceivedMessages = Arc<Mutex<HashMap<u64, Vec<HttpMessage>>>>;

fn stub(received: &ReceivedMessages) -> StubServer {
    let received = Arc::clone(received);
    StubServer::new(move |mut connection| {
        while let Some(mut request) = connection.read_head() {
            let seed =
                request.line.split("seed=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            let mut script = ReplyScript::of(seed);
            if script.expect {
                connection.send(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            connection.read_body(&mut request, false);
            received.lock().unwrap().entry(seed).or_default().push(request);
            if !script.play(&mut connection) {
                return;
            }
        }
    })
}

/// Sends the seed's request and reads the reply.
fn ask(connection: &mut HttpConnection, seed: u64) -> Option<HttpMessage> {
    let mut rng = TestRng(seed | 1);
    (0..3).for_each(|_| _ = rng.next_u64());
    let body = format!(
        "{{\"model\":\"m\",\"stream\":true,\"prompt\":\"{}\"}}",
        "熱é".repeat(rng.range(0, 3000) as usize)
    );
    let path = if rng.range(0, 4) == 0 { "/other" } else { "/v1/chat/completions" };
    let mut head = format!("POST {path}?seed={seed} HTTP/1.1\r\nHost: test\r\nX-MiXed: a\r\nAccept: */*\r\n");
    let te = rng.range(0, 1) == 0;
    if te {
        head.push_str("TE: trailers\r\nConnection: TE\r\n");
    }
    let expect = ReplyScript::of(seed).expect;
    if expect {
        head.push_str("Expect: 100-continue\r\n");
    }
    let chunked = rng.range(0, 1) == 0;
    head.push_str(&if chunked {
        "Transfer-Encoding: chunked\r\n\r\n".to_owned()
    } else {
        format!("Content-Length: {}\r\n\r\n", body.len())
    });
    connection.send(head.as_bytes());
    let mut informational = Vec::new();
    if expect {
        informational.push((connection.read_line()?, connection.read_headers()?));
    }
    for piece in body.as_bytes().chunks(rng.range(500, 5000) as usize) {
        if chunked {
            connection.send(format!("{:x}\r\n", piece.len()).as_bytes());
        }
        connection.send(piece);
        if chunked {
            connection.send(b"\r\n");
        }
    }
    if chunked {
        connection.send(b"0\r\n\r\n");
    }
    let mut reply = connection.read_reply()?;
    informational.append(&mut reply.informational);
    Some(HttpMessage { informational, ..reply })
}

/// A message without hop-by-hop headers, and without what the proxy adds.
fn bare(mut message: HttpMessage) -> HttpMessage {
    const OF_ONE_HOP: &[&str] =
        &["connection", "transfer-encoding", "x-hop", "te", "host", "keep-alive", "trailer"];
    let strip = |headers: &mut Vec<(String, String)>| {
        headers.retain(|(name, _)| {
            let name = name.to_ascii_lowercase();
            !OF_ONE_HOP.contains(&name.as_str()) && !name.starts_with("wattspan-")
        });
    };
    strip(&mut message.headers);
    strip(&mut message.trailers);
    // Names keep their case in headers; in trailers and informational replies they become lower case.
    for headers in message.informational.iter_mut().map(|(_, headers)| headers).chain([&mut message.trailers])
    {
        headers.iter_mut().for_each(|(name, _)| name.make_ascii_lowercase());
    }
    message
}

fn compare(seed: u64, direct: &HttpMessage, through: &HttpMessage, annotated: bool) {
    let script = ReplyScript::of(seed);
    let mut through = through.clone();
    let inference = through.header("wattspan-span").is_some();
    if annotated && inference && script.takes_comment() {
        let at = memchr::memmem::rfind(&through.body, b": wattspan {")
            .unwrap_or_else(|| panic!("{seed}: no comment"));
        let comment = String::from_utf8(through.body.split_off(at)).unwrap();
        let json = comment.strip_prefix(": wattspan ").unwrap().strip_suffix("\n\n").unwrap();
        let figures: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(figures["state"], "settled", "{seed}: {figures}");
    }
    let te = through.header("trailer").is_some_and(|trailer| trailer.contains("wattspan-energy"));
    if te {
        assert!(
            header_value(&through.trailers, "wattspan-energy").unwrap().starts_with("state=settled"),
            "{seed}"
        );
    }
    let (mut direct, through) = (bare(direct.clone()), bare(through));
    // The proxy sends trailers only to clients that request them (RFC 9110, 6.5.1); the stub always sends them.
    if through.trailers.is_empty() && !direct.trailers.is_empty() {
        direct.trailers.clear();
    }
    assert_alike(&format!("seed {seed}"), &direct, &through);
}

fn assert_alike(what: &str, direct: &HttpMessage, through: &HttpMessage) {
    let head = |message: &HttpMessage| HttpMessage { body: Vec::new(), ..message.clone() };
    assert_eq!(head(direct), head(through), "{what}");
    let same = direct.body.iter().zip(&through.body).take_while(|(one, other)| one == other).count();
    let lengths = (direct.body.len(), through.body.len());
    assert!(direct.body == through.body, "{what}: bodies of {lengths:?} bytes differ after {same}");
}

fn run(flags: &[&str], annotated: bool, cases: u64) {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let received = ReceivedMessages::default();
    let stub = stub(&received);
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), flags).wait_for_daemon();
    const THREADS: u64 = 8;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stub, proxy) = (stub.address, proxy.address);
            scope.spawn(move || {
                let mut talks = (HttpConnection::connect(stub), HttpConnection::connect(proxy));
                for seed in (thread..cases).step_by(THREADS as usize) {
                    if ReplyScript::of(seed).framing == Framing::Close || seed % 50 < 8 {
                        talks.0 = HttpConnection::connect(stub);
                    }
                    let direct = ask(&mut talks.0, seed).unwrap_or_else(|| panic!("{seed}: no direct reply"));
                    if ReplyScript::of(seed).framing == Framing::Close {
                        talks.0 = HttpConnection::connect(stub);
                    }
                    let through = ask(&mut talks.1, seed).unwrap_or_else(|| panic!("{seed}: no reply"));
                    compare(seed, &direct, &through, annotated);
                }
            });
        }
    });
    let received = received.lock().unwrap();
    for seed in 0..cases {
        let [direct, through] = &received[&seed][..] else { panic!("{seed}: not asked twice") };
        assert_alike(&format!("the request of seed {seed}"), &bare(direct.clone()), &bare(through.clone()));
    }
    drop(stub);
    proxy.stop().assert_balanced();
}

#[test]
fn a_thousand_replies_are_the_same_with_and_without_the_proxy() {
    run(&[["--annotate", "headers"], LONG_PATIENCE].concat(), true, cases());
}

#[test]
fn with_annotations_off_nothing_is_added_at_all() {
    run(&["--annotate", "off"], false, cases() / 5);
}

#[test]
fn all_that_came_before_a_server_broke_off_is_passed_on() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let whole = "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\n";
    let cut = "data: {\"choices\":[{\"index\":0,\"te";
    let stub = StubServer::new(move |mut connection| {
        if connection.read_request().is_none() {
            return;
        }
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.send([head, &chunk(whole), &chunk(cut)].concat().as_bytes());
    });
    for flags in [&["--annotate", "off"][..], &["--annotate", "headers"], &["--annotate", "usage"]] {
        let upstream = format!("http://{}", stub.address);
        let proxy = TestProxy::start(&upstream, &daemon.socket(), flags).wait_for_daemon();
        for _ in 0..20 {
            let mut connection = HttpConnection::connect(proxy.address);
            connection.send(&http_stub::inference_request("{}"));
            let reply = connection.read_reply().unwrap();
            assert_eq!((reply.text(), reply.is_complete), (format!("{whole}{cut}"), false), "{flags:?}");
        }
        proxy.stop().assert_balanced();
    }
}
