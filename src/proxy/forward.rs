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

use super::annotation::SPAN_HEADER;
use super::escape::escape_unprintable;
use super::frontend::ClientContext;
use super::request_body::RequestedModel;
use super::request_span::RequestSpan;
use super::response_reader::ResponseReader;
use super::route::Operation;
use super::streamed_body::{AnnotationPlacement, StreamedBody};
use super::trace_context::TraceContext;
use super::upstream_request::{ClientCapabilities, build_upstream_request};
use super::{AnnotationMode, Proxy, buffered_response, upgrade};
use crate::http::{BoxBody, full_body, hop_by_hop};

/// The header with which a client names its span.
const NAME_HEADER: &str = "wattspan-name";

/// Answers one request.
pub async fn forward(client: &ClientContext, request: Request<Incoming>) -> Response<BoxBody> {
    let proxy = &*client.proxy;
    proxy.counters.requests.increment();
    if *request.method() == Method::CONNECT || request.uri().path_and_query().is_none() {
        return error_response(
            StatusCode::METHOD_NOT_ALLOWED,
            "this proxy forwards to one server and opens no tunnels",
        );
    }
    if let Some(operation) = proxy.routes.operation(request.method(), request.uri()) {
        return forward_measured(client, request, operation).await;
    }
    match build_upstream_request(&proxy.upstream, client.informational.as_ref(), request, None) {
        Ok((request, capabilities)) => match send_upstream(proxy, request).await {
            Ok((head, body)) => pass_through(client, head, body, capabilities),
            Err(error) => error.response,
        },
        Err(error) => error_response(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn forward_measured(
    client: &ClientContext,
    mut request: Request<Incoming>,
    operation: Operation,
) -> Response<BoxBody> {
    let proxy = &*client.proxy;
    proxy.counters.inferences.increment();
    let span_number = proxy.next_span_number();
    let trace_context = TraceContext::extract(request.headers());
    let name =
        request.headers().get(NAME_HEADER).map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned());
    let attributes = span_attributes(&request, operation, trace_context.as_ref(), span_number);
    let id = format!("proxy-{}-{span_number:016x}", std::process::id());
    let has_phases = operation != Operation::Embeddings;
    let mut span = RequestSpan::open(
        &proxy.span_client,
        id,
        name.as_deref().unwrap_or(operation.name()),
        attributes,
        has_phases,
    );
    if let Some(trace_context) = trace_context {
        trace_context.inject(request.headers_mut(), span_number);
    }
    let requested_model = RequestedModel::new();
    let (request, capabilities) = match build_upstream_request(
        &proxy.upstream,
        client.informational.as_ref(),
        request,
        Some(requested_model.clone()),
    ) {
        Ok(prepared) => prepared,
        Err(error) => {
            span.cancel();
            return error_response(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    match send_upstream(proxy, request).await {
        Ok((head, body)) => {
            span.set_attribute("http.response.status_code", head.status.as_str());
            set_request_model(&mut span, &requested_model);
            measured_response(client, head, body, span, capabilities).await
        }
        Err(UpstreamError { unsent: true, response }) => {
            span.cancel();
            response
        }
        Err(UpstreamError { unsent: false, response }) => {
            set_request_model(&mut span, &requested_model);
            span.set_attribute("error.type", "no reply from the server");
            drop(span.close());
            response
        }
    }
}

fn set_request_model(span: &mut RequestSpan, requested_model: &RequestedModel) {
    if let Some(model) = requested_model.get() {
        span.set_attribute("gen_ai.request.model", model);
    }
}

fn span_attributes(
    request: &Request<Incoming>,
    operation: Operation,
    trace_context: Option<&TraceContext>,
    span_number: u64,
) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::from([
        ("gen_ai.operation.name".to_owned(), operation.name().to_owned()),
        ("url.path".to_owned(), request.uri().path().to_owned()),
    ]);
    if let Some(trace_context) = trace_context {
        attributes.insert("trace_id".to_owned(), trace_context.trace_id.clone());
        attributes.insert("span_id".to_owned(), format!("{span_number:016x}"));
        attributes.insert("parent_span_id".to_owned(), trace_context.parent_id.clone());
    }
    attributes
}

/// There is no reply.
struct UpstreamError {
    /// The server cannot have got the request: there was no connection to it.
    unsent: bool,
    /// The client's answer instead.
    response: Response<BoxBody>,
}

/// The server's reply.
async fn send_upstream(
    proxy: &Proxy,
    request: Request<BoxBody>,
) -> Result<(response::Parts, Incoming), UpstreamError> {
    let (unsent, reason) = match proxy.pool.request(request).await {
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
        Err(error) => (error.is_connect(), error_chain(&error)),
    };
    proxy.counters.upstream_failures.increment();
    proxy.log.write_line(&format!("no reply from {}: {reason}", proxy.upstream));
    let response = error_response(
        StatusCode::BAD_GATEWAY,
        &format!("no reply from the server behind this proxy: {reason}"),
    );
    Err(UpstreamError { unsent, response })
}

/// A reply that is nobody's business.
fn pass_through(
    client: &ClientContext,
    mut head: response::Parts,
    body: Incoming,
    capabilities: ClientCapabilities,
) -> Response<BoxBody> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return match capabilities.upgrade {
            Some(upgrade) => upgrade::switch_protocols(head, body, upgrade, client.clone()),
            None => error_response(StatusCode::BAD_GATEWAY, "the server changed the protocol unasked"),
        };
    }
    hop_by_hop::strip(&mut head.headers);
    Response::from_parts(head, body.map_err(Into::into).boxed_unsync())
}

/// An inference's reply.
async fn measured_response(
    client: &ClientContext,
    mut head: response::Parts,
    body: Incoming,
    span: RequestSpan,
    capabilities: ClientCapabilities,
) -> Response<BoxBody> {
    let proxy = &*client.proxy;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return pass_through(client, head, body, capabilities);
    }
    hop_by_hop::strip(&mut head.headers);
    // A span's name reveals no energy, and with it the operator finds the account of a request.
    if proxy.annotation_mode != AnnotationMode::Off
        && let Ok(id) = HeaderValue::from_str(&span.id)
    {
        head.headers.insert(SPAN_HEADER, id);
    }
    let is_annotated = client.annotation_mode != AnnotationMode::Off;
    let ResponseKind { reader, is_streamed, is_uncompressed } = ResponseKind::from_head(&head);
    let length = body.size_hint().exact();
    let placement = AnnotationPlacement {
        comment: is_annotated && is_uncompressed && is_streamed && length.is_none(),
        trailer: is_annotated && capabilities.accepts_trailers(length.is_some()),
        usage: client.annotation_mode == AnnotationMode::Usage
            && is_uncompressed
            && (length.is_none() || !is_streamed),
    };
    let stream = proxy.token_weights.register(span, proxy.weigh_by_tokens && is_streamed);
    if is_annotated
        && !is_streamed
        && length.is_none_or(|length| length <= buffered_response::MAX_BUFFERED_BYTES)
    {
        let reply = buffered_response::respond(head, body, stream, reader, placement).await;
        return reply.unwrap_or_else(|error| {
            proxy.counters.upstream_failures.increment();
            error_response(
                StatusCode::BAD_GATEWAY,
                &format!("the server broke off its reply: {}", error_chain(&error)),
            )
        });
    }
    placement.announce_trailer(&mut head.headers);
    let placement = AnnotationPlacement { usage: placement.usage && is_streamed, ..placement };
    let streamed = StreamedBody::new(body, VecDeque::new(), stream, reader, placement);
    Response::from_parts(head, streamed.boxed_unsync())
}

/// What kind of reply it is, by its head.
struct ResponseKind {
    reader: ResponseReader,
    is_streamed: bool,
    /// Not compressed: it can be read, and added to.
    is_uncompressed: bool,
}

impl ResponseKind {
    fn from_head(head: &response::Parts) -> Self {
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let media_type =
            text(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let is_uncompressed = text(header::CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
        let is_sse = media_type.eq_ignore_ascii_case("text/event-stream");
        let is_json_lines =
            ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/stream+json"]
                .iter()
                .any(|media_type_name| media_type.eq_ignore_ascii_case(media_type_name));
        let is_streamed = is_sse || is_json_lines;
        let reader = match (is_uncompressed, is_sse, is_json_lines) {
            (false, ..) => ResponseReader::Opaque { stream: is_streamed },
            (true, true, _) => ResponseReader::sse(),
            (true, _, true) => ResponseReader::json_lines(),
            (true, false, false) => ResponseReader::json(),
        };
        ResponseKind { reader, is_streamed, is_uncompressed }
    }
}

/// A short answer of the proxy's own.
fn error_response(status: StatusCode, reason: &str) -> Response<BoxBody> {
    let mut reply = Response::new(full_body(format!("wattspan proxy: {}\n", escape_unprintable(reason))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// An error with what led to it.
fn error_chain(error: &dyn std::error::Error) -> String {
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
