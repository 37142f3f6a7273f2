//! Serves the page and its stream of events over HTTP/1.1.
//!
//! Owns the limits: connections, size and time of a request head, the time in which a viewer must read.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use wattspan_http::connection_pool::MAX_HEADER_BYTES;
use wattspan_proxy::{
    AcceptedConnection, ClientIo, ConnectionLimit, HeadTimer, ProxyListener, ReceivedBytes,
};

use super::hub::{Hub, Subscription};
use super::live_history::HistoryRange;
use super::page_template::{locked_page, page};
use super::request_guard::{PAGE_PATH, RequestGuard, RequestParts, RequestRefusal, query_value, random_hex};

/// The largest number of open connections. A page has one.
const MAX_CONNECTIONS: usize = 64;

/// The time for the head of a request, and for the first byte of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The time after which a kept connection without a request is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The time in which a viewer must read an event. The connection of one that is slower is closed.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

const ALL_IN_USE: &str = "wattspan serve: all connections are in use; close other pages, or retry later";

/// What every connection needs.
pub struct LiveServer {
    pub hub: Arc<Hub>,
    pub guard: RequestGuard,
}

type PageResponse = Response<BoxBody<Bytes, Infallible>>;

/// Accepts connections until the future is dropped.
pub async fn serve(listener: ProxyListener, server: Arc<LiveServer>) {
    let limit = ConnectionLimit::new(MAX_CONNECTIONS, Duration::from_secs(1), ALL_IN_USE);
    loop {
        match limit.accept_batch(&listener).await {
            Ok(batch) => {
                for (connection, permit) in batch {
                    let server = Arc::clone(&server);
                    // A failed connection concerns its client alone, which sees the failure itself.
                    tokio::spawn(async move {
                        let _ = serve_connection(connection, permit, server).await;
                    });
                }
            }
            // The process has no free descriptor: other connections must end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(
    connection: AcceptedConnection,
    permit: OwnedSemaphorePermit,
    server: Arc<LiveServer>,
) -> io::Result<()> {
    connection.set_nodelay()?;
    let local_ip = match &connection {
        AcceptedConnection::Tcp(stream) => Some(stream.local_addr()?.ip()),
        AcceptedConnection::Unix(_) => None,
    };
    timeout(HEAD_TIMEOUT, connection.peek(&mut [0])).await??;
    let received = ReceivedBytes::default();
    let (io, _) = ClientIo::new(connection, received.clone());
    let stalled = Arc::new(Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&server, local_ip, &request, &stalled);
        async move { Ok::<_, Infallible>(response) }
    });
    let first_deadline = Instant::now() + HEAD_TIMEOUT;
    let timer = HeadTimer { received, first_deadline, head_timeout: HEAD_TIMEOUT };
    let mut builder = http1::Builder::new();
    builder.timer(timer).header_read_timeout(IDLE_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
    let served = builder.serve_connection(io, service);
    tokio::select! {
        ended = served => ended.map_err(io::Error::other)?,
        () = stalled.notified() => {}
    }
    drop(permit);
    Ok(())
}

fn respond(
    server: &LiveServer,
    local_ip: Option<IpAddr>,
    request: &Request<Incoming>,
    stalled: &Arc<Notify>,
) -> PageResponse {
    let (path, query) = (request.uri().path(), request.uri().query());
    let parts = RequestParts { method: request.method(), path, query, headers: request.headers(), local_ip };
    let mut response = match server.guard.check(parts) {
        Err(refusal) if refusal.status == StatusCode::UNAUTHORIZED && path == PAGE_PATH => {
            html_response(StatusCode::UNAUTHORIZED, locked_page)
        }
        Err(refusal) => refuse(refusal),
        Ok(()) => match (path, request.method()) {
            (PAGE_PATH, _) => html_response(StatusCode::OK, page),
            ("/events", &Method::GET) => {
                match HistoryRange::parse(query_value(query, "range").unwrap_or("10m")) {
                    Some(range) => event_stream(server.hub.subscribe(range), Arc::clone(stalled)),
                    None => text_response(StatusCode::BAD_REQUEST, "range is 10m, 1h or 24h"),
                }
            }
            _ => text_response(StatusCode::NOT_FOUND, "there is only the page (/) and its events (/events)"),
        },
    };
    for (name, value) in [
        ("referrer-policy", "no-referrer"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let headers = response.headers_mut();
    let closed = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(closed);
    response
}

fn refuse(refusal: RequestRefusal) -> PageResponse {
    let mut response = text_response(refusal.status, refusal.reason);
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn text_response(status: StatusCode, text: &str) -> PageResponse {
    let mut response = Response::new(Full::new(Bytes::from(format!("wattspan serve: {text}\n"))).boxed());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// A page whose scripts and styles have a number that is used once: no other script runs.
fn html_response(status: StatusCode, render: fn(&str) -> String) -> PageResponse {
    let Ok(nonce) = random_hex::<16>() else {
        return text_response(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers");
    };
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Response::new(Full::new(Bytes::from(render(&nonce))).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// A stream of events. One event at most waits for the connection; the others stay in the hub.
fn event_stream(mut subscription: Subscription, stalled: Arc<Notify>) -> PageResponse {
    let (sender, events) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(event) = subscription.next().await {
            match timeout(READ_TIMEOUT, sender.send(event)).await {
                Ok(Ok(())) => {}
                // The viewer has gone.
                Ok(Err(_)) => return,
                Err(_) => return stalled.notify_one(),
            }
        }
    });
    let mut response = Response::new(EventBody { events }.boxed());
    let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, events);
    response
}

struct EventBody {
    events: mpsc::Receiver<Bytes>,
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.events.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
