//! The request that the server receives.
//!
//! Changes the hop-by-hop headers, `Host` and the base of the URL. "100 Continue" of the server starts the body of a
//! request with `Expect: 100-continue`; other informational responses are sent to the client. Of the body only the name
//! of the model is stored, and on demand a hash of the prompt.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::oneshot;
use tokio::time::Sleep;
use wattspan_http::hop_by_hop::{self, ConnectionOptions};
use wattspan_http::prompt_hash::PromptHasher;
use wattspan_http::{BaseUrl, BodyError, BoxBody};

use super::body_timer::{BodyTimeoutError, BodyTimer};
use super::client_io::InformationalSender;
use super::json_scanner::JsonScanner;

/// The capabilities of the client's connection, as its request states them.
pub struct ClientCapabilities {
    pub options: ConnectionOptions,
    pub version: Version,
    /// The connection, if the request asks for another protocol.
    pub upgrade: Option<OnUpgrade>,
    pub request_end: RequestEnd,
}

/// Whether the client's request has been read to its end, or its body has timed out.
#[derive(Debug, Clone, Default)]
pub struct RequestEnd(Arc<RequestEndFlags>);

#[derive(Debug, Default)]
struct RequestEndFlags {
    reached: AtomicBool,
    timeout: OnceLock<BodyTimeoutError>,
}

impl RequestEnd {
    pub fn is_reached(&self) -> bool {
        self.0.reached.load(Ordering::Relaxed)
    }

    /// Why the body has timed out, if it has.
    pub fn timeout(&self) -> Option<BodyTimeoutError> {
        self.0.timeout.get().copied()
    }

    fn set_reached(&self) {
        self.0.reached.store(true, Ordering::Relaxed);
    }

    fn set_timeout(&self, error: BodyTimeoutError) {
        // A body that has failed is not polled again.
        let _ = self.0.timeout.set(error);
    }
}

impl ClientCapabilities {
    /// Whether the client can receive trailers after a body whose length is known (`has_known_length`) or not.
    pub fn accepts_trailers(&self, has_known_length: bool) -> bool {
        self.version == Version::HTTP_2
            || (self.options.trailers && self.version == Version::HTTP_11 && !has_known_length)
    }
}

/// The parts of an inference request's body that concern its span.
pub struct MeasuredBody {
    pub requested_model: RequestedModel,
    pub timer: BodyTimer,
}

/// Builds the request for `upstream`; `measured` reads the body of an inference request and limits its time.
///
/// # Errors
/// The base URL and the path together are no valid URL.
pub fn build_upstream_request(
    upstream: &BaseUrl,
    informational: Option<&InformationalSender>,
    mut request: Request<Incoming>,
    measured: Option<MeasuredBody>,
) -> Result<(Request<BoxBody>, ClientCapabilities), http::Error> {
    let version = request.version();
    let options = hop_by_hop::strip(request.headers_mut());
    let upgrade = options.upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let expects_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    let (gate, continue_sender) = match request.headers().get(header::EXPECT).is_some_and(expects_continue) {
        true => Some(ContinueGate::new()).unzip(),
        false => (None, None),
    };
    let (mut head, body) = request.into_parts();
    head.uri = upstream.request_uri(head.uri.path_and_query())?;
    head.version = Version::HTTP_11;
    hop_by_hop::set_connection_options(&mut head.headers, &options);
    head.headers.insert(header::HOST, upstream.host_header());
    join_cookies(&mut head.headers);
    let body = RequestBody::new(body, gate, measured);
    let request_end = body.end.clone();
    let body = body.boxed_unsync();
    let mut request = Request::from_parts(head, body);
    let continue_sender = Mutex::new(continue_sender);
    let informational = informational.cloned().filter(|_| version == Version::HTTP_11);
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            let continue_sender = continue_sender.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The send fails where the body was dropped already.
            let _ = continue_sender.map(|continue_sender| continue_sender.send(()));
        } else if let Some(informational) = &informational {
            let mut headers = response.headers().clone();
            hop_by_hop::strip(&mut headers);
            informational.send(response.status(), &headers);
        }
    });
    Ok((request, ClientCapabilities { options, version, upgrade, request_end }))
}

/// HTTP/2 allows several `Cookie` headers, HTTP/1.1 only one (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    const COOKIE: HeaderName = header::COOKIE;
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(values.join(&b"; "[..]))) {
        headers.insert(COOKIE, joined);
    }
}

/// How long the body waits for "100 Continue". Servers without support for it never send it.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The model that the request's body names, and the hash of its prompt.
#[derive(Clone)]
pub struct RequestedModel(Arc<Mutex<RequestScanner>>);

struct RequestScanner {
    model: JsonScanner,
    /// `None` where the hash is not wanted.
    prompt: Option<PromptHasher>,
}

impl RequestedModel {
    pub fn new(hash_prompt: bool) -> Self {
        let prompt = hash_prompt.then(PromptHasher::default);
        RequestedModel(Arc::new(Mutex::new(RequestScanner { model: JsonScanner::new(&["model"]), prompt })))
    }

    /// The name of the model, once the body has stated it.
    pub fn get(&self) -> Option<String> {
        let scanner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::from_slice(&scanner.model.get("model")?.text).ok()
    }

    /// The hash of the prompt, where it is wanted and the body has one.
    pub fn prompt_hash(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).prompt.as_ref()?.finish()
    }

    fn scan(&self, chunk: &[u8]) {
        let mut scanner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        scanner.model.feed(chunk);
        if let Some(prompt) = &mut scanner.prompt {
            prompt.feed(chunk);
        }
    }
}

impl MeasuredBody {
    /// Reads what arrived, or fails where a limit of its time has passed.
    fn observe(
        &mut self,
        polled: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>,
        cx: &mut Context<'_>,
    ) -> Result<(), BodyTimeoutError> {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                // HTTP/2 has data frames without a byte.
                if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
                    self.timer.reset();
                    self.requested_model.scan(data);
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => {
                if let Poll::Ready(error) = self.timer.poll_expired(cx) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Delays the body until "100 Continue" or [`CONTINUE_TIMEOUT`].
pub struct ContinueGate {
    /// `None` after the drop of the sender: the receiver must not be polled again then.
    received: Option<oneshot::Receiver<()>>,
    timeout: Pin<Box<Sleep>>,
}

impl ContinueGate {
    /// A gate and the sender that opens it.
    pub fn new() -> (Self, oneshot::Sender<()>) {
        let (continue_sender, received) = oneshot::channel();
        (
            ContinueGate {
                received: Some(received),
                timeout: Box::pin(tokio::time::sleep(CONTINUE_TIMEOUT)),
            },
            continue_sender,
        )
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(received) = &mut self.received {
            match Pin::new(received).poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                // The server sent a final response first, or speaks HTTP/2, of which hyper reports no informational
                // responses: the body continues after the timeout.
                Poll::Ready(Err(_)) => self.received = None,
                Poll::Pending => {}
            }
        }
        self.timeout.as_mut().poll(cx)
    }
}

/// The body of the request to the server.
pub struct RequestBody {
    inner: Incoming,
    gate: Option<ContinueGate>,
    measured: Option<MeasuredBody>,
    end: RequestEnd,
}

impl RequestBody {
    pub fn new(inner: Incoming, gate: Option<ContinueGate>, measured: Option<MeasuredBody>) -> Self {
        let end = RequestEnd::default();
        if inner.is_end_stream() {
            end.set_reached();
        }
        RequestBody { inner, gate, measured, end }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(gate) = &mut self.gate {
            match gate.poll(cx) {
                Poll::Ready(()) => self.gate = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Some(measured) = &mut self.measured
            && let Err(error) = measured.observe(&polled, cx)
        {
            self.end.set_timeout(error);
            return Poll::Ready(Some(Err(error.into())));
        }
        if matches!(polled, Poll::Ready(None)) || self.inner.is_end_stream() {
            self.end.set_reached();
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
