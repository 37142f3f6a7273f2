//! Forwards one request to the server and the response to the client.
//!
//! The span of an inference request opens when the request arrives and closes at the end of the response. A request
//! that the server cannot have received gets status 502, and its span is cancelled; where the server may have
//! received it, the span is closed. One whose body stops arriving, or trickles, gets status 408, and its span is
//! cancelled. A failure of the daemon never fails a request, and the wait for its account is bounded.

use std::collections::BTreeMap;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version, response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use wattspan_http::connection_pool::capture_connection;
use wattspan_http::prompt_hash::PROMPT_HASH_ATTRIBUTE;
use wattspan_http::transfer_encoding::{self, TransferEncodingError};
use wattspan_http::{BoxBody, full_body, hop_by_hop};
use wattspan_system::escape::printable_ascii;

use super::body_timer::{BodyTimeoutError, BodyTimer};
use super::context::{ClientContext, Proxy};
use super::measured_response;
use super::reply_progress::ReplyProgress;
use super::request_span::RequestSpan;
use super::route::Operation;
use super::trace_context::TraceContext;
use super::upstream_request::{
    ClientCapabilities, MeasuredBody, RequestEnd, RequestedModel, build_upstream_request,
};

/// The header in which a client names its span.
const NAME_HEADER: &str = "wattspan-name";

pub async fn forward(client: &ClientContext, request: Request<Incoming>) -> Response<BoxBody> {
    let proxy = &*client.proxy;
    proxy.counters.requests.increment();
    if *request.method() == Method::CONNECT || request.uri().path_and_query().is_none() {
        return error_response(
            StatusCode::METHOD_NOT_ALLOWED,
            "CONNECT is not supported: this proxy forwards requests to one server",
        );
    }
    if let Err(error) = transfer_encoding::check(request.headers()) {
        return refuse_framing(error);
    }
    if let Some(operation) = proxy.routes.operation(request.method(), request.uri()) {
        return forward_measured(client, request, operation).await;
    }
    match build_upstream_request(&proxy.upstream, client.informational.as_ref(), request, None) {
        Ok((request, capabilities)) => match send_upstream(proxy, request, &capabilities.request_end).await {
            Ok((head, body)) => pass_through(client, head, body, capabilities),
            Err(error) => error.response,
        },
        Err(error) => error_response(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

/// Forwards an inference request within a span.
async fn forward_measured(
    client: &ClientContext,
    mut request: Request<Incoming>,
    operation: Operation,
) -> Response<BoxBody> {
    let proxy = &*client.proxy;
    proxy.counters.inferences.increment();
    let mut span = open_span(proxy, &mut request, operation);
    let requested_model = RequestedModel::new(proxy.hash_prompts);
    let progress = ReplyProgress::default();
    let (request, capabilities) = match build_upstream_request(
        &proxy.upstream,
        client.informational.as_ref(),
        request,
        Some(MeasuredBody {
            requested_model: requested_model.clone(),
            timer: BodyTimer::new(proxy.body_timeout, progress.clone()),
        }),
    ) {
        Ok(prepared) => prepared,
        Err(error) => {
            span.cancel();
            return error_response(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    match send_upstream(proxy, request, &capabilities.request_end).await {
        Ok((head, body)) => {
            span.set_attribute("http.response.status_code", head.status.as_str());
            set_request_model(&mut span, &requested_model);
            if head.status == StatusCode::SWITCHING_PROTOCOLS {
                return pass_through(client, head, body, capabilities);
            }
            measured_response::respond(client, head, progress.observe(body), span, &capabilities)
                .await
                .unwrap_or_else(|error| interrupted_response(proxy, &error))
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

/// Opens the span of `request` and makes it the parent in the request's trace context.
fn open_span(proxy: &Proxy, request: &mut Request<Incoming>, operation: Operation) -> RequestSpan {
    let span_number = proxy.next_span_number();
    let trace_context = TraceContext::extract(request.headers());
    let name = request.headers().get(NAME_HEADER).map(|name| String::from_utf8_lossy(name.as_bytes()));
    let attributes = || span_attributes(request, operation, trace_context.as_ref(), span_number);
    let id = format!("proxy-{}-{span_number:016x}", std::process::id());
    let name = name.as_deref().unwrap_or(operation.name());
    let has_phases = operation != Operation::Embeddings;
    let span = RequestSpan::open(&proxy.span_client, id, name, attributes, has_phases);
    if let Some(trace_context) = trace_context {
        trace_context.inject(request.headers_mut(), span_number);
    }
    span
}

fn set_request_model(span: &mut RequestSpan, requested_model: &RequestedModel) {
    if let Some(model) = requested_model.get() {
        span.set_attribute("gen_ai.request.model", model);
    }
    if let Some(hash) = requested_model.prompt_hash() {
        span.set_attribute(PROMPT_HASH_ATTRIBUTE, hash);
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

/// The server sent no usable response.
struct UpstreamError {
    /// The server cannot have received all of the request: there was no connection to it, or the body timed out.
    unsent: bool,
    /// What the client receives instead.
    response: Response<BoxBody>,
}

async fn send_upstream(
    proxy: &Proxy,
    mut request: Request<BoxBody>,
    request_end: &RequestEnd,
) -> Result<(response::Parts, Incoming), UpstreamError> {
    let connection = capture_connection(&mut request);
    let (unsent, reason) = match proxy.pool.request(request).await {
        Ok(reply) => {
            let (mut head, body) = reply.into_parts();
            let framing = check_reply_framing(&mut head.headers);
            // One HTTP/2 connection carries the requests of all clients, and its end is announced.
            let is_shared = head.version == Version::HTTP_2;
            let may_close = ends_connection(head.status) || !request_end.is_reached();
            if !is_shared && (framing.is_err() || may_close) {
                connection.connection_metadata().as_ref().inspect(|connection| connection.poison());
            }
            head.version = Version::HTTP_11;
            match framing {
                Ok(()) => return Ok((head, body)),
                Err(reason) => (false, format!("the framing of its reply is ambiguous: {reason}")),
            }
        }
        Err(error) => {
            if let Some(timeout) = request_end.timeout() {
                return Err(UpstreamError { unsent: true, response: refuse_slow_body(timeout) });
            }
            (error.is_connect(), error_chain(&error))
        }
    };
    proxy.counters.upstream_failures.increment();
    proxy.log.write_line(&format!("no reply from {}: {reason}", proxy.upstream));
    let response = error_response(StatusCode::BAD_GATEWAY, &format!("no reply from the server: {reason}"));
    Err(UpstreamError { unsent, response })
}

/// Whether servers close the connection after a reply of this status, with or without an announcement: they could not
/// read the request, did not read all of it, or failed. Another client's request on that connection could get no reply.
fn ends_connection(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::BAD_REQUEST
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::LENGTH_REQUIRED
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::URI_TOO_LONG
                | StatusCode::EXPECTATION_FAILED
                | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
        )
}

/// Checks that the proxy and the client frame a reply in the same way (RFC 9112, section 6.3), and joins equal lengths.
fn check_reply_framing(headers: &mut HeaderMap) -> Result<(), String> {
    transfer_encoding::check(headers).map_err(|error| error.to_string())?;
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Err("it has both Content-Length and Transfer-Encoding".to_owned());
    }
    // hyper accepts several lengths only where they are equal.
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let first = length.and_then(|length| length.split(',').next()).map(|first| first.trim().to_owned());
    if let Some(length) = first.and_then(|first| HeaderValue::try_from(first).ok()) {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    Ok(())
}

/// The response to a request whose body the proxy cannot frame for the server. The connection ends with it, since the
/// end of the body is not known (RFC 9112, section 6.1).
fn refuse_framing(error: TransferEncodingError) -> Response<BoxBody> {
    let status = match error {
        TransferEncodingError::Malformed => StatusCode::BAD_REQUEST,
        TransferEncodingError::Unsupported => StatusCode::NOT_IMPLEMENTED,
    };
    let mut reply = error_response(status, &error.to_string());
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// The response to a request whose body stopped arriving, or trickled. The connection ends with it.
fn refuse_slow_body(error: BodyTimeoutError) -> Response<BoxBody> {
    let mut reply = error_response(StatusCode::REQUEST_TIMEOUT, &error.to_string());
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// The server's response without annotations.
fn pass_through(
    client: &ClientContext,
    mut head: response::Parts,
    body: Incoming,
    capabilities: ClientCapabilities,
) -> Response<BoxBody> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return match capabilities.upgrade {
            Some(upgrade) => switch_protocols(head, body, upgrade, client.clone()),
            None => error_response(
                StatusCode::BAD_GATEWAY,
                "the server switched protocols without a request for it",
            ),
        };
    }
    hop_by_hop::strip(&mut head.headers);
    Response::from_parts(head, body.map_err(Into::into).boxed_unsync())
}

/// The response that switches the protocol (to WebSocket, for example). A task copies bytes in both directions until
/// both sides have closed, and holds the client's connection permit until then.
fn switch_protocols(
    mut head: response::Parts,
    body: Incoming,
    upgrade: OnUpgrade,
    client: ClientContext,
) -> Response<BoxBody> {
    let protocol = head.headers.get(header::UPGRADE).cloned();
    let mut reply = Response::from_parts(head.clone(), body);
    // hyper keeps the connection to the server in the extensions of the reply.
    *reply.extensions_mut() = std::mem::take(&mut head.extensions);
    let server = hyper::upgrade::on(&mut reply);
    tokio::spawn(async move {
        // A side ends the tunnel by closing its connection; no caller could receive the error.
        if let (Ok(client_io), Ok(server_io)) = tokio::join!(upgrade, server) {
            let (mut client_io, mut server_io) = (TokioIo::new(client_io), TokioIo::new(server_io));
            let _ = tokio::io::copy_bidirectional(&mut client_io, &mut server_io).await;
        }
        drop(client);
    });
    hop_by_hop::strip(&mut head.headers);
    hop_by_hop::set_connection_options(
        &mut head.headers,
        &hop_by_hop::ConnectionOptions { upgrade: protocol, trailers: false },
    );
    let mut reply = Response::from_parts(head, full_body(""));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    reply
}

/// The server closed the connection during a response of which the client has received nothing.
fn interrupted_response(proxy: &Proxy, error: &hyper::Error) -> Response<BoxBody> {
    proxy.counters.upstream_failures.increment();
    error_response(
        StatusCode::BAD_GATEWAY,
        &format!("the server closed the connection before the end of its reply: {}", error_chain(error)),
    )
}

/// A response that the proxy itself creates.
fn error_response(status: StatusCode, reason: &str) -> Response<BoxBody> {
    let mut reply = Response::new(full_body(format!("wattspan proxy: {}\n", printable_ascii(reason))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}

/// The text of an error and of its sources; a source whose text the error repeats is left out.
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
