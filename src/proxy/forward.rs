//! One request: to the server, and its reply back.
//!
//! Owns the order: a span opens when an inference arrives, and closes with the end of its reply. A request that the
//! server cannot have got is answered with 502, and its span forgotten; where it may have got it, the energy up to there
//! is the request's. Nothing about the daemon ever fails a request, or
//! delays it beyond the bounded wait for its account.

use std::collections::{BTreeMap, VecDeque};

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version, response};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::asked::Asked;
use super::dialect::Dialect;
use super::figures::SPAN;
use super::front::Client;
use super::measured::Measured;
use super::prepare::{Hop, prepare};
use super::route::Operation;
use super::streamed::{Streamed, Tail};
use super::trace::Trace;
use super::visible::visible;
use super::{Annotate, Proxy, held, tunnel};
use crate::http::{Body, hop, whole};

/// The header with which a client names its span.
const NAME: &str = "wattspan-name";

/// Answers one request.
pub async fn forward(client: &Client, request: Request<Incoming>) -> Response<Body> {
    let proxy = &*client.proxy;
    proxy.tally.requests.up();
    if *request.method() == Method::CONNECT || request.uri().path_and_query().is_none() {
        return refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "this proxy forwards to one server and opens no tunnels",
        );
    }
    if let Some(operation) = proxy.routes.operation(request.method(), request.uri()) {
        return measure(client, request, operation).await;
    }
    match prepare(&proxy.target, client.aside.as_ref(), request, None) {
        Ok((request, hop)) => match send(proxy, request).await {
            Ok((head, body)) => pass(client, head, body, hop),
            Err(failure) => failure.refusal,
        },
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn measure(client: &Client, mut request: Request<Incoming>, operation: Operation) -> Response<Body> {
    let proxy = &*client.proxy;
    proxy.tally.inferences.up();
    let number = proxy.next_span();
    let trace = Trace::of(request.headers());
    let name = request.headers().get(NAME).map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    let notes = notes(&request, operation, trace.as_ref(), number);
    let id = format!("proxy-{}-{number:016x}", std::process::id());
    let phases = operation != Operation::Embeddings;
    let mut span =
        Measured::begin(&proxy.lane, id, name.as_deref().unwrap_or(operation.name()), notes, phases);
    if let Some(trace) = trace {
        trace.forward(request.headers_mut(), number);
    }
    let asked = Asked::new();
    let (request, hop) = match prepare(&proxy.target, client.aside.as_ref(), request, Some(asked.clone())) {
        Ok(prepared) => prepared,
        Err(error) => {
            span.cancel();
            return refusal(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    match send(proxy, request).await {
        Ok((head, body)) => {
            span.note("http.response.status_code", head.status.as_str());
            note_model(&mut span, &asked);
            answer(client, head, body, span, hop).await
        }
        Err(Failure { unsent: true, refusal }) => {
            span.cancel();
            refusal
        }
        Err(Failure { unsent: false, refusal }) => {
            note_model(&mut span, &asked);
            span.note("error.type", "no reply from the server");
            drop(span.close());
            refusal
        }
    }
}

fn note_model(span: &mut Measured, asked: &Asked) {
    if let Some(model) = asked.model() {
        span.note("gen_ai.request.model", model);
    }
}

fn notes(
    request: &Request<Incoming>,
    operation: Operation,
    trace: Option<&Trace>,
    number: u64,
) -> BTreeMap<String, String> {
    let mut notes = BTreeMap::from([
        ("gen_ai.operation.name".to_owned(), operation.name().to_owned()),
        ("url.path".to_owned(), request.uri().path().to_owned()),
    ]);
    if let Some(trace) = trace {
        notes.insert("trace_id".to_owned(), trace.id.clone());
        notes.insert("span_id".to_owned(), format!("{number:016x}"));
        notes.insert("parent_span_id".to_owned(), trace.parent.clone());
    }
    notes
}

/// There is no reply.
struct Failure {
    /// The server cannot have got the request: there was no connection to it.
    unsent: bool,
    /// The client's answer instead.
    refusal: Response<Body>,
}

/// The server's reply.
async fn send(proxy: &Proxy, request: Request<Body>) -> Result<(response::Parts, Incoming), Failure> {
    let (unsent, why) = match proxy.pool.request(request).await {
        Ok(reply) => {
            let (mut head, body) = reply.into_parts();
            head.version = Version::HTTP_11;
            // One of the two would be believed here and the other by the client (RFC 9112, 6.3).
            let both = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
            match both.iter().all(|name| head.headers.contains_key(name)) {
                false => return Ok((head, body)),
                true => (false, "its reply has both a length and chunks".to_owned()),
            }
        }
        Err(error) => (error.is_connect(), chain(&error)),
    };
    proxy.tally.failed.up();
    proxy.remarks.say(&format!("no reply from {}: {why}", proxy.target));
    let refusal =
        refusal(StatusCode::BAD_GATEWAY, &format!("no reply from the server behind this proxy: {why}"));
    Err(Failure { unsent, refusal })
}

/// A reply that is nobody's business.
fn pass(client: &Client, mut head: response::Parts, body: Incoming, hop: Hop) -> Response<Body> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return match hop.upgrade {
            Some(upgrade) => tunnel::open(head, body, upgrade, client.clone()),
            None => refusal(StatusCode::BAD_GATEWAY, "the server changed the protocol unasked"),
        };
    }
    hop::strip(&mut head.headers);
    Response::from_parts(head, body.map_err(Into::into).boxed_unsync())
}

/// An inference's reply.
async fn answer(
    client: &Client,
    mut head: response::Parts,
    body: Incoming,
    span: Measured,
    hop: Hop,
) -> Response<Body> {
    let proxy = &*client.proxy;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return pass(client, head, body, hop);
    }
    hop::strip(&mut head.headers);
    // A span's name reveals no energy, and with it the operator finds the account of a request.
    if proxy.annotate != Annotate::Off
        && let Ok(id) = HeaderValue::from_str(&span.id)
    {
        head.headers.insert(SPAN, id);
    }
    let told = client.annotate != Annotate::Off;
    let Kind { dialect, streams, plain } = Kind::of(&head);
    let length = body.size_hint().exact();
    let tail = Tail {
        comment: told && plain && streams && length.is_none(),
        trailer: told && hop.takes_trailers(length.is_some()),
        usage: client.annotate == Annotate::Usage && plain && (length.is_none() || !streams),
    };
    let weighed = proxy.scales.put(span, proxy.weigh && streams);
    if told && !streams && length.is_none_or(|length| length <= held::MOST) {
        let reply = held::reply(head, body, weighed, dialect, tail).await;
        return reply.unwrap_or_else(|error| {
            proxy.tally.failed.up();
            refusal(StatusCode::BAD_GATEWAY, &format!("the server broke off its reply: {}", chain(&error)))
        });
    }
    tail.announce(&mut head.headers);
    let tail = Tail { usage: tail.usage && streams, ..tail };
    let streamed = Streamed::new(body, VecDeque::new(), weighed, dialect, tail);
    Response::from_parts(head, streamed.boxed_unsync())
}

/// What kind of reply it is, by its head.
struct Kind {
    dialect: Dialect,
    streams: bool,
    /// Not compressed: it can be read, and added to.
    plain: bool,
}

impl Kind {
    fn of(head: &response::Parts) -> Self {
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let media =
            text(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let plain = text(header::CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
        let events = media.eq_ignore_ascii_case("text/event-stream");
        let lines =
            ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/stream+json"]
                .iter()
                .any(|lines| media.eq_ignore_ascii_case(lines));
        let streams = events || lines;
        let dialect = match (plain, events, lines) {
            (false, ..) => Dialect::Opaque { stream: streams },
            (true, true, _) => Dialect::events(),
            (true, _, true) => Dialect::lines(),
            (true, false, false) => Dialect::whole(),
        };
        Kind { dialect, streams, plain }
    }
}

/// A short answer of the proxy's own.
fn refusal(status: StatusCode, why: &str) -> Response<Body> {
    let mut reply = Response::new(whole(format!("wattspan proxy: {}\n", visible(why))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// An error with what led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
